"""What agents and policies are to the rest of the toolkit: protocols, and what is optional in them.

Whatever acts is a `Policy`, whatever a controller acts in an `Agent`. What only some of them can do
is a protocol of its own here; nothing asks for classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from gps.types import Array, Layout, Rollouts


@runtime_checkable
class Policy(Protocol):
    """Whatever chooses actions in a rollout: a local controller or the global policy.

    A policy with an attribute `needs_images` that is true is given the pictures of this step as
    well, `act(x, obs, t, noise, images=images)` with uint8 (N, height, width, channels). With an
    attribute `wants_images` that is false, an agent with cameras may leave `Rollouts.images` out.

    A policy with an attribute `has_memory` that is true is given what it remembers, (N, size), and
    gives back actions and what it remembers next: `act(x, obs, t, noise, memory=memory)`. Before
    the first step that is its `memory0` (size,) in every row. An agent need not know: `acting`
    makes a Policy like any other of it.
    """

    def act(self, x: Array, obs: Array, t: int, noise: Array) -> Array:
        """Actions (N, nu) for states (N, nx), observations (N, no), unit-variance noise (N, nu)."""
        ...


@runtime_checkable
class Agent(Protocol):
    """The robot or simulator that executes a controller; Gymnasium calls it an environment.

    It has a fixed list of start conditions. These members are all that an agent needs; what some
    agents can do besides are protocols of their own: `HasImages`, `HasControlRange`,
    `HasObservationNoise`, `ChecksImages`, `WarmsUp`, `Stoppable`, and `Steppable` of
    `gps.agents.base`.
    """

    @property
    def layout(self) -> Layout:
        """Named entries of the state."""
        ...

    @property
    def obs_layout(self) -> Layout:
        """Named entries of the observation."""
        ...

    @property
    def T(self) -> int:
        """Steps of one rollout."""
        ...

    @property
    def dt(self) -> float:
        """Duration of one step in seconds."""
        ...

    @property
    def nu(self) -> int:
        """Action size."""
        ...

    @property
    def n_start(self) -> int:
        """Dimension of the unit-variance noise that disturbs a sample's start, and its parameters
        and observations where the agent does that; 0 for none."""
        ...

    @property
    def n_conditions(self) -> int:
        """Training conditions."""
        ...

    @property
    def n_test_conditions(self) -> int:
        """Conditions kept for evaluation."""
        ...

    def start_state(self, condition: int, *, test: bool = False) -> Array:
        """The undisturbed state (nx,) at which rollouts of `condition` start."""
        ...

    def rollout(
        self,
        policy: Policy,
        condition: int,
        noise: Array,
        start_noise: Array | None = None,
        *,
        test: bool = False,
    ) -> Rollouts:
        """Run one sample per row of `noise` (N, T, nu); `start_noise` is (N, n_start).

        `test` counts `condition` in the test conditions. Samples do not influence each other.
        Raises SimulationError with every failed sample (simulator warning, NaN, infinity).
        """
        ...


@runtime_checkable
class WarmsUp(Protocol):
    """An agent that compiles kernels, or loads what its first rollout would otherwise wait for."""

    def warm_up(self) -> None:
        """Do so now."""
        ...


@runtime_checkable
class Renders(Protocol):
    """An agent that can draw its rollouts."""

    def render(
        self,
        rollouts: Rollouts,
        sample: int,
        *,
        width: int,
        height: int,
        camera: str | int,
        every: int,
        test: bool,
    ) -> npt.NDArray[np.uint8]:
        """One image for every `every`-th step of a sample, (frames, height, width, 3)."""
        ...


@runtime_checkable
class ChecksRender(Renders, Protocol):
    """An agent that says before the rollouts what it could not draw."""

    def check_render(self, *, width: int, height: int, camera: str | int, test: bool) -> None:
        """ConfigError for a size, a camera or a machine with which `render` would fail."""
        ...


def image_shape_of(agent: Agent) -> tuple[int, int, int] | None:
    """Height, width and channels of the agent's images; None for an agent without cameras."""
    return agent.image_shape if isinstance(agent, HasImages) else None


@runtime_checkable
class HasImages(Protocol):
    """An agent whose observation may have images."""

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels; None without cameras."""
        ...


@runtime_checkable
class ChecksImages(Protocol):
    """An agent with cameras that finds out before the first rollout whether it can render."""

    def check_images(self) -> None:
        """GPSError where OpenGL is missing."""
        ...


@runtime_checkable
class HasControlRange(Protocol):
    """An agent whose actuators may have limits."""

    @property
    def control_range(self) -> tuple[npt.ArrayLike, npt.ArrayLike] | None:
        """Lowest and highest action, (nu,) each or one number for all; None if unknown."""
        ...


@runtime_checkable
class HasObservationNoise(Protocol):
    """An agent whose observation may differ from its state by noise."""

    @property
    def noisy_entries(self) -> tuple[str, ...]:
        """The observation entries that do."""
        ...


@runtime_checkable
class Stoppable(Protocol):
    """A robot with a safety stop."""

    def stop(self) -> None:
        """Stop all motion, from whatever thread, also during a rollout."""
        ...


@runtime_checkable
class BuildsAgent(Protocol):
    """The configuration of an agent."""

    def build(self) -> Agent:
        """Make the agent; ConfigError when the configuration cannot work."""
        ...


def control_range_of(agent: Agent) -> tuple[Array, Array] | None:
    """Lowest and highest action, (nu,) each and infinite without a limit; None if unknown."""
    limits = agent.control_range if isinstance(agent, HasControlRange) else None
    if limits is None:
        return None
    low, high = (np.array(np.broadcast_to(np.asarray(v, float), (agent.nu,))) for v in limits)
    return low, high


def needs_images(policy: object) -> bool:
    """Whether a policy's actions depend on pictures; see `Policy`."""
    return bool(getattr(policy, "needs_images", False))


def wants_images(policy: object) -> bool:
    """Whether somebody will look at the pictures of a policy's rollouts; see `Policy`."""
    return needs_images(policy) or bool(getattr(policy, "wants_images", True))


@dataclass(frozen=True)
class WithoutImages:
    """A policy that does not see, acting in rollouts whose pictures nobody will look at."""

    policy: Policy
    wants_images: ClassVar[bool] = False

    def act(self, x: Array, obs: Array, t: int, noise: Array) -> Array:
        """What the policy does."""
        return self.policy.act(x, obs, t, noise)


def has_memory(policy: object) -> bool:
    """Whether a policy's actions depend on earlier observations; see `Policy`."""
    return bool(getattr(policy, "has_memory", False))


def acting(policy: Any) -> Policy:
    """The policy as it acts in the rollouts of one call: one with memory carries it from step to
    step, a row for each sample, and begins anew at step 0; any other is given back as it is."""
    actor: Policy = _Remembering(policy) if has_memory(policy) else policy
    return actor


class _Remembering:
    """A policy and what it remembers of the rollouts under way."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self._memory: Array | None = None
        self.needs_images = needs_images(policy)

    def act(self, x: Array, obs: Array, t: int, noise: Array, **images: Any) -> Array:
        """See `Policy`."""
        if t == 0 or self._memory is None:
            self._memory = np.tile(self._policy.memory0, (len(obs), 1))
        u, self._memory = self._policy.act(x, obs, t, noise, memory=self._memory, **images)
        actions: Array = u
        return actions
