"""What agents and policies are to the rest of the toolkit: protocols, also of what is optional.

Whatever acts is a `Policy`, whatever a controller acts in an `Agent`. Optional capabilities are
protocols of their own; nothing depends on classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from gps.errors import ShapeError
from gps.fields import numbers
from gps.types import (
    Array,
    Images,
    Layout,
    LinearGaussianController,
    Linearisation,
    Rollouts,
    StateStructure,
)


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
    """The robot or simulator that executes a controller; Gymnasium calls it an environment.

    It has a fixed list of start conditions. These members are all that an agent needs; what some
    agents can do besides are protocols of their own: `HasImages`, `HasControlRange`,
    `NamesActions`, `HasObservationNoise`, `ChecksImages`, `Linearises`, `KnownDynamics`, `WarmsUp`,
    `Stoppable`, and `Steppable` of `gps.agents.base`.
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
class NamesActions(Protocol):
    """An agent that knows what its actions are called."""

    @property
    def action_names(self) -> tuple[str, ...]:
        """The actuator, or whatever else it moves, of each action, (nu,)."""
        ...


def action_names_of(agent: Agent) -> tuple[str, ...]:
    """A name of each action, (nu,): the agent's own, or `action 0`, `action 1`, ..."""
    if isinstance(agent, NamesActions):
        return tuple(agent.action_names)
    return tuple(f"action {i}" for i in range(agent.nu))


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
    """Lowest and highest action, (nu,) each and infinite without a limit; None if unknown.

    Raises ShapeError for anything else.
    """
    limits = agent.control_range if isinstance(agent, HasControlRange) else None
    if limits is None:
        return None
    name = f"{type(agent).__name__}.control_range"
    ends = [numbers(end, name) for end in limits]
    if len(ends) != 2 or any(end.shape not in ((), (1,), (agent.nu,)) for end in ends):
        shapes = ", ".join(str(end.shape) for end in ends)
        raise ShapeError(
            f"{name} must be two arrays, the lowest and the highest of {agent.nu} actions, got "
            f"shapes {shapes}"
        )
    low, high = (np.array(np.broadcast_to(end, (agent.nu,))) for end in ends)
    return low, high


def control_limits_of(agent: Agent) -> tuple[Array, Array]:
    """Lowest and highest action, (nu,) each; infinite without a limit, or where it is unknown."""
    return control_range_of(agent) or (np.full(agent.nu, -np.inf), np.full(agent.nu, np.inf))


@runtime_checkable
class KnownDynamics(Protocol):
    """An agent whose dynamics are known, so that a controller can be planned with them."""

    @property
    def model_entries(self) -> tuple[str, ...]:
        """Names of the state entries that make up the state of `known_model`, in its order."""
        ...

    def known_model(self, condition: int, models: Any) -> Any:
        """The dynamics from one training condition: a `gps.control.models.Model`.

        models: the module `gps.control.models`, which agents do not import.
        """
        ...


@runtime_checkable
class DerivedState(KnownDynamics, Protocol):
    """An agent with known dynamics whose state has more entries than the model's."""

    def whole_states(self, condition: int, states: Array) -> tuple[Array, dict[str, Array]]:
        """The agent's states (S, nx) at states of the model (S, ns), and d entry / d state of the
        other entries by their names, (S, size, nx)."""
        ...


Predict = Callable[[LinearGaussianController, Array], Array]
"""States (N, T, nx) of a controller under noise (N, T, nu) on a model that the agent knows; raises
SimulationError."""


@runtime_checkable
class Linearises(Protocol):
    """An agent that can linearise its own dynamics about a start."""

    def linearise(self, condition: int, *, test: bool = False) -> Linearisation:
        """One control step about the start of a condition at rest, and the action that holds it.

        SimulationError where a simulation near the start fails.
        """
        ...


@runtime_checkable
class HasStateStructure(Protocol):
    """An agent that knows which entries of its state are angles, and which integrate others."""

    @property
    def state_structure(self) -> StateStructure:
        """Of all entries of the state."""
        ...


