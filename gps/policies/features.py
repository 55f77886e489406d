"""Policies that are a network on features: of a window of observations, or of images.

Source: the features extractors of Stable-Baselines3 (common/torch_layers.py), in front of any
network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from gps.policies.neural import NetworkPolicy
from gps.policies.policy import GlobalPolicy
from gps.types import Array


@dataclass(frozen=True, eq=False)
class FeaturePolicy(GlobalPolicy):
    """Base of the policies u ~ N(head(features), chol chol')."""

    head: NetworkPolicy

    @property
    def obs_entries(self) -> slice:
        """Where the observation itself is among the features."""
        raise NotImplementedError

    @property
    def nu(self) -> int:
        """Action size."""
        return self.head.nu

    @property
    def obs_mean(self) -> Array:
        """Mean of the observation, (no,), by which the head whitens it."""
        return self.head.obs_mean[self.obs_entries]

    @property
    def obs_std(self) -> Array:
        """Its standard deviation, (no,)."""
        return self.head.obs_std[self.obs_entries]

    @property
    def chol(self) -> Array:
        """Lower Cholesky factor of the action covariance, (nu, nu)."""
        return self.head.chol

    @property
    def trained(self) -> bool:
        """Whether it has been trained."""
        return self.head.trained

    @property
    def renormalises(self) -> bool:
        """Whether a further training takes the normaliser of its data."""
        return self.head.renormalises

    def restarted(self, rng: np.random.Generator) -> Self:
        """With a fresh head; what was learned about features stays."""
        return replace(self, head=self.head.restarted(rng))
