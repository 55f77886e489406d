"""Guided policy search beside SAC and PPO on the same task, to 95 % success on unseen conditions.

    pip install -e '.[rl]'
    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python tests/benchmarks/bench_rl.py
        [--experiment NAME] [--methods gps,sac,ppo] [--seeds 0 1 2] [--max-steps sac=60000 ...]
        [--every sac=2000 ...] [--max-minutes 25] [--normalise none] [--starts drawn] [--stop]
        [--out FOLDER] [--table] [--plot FILE.png]

What is equal: dynamics, observations, control limits and cost; the reward is minus the cost of each
step. After every so many environment steps the noise-free policy is rolled out from all test
conditions of the experiment, and its measure decides. One function does this for everybody. Neither
the steps nor the time of it are counted. All of them learn on one thread of the CPU. Loading
libraries is not counted, nor is compiling (a short run goes before ours), nor building the agents
of SAC and PPO.

What differs, in favour of SAC and PPO (Stable-Baselines3, default settings):
- Our run starts from the few training conditions of the experiment. SAC and PPO get, for every
  episode, one of 1000 starts drawn as the test conditions are, with another seed: none of them is
  a test condition. `--starts training` gives them ours.
- Actions are scaled to [-1, 1], as Stable-Baselines3 recommends.
- `--normalise` puts VecNormalize between, which scales rewards, observations or both by what was
  seen so far.
- Our time contains the rollouts that `gps run` makes to report on the training conditions.

Ours ends with the last iteration of the experiment, if not before.
On a busy machine the CPU seconds compare, not those on the wall.

An episode is cut off at T steps, and what it would have gone on to earn is bootstrapped.

Every evaluation is appended to FOLDER/EXPERIMENT_METHOD_SETTINGS_seedN.csv: environment steps,
seconds on the wall and of CPU spent on learning, share of test conditions that succeed, distance
(mean and largest, in the measure's unit) and mean cost. The table at the end reads all such files
of FOLDER, also those of earlier calls; `--table` prints it and learns nothing. `--plot` draws them,
of all experiments. A file that is there is written anew when its run is repeated.

The reward is the experiment's cost at every step, which `as_gymnasium` evaluates at some expense:
`--table` tells how much of the CPU seconds a step of the environment alone takes now.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

import gps
from gps.agents import as_gymnasium, presets
from gps.errors import ConfigError, SimulationError
from gps.pipeline import Experiment
from gps.pipeline.sampling import evaluate_condition
from gps.threads import one_thread

METHODS = ("gps", "sac", "ppo")
NORMALISE = ("none", "reward", "observation", "both")
# of gps.agents.presets, with test conditions that are drawn; experiments are named after them
AGENTS = ("peg_insertion_blind", "peg_insertion", "reacher", "obstacle_nav")
GOOD = 0.95  # share of the unseen conditions that has to succeed
N_STARTS = 1000
START_SEED = 7_000_000  # far from the seeds that agents draw their test conditions with


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluation on the way: a line of the CSV file."""

    experiment: str
    method: str
    normalise: str
    starts: str
    seed: int
    steps: int
    seconds: float
    cpu_seconds: float
    success: float
    distance_mean: float
    distance_max: float
    cost_mean: float


class Clock:
    """Seconds spent on learning; stands still during evaluation."""

    def __init__(self) -> None:
        self._spent = np.zeros(2)
        self._since: np.ndarray | None = None

    @staticmethod
    def _now() -> np.ndarray:
        return np.array([time.perf_counter(), time.process_time()])

    @property
    def spent(self) -> np.ndarray:
        """On the wall and of CPU, (2,)."""
        running = 0.0 if self._since is None else self._now() - self._since
        return self._spent + running

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what is done inside."""
        self._since = self._now()
        try:
            yield
        finally:
            self._spent, self._since = self.spent, None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leave out what is done inside; to be used inside of `running`."""
        self._spent, self._since = self.spent, None
        try:
            yield
        finally:
            self._since = self._now()


class Curve:
    """The points of one run; each is written when it is known, so that a stopped run keeps its."""

    def __init__(self, folder: Path, experiment: Experiment, labels: dict[str, Any]) -> None:
        self.experiment, self.labels, self.clock = experiment, labels, Clock()
        settings = "" if labels["method"] == "gps" else "_{starts}_{normalise}".format(**labels)
        self.path = folder / "{experiment}_{method}{0}_seed{seed}.csv".format(settings, **labels)
        self.points: list[Point] = []
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerow(f.name for f in fields(Point))

    def add(self, steps: int, policy: Any) -> Point:
        """Evaluate; to be called while the clock stands."""
        seconds, cpu = self.clock.spent
        scores = judge(self.experiment, policy)
        point = Point(
            **self.labels, steps=steps, seconds=float(seconds), cpu_seconds=float(cpu), **scores
        )
        self.points.append(point)
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(asdict(point).values())
        print(
            f"{point.method:>4} seed {point.seed}: {steps:7,d} steps {seconds:7.1f} s  "
            f"success {100 * point.success:3.0f} %  distance {point.distance_mean:.4f} mean "
            f"{point.distance_max:.4f} max  cost {point.cost_mean:.1f}",
            flush=True,
        )
        return point