def state_structure_of(agent: Agent) -> StateStructure:
    """The agent's; of one that says none, that nothing is known."""
    if isinstance(agent, HasStateStructure):
        return agent.state_structure
    return StateStructure.unknown(agent.layout.size)


@runtime_checkable
class UsesLinearisation(Protocol):
    """A configuration of initial controllers that can be made from a linearisation."""

    @property
    def wants_linearisation(self) -> bool | None:
        """True: it needs one; None: it takes one if there is any; False: it takes none."""
        ...

    @property
    def assumption(self) -> str:
        """What it assumes without one, for the log."""
        ...

    def linearised(
        self, linearisation: Linearisation, T: int, predict: Predict | None = None
    ) -> LinearGaussianController:
        """The controller for T steps; `predict` rolls controllers out on the agent's own model."""
        ...


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


# --- what plots and scenes show of a cost, a measure, an agent, a policy --------------------------


@runtime_checkable
class HasEntry(Protocol):
    """A cost or measure of one entry of the state."""

    @property
    def entry(self) -> str | None:
        """Name of the state entry; None for the whole of [x; u]."""
        ...


@runtime_checkable
class HasTarget(HasEntry, Protocol):
    """A cost or measure with a target for its state entry."""

    @property
    def target(self) -> npt.ArrayLike:
        """One number for each value of the entry, or one for all."""
        ...


@runtime_checkable
class HasWaypoints(HasEntry, Protocol):
    """A cost with successive targets for its state entry."""

    @property
    def targets(self) -> Iterable[npt.ArrayLike]:
        """One row per way-point."""
        ...

    @property
    def matrices(self) -> Any:
        """What the entry is multiplied by before it is compared with the targets; None: nothing."""
        ...


@runtime_checkable
class HasObstacles(HasEntry, Protocol):
    """A cost or measure with balls that points of its state entry must not enter."""

    @property
    def avoid(self) -> Iterable[Sequence[float]]:
        """Centre, in the entry's coordinates, and radius of each."""
        ...


@runtime_checkable
class HasTerms(Protocol):
    """A weighted sum of costs."""

    @property
    def terms(self) -> Sequence[CostTerm]:
        """The costs, each with its weight."""
        ...


@runtime_checkable
class CostTerm(Protocol):
    """One term of a weighted sum of costs."""

    @property
    def cost(self) -> Any:
        """A `gps.costs.Cost`."""
        ...

    @property
    def weight(self) -> float:
        """Its factor."""
        ...


@runtime_checkable
class KeepsFiles(Protocol):
    """A configuration that is made of files, or of what a function makes: a run keeps them.

    So the run can be resumed where they have changed or are gone, and workers have them that cannot
    read them. `gps.kept_files.KeptFiles.of` makes what stands in the places of the files' names.
    """

    def with_kept_files(self) -> Any:
        """The same configuration with `KeptFiles` in the place of every name of a file.

        Raises ConfigError where one cannot be read.
        """
        ...


@runtime_checkable
class HasCameras(Protocol):
    """The configuration of an agent with cameras."""

    @property
    def cameras(self) -> Sequence[str]:
        """Names of the cameras, in the order of the images' channels, three each."""
        ...


@runtime_checkable
class VisualModel(Protocol):
    """A MuJoCo model that looks like an agent, and the map from the agent's states to its pose."""

    @property
    def model(self) -> Any:
        """A mujoco.MjModel; the caller's own copy."""
        ...

    def data(self) -> Any:
        """A mujoco.MjData for `set_state`."""
        ...

    def set_state(self, data: Any, x: Array) -> None:
        """Set the pose of all bodies, geoms, sites and cameras in `data` to that of x (nx,)."""
        ...


@runtime_checkable
class HasVisualModel(Protocol):
    """An agent that may have visual models."""

    def visual_model(self, condition: int, *, test: bool = False) -> VisualModel:
        """That of a condition; GPSError where there is none."""
        ...


def visual_model_of(agent: Agent, condition: int, *, test: bool = False) -> VisualModel | None:
    """The visual model of a condition; None for an agent that is no `HasVisualModel`.

    Raises GPSError where the agent has one but cannot give it.
    """
    if not isinstance(agent, HasVisualModel):
        return None
    return agent.visual_model(condition, test=test)
