"""What the page shows: a run, what is selected of it, and the data of that selection.

Neither viser nor a browser is needed: the panels ask for plots, geometry and text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np

from gps.errors import ConfigError, GPSError, SimulationError
from gps.fields import Shape
from gps.gui import plots
from gps.gui.geometry import (
    AgentGeometry,
    Ball,
    Ellipsoids,
    agent_geometry,
    joint_targets_of,
    marginal_ellipsoids,
    mean_path,
    sample_paths,
    targets_of,
)
from gps.gui.plots import LinePlot, Plot, PlotContext, UserPlots
from gps.gui.plots.types import index_axis
from gps.gui.plots.user import TOPIC as USER_TOPIC
from gps.gui.plots.user import Failure, Made
from gps.gui.run_monitor import RunMonitor
from gps.gui.run_reader import RunReader
from gps.pipeline import progress
from gps.pipeline.sampling import Evaluation
from gps.protocols import HasCameras
from gps.types import Array, Images, Record

Source = Literal["sample", "policy", "local controller"]
SOURCES: tuple[Source, ...] = get_args(Source)
"""What is played back: a stored sample, or a noise-free rollout that is simulated on demand."""
DEFAULT_DT = 0.05
"""Seconds of a time step while the agent, which has its own, is not loaded or cannot be."""
MAX_CONDITIONS = 6
"""Conditions that are shown side by side at most."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is selected; numbers that the run does not have are clipped to its range."""

    iteration: int = 0
    """0 before the first."""
    newest: bool = True
    """Whether to follow the run."""
    best: bool = False
    """Whether the iteration was selected as the best of a run at rest; should the run be resumed,
    the newest is selected."""
    condition: int = 0
    sample: int = 0
    t: int = 0
    source: Source = "sample"
    others: str = ""
    """Other conditions to show: their numbers, as in `1, 3`, or `all`."""
    topic: str = plots.TOPICS[0]


@dataclass(frozen=True, eq=False)
class SelectedRollout(Record):
    """The rollout of a condition that is played back."""

    X: Annotated[Array, Shape("T nx")]
    label: str
    """Its origin, with its cost where that is known."""


@dataclass(frozen=True, eq=False)
class CameraImage:
    """The image of one camera at the selected step."""

    camera: str
    image: Images
    """(height, width, 3)"""
    feature_points: Array | None
    """(k, 2) of the policy, as column and row in pixels; None for a policy without."""


