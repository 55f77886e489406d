"""Gaussian mixtures fitted by expectation maximisation (EM), made for nearly collinear points.

The covariance floor is part of what is maximised. A covariance is never estimated as the weighted
scatter S alone but as S + E, and adding E by itself can lower the likelihood. E is diagonal: a
share eps of the variance of each coordinate over all points (eps itself, in the points' own units,
where they are not standardised). The fit maximises, per point,

    log sum_j w_j N(x; mean_j, cov_j) exp(-1/2 tr(E cov_j^-1)),

each component's density being the geometric mean of N over points known up to noise of covariance
E. For it S + E is the exact M-step and the E-step uses the same factor; hence each EM iteration
raises it or leaves it. Where every variance is far above E it is the log-likelihood.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt

from gps.distributions import _kernels
from gps.errors import FitError, NonFiniteError, ShapeError
from gps.fields import Config, Count, NonNegative, Positive, Shape
from gps.types import Array, Layout, Record

log = logging.getLogger(__name__)

NEVER = 1e-20
"""Spread of a coordinate that has always been 0: beside any other it adds nothing to a variance."""
ROUNDING = 1e-7
"""Share of its entry's size, `entry_sizes`, below which the spread of a value is that of rounding
and of a contact solver's tolerance: an object at rest moves by 1e-11 of a metre and 1e-9 of a
radian."""


@dataclass(frozen=True, eq=False)
class Mixture(Record):
    """sum_j exp(log_weight[j]) N(mean[j], cov[j])."""

    mean: Annotated[Array, Shape("J D")]
    cov: Annotated[Array, Shape("J D D")]
    log_weight: Annotated[Array, Shape("J")]
    """Natural logarithm; the weights sum to 1."""

    @property
    def J(self) -> int:
        """Number of components."""
        return self.mean.shape[0]

    @property
    def D(self) -> int:
        """Size of a point."""
        return self.mean.shape[1]


@dataclass(frozen=True, kw_only=True)
class GMMConfig(Config):
    """How a mixture is fitted."""

    max_iterations: Count = 50
    """Maximum number of EM iterations."""
    tol: NonNegative = 1e-3
    """Stop when the mean objective per point rises by no more than tol * max(1, |objective|). Each
    fit of a prior starts from the last one, so that little is gained by less; on held-out rollouts
    of a simulated arm 1e-3 predicted better than 1e-5, which fits small clusters too closely."""
    covariance_floor: Positive = 1e-6
    """Added to every variance, as a share of that of all points."""
    standardise: bool = True
    """Work in units of each coordinate's spread over all points, so that no unit matters. False: in
    the points' own units, in which the floor then counts; for coordinates whose spread so far says
    little of what is to come, as of a door that has hardly been moved."""
    dead_mass: NonNegative = 0.5
    """A component that explains fewer points than this is re-seeded; 0 never does."""


@dataclass(frozen=True, eq=False)
class GMMFit(Record):
    """A fitted mixture and how the fit went."""

    mixture: Mixture
    log_likelihood: Annotated[Array, Shape("n+1")]
    """Mean per point of the objective above, in nats: first at the start, last of
    the returned mixture; it never falls, up to rounding."""
    reseeded: int
    """Components that died and were re-seeded with success."""


class _EM:
    """Points, parameters and workspace of one mixture; the points are centred for accuracy, and in
    units of `scale` (D,). Distances between them are counted in `spread` (D,) of these units."""

    def __init__(
        self,
        points: Array,
        J: int,
        floor: float,
        scale: Array | float = 1.0,
        spread: Array | float = 1.0,
    ) -> None:
        n, D = points.shape
        self.n, self.D, self.J, self.floor = n, D, J, floor
        self.centre = points.mean(axis=0)
        self.scale, self.spread = np.broadcast_to(scale, (D,)), spread
        self.points = points - self.centre
        self.points /= self.scale
        b = D if D <= 2 * _kernels.LEAD else _kernels.LEAD
        self.lead = np.ascontiguousarray(self.points[:, :b])
        self.mean, self.cov = np.zeros((J, D)), np.zeros((J, D, D))
        self.log_weight, self.const = np.zeros(J), np.zeros(J)
        self.inv_t = np.empty((J, D, D))
        self.resp = np.empty((n, J))
        self.guess = np.full(n, -1)
        self.mass = np.empty(J)
        self.diff, self.white = np.empty(n * D), np.empty(n * D)
        self.rows, self.low = np.empty(n, dtype=np.int64), np.empty(n)
        self.square = np.empty((D, D))
        self.lead_diff, self.lead_white = np.empty((n, b)), np.empty((n, b))

    def load(self, mixture: Mixture) -> None:
        """Take a mixture's parameters; its components fill the first columns.

        Variances below the floor, of what varies now and did not before, are raised to it.
        """
        J = mixture.J
        self.mean[:J] = (mixture.mean - self.centre) / self.scale
        self.cov[:J] = mixture.cov / np.outer(self.scale, self.scale)
        diagonal = np.einsum("jdd->jd", self.cov[:J])  # a view
        np.maximum(diagonal, self.floor, out=diagonal)
        self.log_weight[:J] = mixture.log_weight
        self.log_weight[J:] = -np.inf

    def expect(self) -> float:
        """E-step into `resp`; returns the mean objective per point, in units of `scale`."""
        status = _kernels.whitening(
            self.cov, self.floor, self.log_weight, self.square, self.inv_t, self.const
        )
        if status:
            raise FitError(
                f"covariance of mixture component {status - 1} of {self.J} has no Cholesky factor;"
                " raise GMMConfig.covariance_floor"
            )
        work = (self.diff, self.white, self.lead_diff, self.lead_white, self.rows, self.low)
        _kernels.log_joint(
            self.points, self.lead, self.mean, self.inv_t, self.const, self.guess, work, self.resp
        )
        return float(_kernels.normalise(self.resp, self.guess)) / self.n

    def maximise(self) -> None:
        """M-step from `resp`."""
        work = (self.diff, self.white, self.square.reshape(-1), self.rows, self.low)
        _kernels.maximise(self.points, self.resp, self.floor, work, self.mean, self.cov, self.mass)
        self.log_weight[:] = np.log(np.maximum(self.mass, 1e-300) / self.n)

    def split_heaviest(self, empty: int) -> None:
        """Give the empty component half of the heaviest one's points, cut across its long axis."""
        mass = self.resp.sum(axis=0)
        heavy = int(np.argmax(mass))
        own = np.flatnonzero(self.resp[:, heavy])
        w = self.resp[own, heavy]
        Z = self.points[own] / self.spread
        Z -= (w @ Z) / mass[heavy]
        axis = np.linalg.eigh((Z * w[:, None]).T @ Z)[1][:, -1]
        along = Z @ axis
        side = along > 0
        if not (w[side].sum() > 0 and w[~side].sum() > 0):
            side = np.arange(own.size) % 2 == 0  # copies of one point: any cut will do
        self.resp[:, empty] = 0.0
        self.resp[own[side], empty] = w[side]
        self.resp[own[side], heavy] = 0.0

    def reseed(self, dead: npt.NDArray[np.int64]) -> None:
        """Empty the dead components, then fill each with half of the heaviest other one."""
        self.resp[:, dead] = 0.0
        total = self.resp.sum(axis=1)
        lost = total < 1e-6  # points that only a dead component explained
        self.resp[lost] = 0.0
        self.resp[lost, int(np.argmax(self.resp.sum(axis=0)))] = 1.0
        self.resp /= self.resp.sum(axis=1)[:, None]
        for j in dead:
            self.split_heaviest(int(j))

    def mixture(self) -> Mixture:
        """The parameters as a record, which takes over the covariances: the end of a fit."""
        w = self.log_weight - np.log(np.exp(self.log_weight).sum())
        self.cov *= np.outer(self.scale, self.scale)
        self.cov.setflags(write=False)
        return Mixture(self.mean * self.scale + self.centre, self.cov, w)


