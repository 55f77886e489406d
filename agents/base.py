"""What the agents share: checked inputs, observations by name, failed samples, smoothed noise,
and the simulation that is stepped from outside."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any, Generic, Protocol, SupportsInt, TypeVar, runtime_checkable

import numpy as np
from scipy.ndimage import gaussian_filter1d

from gps.errors import ConfigError, GPSError, SampleFailure, ShapeError, SimulationError
from gps.fields import Finite, Items, NonNegative, Range
from gps.protocols import Policy, acting
from gps.rng import stream
from gps.types import Array, Layout

Steps = Annotated[int, Range(at_least=2, at_most=100_000, unit="steps")]
"""Of a rollout; every array of it has a row for each."""
Seconds = Annotated[float, Range(above=0, unit="s")]
Limit = Annotated[float, Range(above=0, finite=False)]
Std = NonNegative | tuple[NonNegative, ...]
"""Standard deviation: one for all, or one each."""
Names = Annotated[tuple[str, ...], Items(some=True, distinct=True)]
Values = tuple[Finite, ...]
Seed = Annotated[int, Range(at_least=0, below=2**63)]


def require(ok: bool, config: object, field: str, rule: str, got: object) -> None:
    """Raise a ConfigError that names the class, the field, the rule and the value."""
    if not ok:
        raise ConfigError(f"{type(config).__name__}.{field} must be {rule}, got {got!r}")


def option_pairs(config: object, field: str, given: Any) -> tuple[tuple[str, Any], ...]:
    """(name, value) pairs as a hashable tuple; a dictionary is taken too. Raises ConfigError."""
    items = given.items() if isinstance(given, dict) else given
    try:
        pairs = tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in items)
        hash(pairs)
        good = all(isinstance(name, str) for name, _ in pairs)
    except (TypeError, ValueError):
        pairs, good = (), False
    require(good, config, field, "(name, value) pairs with values that hash", given)
    return pairs


def check_condition(condition: int, count: int, *, test: bool) -> int:
    """The condition's index, or a ShapeError with the range."""
    kind = "test condition" if test else "condition"
    try:
        index = operator.index(condition)
    except TypeError:
        raise ShapeError(f"a {kind} must be a whole number, got {condition!r}") from None
    if not 0 <= index < count:
        raise ShapeError(f"{kind} {index} does not exist; this agent has {count} of them")
    return index


def check_noise(noise: Array, T: int, nu: int) -> Array:
    """Action noise as a C-ordered float64 array (N, T, nu) with N >= 1 and finite values."""
    noise = np.ascontiguousarray(noise, dtype=np.float64)
    if noise.ndim != 3 or noise.shape[1:] != (T, nu) or noise.shape[0] < 1:
        raise ShapeError(f"noise must have shape (N, {T}, {nu}) with N >= 1, got {noise.shape}")
    if not np.isfinite(noise).all():
        raise ShapeError("noise must be finite; it holds NaN or infinity")
    return noise


def check_start_noise(start_noise: Array | None, N: int, n_start: int) -> Array:
    """Start noise as (N, n_start); None stands for no disturbance."""
    if start_noise is None:
        return np.zeros((N, n_start))
    start_noise = np.ascontiguousarray(start_noise, dtype=np.float64)
    if start_noise.shape != (N, n_start):
        raise ShapeError(f"start_noise must have shape {(N, n_start)}, got {start_noise.shape}")
    if not np.isfinite(start_noise).all():
        raise ShapeError("start_noise must be finite; it holds NaN or infinity")
    return start_noise


def check_actions(actions: Array, N: int, nu: int) -> Array:
    """What a policy returned, as an own float64 array (N, nu)."""
    actions = np.array(actions, dtype=np.float64, order="C")
    if actions.shape != (N, nu):
        raise ShapeError(f"the policy's actions must have shape {(N, nu)}, got {actions.shape}")
    return actions


def require_joint_pos(layout: Layout, what: str = "a rollout can only be drawn") -> None:
    """GPSError where a state does not say where the joints are."""
    if "joint_pos" not in layout.names:
        raise GPSError(f"{what} if joint_pos is in its state")


def start_seeds(count: int, seed: int, purpose: str) -> list[int]:
    """Seeds of starts, below 2**31; the first ones stay the same when `count` grows."""
    return [int(stream(seed, purpose, i).integers(2**31)) for i in range(count)]


