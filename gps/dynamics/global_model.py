"""One probabilistic model of the dynamics for all conditions, steps and iterations.

x[t+1] = g(x[t], u[t]) with a Gaussian process for each entry of the state, fitted to every
transition seen so far. What is known of the state beforehand (`StateStructure`) is not learned: an
angle enters by its sine and cosine, and a position that a velocity integrates to moves by the
trapezoidal rule, so that the processes learn velocities, and of positions only what the rule
leaves. Source: M. P. Deisenroth, C. E. Rasmussen, PILCO: A Model-Based and Data-Efficient Approach
to Policy Search, ICML 2011 (processes of differences, angles as sine and cosine).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

import numpy as np
import numpy.typing as npt

from gps.distributions.niw import StepwiseNIW
from gps.dynamics import gaussian_process
from gps.dynamics.gaussian_process import GaussianProcess, GaussianProcessConfig, Hyperparameters
from gps.errors import FitError, ShapeError
from gps.fields import Config, Positive, Range, Shape
from gps.types import Array, Record, Rollouts, StateStructure

__all__ = [
    "GlobalDynamics",
    "GlobalDynamicsConfig",
    "GlobalPriorConfig",
    "Transitions",
    "fit_global",
    "step_priors",
]


@dataclass(frozen=True, kw_only=True)
class GlobalDynamicsConfig(Config):
    """How the global model is fitted."""

    max_points: Annotated[int, Range(at_least=2)] = 1500
    """Transitions that the model keeps, the newest and of the older ones those that are farthest
    from each other; its time grows with the cube, its memory with the square."""
    process: GaussianProcessConfig = field(default_factory=GaussianProcessConfig)
    """The Gaussian processes."""


@dataclass(frozen=True, kw_only=True)
class GlobalPriorConfig(Config):
    """The global model as the prior of every condition's linear-Gaussian dynamics."""

    model: GlobalDynamicsConfig = field(default_factory=GlobalDynamicsConfig)
    """The model, of all conditions and iterations."""
    strength: Positive = 1.0
    """Samples that the prior is worth in the fit of one step."""


@dataclass(frozen=True, eq=False)
class Transitions(Record):
    """States X (n, nx) and actions U (n, nu), and the states X_next (n, nx) that follow."""

    X: Annotated[Array, Shape("n nx")]
    U: Annotated[Array, Shape("n nu")]
    X_next: Annotated[Array, Shape("n nx")]

    @staticmethod
    def of(rollouts: Rollouts, columns: npt.NDArray[np.intp] | None = None) -> Transitions:
        """All of some rollouts, sample by sample; columns: the entries of the state to take."""
        X, U = rollouts.X, rollouts.U
        X = X if columns is None else X[:, :, columns]
        parts = (X[:, :-1], U[:, :-1], X[:, 1:])
        return Transitions(*(np.array(p.reshape(-1, p.shape[2])) for p in parts))

    def joined(self, *others: Transitions) -> Transitions:
        """These, and then the others."""
        return Transitions(
            *(
                np.concatenate([getattr(t, name) for t in (self, *others)])
                for name in ("X", "U", "X_next")
            )
        )