def judge(experiment: Experiment, policy: Any) -> dict[str, float]:
    """The noise-free policy from every test condition; one that cannot finish is at no distance."""
    seen = []
    for m in range(experiment.agent.build().n_test_conditions):
        try:
            e = evaluate_condition(
                experiment.agent, experiment.cost, experiment.measure, policy, m, 1, 0, test=True
            )
            seen.append((e.success[0], e.distance[0], e.cost[0]))
        except SimulationError:
            seen.append((0.0, np.inf, np.inf))
    success, distance, cost = np.array(seen).T
    return {
        "success": float(success.mean()),
        "distance_mean": float(distance.mean()),
        "distance_max": float(distance.max()),
        "cost_mean": float(cost.mean()),
    }


@dataclass(frozen=True)
class Limit:
    """When a run ends."""

    steps: int
    seconds: float
    stop: bool

    def ends(self, steps: int, clock: Clock, success: float = 0.0) -> bool:
        """Whether it does now."""
        late = steps >= self.steps or clock.spent[0] >= self.seconds
        return late or (self.stop and success >= GOOD)


def learn_gps(experiment: Experiment, seed: int, curve: Curve, limit: Limit) -> None:
    """The experiment as `gps run` runs it, serially and in memory."""
    for _ in gps.run(experiment, seed=seed, iterations=1):  # compiles, or loads compiled kernels
        pass
    reports = gps.run(experiment, seed=seed)
    while True:
        with curve.clock.running():
            report = next(reports, None)
        if report is None:
            return
        point = curve.add(int(report.row["env_steps"]), report.state.policy.policy)
        if limit.ends(point.steps, curve.clock, point.success):
            return


def drawn_starts(name: str, seed: int) -> tuple[Any, ...]:
    """Starts from the distribution of an experiment's test conditions, with a seed of their own."""
    agent = next((w for w in AGENTS if name.startswith(w)), None)
    if agent is None:
        raise ConfigError(f"no starts can be drawn for {name}; use --starts training")
    make: Callable[..., Any] = getattr(presets, agent)
    return tuple(make(n_test=N_STARTS, test_seed=START_SEED + seed).test_conditions)


def learning_agent(experiment: Experiment, name: str, starts: str, seed: int) -> Any:
    """The agent of an experiment with the starts that SAC and PPO learn from."""
    agent = experiment.agent
    if starts == "training":
        return agent
    drawn = drawn_starts(name, seed)
    if set(drawn) & set(agent.test_conditions):
        raise ConfigError("a start that was drawn for learning is a test condition")
    return replace(agent, conditions=drawn)


def environment(experiment: Experiment, agent: Any, normalise: str) -> Any:
    """A vector of one environment with actions in [-1, 1]."""
    from gymnasium.wrappers import RescaleAction
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    env = as_gymnasium(agent, experiment.cost, measure=experiment.measure, dtype=np.float32)
    scaled = Monitor(RescaleAction(env, np.float32(-1.0), np.float32(1.0)))
    vector = DummyVecEnv([lambda: scaled])
    if normalise == "none":
        return vector
    return VecNormalize(
        vector,
        norm_obs=normalise in ("observation", "both"),
        norm_reward=normalise in ("reward", "both"),
    )


class Learned:
    """The deterministic policy of a Stable-Baselines3 model, as rollouts of the toolkit call it."""

    def __init__(self, model: Any, control_range: tuple[np.ndarray, np.ndarray]) -> None:
        self.model, (self.low, self.high) = model, control_range
        self.normaliser = model.get_vec_normalize_env()

    def act(self, x: Any, obs: np.ndarray, t: int, noise: Any) -> np.ndarray:
        """Actions (N, nu) in the agent's unit."""
        seen = obs.astype(np.float32)
        if self.normaliser is not None:
            seen = self.normaliser.normalize_obs(seen)
        scaled, _ = self.model.predict(seen, deterministic=True)
        share = (np.asarray(scaled, dtype=np.float64) + 1.0) / 2.0
        return self.low + share * (self.high - self.low)