class Session:
    """A run and what is selected of it. One thread at a time.

    compare: other runs in the plots of training progress, as baselines. iteration: what is
    selected at first; None for the best of a run at rest, and the newest of one that is being made.
    user: plots of the user's. StoreError where the iteration is not stored. clock: seconds; tests
    have their own.
    """

    def __init__(
        self,
        run: RunReader,
        compare: Sequence[RunReader] = (),
        *,
        iteration: int | progress.Choice | None = None,
        user: UserPlots | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run, self.compare = run, list(compare)
        self.monitor = RunMonitor(run, clock=clock)
        self.selection = Selection()
        self._user = user or UserPlots()
        self._geometries: dict[int, AgentGeometry] = {}
        self._failures: dict[str, list[Failure]] = {}
        self.select()
        self._select_first(iteration)

    def poll(self) -> bool:
        """Look for changes; whether the stored files have changed."""
        self.monitor.reconnect()
        changed = any([run.refresh() for run in (self.run, *self.compare)])
        if changed:
            self.monitor.evaluate_progress()
            self.select()
        if self.selection.best and self.monitor.active:
            self.select(newest=True)
        return changed

    def errors(self) -> list[str]:
        """Those of the run, and of the user's plots that are shown, a line each."""
        failures = [failure for some in self._failures.values() for failure in some]
        return [*self.monitor.errors(), *(failure.text for failure in failures)]

    # selection

    def _select_first(self, iteration: int | progress.Choice | None) -> None:
        automatic = iteration is None
        if iteration is None:
            iteration = "last" if self.monitor.writer() else "best"
        n = self.run.choose(iteration)
        if n and n != self.run.last:
            self.select(iteration=n, newest=False, best=automatic)

    def select(self, **values: Any) -> Selection:
        """Change the selection; returns the new one. ConfigError for wrong conditions."""
        new = replace(self.selection, **values)
        self._other_conditions(new.others)
        numbers = [n for n in self.run.iterations if n > 0]
        if values.keys() & {"iteration", "newest"} and "best" not in values:
            new = replace(new, best=False)
        if "iteration" in values and "newest" not in values:
            new = replace(new, newest=bool(numbers) and new.iteration >= numbers[-1])
        if new.newest or not numbers:
            iteration = numbers[-1] if numbers else 0
        else:
            iteration = min(numbers, key=lambda n: (abs(n - new.iteration), n))
        samples = self.run.samples(iteration) if iteration else 0
        new = replace(
            new,
            iteration=iteration,
            condition=_clip(new.condition, self.run.conditions),
            sample=_clip(new.sample, samples),
        )
        rollout = self.run.rollout(iteration, new.condition, new.sample) if iteration else None
        self.selection = replace(new, t=_clip(new.t, 0 if rollout is None else len(rollout.X)))
        return self.selection

    @property
    def conditions(self) -> list[int]:
        """The conditions that are shown, the selected one first."""
        s = self.selection
        others = (m for m in self._other_conditions(s.others) if m != s.condition)
        return [s.condition, *others][:MAX_CONDITIONS]

    def _other_conditions(self, text: str) -> list[int]:
        count = self.run.conditions
        if text.strip().lower() == "all":
            return list(range(count))
        words = text.replace(",", " ").split()
        wrong = [w for w in words if not w.isdecimal() or int(w) >= count]
        if wrong:
            raise ConfigError(
                f"other conditions must be numbers from 0 to {count - 1}, or all, got {wrong[0]!r}"
            )
        return list(dict.fromkeys(map(int, words)))

    # playback and scene

    def rollout(self, m: int) -> SelectedRollout | None:
        """The selected rollout of a condition; None where there is none. SimulationError."""
        s = self.selection
        if not s.iteration:
            return None
        if s.source == "sample":
            rollout = self.run.rollout(s.iteration, m, s.sample)
            cost = self.run.cost_samples(s.iteration, m)
            if rollout is None:
                return None
            total = "" if cost is None else f", cost {cost[s.sample].sum():.5g}"
            label = f"condition {m}, sample {s.sample} of iteration {s.iteration}{total}"
            return SelectedRollout(rollout.X, label)
        found = self._evaluation(m)
        if found is None:
            return None
        label = (
            f"condition {m}, {s.source} after iteration {s.iteration} without noise, "
            f"cost {found.cost[0]:.5g}"
        )
        return SelectedRollout(found.rollouts.X[0], label)

    def _evaluation(self, m: int) -> Evaluation | None:
        """The noise-free rollout that is selected; see `RunReader.evaluation`."""
        s = self.selection
        return self.run.evaluation(s.iteration, m, "policy" if s.source == "policy" else "local")

    @property
    def dt(self) -> float:
        """Seconds of a time step; loads the experiment."""
        try:
            return float(self.run.agent.dt)
        except GPSError:
            return DEFAULT_DT

    def geometry(self, m: int) -> AgentGeometry:
        """What can be drawn of the agent in a condition."""
        if m not in self._geometries:
            try:
                self._geometries[m] = agent_geometry(self.run.agent, m)
            except GPSError as error:
                self._geometries[m] = AgentGeometry(note=str(error))
        return self._geometries[m]

    def sample_paths(self, m: int) -> Array | None:
        """Paths (k, T, 3) of the end points of all samples, in m."""
        points, s = self.geometry(m).points, self.selection
        if not s.iteration or points is None:
            return None
        rollouts = self.run.rollouts(s.iteration, m)
        return None if rollouts is None else sample_paths(points, rollouts.X)

    def policy_paths(self, m: int) -> Array | None:
        """Paths (k, T, 3) of the policy's noise-free rollout after the iteration, in m."""
        points, s = self.geometry(m).points, self.selection
        if not s.iteration or points is None:
            return None
        try:
            found = self.run.evaluation(s.iteration, m, "policy")
        except SimulationError:
            return None
        return None if found is None else sample_paths(points, found.rollouts.X)

    def plan(self, m: int) -> tuple[Array, Ellipsoids] | None:
        """Mean path (k, T, 3) of the improved controller, and ellipsoids of two standard
        deviations."""
        points, s = self.geometry(m).points, self.selection
        found = self.run.search(s.iteration, m)
        if not s.iteration or points is None or found is None or found.marginals is None:
            return None
        mean, cov = found.marginals.mean, found.marginals.cov
        steps = sorted({round(t) for t in np.linspace(0, len(mean) - 1, 12)})
        some = marginal_ellipsoids(points, mean, cov, steps)
        return mean_path(points, mean), some

    def targets(self, m: int) -> tuple[Ball, ...]:
        """Targets and obstacles of the experiment's costs: positions, and joint positions."""
        try:
            e, layout = self.run.experiment, self.run.layout
            costs = [e.cost] if e.measure is None else [e.cost, e.measure]
            return (
                *targets_of(costs, layout),
                *joint_targets_of(costs, self.geometry(m), layout),
            )
        except GPSError:
            return ()

    def images(self) -> list[CameraImage]:
        """The cameras' images at the selected step."""
        s = self.selection
        frame = self.run.image(s.iteration, s.condition, s.sample, s.t) if s.iteration else None
        if frame is None:
            return []
        config: object = self.run.experiment.agent
        names = tuple(config.cameras) if isinstance(config, HasCameras) else ()
        policy = self.run.policy(s.iteration)
        points = None if policy is None else policy.feature_points(frame)
        return [
            CameraImage(
                names[k] if k < len(names) else f"camera {k}",
                frame[..., 3 * k : 3 * k + 3],
                points,
            )
            for k in range(frame.shape[-1] // 3)
        ]

    # plots

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics of plots of a condition, that of the user's plots last, if there are any."""
        return (*plots.TOPICS, *([USER_TOPIC] if self._user.condition_plots else []))

    def progress_plots(self) -> list[Plot]:
        """Training progress of the run, and of those that it is compared with.

        The selected iteration is marked where it is not the newest.
        """
        runs, s = [self.run, *self.compare], self.selection
        found = plots.progress(runs)
        user = self._user.progress(runs, taken=[plot.name for plot in found])
        found += self._shown("progress", user)
        if s.newest:
            return found
        return [
            replace(p, marker=float(s.iteration))
            if isinstance(p, LinePlot) and index_axis(p) == "iteration"
            else p
            for p in found
        ]

    def condition_plots(self) -> list[Plot]:
        """The plots of the selected topic, iteration and condition."""
        s = self.selection
        if not s.iteration:
            return []
        evaluation = None
        if s.topic == "trajectory" and s.source != "sample":
            found = self._evaluation(s.condition)
            evaluation = None if found is None else (s.source, found.rollouts)
        context = self._context(evaluation=evaluation)
        if s.topic == USER_TOPIC:
            return self._user_plots(context)
        return plots.topic_plots(s.topic, context)

    def all_condition_plots(self) -> dict[str, list[Plot]]:
        """Those of all topics of the selected iteration and condition."""
        if not self.selection.iteration:
            return {}
        context = self._context()
        found = {topic: plots.topic_plots(topic, context) for topic in plots.TOPICS}
        return found | {USER_TOPIC: self._user_plots(context)}

    def _context(self, **options: Any) -> PlotContext:
        s = self.selection
        return PlotContext(self.run, s.iteration, s.condition, s.sample, s.t, **options)

    def _user_plots(self, context: PlotContext) -> list[Plot]:
        return self._shown("condition", self._user.condition(context))

    def _shown(self, group: str, made: Made) -> list[Plot]:
        """The plots; failures are kept for `errors`, and logged unless they were there before."""
        before = {failure.text for failure in self._failures.get(group, ())}
        for failure in made.failures:
            if failure.text not in before:
                failure.log()
        self._failures[group] = made.failures
        return made.plots

    # comparison

    def comparable(self) -> list[Path]:
        """Other runs in the same folder, which it can be compared with."""
        here = self.run.path.resolve()
        taken = {here, *(other.path.resolve() for other in self.compare)}
        try:
            found = sorted(p for p in here.parent.iterdir() if (p / "experiment.json").is_file())
        except OSError:
            return []
        return [p for p in found if p.resolve() not in taken]

    def add(self, path: Path) -> None:
        """Compare with another run; raises StoreError."""
        other = RunReader(path)
        other.refresh()
        self.compare.append(other)

    def close(self) -> None:
        """Disconnect; the run continues."""
        self.monitor.close()


def _clip(value: int, count: int) -> int:
    return max(0, min(int(value), count - 1))


__all__ = ["SOURCES", "CameraImage", "SelectedRollout", "Selection", "Session"]
