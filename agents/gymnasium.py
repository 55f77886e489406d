"""The toolkit's agents as environments of gymnasium, which has to be installed to import this."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from numpy.typing import DTypeLike, NDArray

from gps.agents.base import Simulation, Steppable, check_condition
from gps.errors import ConfigError, GPSError, NonFiniteError, SimulationError, choices
from gps.fields import NonNegative, Positive, checked
from gps.protocols import Agent, Renders, control_limits_of
from gps.types import Array, CostTerms, Layout, Rollouts

_OPTIONS = ("condition", "test", "start_noise")


@runtime_checkable
class StepCost(Protocol):
    """What the environment needs of a cost; all costs of `gps.costs` have it."""

    def evaluate(self, rollouts: Rollouts) -> CostTerms:
        """Cost and derivatives at the samples."""
        ...

    def check(self, layout: Layout, nu: int, T: int) -> None:
        """Raise ConfigError if the cost cannot work on states of `layout` and `nu` actions."""
        ...


class Measure(Protocol):
    """What the environment needs of a measure of success, as `gps.costs.EndpointMeasure`."""

    def evaluate(self, rollouts: Rollouts) -> tuple[Array, NDArray[np.bool_]]:
        """Distance (N,) and success (N,) at step T-1."""
        ...

    def check(self, layout: Layout) -> None:
        """Raise ConfigError if the measure cannot work on states of `layout`."""
        ...


class AgentEnv(gymnasium.Env[NDArray[Any], NDArray[Any]]):
    """One sample of an agent, an episode of T steps; see `gps.agents.as_gymnasium`."""

    def __init__(
        self,
        agent: Agent,
        cost: StepCost,
        condition: int | None = None,
        *,
        test: bool = False,
        measure: Measure | None = None,
        action_bound: float = 10.0,
        failure_cost: float = 0.0,
        dtype: DTypeLike = np.float64,
        render_mode: str | None = None,
        width: int = 320,
        height: int = 240,
        camera: str | int = -1,
    ) -> None:
        self.agent, self.cost, self.measure = agent, cost, measure
        self._simulation = _simulation(agent)
        cost.check(agent.layout, agent.nu, agent.T)
        if measure is not None:
            measure.check(agent.layout)
        self._test, self._condition = bool(test), condition
        if self._count(self._test) < 1:
            raise ConfigError("as_gymnasium: test=True, but this agent has no test conditions")
        if condition is not None:
            check_condition(condition, self._count(self._test), test=self._test)
        if np.dtype(dtype) not in (np.dtype(np.float64), np.dtype(np.float32)):
            raise ConfigError(f"as_gymnasium: dtype must be float64 or float32, got {dtype!r}")
        self._failure_cost = float(checked(failure_cost, NonNegative, "as_gymnasium: failure_cost"))
        self._dtype = np.dtype(dtype).type
        low, high = _action_bounds(agent, action_bound)
        self.action_space = gymnasium.spaces.Box(
            low.astype(dtype), high.astype(dtype), dtype=self._dtype
        )
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (agent.obs_layout.size,), dtype=self._dtype
        )
        self._renders = agent if isinstance(agent, Renders) else None
        modes = [] if self._renders is None else ["rgb_array"]
        self.metadata = {"render_modes": modes, "render_fps": max(1, round(1 / agent.dt))}
        if render_mode is not None and render_mode not in modes:
            raise ConfigError(f"as_gymnasium: {choices('render_mode', render_mode, modes)}")
        self.render_mode = render_mode
        self._image: dict[str, Any] = {"width": width, "height": height, "camera": camera}
        self._record = _Record(agent)
        self._at = (0, False)  # the episode's condition, and whether it is a test condition
        self._t: int | None = None  # None: no episode is under way

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Draw a condition and the disturbance of its start, and begin there.

        options: `condition` and `test` choose the start in place of what the environment was made
        with; `start_noise` (n_start,) replaces the draw of the disturbance. Raises ConfigError,
        ShapeError, and SimulationError where the start itself cannot be simulated.
        """
        super().reset(seed=seed)
        given = dict(options or {})
        for name in given:
            if name not in _OPTIONS:
                raise ConfigError(f"options of reset: {choices('option', name, _OPTIONS)}")
        self._t = None
        test = bool(given.get("test", self._test))
        count = self._count(test)
        if count < 1:
            raise ConfigError("options of reset: test=True, but this agent has no test conditions")
        # both draws are always made: what is chosen by hand does not move the others
        drawn = int(self.np_random.integers(count))
        start_noise = self.np_random.standard_normal(self.agent.n_start)
        m = given.get("condition", self._condition if test == self._test else None)
        m = drawn if m is None else check_condition(m, count, test=test)
        if given.get("start_noise") is not None:
            start_noise = np.asarray(given["start_noise"], dtype=np.float64)
        self._simulation.reset(m, start_noise, test=test)
        self._at, self._t = (m, test), 0
        self._record.begin(m)
        self._record.see(0, self._simulation)
        self._obs = self._simulation.obs.astype(self._dtype)
        return self._obs.copy(), self._info()

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Apply an action for one control step: observation, reward, terminated, truncated, info.

        The reward is minus the cost of the state before the step and of the action as applied. A
        simulation that fails ends the episode: `terminated`, the last good observation once more,
        and the reason in `info["failure"]`. Raises ShapeError, NonFiniteError for a cost that is
        not finite, and GPSError outside an episode.
        """
        if self._t is None:
            raise GPSError("no episode is under way; call reset first")
        t, failure = self._t, None
        try:
            self._simulation.step(action)
        except SimulationError as error:
            failure = error
        reward = -self._record.cost(t, self._simulation.u, self.cost)
        last = t + 1 == self.agent.T
        if failure is not None:
            self._t = None
            info = self._info() | {"failure": failure.failures[0].reason}
            return self._obs.copy(), reward - self._failure_cost, True, False, info
        self._record.see(t + 1, self._simulation)
        self._obs = self._simulation.obs.astype(self._dtype)
        self._t = None if last else t + 1
        info = self._info()
        if last and self.measure is not None:
            distance, success = self.measure.evaluate(self._record.rollouts)
            info |= {"distance": float(distance[0]), "success": bool(success[0])}
        return self._obs.copy(), reward, False, last, info

    def render(self) -> NDArray[np.uint8] | None:
        """An image of the present state, (height, width, 3) uint8; None without render_mode.

        Raises GPSError before the first reset, and where the agent cannot draw (OpenGL is missing).
        """
        if self.render_mode is None or self._renders is None:
            return None
        m, test = self._at
        now = self._record.now(self._simulation, m)
        return self._renders.render(now, 0, test=test, every=1, **self._image)[0]

    def _count(self, test: bool) -> int:
        """Number of test or training conditions."""
        return self.agent.n_test_conditions if test else self.agent.n_conditions

    def _info(self) -> dict[str, Any]:
        m, test = self._at
        return {"condition": m, "test": test, "state": self._record.x.copy()}


class _Record:
    """A rollout that is being written: steps so far, and the newest repeated up to step T-1.

    A cost is evaluated at full length, for ramps and way-points depend on t and T; its step t is
    then the newest one's. The repetition keeps what is not there yet finite. Only the newest step
    has its Jacobians: no other step's matter, and zero columns cost no time.
    """

    def __init__(self, agent: Agent) -> None:
        self._layout, T, nx, nu = agent.layout, agent.T, agent.layout.size, agent.nu
        self._X, self._U = np.zeros((1, T, nx)), np.zeros((1, T, nu))
        self._nothing = np.zeros((1, T, 0))
        self._jacobians: dict[str, Array] = {}
        self.x = np.zeros(nx)

    def begin(self, condition: int) -> None:
        """Start over for a condition."""
        self._condition = condition

    def see(self, t: int, simulation: Simulation) -> None:
        """Take the state of step t; that of step T, which no rollout records, into `x` only."""
        self.x = simulation.x
        T = self._X.shape[1]
        if t == T:
            return
        self._X[0, t:] = self.x
        jacobians = simulation.jacobians
        if t == 0:
            self._jacobians = {name: np.zeros((1, T, *J.shape)) for name, J in jacobians.items()}
        for name, J in jacobians.items():
            self._jacobians[name][0, max(t - 1, 0)] = 0.0
            self._jacobians[name][0, t] = J
        if t == 0:
            self.rollouts = Rollouts(
                X=_view(self._X),
                U=_view(self._U),
                obs=_view(self._nothing),
                noise=np.zeros_like(self._U),
                layout=self._layout,
                condition=self._condition,
                jacobians={name: _view(J) for name, J in self._jacobians.items()},
            )

    def cost(self, t: int, u: Array, cost: StepCost) -> float:
        """The cost of step t with action u (nu,); NonFiniteError unless it is finite."""
        self._U[0, t:] = u
        value = float(cost.evaluate(self.rollouts).l[0, t])
        if not math.isfinite(value):
            raise NonFiniteError(f"the cost of step {t} is {value}; no reward can be made of it")
        return value

    def now(self, simulation: Simulation, condition: int) -> Rollouts:
        """One step, the present state, to be rendered."""
        x, nu = simulation.x, self._U.shape[2]
        none = np.zeros((1, 1, nu))
        return Rollouts(
            X=x[None, None],
            U=none,
            obs=simulation.obs[None, None],
            noise=none,
            layout=self._layout,
            condition=condition,
        )


def _view(array: Array) -> Array:
    """A read-only view, which a record takes without a copy: it shows what is written later."""
    view = array.view()
    view.flags.writeable = False
    return view


def _simulation(agent: object) -> Simulation:
    """A simulation of the agent's own; ConfigError where the agent has only whole rollouts."""
    if not isinstance(agent, Steppable):
        raise ConfigError(
            f"as_gymnasium: {type(agent).__name__} runs whole rollouts only; a method "
            "simulation() -> gps.agents.Simulation is missing, which lets it be stepped"
        )
    return agent.simulation()


def _action_bounds(agent: Agent, action_bound: float) -> tuple[Array, Array]:
    """The control range, with `action_bound` where it has no end; (nu,) each."""
    action_bound = checked(action_bound, Positive, "as_gymnasium: action_bound")
    low, high = control_limits_of(agent)
    low = np.where(np.isfinite(low), low, -action_bound)
    high = np.where(np.isfinite(high), high, action_bound)
    if not np.all(low < high):
        raise ConfigError(
            f"as_gymnasium: action_bound {action_bound:g} leaves no range: lowest controls {low}, "
            f"highest {high}"
        )
    return low, high
