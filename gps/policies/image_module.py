"""Networks of the user's that take images: a torch module of images and of the observation.

    class MyVision(torch.nn.Module):
        def __init__(self, no, nu, image_shape, channels):
            super().__init__()
            self.conv = torch.nn.Conv2d(image_shape[2], channels, 5, stride=2)
            self.last = torch.nn.LazyLinear(nu)

        def features(self, images):  # needed for the regression of a pose only: to (B, n)
            x = images.permute(0, 3, 1, 2).to(self.conv.weight.dtype) / 255.0
            return torch.relu(self.conv(x)).flatten(1)

        def forward(self, obs, images):  # (B, no) whitened, (B, H, W, C) uint8 to (B, nu)
            return self.last(torch.cat([obs, self.features(images)], dim=1))

    network = ImageModuleConfig(module=MyVision, arguments=(("channels", 8),))

The whole network is trained end to end on the policy's loss, on the CPU in float64. With `pose` it
is first trained to regress named state entries from the images, as with `VisionConfig`, by
`features` and a linear layer that the policy keeps for that purpose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol, Self, cast, runtime_checkable

import numpy as np

from gps.errors import ConfigError, GPSError
from gps.fields import Positive, Range
from gps.policies.module import UserModule
from gps.policies.neural import NetworkPolicy
from gps.policies.optimisation import freeze_tuples, minibatches
from gps.policies.policy import Sizes
from gps.policies.training import (
    POSE_FLOOR,
    BatchSize,
    Steps,
    TrainingConfig,
    TrainingData,
    TrainingResult,
    check_draws,
    whitening_std,
)
from gps.types import Array, Images

if TYPE_CHECKING:
    import torch


@runtime_checkable
class HasFeatures(Protocol):
    """A module of images that can be trained to regress a pose."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features (B, n) of images (B, height, width, channels), uint8."""
        ...


