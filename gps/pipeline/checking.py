"""A look at an experiment before its run: what its initial controllers do, and what it will store.

`check` builds the experiment and rolls its initial controllers out, without noise and as the first
iteration would. What it finds is a record that prints as tables and as advice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gps.algorithms.diagnosis import clipped_share
from gps.costs.base import Cost
from gps.costs.measure import EndpointMeasure
from gps.dynamics import DynamicsConfig, GlobalDynamicsConfig, GlobalPriorConfig
from gps.errors import GPSError, SampleFailure, SimulationError
from gps.fields import Count, checked_arguments
from gps.pipeline.experiment import Experiment, initial_state
from gps.pipeline.learning import own_terms, reward_entries, unrewarded
from gps.protocols import (
    Agent,
    HasEntry,
    HasTerms,
    Policy,
    VisualModel,
    WarmsUp,
    action_names_of,
    control_limits_of,
    visual_model_of,
)
from gps.rng import stream
from gps.types import Array, LinearGaussianController, Rollouts

Index = npt.NDArray[np.signedinteger]

__all__ = ["ActionCheck", "Check", "EntryCheck", "TermCheck", "check"]

HOLDS = 0.05
"""Largest distance of a position from the start, in rad or m, up to which it counts as held."""
EXPLORES = 0.5
"""The same with exploration, above which the samples of a step are far apart."""
CLIPPED = 0.2
"""Share of clipped actions above which the fitted dynamics suffer."""
AT_END = 0.05
"""Share of its range from an end of it up to which an action lies there, so that half of its noise
is clipped whatever its size: muscles at rest, a gripper that is closed."""
LITTLE = 0.01
"""Exploration below this share of an actuator's range moves next to nothing."""
NO_SHARE = 1e-5
"""Share of the cost below which a term has no say."""
MUCH_STORED = 2e9
"""Bytes of a run that are worth a word."""
POSITIONS = ("joint_pos", "position")
"""State entries that initial controllers may hold."""
MUCH_EFFORT = 0.5
"""Share of the cost from which the actions say more than the task."""
_PLACES = {"end_points": "", "end_point_velocities": "/s"}
_SAME = 1e-12


@dataclass(frozen=True)
class EntryCheck:
    """One entry of the state, or those of its values that have one unit."""

    name: str
    unit: str
    """Empty where it is unknown, as that of lengths where a model's gravity is not the earth's."""
    size: int
    start: float
    """Largest value at the starts, in magnitude; as the others, over all conditions."""
    drift: float
    """Largest distance from the start without noise; NaN where no such rollout ends."""
    explored: float
    """Largest distance from the start with exploration; NaN where no sample is left."""
    largest: float
    """Largest value, in magnitude, of all of these rollouts."""
    spread: tuple[float, float]
    """Smallest and largest standard deviation of a value over the samples of a condition, root
    mean square over steps and conditions."""
    worst: str
    """The value that drifts most, by the name of its joint or by its number."""
    constant: tuple[str, ...]
    """Values that are the same in all rollouts at all steps."""
    tolerance: float = HOLDS
    """Largest drift up to which a position counts as held."""


@dataclass(frozen=True)
class ActionCheck:
    """One action in the rollouts with exploration."""

    name: str
    low: float
    high: float
    """Its limits, infinite without."""
    mean: float
    std: float
    """Over steps, samples and conditions, in its unit."""
    clipped: float
    """Share of actions at a limit; NaN without limits, and in all of these where no sample is
    left."""
    rest: float = math.nan
    """Mean without noise; NaN where no such rollout ends."""

    @property
    def rests_at_end(self) -> bool:
        """Whether it is at a limit without noise."""
        return min(self.rest - self.low, self.high - self.rest) <= AT_END * (self.high - self.low)


@dataclass(frozen=True)
class TermCheck:
    """One term of the cost, in the rollouts with exploration."""

    name: str
    cost: float
    """Sum over the steps, mean over samples and conditions."""
    share: float
    """Of the sum of all terms' magnitudes."""


