"""A mass on a frictionless plane, pushed by a force: linear, exact, and fast enough for tests."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from gps.agents.base import (
    Failures,
    Limit,
    Seconds,
    SimulatedAgent,
    Simulation,
    Steps,
    check_noise,
    check_start_noise,
    drive,
    entry_indices,
    smooth_noise,
)
from gps.fields import Config, Finite, Items, NonNegative, Range, readonly
from gps.protocols import Policy
from gps.types import Array, Layout, LinearDynamics, Linearisation, Rollouts

LAYOUT = Layout((("position", 2), ("velocity", 2)))
Point = tuple[Finite, Finite]


@dataclass(frozen=True, kw_only=True)
class PointMassConfig(Config):
    """A point mass with viscous damping: mass dv/dt = force - damping v."""

    T: Steps = 50
    """Steps of one rollout."""
    dt: Seconds = 0.05
    """Duration of one step, in seconds; the force is constant during a step."""
    mass: Annotated[float, Range(above=0, unit="kg")] = 1.0
    """Mass in kg."""
    damping: NonNegative = 0.5
    """Viscous damping in N s/m."""
    force_limit: Annotated[float, Range(above=0, unit="N", finite=False)] | None = None
    """Bound on the absolute force along each axis, in N; None for none."""
    starts: Annotated[tuple[Point, ...], Items(some=True)] = (
        (1.0, 1.0),
        (1.0, -1.0),
        (-1.0, -1.0),
        (-1.0, 1.0),
    )
    """Start position of each training condition, in m; the mass starts at rest."""
    test_starts: tuple[Point, ...] = ()
    """Start positions kept for evaluation, in m."""
    start_position_std: NonNegative = 0.0
    """Standard deviation of the start position along each axis, in m."""
    start_velocity_std: NonNegative = 0.0
    """Standard deviation of the start velocity along each axis, in m/s."""
    obs: Annotated[tuple[Literal["position", "velocity"], ...], Items(some=True)] = (
        "position",
        "velocity",
    )
    """State entries of the observation, in order."""
    noise_sigma: NonNegative = 0.0
    """Width in steps of the Gaussian that smooths action noise over time; 0 leaves it white."""
    limit: Limit = 1e6
    """A sample whose state exceeds this in absolute value has failed."""

    def build(self, threads: int = 1) -> PointMassAgent:
        """The agent; `threads` is accepted as for other agents and has nothing to do here."""
        return PointMassAgent(self)


class PointMassAgent(SimulatedAgent[Point]):
    """Runs all samples of a rollout as one array, with the exact solution of every step."""

    def __init__(self, config: PointMassConfig) -> None:
        self.config = config
        rate = config.damping / config.mass
        decay = math.exp(-rate * config.dt)
        # int_0^dt exp(-rate s) ds and its own integral; the series is exact enough near rate = 0
        if rate * config.dt > 1e-4:
            reach = (1.0 - decay) / rate
            reach2 = (config.dt - reach) / rate
        else:
            h, r = config.dt, rate * config.dt
            reach = h * (1.0 - r / 2 + r * r / 6)
            reach2 = h * h * (1.0 / 2 - r / 6 + r * r / 24)
        self._decay, self._reach = decay, reach
        self._push_v, self._push_p = reach / config.mass, reach2 / config.mass
        self._obs_index = entry_indices(LAYOUT, config.obs)
        self._layout, self._obs_layout = LAYOUT, LAYOUT.select(config.obs)
        self._conditions = {False: config.starts, True: config.test_starts}

    @property
    def nu(self) -> int:
        """Two forces, in N."""
        return 2

    @property
    def n_start(self) -> int:
        """Four if starts are disturbed, else 0."""
        cfg = self.config
        return 4 if cfg.start_position_std > 0 or cfg.start_velocity_std > 0 else 0

    @property
    def control_range(self) -> tuple[Array, Array]:
        """Lowest and highest force along each axis, (2,) each; infinite without a limit."""
        limit = float(self.config.force_limit or math.inf)
        return np.full(2, -limit), np.full(2, limit)

    def step(self, x: Array, u: Array) -> Array:
        """The states after one step from states (..., 4) under forces (..., 2)."""
        p, v = x[..., :2], x[..., 2:]
        # element by element: a matrix product could round differently for another number of rows
        return np.concatenate(
            (p + self._reach * v + self._push_p * u, self._decay * v + self._push_v * u), axis=-1
        )

    def dynamics(self) -> LinearDynamics:
        """The true dynamics, x' = F [x; u], without noise and without the force limit."""
        eye, F = np.eye(2), np.zeros((4, 6))
        F[:2, :2], F[:2, 2:4], F[:2, 4:] = eye, self._reach * eye, self._push_p * eye
        F[2:, 2:4], F[2:, 4:] = self._decay * eye, self._push_v * eye
        S = self.T - 1
        return LinearDynamics(F=np.tile(F, (S, 1, 1)), f=np.zeros((S, 4)), W=np.zeros((S, 4, 4)))

    def linearise(self, condition: int, *, test: bool = False) -> Linearisation:
        """See `gps.protocols.Linearises`; the time is a quarter of a rollout, and 1 m is large."""
        x = np.concatenate((self._condition(condition, test=test), (0.0, 0.0)))
        F, time = self.dynamics().F[0], max(2.0, self.T / 4) * self.dt
        u_range = self.control_range[1]
        return Linearisation(
            x=x,
            u=np.zeros(2),
            F=F,
            f=np.zeros(4),
            x_scale=np.repeat((1.0, 1.0 / time), 2),
            u_scale=np.full(2, np.inf),
            u_range=u_range,
            layout=LAYOUT,
            dt=self.dt,
            response_time=time,
        )

    model_entries = LAYOUT.names
    """State entries that are the state of `known_model`, in its order."""

    def known_model(self, condition: int, models: Any, *, test: bool = False) -> Any:
        """The dynamics for planning, which are the same for all conditions.

        models: the module `gps.control.models`, which agents do not import.
        """
        self._condition(condition, test=test)
        F = self.dynamics().F[0]
        return models.NumpyModel(
            lambda x, u, t: self.step(x, u), 4, 2, lambda X, U, t: np.tile(F, (len(X), 1, 1))
        )

    def start_state(self, condition: int, *, test: bool = False) -> Array:
        """The undisturbed state (4,) at which rollouts of `condition` start."""
        return readonly(np.concatenate((self._condition(condition, test=test), (0.0, 0.0))))

    def rollout(
        self,
        policy: Policy,
        condition: int,
        noise: Array,
        start_noise: Array | None = None,
        *,
        test: bool = False,
    ) -> Rollouts:
        """See `gps.protocols.Agent`; the state is checked for NaN and against `limit`."""
        self._condition(condition, test=test)  # a wrong condition is reported before wrong noise
        noise = smooth_noise(check_noise(noise, self.T, 2), self.config.noise_sigma)
        run = self._run(condition, len(noise), start_noise, self.T, test=test)
        drive(run, policy, noise)
        return Rollouts(
            X=run.X, U=run.U, obs=run.obs, noise=noise, layout=LAYOUT, condition=condition
        )

    def simulation(self) -> Simulation:
        """A simulation of one sample that its owner steps; see `gps.agents.base.Simulation`."""
        return Simulation(lambda m, start_noise, test: self._run(m, 1, start_noise, 1, test=test))

    def _run(
        self, condition: int, N: int, start_noise: Array | None, rows: int, *, test: bool
    ) -> _Run:
        """N samples at their starts, with arrays for `rows` steps."""
        cfg, start = self.config, self.start_state(condition, test=test)
        x = np.tile(start, (N, 1))
        if self.n_start:
            std = np.repeat((cfg.start_position_std, cfg.start_velocity_std), 2)
            x += std * check_start_noise(start_noise, N, 4)
        return _Run(self, condition, start, x, rows)