def fit(
    points: npt.ArrayLike,
    n_components: int,
    config: GMMConfig,
    rng: np.random.Generator,
    warm: Mixture | None = None,
    sizes: Array | None = None,
) -> GMMFit:
    """Fit a mixture to points (n, D) by EM on the objective in this module's docstring.

    A cold start draws centres by k-means++ on standardised points and gives all components the
    common within-cluster covariance. `warm` starts from a mixture of the same D: with fewer
    components than asked, the heaviest ones are split in two until there are enough; with more,
    the lightest are dropped. A component that dies is re-seeded by splitting the heaviest one; if
    that lowers the objective it is undone, and no other is tried in this fit. sizes: see `spread`.
    Raises FitError, NonFiniteError, ShapeError.
    """
    Y = _points(points)
    n, D = Y.shape
    if not 1 <= n_components <= n:
        raise FitError(
            f"{n} points cannot carry {n_components} mixture components;"
            " use more samples or fewer components"
        )
    if warm is not None and warm.D != D:
        raise ShapeError(f"warm mixture is over points of size {warm.D}, the points have {D}")
    size = spread(Y, sizes=sizes)
    scale = size if config.standardise else np.ones(D)
    em = _EM(Y, n_components, config.covariance_floor, scale, size / scale)
    if warm is None:
        _seed(em, rng)
    else:
        _resume(em, warm)
    trace = [em.expect()]
    reseeded, may_reseed = 0, config.dead_mass > 0
    for _ in range(config.max_iterations):
        saved = None
        dead = np.flatnonzero(em.resp.sum(axis=0) < config.dead_mass) if may_reseed else None
        if dead is not None and 0 < dead.size < em.J:
            saved = em.mean.copy(), em.cov.copy(), em.log_weight.copy(), em.resp.copy()
            em.reseed(dead)
        em.maximise()
        value = em.expect()
        if saved is not None and dead is not None:
            if value < trace[-1]:
                log.debug("re-seeding component(s) %s lowered the likelihood: undone", dead)
                may_reseed = False
                em.mean, em.cov, em.log_weight, em.resp = saved
                em.maximise()
                value = em.expect()
            else:
                reseeded += dead.size
                log.info("mixture component(s) %s of %d died and were re-seeded", dead, em.J)
        trace.append(value)
        if saved is None and trace[-1] - trace[-2] <= config.tol * max(1.0, abs(trace[-1])):
            break
    log.debug(
        "mixture of %d on %d points of size %d: %d iterations, %.6f nats a point",
        em.J,
        n,
        D,
        len(trace) - 1,
        trace[-1],
    )
    return GMMFit(em.mixture(), np.array(trace) - np.log(scale).sum(), int(reseeded))