@dataclass(frozen=True)
class Check:
    """What `check` found. `str(...)` is the table."""

    name: str
    conditions: int
    """So many of them were rolled out."""
    n_conditions: int
    samples: int
    T: int
    dt: float
    holds: bool | None
    """Whether positions stay within 0.05 rad or m of the start in rollouts without noise; None
    where the initial controllers have no feedback, or the state has no positions, so that nothing
    is to be held."""
    failures: tuple[str, ...]
    """Rollouts whose simulation failed: condition, sample, step and reason."""
    entries: tuple[EntryCheck, ...]
    actions: tuple[ActionCheck, ...]
    terms: tuple[TermCheck, ...]
    distance: float
    """By the experiment's measure at the end of rollouts without noise, the mean over conditions;
    NaN without a measure."""
    distance_label: str
    succeeds: bool
    """Whether all of them are a success already."""
    seconds: float
    """Of one rollout, with exploration, by this process."""
    seconds_rollouts: float
    """Of all rollouts of an iteration, those that judge it included, one after another."""
    seconds_iteration: float
    """Of a whole iteration in this process; NaN unless it was asked for."""
    bytes_iteration: float
    """Of what an iteration stores: of one that was made, or as the sizes of its arrays add up."""
    bytes_run: float
    advice: tuple[str, ...]
    """What is off, each with the options that would change it."""
    causes: tuple[str, ...] = ()
    """Why positions leave the start, whatever the controllers: starts outside of the limits, over
    all conditions, and of the first one what only contacts carry, what joints need and what their
    actuators have."""

    initial: tuple[str, ...] = ()
    """Where the initial controllers come from, a line for all conditions that are alike."""

    unrewarded: str = ""
    """That a reward of the environment says nothing of where to go, in the rollouts with
    exploration; empty where it does, or there is none."""

    @property
    def moves(self) -> bool:
        """Whether positions leave the start without noise, with or without feedback."""
        return any(not e.drift <= e.tolerance for e in self.entries if e.name in POSITIONS)

    @property
    def often_clipped(self) -> tuple[ActionCheck, ...]:
        """Actions more of which are clipped than need be; of those that hold the start from an end
        of their range half of the noise always is."""
        half = 0.0 if self.moves else 0.5
        return tuple(a for a in self.actions if a.clipped > CLIPPED + half * a.rests_at_end)

    @property
    def good(self) -> bool:
        """Whether every rollout can be simulated and what should be held is held."""
        return not self.failures and self.holds is not False

    def __str__(self) -> str:
        return "\n".join(_text(self))


@checked_arguments
def check(
    experiment: Experiment,
    *,
    conditions: Count = 8,
    iterate: bool = False,
) -> Check:
    """Build the experiment and roll its initial controllers out; nothing is written.

    Of `conditions` training conditions each, one rollout without noise and the `samples` of the
    first iteration. iterate: make that iteration too, in memory and in this process, which takes
    its time and the compilation of its kernels, and says what it really stores. Raises ConfigError
    as `Experiment.validate` does; rollouts that fail are in the result.
    """
    agent = experiment.validate()
    if isinstance(agent, WarmsUp):
        agent.warm_up()
    begins: list[str] = []
    state = initial_state(experiment, agent, begins.append)
    sources = experiment.algorithm.sampling(state)[:conditions]
    failures: list[str] = []
    still, noisy, seconds = [], [], []
    for m, source in enumerate(sources):
        zeros = np.zeros((1, agent.T, agent.nu)), np.zeros((1, agent.n_start))
        some = _rolled(agent, source.actor, m, *zeros, ("without noise",), failures)
        still += [] if some is None else [some]
        which = tuple(f"sample {n}" for n in range(experiment.samples))
        began = time.perf_counter()
        some = _rolled(agent, source.actor, m, *_noise(experiment, agent, m), which, failures)
        seconds.append((time.perf_counter() - began) / experiment.samples)
        noisy += [] if some is None else [some]
    starts = np.array([agent.start_state(m) for m in range(len(sources))])
    visual = visual_of(agent)
    names = _Names.of(agent, visual)
    outside = [] if visual is None else _outside(visual, starts)
    unheld = [] if visual is None else _unheld(agent, visual, starts[0])
    entries = tuple(_entries(agent, names, starts, still, noisy))
    distance, succeeds = _measured(experiment, still)
    per_rollout = float(np.median(seconds))
    M, policies = agent.n_conditions, 1 + experiment.algorithm.trains_policy
    time_iteration, stored = math.nan, _stored(experiment, agent, still)
    if iterate:
        time_iteration, stored = _iteration(experiment)
    found = Check(
        name=experiment.name,
        conditions=len(sources),
        n_conditions=M,
        samples=experiment.samples,
        T=agent.T,
        dt=agent.dt,
        holds=_holds(entries, any(_has_feedback(s.actor) for s in sources)),
        failures=tuple(failures),
        entries=entries,
        actions=tuple(_actions(agent, names, still, noisy)),
        terms=tuple(_terms(experiment.cost, noisy or still)),
        distance=distance,
        distance_label=_label(experiment.measure, names),
        succeeds=succeeds,
        seconds=per_rollout,
        seconds_rollouts=per_rollout * M * (experiment.samples + policies),
        seconds_iteration=time_iteration,
        bytes_iteration=stored,
        bytes_run=stored * experiment.iterations,
        advice=(),
        causes=(*outside, *unheld),
        initial=tuple(begins),
        unrewarded=unrewarded(experiment.cost, noisy),
    )
    advice = _advice(found, experiment, agent, outside)
    return replace(found, advice=tuple(map(own_terms(experiment, agent), advice)))