def make_model(method: str, env: Any, seed: int) -> Any:
    """SAC or PPO with the default settings of Stable-Baselines3."""
    from stable_baselines3 import PPO, SAC

    return {"sac": SAC, "ppo": PPO}[method]("MlpPolicy", env, seed=seed, device="cpu")


def learn_rl(model: Any, curve: Curve, limit: Limit, every: int) -> None:
    """Learn, and evaluate whenever the policy is up to date with at least `every` more steps."""
    from stable_baselines3.common.callbacks import BaseCallback

    inner = model.get_env().envs[0].unwrapped
    policy = Learned(model, (inner.action_space.low, inner.action_space.high))

    class Watch(BaseCallback):
        """PPO changes its policy between rollouts only; a rollout of SAC is one step."""

        done = 0
        ended = False

        def _on_rollout_start(self) -> None:
            if self.num_timesteps >= self.done + every:
                self._evaluate()

        def _evaluate(self) -> None:
            with curve.clock.stopped():
                point = curve.add(self.num_timesteps, policy)
            self.done = self.num_timesteps
            self.ended = limit.ends(self.done, curve.clock, point.success)

        def _on_step(self) -> bool:
            return not self.ended and curve.clock.spent[0] < limit.seconds

        def _on_training_end(self) -> None:
            if not self.ended and self.num_timesteps > self.done:
                self._evaluate()

    with one_thread(), curve.clock.running():
        model.learn(limit.steps, callback=Watch())


def reached(curve: Sequence[Point]) -> tuple[Point | None, Point | None]:
    """The first point with enough success, and the first from which on it stays so."""
    first = next((p for p in curve if p.success >= GOOD), None)
    stays = None
    for p in reversed(curve):
        if p.success < GOOD:
            break
        stays = p
    return first, stays


def read(folder: Path, experiment: str) -> list[list[Point]]:
    """The curves of an experiment, methods in the order of METHODS, then by settings and seed."""
    curves = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        kinds = {f.name: {"int": int, "float": float}.get(str(f.type), str) for f in fields(Point)}
        points = [Point(**{k: kinds[k](v) for k, v in row.items()}) for row in rows]
        if points and points[0].experiment == experiment:
            curves.append(points)
    return sorted(curves, key=lambda c: (METHODS.index(c[0].method), _settings(c[0]), c[0].seed))


def _settings(p: Point) -> str:
    """What sets a run apart from others of its method, for file names."""
    return "own" if p.method == "gps" else f"{p.starts}_{p.normalise}"


def _spread(values: Sequence[float], form: str) -> str:
    """The median, and the range where there are several."""
    middle = format(float(np.median(values)), form)
    low, high = format(min(values), form), format(max(values), form)
    return middle if low == high else f"{middle} ({low} to {high})"