def spread(points: Array, earlier: Array | None = None, sizes: Array | None = None) -> Array:
    """What a coordinate's numbers are measured by, (D,), above 0, whatever its unit.

    The standard deviation of points (n, D). Of a coordinate that is constant to rounding that of
    `earlier` points (m, D); where these say no more, its largest absolute value; of one that has
    always been 0, NEVER: nothing is known of its unit, and any variance could be too much.

    sizes (D,): of the entry that a coordinate belongs to, `entry_sizes`. A coordinate that varies
    by less than ROUNDING of that, in earlier points too, is as good as constant, and is measured by
    it: in units of its own rounding it would explain whatever else happens.
    """
    std: Array = points.std(axis=0)
    size = np.abs(points).max(axis=0)
    flat = std <= 1e-13 * size
    if flat.any():
        std[flat] = size[flat]
        if earlier is not None:
            past, most = earlier.std(axis=0), np.abs(earlier).max(axis=0)
            known = flat & (past > 1e-13 * most)
            std[known] = past[known]
        std[std == 0.0] = NEVER
    if sizes is not None:
        rests = ~flat & (std <= ROUNDING * sizes)
        if earlier is not None:
            rests &= earlier.std(axis=0) <= ROUNDING * sizes
        std[rests] = sizes[rests]
    return std


def entry_sizes(X: Array, layout: Layout, least: float = 1e-2) -> Array:
    """How large the movements of the entry are that each value of states X (..., nx) is of, (nx,).

    The largest standard deviation of its values, at least the share `least` of its largest absolute
    value: what a robot does far from the origin, or with little noise, is no rounding. In the units
    of the values, which have to be one unit for all of an entry, or units that differ by far less
    than 1 / ROUNDING: whether the 1e-11 by which a value at 0 varies is much, only others of its
    unit say.
    """
    values = X.reshape(-1, X.shape[-1])
    size: Array = np.maximum(values.std(axis=0), least * np.abs(values).max(axis=0))
    for name in layout.names:
        where = layout.slice(name)
        size[where] = size[where].max(initial=0.0)
    return size