# --- rollouts ------------------------------------------------------------------------------------


def _noise(experiment: Experiment, agent: Agent, m: int) -> tuple[Array, Array]:
    """The noise of the first iteration's rollouts of condition m."""
    N = experiment.samples
    noise, start = np.empty((N, agent.T, agent.nu)), np.empty((N, agent.n_start))
    for n in range(N):
        at = (0, m, n, 0)
        noise[n] = stream(experiment.seed, "noise", *at).standard_normal(noise[n].shape)
        start[n] = stream(experiment.seed, "start", *at).standard_normal(agent.n_start)
    return noise, start


def _rolled(
    agent: Agent,
    policy: Policy,
    m: int,
    noise: Array,
    start: Array,
    names: Sequence[str],
    failures: list[str],
) -> Rollouts | None:
    """The rollouts that can be simulated, None without any; the others are named."""
    left = np.arange(len(noise))
    while len(left):
        try:
            return agent.rollout(policy, m, noise[left], start[left])
        except SimulationError as error:
            bad: dict[int, SampleFailure] = {f.sample: f for f in error.failures}
            failures += [
                f"condition {m}, {names[left[i]]}, step {f.t}: {f.reason}" for i, f in bad.items()
            ]
            left = np.delete(left, list(bad))
    return None


def _has_feedback(policy: Policy) -> bool:
    """Whether the actions of a local controller depend on the state."""
    return not isinstance(policy, LinearGaussianController) or bool(policy.K.any())


def _iteration(experiment: Experiment) -> tuple[float, int]:
    """Seconds and stored bytes of the first iteration, made here; what it compiles is apart."""
    from gps.pipeline import runner
    from gps.pipeline.snapshot import Snapshot, encode

    (done,) = runner.run(experiment, iterations=1)
    snapshot = Snapshot(done.state, done.rollouts, done.report.models, done.row, done.report)
    return done.seconds, len(encode(snapshot))


def _stored(experiment: Experiment, agent: Agent, rollouts: Sequence[Rollouts]) -> float:
    """Bytes of an iteration, from the sizes of its arrays; NaN where no rollout ends.

    Per condition: rollouts, the controller, the last one and the one that was found, and where the
    algorithm has them dynamics, cost, linearised policy and the samples of the replay buffer; of
    all together the transitions of a global model, as many as there are at the end.
    """
    if not rollouts:
        return math.nan
    options = vars(experiment.algorithm)
    nx, nu, no, T = agent.layout.size, agent.nu, agent.obs_layout.size, agent.T
    arrays = [*vars(rollouts[0]).values(), *rollouts[0].jacobians.values()]
    samples = experiment.samples * sum(a.nbytes for a in arrays if isinstance(a, np.ndarray))
    nz, controller = nx + nu, T * (nu * nx + nu + nu * nu)
    numbers = 2 * controller + T * (nz * nz + nz + 1)  # the cost
    if "dynamics" in options:
        numbers += T * (nx * nz + nx + nx * nx)
    if "network" in options:
        replay = max(experiment.samples, options.get("replay", 0))
        numbers += 2 * controller + replay * T * (nx + no)
        if rollouts[0].images is not None:
            samples += replay * rollouts[0].images[0].nbytes
    shared = 0
    dynamics = options.get("dynamics")
    if isinstance(dynamics, DynamicsConfig) and isinstance(dynamics.prior, GlobalPriorConfig):
        dynamics = dynamics.prior.model
    if isinstance(dynamics, GlobalDynamicsConfig):
        seen = experiment.iterations * agent.n_conditions * experiment.samples * (T - 1)
        shared = min(seen, dynamics.max_points) * (2 * nx + nu)
    return float(agent.n_conditions * (samples + 8 * numbers) + 8 * shared)