def entry_indices(layout: Layout, names: Sequence[str]) -> np.ndarray:
    """Where the named entries lie in the state, in the given order, (n,) int64."""
    parts = [np.arange(s.start, s.stop) for s in map(layout.slice, names)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def smooth_noise(noise: Array, sigma: float, *, renormalise: bool = True) -> Array:
    """Noise (N, T, nu) smoothed along time by a Gaussian of standard deviation `sigma` steps.

    With `renormalise`, every sample's and action's noise is divided by its own standard deviation
    over time (its mean stays). Edges are reflected, the kernel is cut at 4 sigma. sigma = 0 gives
    the noise back. Smoothed noise is kinder to a real robot, but it is not the white noise that
    the algorithms assume: actions of neighbouring steps are correlated, and the action covariance
    of the controller no longer describes a trajectory's spread.
    Source: as generate_noise in cbfinn/gps, whose arrays are (T, nu).
    """
    if sigma <= 0:
        return noise
    smooth = gaussian_filter1d(noise, sigma, axis=1, mode="reflect", truncate=4.0)
    if renormalise:
        std = smooth.std(axis=1, keepdims=True)
        # a sample without any noise (the mean trajectory) stays at zero
        smooth = smooth / np.where(std > 0, std, 1.0)
    return np.ascontiguousarray(smooth)


class Failures:
    """The first thing that went wrong with each sample of one rollout.

    note: what holds for all of them, such as the time step of the simulation.
    """

    def __init__(self, condition: int, note: str = "") -> None:
        self.condition, self._note = condition, note
        self._first: dict[int, SampleFailure] = {}

    def add(self, sample: SupportsInt, t: int, reason: str) -> None:
        """Note a failure, unless this sample has failed before."""
        i = int(sample)
        self._first.setdefault(i, SampleFailure(i, t, reason))

    def __contains__(self, sample: int) -> bool:
        return sample in self._first

    def __len__(self) -> int:
        return len(self._first)

    def raise_if_any(self) -> None:
        """Raise SimulationError with all failed samples, in order; do nothing without any."""
        if self._first:
            failures = [self._first[i] for i in sorted(self._first)]
            raise SimulationError(self.condition, failures, self._note)


class Run(Protocol):
    """The samples of one condition while they run: what `rollout` and `Simulation` both drive.

    A step is `observe`, `apply` and `advance`, in this order; each returns whether any sample is
    left. `row` says where in the arrays the step is written.
    """

    X: Array
    U: Array
    obs: Array
    jacobians: dict[str, Array]  # name -> (N, rows, size, nx)
    failures: Failures

    @property
    def quiet(self) -> Callable[[], AbstractContextManager[None]]:
        """Makes the context in which the simulator's warnings go to the log."""
        ...

    def observe(self, t: int, row: int) -> bool:
        """Write the states and observations of step t, and check them."""
        ...

    def apply(self, t: int, row: int, u: Array) -> bool:
        """Clip and write the actions (N, nu) of step t; the next `advance` uses them."""
        ...

    def advance(self, t: int) -> bool:
        """Go from step t to step t + 1."""
        ...


class Simulation:
    """One sample of an agent, stepped from outside: the states and actions of `rollout`.

    `reset` first; then every `step` applies an action. Unlike a rollout it has no last step, so
    the state after the action of step T-1 can be observed too. Agents make one by `simulation()`;
    it shares no state with their rollouts or with other simulations. Not thread-safe.
    """

    def __init__(self, begin: Callable[[int, Array | None, bool], Run]) -> None:
        self._begin = begin
        self._run: Run | None = None
        self._t = 0

    def reset(
        self, condition: int, start_noise: Array | None = None, *, test: bool = False
    ) -> None:
        """Go to the start of a condition, disturbed by `start_noise` (n_start,) if it is given.

        Raises ShapeError, and SimulationError where the start itself cannot be simulated.
        """
        if start_noise is not None:
            start_noise = np.asarray(start_noise, dtype=np.float64)[None]
        self._run, self._t = None, 0
        run = self._begin(condition, start_noise, test)
        with run.quiet():
            run.observe(0, 0)
        run.failures.raise_if_any()
        self._run = run

    def step(self, u: Array) -> None:
        """Apply the action u (nu,), clipped as in a rollout, for one control step.

        Raises ShapeError, and SimulationError where a rollout would; then `reset` is due, and
        `u` is still the action as applied.
        """
        run, t = self._running(), self._t
        run.failures.raise_if_any()
        u = check_actions(np.asarray(u, dtype=np.float64)[None], 1, run.U.shape[-1])
        with run.quiet():
            # the row of step t is written over by step t + 1
            _ = run.apply(t, 0, u) and run.advance(t) and run.observe(t + 1, 0)
        run.failures.raise_if_any()
        self._t = t + 1

    @property
    def t(self) -> int:
        """Steps since the reset."""
        return self._t

    @property
    def x(self) -> Array:
        """The state (nx,), a copy."""
        return self._running().X[0, 0].copy()

    @property
    def u(self) -> Array:
        """The last action (nu,) as applied, after clipping, a copy."""
        return self._running().U[0, 0].copy()

    @property
    def obs(self) -> Array:
        """The observation (no,), a copy."""
        return self._running().obs[0, 0].copy()

    @property
    def jacobians(self) -> Mapping[str, Array]:
        """d entry / dx of this step's state, name -> (size, nx), copies; as in `Rollouts`."""
        return {name: J[0, 0].copy() for name, J in self._running().jacobians.items()}

    def _running(self) -> Run:
        if self._run is None:
            raise GPSError("the simulation has no start yet; call reset first")
        return self._run


@runtime_checkable
class Steppable(Protocol):
    """An agent that can be stepped from outside, as `gps.agents.as_gymnasium` does."""

    def simulation(self) -> Simulation:
        """A simulation of one sample that its caller steps."""
        ...


def drive(run: Run, policy: Policy, noise: Array) -> None:
    """A rollout of T steps with action noise (N, T, nu), written into the run's arrays.

    Raises ShapeError for actions of another shape, and SimulationError with all failed samples.
    """
    (N, T, nu), policy = noise.shape, acting(policy)
    with run.quiet():
        for t in range(T):
            if not run.observe(t, t):
                break
            # copies: the policy must not change the record
            u = policy.act(run.X[:, t].copy(), run.obs[:, t].copy(), t, noise[:, t].copy())
            if not run.apply(t, t, check_actions(u, N, nu)):
                break
            if t + 1 < T and not run.advance(t):
                break
    run.failures.raise_if_any()


C = TypeVar("C")


class SimulatedAgent(Generic[C]):
    """The members of `gps.protocols.Agent` that follow from a configuration and its conditions."""

    config: Any
    """With T, dt, noise_sigma and noise_renormalise."""
    _layout: Layout
    _obs_layout: Layout
    _conditions: Mapping[bool, Sequence[C]]
    """What the conditions, and those of the test (True), start with."""

    @property
    def layout(self) -> Layout:
        """The state entries."""
        return self._layout

    @property
    def obs_layout(self) -> Layout:
        """The observation entries."""
        return self._obs_layout

    @property
    def T(self) -> int:
        """Steps of one rollout."""
        steps: int = self.config.T
        return steps

    @property
    def dt(self) -> float:
        """Duration of one step in seconds."""
        seconds: float = self.config.dt
        return seconds

    @property
    def n_conditions(self) -> int:
        """Training conditions."""
        return len(self._conditions[False])

    @property
    def n_test_conditions(self) -> int:
        """Conditions kept for evaluation."""
        return len(self._conditions[True])

    def _condition(self, condition: int, *, test: bool) -> C:
        """What a condition starts with; ShapeError where it does not exist."""
        some = self._conditions[test]
        return some[check_condition(condition, len(some), test=test)]

    def _start_stds(self, nv: int, of: str) -> Array:
        """Standard deviations of start positions and velocities, (2 nv,); ConfigError for sizes.

        of: whose velocities these are, in the message.
        """
        cfg, parts = self.config, []
        for field, std in (
            ("start_qpos_std", cfg.start_qpos_std),
            ("start_qvel_std", cfg.start_qvel_std),
        ):
            part = np.array(std if np.ndim(std) else (std,) * nv, dtype=np.float64)
            if part.shape != (nv,):
                raise ConfigError(
                    f"{type(cfg).__name__}.{field} must have {nv} values, one per velocity of "
                    f"{of}, got {part.size}"
                )
            parts.append(part)
        return np.concatenate(parts)

    def _smooth(self, noise: Array, nu: int) -> Array:
        """Checked action noise (N, T, nu), smoothed as the configuration says."""
        cfg, noise = self.config, check_noise(noise, self.config.T, nu)
        return smooth_noise(noise, cfg.noise_sigma, renormalise=cfg.noise_renormalise)