def m_step(points: npt.ArrayLike, responsibilities: npt.ArrayLike, floor: float) -> Mixture:
    """The mixture with weighted means, weighted covariances + floor I, and mean responsibilities.

    points (n, D), responsibilities (n, J) with columns of non-zero sum.
    """
    Y = _points(points)
    R = np.array(responsibilities, dtype=np.float64)
    if R.ndim != 2 or R.shape[0] != Y.shape[0]:
        raise ShapeError(f"responsibilities must be ({Y.shape[0]}, J), got {R.shape}")
    if not np.all(R.sum(axis=0) >= _kernels.TINY_MASS):
        raise FitError("a component without points has no M-step")
    em = _EM(Y, R.shape[1], floor)
    em.resp = R
    em.maximise()
    return em.mixture()


def responsibilities(mixture: Mixture, points: npt.ArrayLike) -> Array:
    """Probability of each component given each point: (n, D) -> (n, J), rows sum to 1.

    Values under 5e-18 of a row's largest are 0.
    """
    em = _loaded(mixture, points)
    em.expect()
    return em.resp


def log_likelihood(mixture: Mixture, points: npt.ArrayLike) -> float:
    """Mean log density of the points (n, D) under the mixture, in nats."""
    return _loaded(mixture, points).expect()


def _loaded(mixture: Mixture, points: npt.ArrayLike) -> _EM:
    """A workspace that holds the mixture and the points, without floor."""
    Y = _points(points)
    if Y.shape[1] != mixture.D:
        raise ShapeError(f"mixture is over points of size {mixture.D}, got {Y.shape[1]}")
    em = _EM(Y, mixture.J, 0.0)
    em.load(mixture)
    return em


def _points(points: npt.ArrayLike) -> Array:
    """Points as a finite, contiguous (n, D) array."""
    Y = np.ascontiguousarray(points, dtype=np.float64)
    if Y.ndim != 2 or Y.shape[0] == 0 or Y.shape[1] == 0:
        raise ShapeError(f"points must be (n, D) with n, D above 0, got {Y.shape}")
    if not np.all(np.isfinite(Y)):
        raise NonFiniteError(f"point {np.argwhere(~np.isfinite(Y))[0][0]} is not finite")
    return Y


def _seed(em: _EM, rng: np.random.Generator) -> None:
    """Cold start: k-means++ centres, nearest-centre means, one common covariance."""
    Z = em.points / em.spread
    nearest = np.zeros(em.n, dtype=np.int64)
    distance = ((Z - Z[rng.integers(em.n)]) ** 2).sum(axis=1)
    for j in range(1, em.J):
        cumulative = np.cumsum(distance)
        if cumulative[-1] > 0:
            pick = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        else:
            pick = int(rng.integers(em.n))
        d = ((Z - Z[min(pick, em.n - 1)]) ** 2).sum(axis=1)
        closer = d < distance
        nearest[closer] = j
        distance = np.where(closer, d, distance)
    em.resp[:] = 0.0
    em.resp[np.arange(em.n), nearest] = 1.0
    for j in range(em.J):  # copies of one point leave centres without points
        if not em.resp[:, j].any():
            em.split_heaviest(j)
    em.maximise()
    common = np.einsum("j,jab->ab", em.mass / em.n, em.cov)
    em.cov[:] = (common + common.T) / 2


def _resume(em: _EM, warm: Mixture) -> None:
    """Warm start; see `fit`."""
    if warm.J > em.J:
        keep = np.sort(np.argsort(-warm.log_weight, kind="stable")[: em.J])
        warm = Mixture(warm.mean[keep], warm.cov[keep], warm.log_weight[keep])
    em.load(warm)
    em.log_weight -= np.log(np.exp(em.log_weight).sum())
    if warm.J == em.J:
        return
    em.cov[warm.J :] = np.eye(em.D)
    em.expect()
    for j in range(warm.J, em.J):
        em.split_heaviest(j)
    em.maximise()
    log.debug("mixture grown from %d to %d components by splitting", warm.J, em.J)