# --- what they show ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Names:
    """Names and units of joint directions and actions, as far as the agent's model has them."""

    joints: tuple[str, ...]
    units: tuple[str, ...]
    actions: tuple[str, ...]
    length: str = "m"
    """Unit of lengths."""
    metre: float = 1.0
    """In units of length."""

    @classmethod
    def of(cls, agent: Agent, visual: VisualModel | None) -> _Names:
        actions = action_names_of(agent)
        if visual is None:
            return cls((), (), actions)
        model = visual.model
        from gps.pipeline import statics  # it needs MuJoCo, which other agents do without

        metre = statics.length_scale(model)
        length, metre = ("m", 1.0) if statics.metric(model) else ("", metre)
        units = tuple("rad" if turn else length for turn in statics.turns(model))
        return cls(statics.direction_names(model), units, actions, length, metre)


def visual_of(agent: Agent) -> VisualModel | None:
    """The visual model of the first condition; None where there is none, or it cannot be had."""
    try:
        return visual_model_of(agent, 0)
    except GPSError:
        return None


def distance_label(measure: EndpointMeasure | None, agent: Agent) -> str:
    """The measure's `distance_label`, without the unit m where the agent's model has another one:
    that of end points if `measure.unit` does not say otherwise."""
    return _label(measure, _Names.of(agent, visual_of(agent)))


def _label(measure: EndpointMeasure | None, names: _Names) -> str:
    if measure is not None and measure.unit is None and not names.length:
        measure = replace(measure, unit="")
    return "distance" if measure is None else measure.distance_label


def _parts(agent: Agent, names: _Names) -> Iterator[tuple[str, str, Index, tuple[str, ...]]]:
    """Entries of the state with one unit each: name, unit, where they lie, names of the values."""
    for name in agent.layout.names:
        where = np.arange(agent.layout.size)[agent.layout.slice(name)]
        numbered = tuple(map(str, range(len(where))))
        if name not in ("joint_pos", "joint_vel") or len(names.units) != len(where):
            known = names.length and name in _PLACES
            yield name, f"{names.length}{_PLACES[name]}" if known else "", where, numbered
            continue
        per = "/s" if name == "joint_vel" else ""
        for unit in dict.fromkeys(names.units):
            own = [i for i, u in enumerate(names.units) if u == unit]
            yield name, unit and unit + per, where[own], tuple(names.joints[i] for i in own)


def _entries(
    agent: Agent,
    names: _Names,
    starts: Array,
    still: Sequence[Rollouts],
    noisy: Sequence[Rollouts],
) -> Iterator[EntryCheck]:
    everything = [starts[:, None], *(r.X for r in (*still, *noisy))]
    flat = np.concatenate([x.reshape(-1, agent.layout.size) for x in everything])
    low, high, size = flat.min(axis=0), flat.max(axis=0), np.abs(flat).max(axis=0)
    constant = high - low <= _SAME * np.maximum(size, 1.0)
    variance = [r.X.var(axis=0).mean(axis=0) for r in noisy if r.N > 1]
    spread = np.sqrt(np.mean(variance, axis=0)) if variance else np.full(len(size), math.nan)
    drift, explored = _away(still, starts), _away(noisy, starts)
    for name, unit, at, values in _parts(agent, names):
        most = int(np.nanargmax(drift[at])) if np.isfinite(drift[at]).any() else 0
        yield EntryCheck(
            name=name,
            unit=unit,
            size=len(at),
            start=float(np.abs(starts[:, at]).max()),
            drift=float(drift[at].max()),
            explored=float(explored[at].max()),
            largest=float(size[at].max()),
            spread=(float(spread[at].min()), float(spread[at].max())),
            worst=values[most],
            constant=tuple(v for v, same in zip(values, constant[at], strict=True) if same),
            tolerance=HOLDS * (1.0 if unit else names.metre),
        )


def _away(rollouts: Sequence[Rollouts], starts: Array) -> Array:
    """Largest distance of every value from where its condition starts, (nx,)."""
    if not rollouts:
        return np.full(starts.shape[1], math.nan)
    return np.max([np.abs(r.X - starts[r.condition]).max(axis=(0, 1)) for r in rollouts], axis=0)


def _actions(
    agent: Agent, names: _Names, still: Sequence[Rollouts], noisy: Sequence[Rollouts]
) -> Iterator[ActionCheck]:
    low, high = control_limits_of(agent)
    mean = std = clipped = rest = np.full(agent.nu, math.nan)
    if still:
        rest = np.mean([r.U.mean(axis=(0, 1)) for r in still], axis=0)
    if noisy:
        U = np.concatenate([r.U for r in noisy])
        mean, std, clipped = U.mean(axis=(0, 1)), U.std(axis=(0, 1)), clipped_share(U, low, high)
    for name, *values in zip(names.actions, low, high, mean, std, clipped, rest, strict=True):
        yield ActionCheck(name, *map(float, values))


