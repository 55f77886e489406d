"""What agents and policies are to the rest of the toolkit: protocols, also of what is optional.

Whatever acts is a `Policy`, whatever a controller acts in an `Agent`. Optional capabilities are
protocols of their own; nothing depends on classes.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from gps.types import Array, Images, Layout, Rollouts


@runtime_checkable
class Policy(Protocol):
    """Whatever chooses actions in a rollout: a local controller or the global policy.

    One whose actions depend on more than state and observation is a `UsesImages` or `UsesMemory`
    besides.
    """

    def act(self, x: Array, obs: Array, t: int, noise: Array) -> Array:
        """Actions (N, nu) for states (N, nx), observations (N, no), unit-variance noise (N, nu)."""
        ...


@runtime_checkable
class UsesImages(Protocol):
    """A policy that may need images: then `act` is given those of the step as well.

    `act(x, obs, t, noise, images=images)`, uint8 (N, height, width, channels).
    """

    @property
    def needs_images(self) -> bool:
        """Whether it does."""
        ...


@runtime_checkable
class UsesMemory(Protocol):
    """A policy that may have memory: then `act` is given that of the last step as well.

    `act(x, obs, t, noise, memory=memory)` returns actions and the memory for the next step, (N,
    size). `acting` makes a Policy like any other of it.
    """

    @property
    def has_memory(self) -> bool:
        """Whether it does."""
        ...

    @property
    def memory0(self) -> Array:
        """Memory of a sample before the first step, (size,)."""
        ...


@runtime_checkable
class Agent(Protocol):
    """A world that a controller can act in, with a fixed list of start conditions.

    A world with cameras has besides `image_shape`, (height, width, channels) of an observation's
    pictures; see `image_shape_of`. One whose actuators have limits has `control_range`, a pair of
    lowest and highest actions; see `control_range_of`.
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
        """Numbers of unit variance that a sample takes besides its actions' noise: they disturb its
        start, and its model and observations where the world does that; 0 for none."""
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


def image_shape_of(agent: Agent) -> tuple[int, int, int] | None:
    """Height, width and channels of the agent's pictures; None for a world without cameras."""
    shape: tuple[int, int, int] | None = getattr(agent, "image_shape", None)
    return shape


def control_range_of(agent: Agent) -> tuple[Array, Array] | None:
    """Lowest and highest action, (nu,) each and infinite where there is no limit; None where the
    agent does not say."""
    limits: tuple[npt.ArrayLike, npt.ArrayLike] | None = getattr(agent, "control_range", None)
    if limits is None:
        return None
    low, high = (np.array(np.broadcast_to(np.asarray(v, float), (agent.nu,))) for v in limits)
    return low, high


def needs_images(policy: object) -> bool:
    """Whether a policy's actions depend on images; see `UsesImages`."""
    return isinstance(policy, UsesImages) and policy.needs_images


def records_images(policy: object) -> bool:
    """Whether the images of a policy's rollouts are recorded: an agent with cameras may leave out
    those that its policy does not need, where `acting` was called with `records_images=False`."""
    return not isinstance(policy, Actor) or policy.records_images


def has_memory(policy: object) -> bool:
    """Whether a policy's actions depend on earlier observations; see `UsesMemory`."""
    return isinstance(policy, UsesMemory) and policy.has_memory


class Actor:
    """A policy in the rollouts of one call, as a Policy like any other.

    The memory of a policy that has one is carried from step to step, a row for each sample, and
    is reset at step 0. `act` takes images where `needs_images` is true.
    """

    def __init__(self, policy: Policy, records_images: bool = True) -> None:
        self.policy = policy
        self.needs_images = needs_images(policy)
        self.records_images = records_images or self.needs_images
        self._memory0 = policy.memory0 if has_memory(policy) else None  # type: ignore[attr-defined]
        self._memory: Array | None = None
        self._act: Any = policy.act

    def act(
        self, x: Array, obs: Array, t: int, noise: Array, images: Images | None = None
    ) -> Array:
        """See `Policy`."""
        given = {"images": images} if self.needs_images else {}
        if self._memory0 is None:
            actions: Array = self._act(x, obs, t, noise, **given)
            return actions
        if t == 0 or self._memory is None:
            self._memory = np.tile(self._memory0, (len(obs), 1))
        actions, self._memory = self._act(x, obs, t, noise, memory=self._memory, **given)
        return actions


def acting(policy: Policy, *, records_images: bool = True) -> Policy:
    """The policy as it acts in the rollouts of one call: an Actor if it has memory.

    records_images: whether the images of the rollouts are used by others than the policy.
    """
    if isinstance(policy, Actor):
        return policy if records_images else Actor(policy.policy, False)
    return Actor(policy, records_images) if has_memory(policy) or not records_images else policy