@dataclass(frozen=True, kw_only=True)
class ImageModuleConfig(UserModule):
    """A network of images that is a torch module of the user's.

    module(no, nu, image_shape, **arguments), where image_shape is (height, width, channels). Its
    forward maps whitened observations (B, no) and images (B, height, width, channels), uint8, to
    mean actions (B, nu), float64. For the rest `ModuleConfig` says what a module may do and where
    it must be defined.
    """

    pose: tuple[str, ...] = ()
    """State entries that the module's features learn to regress from the images before every
    training; empty for training on the policy's loss alone. Needs a method features(images)."""
    pose_first_steps: Annotated[int, Range(at_least=1, at_most=100_000_000)] = 500
    """Steps of the first training on the pose."""
    pose_steps: Steps = 100
    """Steps of each later one, which continues from the last weights."""
    pose_batch_size: BatchSize = 32
    """Images per step on the pose."""
    pose_rate: Positive = 3e-3
    """Adam's step size on the pose, which falls along half a cosine."""

    needs_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for steps in ("pose_first_steps", "pose_steps"):
            check_draws(self, steps, "pose_batch_size")

    def check(self, sizes: Sizes) -> None:
        """ConfigError unless the agent has images, and the pose entries."""
        super().check(sizes)
        self.check_pose(self.pose, sizes.layout)

    def initial_policy(self, sizes: Sizes, rng: np.random.Generator) -> ImageModulePolicy:
        """See `Network.initial_policy`."""
        self.check(sizes)
        return ImageModulePolicy.initial(self, sizes, rng)

    def features(self, network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        """The features (B, n) of images; ConfigError where the module has no such method."""
        import torch

        if not isinstance(network, HasFeatures):
            raise ConfigError(
                f"{self._shown} must have a method features(images) to be trained on a pose"
            )
        what = f"features of images {tuple(images.shape)}"
        out = self._call(what, network.features, images)
        if not isinstance(out, torch.Tensor) or out.dtype != torch.float64:
            kind = out.dtype if isinstance(out, torch.Tensor) else type(out).__name__
            raise ConfigError(f"{self._shown}: features must return a float64 tensor, got {kind}")
        return out

    def _checked(
        self, network: torch.nn.Module, sizes: Sizes, inputs: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """The actions; ConfigError where they do not depend on the images, or without features."""
        import torch

        obs, images = inputs
        (action,) = self._outputs(network, sizes, inputs)
        (other,) = self._outputs(network, sizes, (obs, 255 - images))
        if torch.equal(action, other):
            raise ConfigError(
                f"{self._shown}: the actions do not depend on the images; a network without "
                "images is named by ModuleConfig"
            )
        if self.pose:
            features = self.features(network, images)
            if features.dim() != 2 or len(features) != len(images):
                raise ConfigError(
                    f"{self._shown}: features must return (B, n) for images (B, H, W, C), got "
                    f"shape {tuple(features.shape)} for {len(images)} images"
                )
        return action


@dataclass(frozen=True, eq=False)
class ImageModulePolicy(NetworkPolicy):
    """u ~ N(action_mean + action_std network((obs - obs_mean) / obs_std, images), chol chol').

    Made by `initial_policy`.
    """

    pose: tuple[Array, ...] = ()
    """The regression of the pose on `features`: linear layer (k, n) and (k,), mean and standard
    deviation (k,) of the first training; empty before, and without a pose."""

    def __post_init__(self) -> None:
        super().__post_init__()
        freeze_tuples(self, "pose")

    @property
    def config(self) -> ImageModuleConfig:
        """The network's configuration."""
        return cast(ImageModuleConfig, self.network)

    def restarted(self, rng: np.random.Generator) -> Self:
        """With fresh weights; what was trained on a pose stays, as with `VisionConfig`."""
        fresh = super().restarted(rng)
        if not self.pose:
            return fresh
        weights = tuple(
            old if keep else new
            for old, new, keep in zip(self.weights, fresh.weights, self._kept(), strict=True)
        )
        return replace(fresh, weights=weights, pose=self.pose)

    def _kept(self) -> list[bool]:
        """Which of the weights `features` depend on."""
        import torch

        assert self.image_shape is not None
        network = self.built()
        blank = torch.zeros((1, *self.image_shape), dtype=torch.uint8)
        total = self.config.features(network, blank).sum()
        found = torch.autograd.grad(total, list(network.parameters()), allow_unused=True)
        return [g is not None for g in found]

    def fit(
        self, data: TrainingData, config: TrainingConfig, rng: np.random.Generator
    ) -> TrainingResult[Self]:
        """Train on the pose where there is one, then the whole network on the policy's loss."""
        policy = self._pose_trained(data, rng) if self.config.pose else self
        return NetworkPolicy.fit(policy, data, config, rng)

    def _pose_trained(self, data: TrainingData, rng: np.random.Generator) -> Self:
        """After a training on the pose; FitError."""
        import torch

        from gps.policies import _modules, _vision

        c, images = self.config, self._needed(data)
        truth = data.entries(c.pose)
        steps = c.pose_steps if self.pose else c.pose_first_steps
        if not steps:
            return self
        network = self.built()
        with torch.no_grad():
            n = c.features(network, torch.tensor(images[:1])).shape[1]
        layer = torch.nn.utils.skip_init(torch.nn.Linear, n, truth.shape[1], dtype=torch.float64)
        W, b, mean, std = self.pose or (
            rng.normal(size=(truth.shape[1], n)) / np.sqrt(n),
            np.zeros(truth.shape[1]),
            truth.mean(axis=0),
            whitening_std(truth, POSE_FLOOR),
        )
        _modules.set_parameters(layer, (W, b))
        batches = minibatches(data.n, steps, c.pose_batch_size, rng)
        regressor, cpu = _modules.PoseRegressor(network, layer), torch.device("cpu")
        _vision.train_pose(regressor, images, (truth - mean) / std, batches, c.pose_rate, cpu)
        W, b = _vision.parameters_of(layer)
        return replace(self, weights=_vision.parameters_of(network), pose=(W, b, mean, std))

    def predicted_pose(self, images: Images) -> Array:
        """The pose (n, k) regressed from images (n, H, W, C), in the state's units.

        Raises GPSError before a training on a pose.
        """
        import torch

        if not self.pose:
            raise GPSError("the network has not been trained on a pose")
        W, b, mean, std = self.pose
        with torch.no_grad():
            features = self.config.features(self.built(), torch.tensor(images)).numpy()
        pose: Array = (features @ W.T + b) * std + mean
        return pose