def _terms(cost: Cost, rollouts: Sequence[Rollouts]) -> Iterator[TermCheck]:
    """The terms of a sum, or the cost as the only one."""
    if not rollouts:
        return
    terms = [(t.cost, t.weight) for t in cost.terms] if isinstance(cost, HasTerms) else [(cost, 1)]
    sums = [
        w * float(np.mean([c.evaluate(r).l.sum(axis=1).mean() for r in rollouts])) for c, w in terms
    ]
    total = sum(map(abs, sums)) or 1.0
    for (term, _), value in zip(terms, sums, strict=True):
        entry = term.entry if isinstance(term, HasEntry) else None
        name = type(term).__name__ + (f" of {entry}" if entry else "")
        yield TermCheck(name, value, abs(value) / total)


def _measured(experiment: Experiment, still: Sequence[Rollouts]) -> tuple[float, bool]:
    if experiment.measure is None or not still:
        return math.nan, False
    found = [experiment.measure.evaluate(r) for r in still]
    return float(np.mean([d for d, _ in found])), all(bool(s.all()) for _, s in found)


def _outside(visual: VisualModel, starts: Array) -> list[str]:
    """That a start, of any condition, is outside of the limits, in one text."""
    from gps.pipeline import statics

    data, beyond = visual.data(), []
    for x in starts:
        visual.set_state(data, x)
        beyond += list(statics.outside(visual.model, data.qpos))
    more = f"; so do {len(beyond) - 1} others, over all conditions" if len(beyond) > 1 else ""
    return [f"{beyond[0]}{more}"] if beyond else []


def _unheld(agent: Agent, visual: VisualModel, start: Array) -> list[str]:
    """Why no controls hold a start."""
    from gps.pipeline import statics

    data = visual.data()
    visual.set_state(data, start)
    return list(statics.unheld(visual.model, data.qpos.copy(), agent.T * agent.dt, HOLDS))


def _holds(entries: Sequence[EntryCheck], feedback: bool) -> bool | None:
    """See `Check.holds`; rollouts that do not end do not hold."""
    positions = [e for e in entries if e.name in POSITIONS]
    if not positions or not feedback:
        return None
    return all(e.drift <= e.tolerance for e in positions)


# --- in words ------------------------------------------------------------------------------------


def _advice(
    found: Check, experiment: Experiment, agent: Agent, outside: Sequence[str]
) -> Iterator[str]:
    initial = type(experiment.initial).__name__
    if found.failures:
        yield (
            f"{len(found.failures)} rollouts cannot be simulated: a smaller step (agent.dt) or "
            "less exploration (initial.variance) helps, or another start"
        )
    lost = False
    for e in found.entries:
        unit = f" {e.unit}".rstrip()
        if e.name in POSITIONS and not e.drift <= e.tolerance:
            lost = True
            why = f"see the options of initial ({initial})"
            if found.holds is None:
                why = f"{initial} has no feedback"
            yield (
                f"{e.name} is not held: {e.worst} moves by {e.drift:.2g}{unit} without noise; {why}"
            )
        elif e.name in POSITIONS and e.unit and e.explored > EXPLORES and found.holds is not None:
            yield (
                f"exploration moves {e.name} by up to {e.explored:.2g}{unit}: linear dynamics fit "
                "samples that are closer together better; see initial.variance"
            )
    yield from found.causes if lost else outside
    yield from _clipped(found)
    still = [a for a in found.actions if a.std < LITTLE * (a.high - a.low) / 2 < math.inf]
    if still:
        names = _listed([a.name for a in still])
        yield f"exploration is below 1 % of the range of {names}: raise initial.variance"
    if found.unrewarded:
        yield found.unrewarded
    needed = reward_entries(experiment.cost)
    for e in found.entries:
        if len(e.constant) == e.size and e.name not in needed:
            yield f"{e.name} never changes: agent.state can do without, if nothing needs it"
    for j, term in enumerate(found.terms):
        if term.share > MUCH_EFFORT and term.name == "ActionCost" and len(found.terms) > 1:
            yield (
                f"ActionCost is {term.share:.0%} of the cost, more than all of the task: see "
                f"cost.terms.{j}.weight"
            )
        if term.share < NO_SHARE and not lost:  # what falls may cost far more than any action
            yield f"{term.name} has no share in the cost: see cost.terms.{j}.weight"
    if found.succeeds:
        yield "the initial controllers succeed already: see measure.threshold and measure.target"
    if experiment.algorithm.trains_policy and not agent.n_test_conditions:
        yield "no agent.test_conditions: nothing says how the policy does from other starts"
    if found.bytes_run > MUCH_STORED:
        yield (
            f"a run stores {_bytes(found.bytes_run)}: fewer samples, agent.T or entries of "
            "agent.state need less"
        )