@dataclass(frozen=True, eq=False)
class GlobalDynamics(Record):
    """Processes over transitions; a `gps.control.models.Model` whose steps are their means."""

    structure: StateStructure
    dt: float
    """Duration of a step, s."""
    transitions: Transitions
    """Those that the model is of, oldest first."""
    parameters: Hyperparameters | None = None
    """None before the first fit."""

    @staticmethod
    def unfitted(structure: StateStructure, nu: int, dt: float) -> GlobalDynamics:
        """The model before the first rollout."""
        nx = len(structure.velocity)
        return GlobalDynamics(structure, dt, Transitions(*(np.zeros((0, n)) for n in (nx, nu, nx))))

    @property
    def nx(self) -> int:
        """State size."""
        return self.transitions.X.shape[1]

    @property
    def nu(self) -> int:
        """Action size."""
        return self.transitions.U.shape[1]

    @cached_property
    def process(self) -> GaussianProcess:
        """Of what `changes` says, given `features`; FitError before the first fit."""
        if self.parameters is None:
            raise FitError("the global model has not been fitted to any transitions")
        t = self.transitions
        return GaussianProcess(
            features(t.X, t.U, self.structure),
            changes(t.X, t.X_next, self.structure, self.dt),
            self.parameters,
        )

    def step(self, x: Array, u: Array) -> Array:
        """Expected states (B, nx) after states (B, nx) and actions (B, nu); ShapeError."""
        self._require(x, u)
        return _after(x, self.process.mean(features(x, u, self.structure)), self.structure, self.dt)

    def _require(self, x: Array, u: Array) -> None:
        B = x.shape[:1]
        if x.shape != (*B, self.nx) or u.shape != (*B, self.nu):
            raise ShapeError(
                f"states and actions must be (B, {self.nx}) and (B, {self.nu}), got {x.shape} and "
                f"{u.shape}"
            )

    def rollout(
        self, X: Array, U: Array, k: Array, K: Array, sizes: Array, low: Array, high: Array
    ) -> tuple[Array, Array]:
        """See `gps.control.models.Model`."""
        B, (T, nx) = len(sizes), X.shape
        states, actions = np.empty((B, T, nx)), np.empty((B, T, U.shape[1]))
        states[:, 0] = X[0]
        ahead = U + sizes[:, None, None] * k
        with np.errstate(all="ignore"):
            for t in range(T):
                x = states[:, t]
                actions[:, t] = np.clip(ahead[:, t] + (x - X[t]) @ K[t].T, low[t], high[t])
                if t + 1 < T:
                    states[:, t + 1] = self.step(x, actions[:, t])
        return states, actions

    def jacobians(self, X: Array, U: Array) -> Array:
        """See `gps.control.models.Model`."""
        return self.linearised(X[:-1], U[:-1])[0]

    def variances(self, X: Array, U: Array) -> Array:
        """Variances (B, nx) of x[t+1] after states (B, nx) and actions (B, nu), for want of data;
        the noise of the data is not part of them."""
        return self._of_entries(self.process.variance(features(X, U, self.structure)))

    def _of_entries(self, variances: Array) -> Array:
        """Variances of the next state, or their slopes, from those of `changes`."""
        own = variances.copy()
        for i, j in enumerate(self.structure.velocity):
            if j >= 0:
                own[:, i] += (0.5 * self.dt) ** 2 * variances[:, j]
        return own

    def linearised(self, X: Array, U: Array) -> tuple[Array, Array, Array]:
        """At states (B, nx) and actions (B, nu): d x[t+1] / d [x; u] (B, nx, nz), `variances`
        (B, nx), and their derivatives (B, nx, nz)."""
        self._require(X, U)
        s, nx = self.structure, self.nx
        found = self.process.predict(features(X, U, s))
        slopes = _feature_slopes(X, U, s)
        F, doubt = found.mean_slope @ slopes, found.variance_slope @ slopes
        F[:, np.arange(nx), np.arange(nx)] += 1.0
        for i, j in enumerate(s.velocity):
            if j >= 0:
                F[:, i] += 0.5 * self.dt * F[:, j]
                F[:, i, j] += 0.5 * self.dt
        return F, self._of_entries(found.variance), self._of_entries(doubt)


def fit_global(
    model: GlobalDynamics, new: Transitions, config: GlobalDynamicsConfig | None = None
) -> GlobalDynamics:
    """The model of its own transitions and new ones.

    The search for hyperparameters begins at the model's. Nothing is drawn at random. Raises what
    `gaussian_process.fit` does, and ShapeError.
    """
    config = config or GlobalDynamicsConfig()
    if (new.X.shape[1], new.U.shape[1]) != (model.nx, model.nu):
        raise ShapeError(
            f"new transitions are of nx={new.X.shape[1]} and nu={new.U.shape[1]}, the model of "
            f"nx={model.nx} and nu={model.nu}"
        )
    every, structure = model.transitions.joined(new), model.structure
    chosen = spread_out(features(every.X, every.U, structure), config.max_points)
    t = Transitions(every.X[chosen], every.U[chosen], every.X_next[chosen])
    process = gaussian_process.fit(
        features(t.X, t.U, structure),
        changes(t.X, t.X_next, structure, model.dt),
        config.process,
        model.parameters,
    )
    return GlobalDynamics(structure, model.dt, t, process.parameters)