def table(curves: Iterable[Sequence[Point]]) -> str:
    """Markdown: a row for each method and setting, medians and ranges over the seeds."""
    lines = [
        f"| method | seeds | env steps to {100 * GOOD:.0f} % | seconds | CPU seconds | stays from "
        "| at the end: success | mean distance | steps, seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for _, group in groupby(curves, key=lambda c: (c[0].method, _settings(c[0]))):
        runs = list(group)
        one, last = runs[0][0], [c[-1] for c in runs]
        name = one.method.upper()
        if one.method != "gps":
            name += f", {one.starts} starts, VecNormalize {one.normalise}"
        firsts, stays = zip(*(reached(c) for c in runs), strict=True)
        there = [p for p in firsts if p is not None]
        kept = [p for p in stays if p is not None]
        of = f" [{len(there)} of {len(runs)}]" if 0 < len(there) < len(runs) else ""
        most = f"not within {max(p.steps for p in last):,}"
        cells = [
            name,
            ", ".join(str(c[0].seed) for c in runs),
            (_spread([p.steps for p in there], ",.0f") + of) if there else most,
            _spread([p.seconds for p in there], ",.0f") if there else "",
            _spread([p.cpu_seconds for p in there], ",.0f") if there else "",
            (_spread([p.steps for p in kept], ",.0f") if kept else "does not stay")
            if there
            else "",
            _spread([100 * p.success for p in last], ".0f") + " %",
            _spread([p.distance_mean for p in last], ".4f"),
            f"{_spread([p.steps for p in last], ',.0f')}, "
            f"{_spread([p.seconds for p in last], ',.0f')} s",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(folder: Path, path: Path) -> None:
    """Draw the success against steps and CPU seconds, a column for each experiment."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted(name for name in AGENTS if read(folder, name))
    rows = (("steps", "control steps"), ("cpu_seconds", "processor time (s)"))
    figure = Figure(figsize=(4.6 * len(names), 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(names), squeeze=False)
    colours = dict(zip(METHODS, ("#0550ae", "#cf222e", "#9a6700"), strict=True))
    for column, name in enumerate(names):
        for row, (field, label) in enumerate(rows):
            ax, known = axes[row][column], set()
            for curve in read(folder, name):
                method = curve[0].method
                ax.plot(
                    [getattr(p, field) for p in curve],
                    [100.0 * p.success for p in curve],
                    color=colours[method],
                    linewidth=1.2,
                    label=None if method in known else method.upper(),
                )
                known.add(method)
            ax.axhline(100.0 * GOOD, color="#888", linewidth=0.8, linestyle="--")
            ax.set(xscale="log", xlabel=label, ylim=(-3.0, 103.0))
            ax.set_ylabel("unseen conditions that succeed (%)")
            ax.grid(alpha=0.3)
            if not row:
                ax.set_title(name)
                ax.legend(loc="center left")
    figure.savefig(path, dpi=110)


def seconds_a_step(experiment: Experiment, steps: int = 2000) -> float:
    """CPU seconds of a step of the environment alone, with random actions."""
    env = environment(experiment, experiment.agent, "none").envs[0]
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    begin = time.process_time()
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(rng.uniform(-1, 1, env.action_space.shape))
        if terminated or truncated:
            env.reset()
    return (time.process_time() - begin) / steps


def _by_method(text: str) -> tuple[str, int]:
    """METHOD=NUMBER of the command line."""
    method, _, number = text.partition("=")
    if method not in METHODS or not number.isdigit() or int(number) < 1:
        raise argparse.ArgumentTypeError(
            f"expected METHOD=NUMBER with one of {', '.join(METHODS)}, got {text!r}"
        )
    return method, int(number)


def _methods(text: str) -> list[str]:
    """Methods of the command line."""
    names = text.split(",")
    if unknown := [n for n in names if n not in METHODS]:
        raise argparse.ArgumentTypeError(
            f"unknown method {unknown[0]!r}; known: {', '.join(METHODS)}"
        )
    return names


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--experiment", default="peg_insertion")
    p.add_argument("--methods", type=_methods, default=list(METHODS), help="of gps,sac,ppo")
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument(
        "--max-steps", type=_by_method, nargs="+", default=[], help="environment steps a run"
    )
    p.add_argument("--every", type=_by_method, nargs="+", default=[], help="steps an evaluation")
    p.add_argument("--max-minutes", type=float, default=25.0, help="of learning, for each run")
    p.add_argument("--normalise", choices=NORMALISE, default="none")
    p.add_argument("--starts", choices=("drawn", "training"), default="drawn")
    p.add_argument("--stop", action="store_true", help="end a run at its first 95 %%")
    p.add_argument("--out", type=Path, help="folder of the CSV files; a new one without it")
    p.add_argument(
        "--table",
        action="store_true",
        help="print the table of --out and what a step of the environment takes, learn nothing",
    )
    p.add_argument("--plot", type=Path, help="draw the curves of --out, learn nothing")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    p = parser()
    args = p.parse_args(argv)
    experiment = gps.load(args.experiment)
    if experiment.measure is None or not experiment.agent.build().n_test_conditions:
        p.error(f"{args.experiment} has no measure of success or no test conditions")
    if not experiment.algorithm.trains_policy:
        p.error(f"{args.experiment} trains no policy, which the test conditions are for")
    most = {"gps": 10**9, "sac": 60_000, "ppo": 400_000} | dict(args.max_steps)
    every = {"sac": 2_000, "ppo": 4_096} | dict(args.every)
    out = args.out or Path(tempfile.mkdtemp(prefix="bench_rl_"))
    out.mkdir(parents=True, exist_ok=True)
    name = Path(args.experiment).stem
    for method in () if args.table or args.plot else args.methods:
        own = method == "gps"
        for seed in args.seeds:
            labels = {
                "experiment": name,
                "method": method,
                "normalise": "none" if own else args.normalise,
                "starts": "training" if own else args.starts,
                "seed": seed,
            }
            limit = Limit(most[method], 60.0 * args.max_minutes, args.stop)
            if own:
                learn_gps(experiment, seed, Curve(out, experiment, labels), limit)
                continue
            agent = learning_agent(experiment, name, args.starts, seed)
            model = make_model(method, environment(experiment, agent, args.normalise), seed)
            learn_rl(model, Curve(out, experiment, labels), limit, every[method])
    if args.plot:
        plot(out, args.plot)
    print(f"\ncurves: {out}\n\n{table(read(out, name))}")
    if args.table:
        with one_thread():
            spent = seconds_a_step(experiment)
        print(f"\na step of the environment: {1000 * spent:.2f} ms of CPU, the reward included")


if __name__ == "__main__":
    main()