def _clipped(found: Check) -> Iterator[str]:
    """What to do about clipped actions: what is at its limit on average is so without noise."""
    much = found.often_clipped
    # noise as wide as the range has a mean in its middle, whatever its spread
    ends = [
        a
        for a in much
        if min(a.high - a.mean, a.mean - a.low) <= min(a.std, 0.25 * (a.high - a.low))
    ]
    if much:
        worst = max(much, key=lambda a: a.clipped)
        remedy = "less exploration (initial.variance), or softer gains"
        if worst in ends:
            remedy = (
                "its mean is as near to a limit as its noise is wide, so less noise alone does not "
                "help; a start that asks for less of it does, or a wider control range"
            )
        yield (
            f"{len(much)} of {len(found.actions)} actions are clipped often, {worst.name} in "
            f"{worst.clipped:.0%} of the steps: fitted dynamics learn nothing of them; {remedy}"
        )


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _bytes(n: float) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def _text(found: Check) -> Iterator[str]:
    """The lines of the tables."""
    some = "" if found.conditions == found.n_conditions else f"{found.conditions} of "
    yield (
        f"{found.name or 'experiment'}: {some}{found.n_conditions} conditions, {found.samples} "
        f"samples, {found.T} steps of {found.dt:g} s"
    )
    yield from found.initial
    holds = {True: "yes", False: "no", None: "not meant to: no feedback, or no positions"}
    yield f"holds its start: {holds[found.holds]}"
    alike: dict[str, list[str]] = {}
    for text in found.failures:
        rollout, _, reason = text.partition(": ")
        alike.setdefault(reason, []).append(rollout)
    for reason, rollouts in alike.items():
        more = f", and {len(rollouts) - 1} more" if len(rollouts) > 1 else ""
        yield f"failed: {rollouts[0]}{more}: {reason}"
    yield ""
    head = ("state entry", "unit", "size", "start", "drift", "explored", "largest", "spread")
    rows = [
        (
            *(
                e.name,
                e.unit,
                str(e.size),
                *map(_number, (e.start, e.drift, e.explored, e.largest)),
            ),
            "..".join(dict.fromkeys(map(_number, e.spread))),
            f"constant: {_listed(e.constant, 3)}" if e.constant else "",
        )
        for e in found.entries
    ]
    yield from _columns((*head, ""), rows)
    yield ""
    rows = [
        (
            *(a.name, f"{_number(a.low)}..{_number(a.high)}", _number(a.mean), _number(a.std)),
            f"{100 * a.clipped:.0f} %" if not math.isnan(a.clipped) else "-",
        )
        for a in found.actions
    ]
    yield from _columns(("action", "limits", "mean", "spread", "clipped"), rows)
    yield ""
    rows = [(t.name, _number(t.cost), f"{100 * t.share:.1f} %") for t in found.terms]
    yield from _columns(("cost term", "cost", "share"), rows)
    yield ""
    if not math.isnan(found.distance):
        yield f"{found.distance_label} at the end, without noise: {_number(found.distance)}"
    whole = (
        f", of an iteration {found.seconds_iteration:.2g} s"
        if not math.isnan(found.seconds_iteration)
        else ""
    )
    yield (
        f"time: {1e3 * found.seconds:.3g} ms for a rollout, {found.seconds_rollouts:.2g} s for "
        f"those of an iteration{whole}, in one process"
    )
    about = "" if not math.isnan(found.seconds_iteration) else "about "
    if not math.isnan(found.bytes_iteration):
        yield (
            f"stored: {about}{_bytes(found.bytes_iteration)} for an iteration, "
            f"{_bytes(found.bytes_run)} for the run"
        )
    for text in found.advice:
        yield f"- {text}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Aligned text, the first column to the left."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        first, *others = row
        cells = [f"{cell:>{w}}" for cell, w in zip(others, widths[1:], strict=True)]
        yield "  ".join([f"{first:<{widths[0]}}", *cells]).rstrip()