def step_priors(
    model: GlobalDynamics, X: Array, U: Array, least: Array, strength: float
) -> StepwiseNIW:
    """The model as the prior of a regression of x[t+1] on [x; u] at each step, worth `strength`
    samples.

    At the mean of the samples z = [x; u] of a step, with the model's slope F and the covariance S
    of z: mu0 = [z; g(z)], Psi / strength = [S, S F'; F S, F S F' + Q], Q diagonal, what the model
    says of its noise and its doubt. S is diagonal: the samples' variances, averaged over the steps,
    and the variances `least` (nx+nu,) at least. Source: J. Fu, S. Levine, P. Abbeel, One-Shot
    Learning of Manipulation Skills with Online Dynamics Adaptation and Neural Network Priors, IROS
    2016, section IV.
    X (N, T, nx), U (N, T, nu).
    """
    Z = np.concatenate([X[:, :-1], U[:, :-1]], axis=2)
    (_, Tp, nz), nx = Z.shape, X.shape[2]
    z = Z.mean(axis=0)
    F, variance, _ = model.linearised(z[:, :nx], z[:, nx:])
    S = np.maximum(Z.var(axis=0).mean(axis=0), least)
    FS = F * S
    Psi = np.zeros((Tp, nz + nx, nz + nx))
    Psi[:, np.arange(nz), np.arange(nz)] = S
    Psi[:, nz:, :nz], Psi[:, :nz, nz:] = FS, FS.transpose(0, 2, 1)
    Psi[:, nz:, nz:] = FS @ F.transpose(0, 2, 1)
    Psi[:, nz + np.arange(nx), nz + np.arange(nx)] += variance + model.process.noise**2
    mu0 = np.concatenate([z, model.step(z[:, :nx], z[:, nx:])], axis=1)
    return StepwiseNIW(mu0, strength * Psi, strength, strength)


def features(X: Array, U: Array, structure: StateStructure) -> Array:
    """What the processes see of states (B, nx) and actions (B, nu): the state with the cosines of
    its angles, then their sines, then the action."""
    turns = np.flatnonzero(structure.periodic)
    angles = X[:, turns]
    x = X.copy()
    x[:, turns] = np.cos(angles)
    return np.concatenate([x, np.sin(angles), U], axis=1)


def _feature_slopes(X: Array, U: Array, structure: StateStructure) -> Array:
    """d features / d [x; u], (B, D, nz)."""
    (B, nx), nu, turns = X.shape, U.shape[1], np.flatnonzero(structure.periodic)
    slopes = np.zeros((B, nx + len(turns) + nu, nx + nu))
    slopes[:, np.arange(nx), np.arange(nx)] = 1.0
    slopes[:, turns, turns] = -np.sin(X[:, turns])
    slopes[:, nx + np.arange(len(turns)), turns] = np.cos(X[:, turns])
    slopes[:, nx + len(turns) + np.arange(nu), nx + np.arange(nu)] = 1.0
    return slopes


def changes(X: Array, X_next: Array, structure: StateStructure, dt: float) -> Array:
    """What the processes learn: changes, of positions what the trapezoidal rule leaves."""
    Y = X_next - X
    for i, j in enumerate(structure.velocity):
        if j >= 0:
            Y[:, i] -= 0.5 * dt * (X[:, j] + X_next[:, j])
    return Y


def _after(X: Array, Y: Array, structure: StateStructure, dt: float) -> Array:
    """The states that follow X (B, nx) with changes Y (B, nx)."""
    after = X + Y
    for i, j in enumerate(structure.velocity):
        if j >= 0:
            after[:, i] += 0.5 * dt * (X[:, j] + after[:, j])
    return after


def spread_out(Z: Array, most: int) -> npt.NDArray[np.intp]:
    """Which of the points (n, D), at most `most`: the newest half, and of the others one after
    another that which is farthest from all chosen so far; in order."""
    n = len(Z)
    if n <= most:
        return np.arange(n)
    std = Z.std(axis=0)
    scaled = Z / np.where(std > 0, std, 1.0)
    chosen = list(range(n - most // 2, n))
    away = np.full(n, np.inf)
    for i in chosen:
        away = np.minimum(away, ((scaled - scaled[i]) ** 2).sum(axis=1))
    while len(chosen) < most:
        i = int(away.argmax())
        chosen.append(i)
        away = np.minimum(away, ((scaled - scaled[i]) ** 2).sum(axis=1))
    return np.array(sorted(chosen))