class _Run:
    """N samples under way, and the arrays (N, rows, n) of their steps; one row when stepped."""

    def __init__(
        self, agent: PointMassAgent, condition: int, start: Array, x: Array, rows: int
    ) -> None:
        N, view = len(x), agent._obs_index
        self._config, self._step, self._view = agent.config, agent.step, view
        self._start, self._x, self._u = start, x, np.zeros((N, 2))
        self.X, self.U = np.empty((N, rows, 4)), np.empty((N, rows, 2))
        self.obs = np.empty((N, rows, len(view)))
        self.jacobians: dict[str, Array] = {}
        self.failures = Failures(condition)
        self.quiet = nullcontext

    def observe(self, t: int, row: int) -> bool:
        """Write the states and observations of step t into a row, and check them."""
        x, limit = self._x, self._config.limit
        good = np.abs(x) <= limit
        if not good.all():
            for i in np.flatnonzero(~good.all(axis=1)):
                self.failures.add(i, t, f"the state is NaN or left +-{limit:g}")
                x[i] = self._start
        self.X[:, row], self.obs[:, row] = x, x[:, self._view]
        return len(self.failures) < len(x)

    def apply(self, t: int, row: int, u: Array) -> bool:
        """Clip the actions (N, 2) of step t into a row."""
        good = np.isfinite(u)
        if not good.all():
            for i in np.flatnonzero(~good.all(axis=1)):
                self.failures.add(i, t, "the policy's action is NaN or infinite")
                u[i] = 0.0
        limit = self._config.force_limit
        if limit is not None:
            np.clip(u, -limit, limit, out=u)
        self._u = self.U[:, row] = u
        return len(self.failures) < len(u)

    def advance(self, t: int) -> bool:
        """Move to the next step."""
        self._x = self._step(self._x, self._u)
        return True
