"""Reads a stored run piece by piece while another process may still write to it.

`RunReader` reads what it is asked for and no more: one sample's states, one image, one model. It
takes no lock on the run folder, and every method may be called from any thread. What a run does not
hold is None.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import h5py
import numpy as np

from gps.algorithms.state import ConditionReport
from gps.errors import GPSError, StoreError
from gps.fields import Shape
from gps.gui.search_result import SearchResult
from gps.pipeline import config_io, progress
from gps.pipeline.sampling import Evaluation, agent_of, evaluate_condition
from gps.pipeline.store import RunFolder
from gps.pipeline.tables import Table
from gps.protocols import Agent, needs_images
from gps.types import (
    Array,
    Images,
    Layout,
    LinearGaussianController,
    QuadraticCost,
    Record,
    Rollouts,
)

if TYPE_CHECKING:
    from gps.distributions.gmm import Mixture
    from gps.dynamics.linear import DynamicsFit
    from gps.pipeline.experiment import Experiment

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_CACHED = 64  # parts of iteration files in memory; a large one has some megabytes
_EVALUATIONS = 64  # rollouts for evaluation in memory

Actor = Literal["policy", "local"]


@dataclass(frozen=True, eq=False)
class Sample(Record):
    """One rollout of one condition."""

    X: Annotated[Array, Shape("T nx")]
    U: Annotated[Array, Shape("T nu")]
    """As applied."""
    obs: Annotated[Array, Shape("T no")]
    layout: Layout
    """Of the state."""
    image_shape: tuple[int, int, int] | None = None
    """Height, width and channels of the stored images; None without images."""


class RunReader:
    """A run folder for reading; `refresh` looks for what is new.

    Raises StoreError when `path` holds no run. An iteration file that is damaged is left out of
    `iterations` and named in `problems`.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = RunFolder.open(path)
        self.path = self.folder.path
        self._lock = threading.RLock()
        self._stamps: dict[str, tuple[int, int]] = {}
        self._whole: dict[int, bool] = {}
        self._iterations: tuple[int, ...] = ()
        self._problems: dict[str, str] = {}
        self._parts = _Cache(_CACHED)
        self._reports = _Cache(100_000)  # some hundred bytes each
        self._evaluations = _Cache(_EVALUATIONS)
        self._info: dict[str, Any] | None = None
        self._experiment: Experiment | None = None
        self._rows: tuple[dict[str, float], ...] = ()
        self._updates: tuple[dict[str, float], ...] = ()
        self.refresh()

    # what is there

    def refresh(self) -> bool:
        """Look at the folder; True when iterations or metrics are not what they were.

        Only files that are new or were replaced are opened, each once.
        """
        with self._lock:
            stamps = self._scan()
            if stamps == self._stamps:
                return False
            before, self._stamps = self._stamps, stamps
            changed = {
                name for name in stamps.keys() | before.keys()
                if stamps.get(name) != before.get(name)
            }  # fmt: skip
            if "experiment.json" in changed:
                self._info = self._experiment = None
                changed.update(stamps)  # files of another run would be refused
            numbers = [int(Path(name).stem) for name in stamps if name.endswith(".h5")]
            for n in numbers:
                if self._name(n) in changed or n not in self._whole:
                    self._whole[n] = self._check(n)
            self._iterations = tuple(sorted(n for n in numbers if self._whole[n]))
            for n in [n for n in self._whole if n not in numbers]:
                del self._whole[n]
            for name in [name for name in self._problems if name not in stamps]:
                del self._problems[name]
            if "metrics.csv" in changed:
                self._rows = tuple(_rows(self.path / "metrics.csv"))
            if "updates.csv" in changed:
                self._updates = tuple(_rows(self.path / "updates.csv"))
            return True

    def _scan(self) -> dict[str, tuple[int, int]]:
        """Time of change and size of every file that is read here."""
        try:
            names = os.listdir(self.path / "iterations")
        except OSError as error:
            raise StoreError(f"cannot read {self.path / 'iterations'}: {error.strerror}") from error
        paths = [self.path / name for name in ("experiment.json", "metrics.csv", "updates.csv")]
        paths += [self.path / "iterations" / n for n in names if re.fullmatch(r"\d{4,}\.h5", n)]
        stamps = {path.name: _stamp(path) for path in paths}
        return {name: stamp for name, stamp in stamps.items() if stamp is not None}

    def _name(self, n: int) -> str:
        return self.folder.iteration_path(n).name

    def _check(self, n: int) -> bool:
        self._problems.pop(self._name(n), None)
        try:
            self.folder.check(n)
        except StoreError as error:
            self._skip(n, error)
            return False
        return True

    def _skip(self, n: int, error: GPSError) -> None:
        name = self._name(n)
        if name not in self._problems:
            self._problems[name] = str(error)
            log.warning("%s: skipped", error)

    @property
    def iterations(self) -> tuple[int, ...]:
        """The stored iterations whose files are whole, as of the last `refresh`."""
        return self._iterations

    @property
    def last(self) -> int | None:
        """The newest iteration that has rollouts, or None."""
        n = self._iterations[-1] if self._iterations else 0
        return n if n > 0 else None

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be read, a line per file."""
        with self._lock:
            return tuple(self._problems.values())

    @property
    def rows(self) -> tuple[dict[str, float], ...]:
        """The rows of metrics.csv."""
        return self._rows

    @property
    def updates(self) -> tuple[dict[str, float], ...]:
        """The rows of updates.csv, one per update of a condition; none of a synchronous run."""
        return self._updates

    @property
    def results(self) -> tuple[dict[str, float], ...]:
        """What the stored iterations reached, from their files: see `progress.results`."""
        found = (
            self._get(n, "results", _read_results, cache=self._reports) for n in self.iterations
        )
        rows = zip(self.iterations, found, strict=True)
        return tuple(row | {"iteration": float(n)} for n, row in rows if n > 0 and row is not None)

    @property
    def best(self) -> int | None:
        """The best iteration; None where none can be judged."""
        return progress.best_iteration(self.results)

    def choose(self, iteration: int | progress.Choice) -> int | None:
        """The number of an iteration: of the best (of the last where none can be judged), of the
        last, or the number itself; None for `best` and `last` where none is stored.

        Raises StoreError for a number that is not stored, ConfigError for anything else.
        """
        chosen = progress.choice(iteration)
        if chosen == "best" or chosen == "last":
            found = self.best if chosen == "best" else None
            return found or (self._iterations[-1] if self._iterations else None)
        if chosen not in self._iterations:
            stored = ", ".join(map(str, self._iterations)) or "none"
            raise StoreError(f"{self.path}: iteration {chosen} is not stored; stored: {stored}")
        return chosen

    # configuration

    @property
    def info(self) -> Mapping[str, Any]:
        """The contents of experiment.json; raises StoreError."""
        with self._lock:
            if self._info is None:
                self._info = self.folder.info()
            return self._info

    @property
    def experiment(self) -> Experiment:
        """The run's experiment, its overrides included; raises StoreError."""
        with self._lock:
            if self._experiment is None:
                self._experiment = self.folder.experiment()
            return self._experiment

    @property
    def agent(self) -> Agent:
        """The experiment's agent, built on first use in every thread, since agents are not shared
        between threads. Raises ConfigError where the agent cannot be built here."""
        return agent_of(self.experiment.agent)

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.info.get("seed", 0))

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return str(self.info.get("name", "")) or self.path.name

    @property
    def label(self) -> str:
        """Name of the run folder."""
        return self.path.resolve().name

    @property
    def kind(self) -> str:
        """The same for all runs of one configuration, whatever their seed and length; another one
        for asynchronous runs, whose iterations are snapshots."""
        tree = self.info.get("experiment")
        try:
            plain = config_io.to_json(replace(self.experiment, iterations=1, seed=0))
        except GPSError:  # a hyperparams file that is gone
            plain = tree
        text = json.dumps([plain, "asynchronous" in self.info], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def conditions(self) -> int:
        """Training conditions."""
        if self._iterations:
            count = self._get(
                self._iterations[-1],
                "conditions",
                lambda file: int(file["state/conditions"].attrs["@length"]),
            )
            if count is not None:
                return int(count)
        return self.agent.n_conditions

    @property
    def layout(self) -> Layout:
        """Named entries of the state."""
        if self.last is not None:
            layout = self._part(self.last, "rollouts/0/layout")
            if layout is not None:
                return layout
        return self.agent.layout

    # rollouts

    def samples(self, n: int) -> int:
        """Rollouts per condition in iteration `n`; 0 where there are none."""
        found = self._get(n, "samples", lambda file: file["rollouts/0/X"].shape[0])
        return int(found or 0)

    def rollout(self, n: int, m: int, sample: int) -> Sample | None:
        """One sample of condition `m` in iteration `n`, without its images."""
        shape = self._get(n, f"image shape {m}", partial(_image_shape, m=m))
        layout = self._part(n, f"rollouts/{m}/layout")
        arrays: list[Any] = []
        for name in ("X", "U", "obs"):
            read = partial(_row, path=f"rollouts/{m}/{name}", i=sample)
            arrays.append(self._get(n, f"{name} {m} {sample}", read))
        if layout is None or any(a is None for a in arrays):
            return None
        X, U, obs = arrays
        return Sample(X, U, obs, layout, shape)

    def rollouts(self, n: int, m: int, sample: int | None = None) -> Rollouts | None:
        """All samples of condition `m`, or only one, as a record without images."""
        return self._get(n, f"rollouts {m} {sample}", partial(self._rollouts, n=n, m=m, i=sample))

    def _rollouts(self, file: h5py.File, n: int, m: int, i: int | None) -> Rollouts:
        group = file[f"rollouts/{m}"]
        if i is not None:
            _check_index(group["X"], i)
        part = slice(None) if i is None else slice(i, i + 1)
        jacobians = self._part(n, f"rollouts/{m}/jacobians") or {}
        return Rollouts(
            X=group["X"][part],
            U=group["U"][part],
            obs=group["obs"][part],
            noise=group["noise"][part],
            layout=self._part(n, f"rollouts/{m}/layout"),
            condition=m,
            jacobians={name: J[part] for name, J in jacobians.items()},
        )

    def entry(self, n: int, m: int, name: str) -> Array | None:
        """One named state entry of all samples, (N, T, size), read without the others."""

        def read(file: h5py.File) -> Array:
            layout: Layout = self._part(n, f"rollouts/{m}/layout")
            if name not in layout.names:
                raise KeyError(name)
            return _frozen(file[f"rollouts/{m}/X"][:, :, layout.slice(name)])

        return self._get(n, f"entry {m} {name}", read)

    def endpoints(self, n: int, m: int) -> Array | None:
        """The state entry of the measure of success, of all samples: (N, T, size), in the entry's
        own unit."""
        measure = self.experiment.measure
        return self.entry(n, m, "end_points" if measure is None else measure.entry)

    def image(self, n: int, m: int, sample: int, t: int) -> Images | None:
        """The images of one step, (height, width, channels): cameras one after another."""

        def read(file: h5py.File) -> Images:
            data = file[f"rollouts/{m}/images"]
            _check_index(data, sample)
            if not 0 <= t < data.shape[1]:
                raise KeyError(t)
            return _frozen(data[sample, t])

        return self._get(n, f"image {m} {sample} {t}", read)

    def images(self, n: int, m: int, sample: int) -> Images | None:
        """All images of one sample, (T, height, width, channels); not kept."""
        read = partial(_row, path=f"rollouts/{m}/images", i=sample)
        return self._get(n, f"images {m} {sample}", read, cache=_Cache(0))

    # what was fitted and found

    def condition_reports(self, n: int) -> tuple[ConditionReport, ...] | None:
        """The report of every condition in iteration `n`."""
        return self._get(n, "reports", _read_reports, cache=self._reports)

    def all_reports(self) -> dict[int, tuple[ConditionReport, ...]]:
        """The reports of all iterations; only those of new files are read again."""
        found = {n: self.condition_reports(n) for n in self._iterations}
        return {n: reports for n, reports in found.items() if reports is not None}

    def cost_samples(self, n: int, m: int) -> Array | None:
        """Cost of every sample and step, (N, T)."""
        return self._part(n, f"models/cost/{m}/l")

    def quadratic_cost(self, n: int, m: int) -> QuadraticCost | None:
        """The expanded cost, mean over the samples, about z = 0."""
        return self._part(n, f"models/cost/{m}/quadratic")

    def dynamics(self, n: int, m: int) -> DynamicsFit | None:
        """The fitted dynamics and the distribution of the start state."""
        return self._part(n, f"models/dynamics/{m}/fit")

    def prior(self, n: int, m: int) -> Mixture | None:
        """The mixture over [x; u; x'] that the dynamics were fitted with."""
        return self._part(n, f"models/dynamics/{m}/prior/mixture")

    def linearised(self, n: int, m: int) -> LinearGaussianController | None:
        """The global policy, linearised around the rollouts, that the update of `n` used."""
        return self._part(n, f"models/linearised/{m}/controller")

    def controller(self, n: int, m: int) -> LinearGaussianController | None:
        """The local controller after iteration `n`, which `n + 1` rolls out."""
        return self._part(n, f"state/conditions/{m}/controller")

    def sampled_controller(self, n: int, m: int) -> LinearGaussianController | None:
        """The local controller that the condition had when iteration `n` rolled out.

        In an asynchronous run, whose snapshots can be several updates apart, it is known only where
        the guard has not gone back behind it.
        """
        if n < 1:
            return None
        if "asynchronous" not in self.info:
            return self.controller(n - 1, m)
        found: LinearGaussianController | None = self._part(n, f"state/conditions/{m}/previous")
        r = self.rollouts(n, m)
        if found is None or r is None:
            return None
        made = found.mean_action(r.X) + np.einsum("tij,ntj->nti", found.chol, r.noise)
        # the median: actions at the limits are clipped
        return found if np.median(np.abs(made - r.U)) <= 1e-6 * (1 + np.abs(r.U).max()) else None

    def search(self, n: int, m: int) -> SearchResult | None:
        """What the search of the update found."""
        return SearchResult.of(self._part(n, f"state/conditions/{m}/search"))

    def algorithm_state(self, n: int, m: int) -> Any:
        """The algorithm's own state of a condition, a record; None for an algorithm without."""
        return self._part(n, f"state/conditions/{m}/algorithm_state")

    def policy(self, n: int) -> Any:
        """The global policy after iteration `n`."""
        return self._part(n, "state/policy/policy")

    def policy_loss(self, n: int) -> Array | None:
        """Loss in the last training of the policy, mean of k equal stretches: (k,) in nats."""
        return self._part(n, "state/policy/loss_trace")

    def policy_actions(self, n: int, m: int, sample: int) -> Array | None:
        """Mean actions (T, nu) of the policy after iteration `n` along a sample."""
        policy, rollout = self.policy(n), self.rollout(n, m, sample)
        if policy is None or rollout is None:
            return None
        if needs_images(policy):
            images = self.images(n, m, sample)
            return None if images is None else policy.mean(rollout.obs, images)
        return policy.mean(rollout.obs)

    def evaluation(
        self, n: int, m: int, actor: Actor = "policy", test: bool = False
    ) -> Evaluation | None:
        """The noise-free rollout of the policy or the local controller after iteration `n`.

        It is simulated on first use, over the agent's T steps, as for metrics.csv (there the policy
        goes on for `evaluation_steps`). test: `m` counts test conditions. Raises
        SimulationError.
        """
        policy = self.policy(n) if actor == "policy" else self.controller(n, m)
        if policy is None:
            return None
        key = (n, self._stamp_of(n), m, actor, test)
        with self._lock:
            if key in self._evaluations:
                return self._evaluations[key]
        e = self.experiment  # simulated outside the lock: it takes time
        done = evaluate_condition(e.agent, e.cost, e.measure, policy, m, 1, 0, test=test)
        with self._lock:
            self._evaluations[key] = done
        return done

    # reading

    def _stamp_of(self, n: int) -> tuple[int, int] | None:
        return _stamp(self.folder.iteration_path(n))

    def _get(
        self, n: int, key: str, read: Callable[[h5py.File], _T], *, cache: _Cache | None = None
    ) -> _T | None:
        """What `read` makes of an iteration file; None where the file has no such part."""

        def load() -> _T | None:
            with h5py.File(self.folder.iteration_path(n), "r") as file:
                try:
                    return read(file)
                except (KeyError, IndexError):
                    return None

        return self._load(n, key, load, self._parts if cache is None else cache)

    def _part(self, n: int, part: str) -> Any:
        """A record of an iteration file; None where there is none."""
        return self._load(n, part, lambda: self.folder.read_part(n, part), self._parts)

    def _load(self, n: int, key: str, load: Callable[[], _T], cache: _Cache) -> _T | None:
        """A value from the cache while the file is the same; None where it cannot be read."""
        with self._lock:
            stamp = self._stamp_of(n)
            if stamp is None:
                return None
            at = (n, stamp, key)
            if at in cache:
                return cache[at]
            try:
                value = load()
            except FileNotFoundError:
                return None  # deleted a moment ago
            except StoreError as error:
                if self._stamp_of(n) is not None:
                    self._skip(n, error)
                return None
            except (OSError, RuntimeError, ValueError, TypeError) as error:
                path = self.folder.iteration_path(n)
                what = " ".join(str(error).split()) or type(error).__name__
                self._skip(n, StoreError(f"{path} is damaged ({what})"))
                return None
            cache[at] = value
            return value


class _Cache(OrderedDict[Any, Any]):
    """The `size` values that were used last."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def __getitem__(self, key: Any) -> Any:
        self.move_to_end(key)
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while len(self) > self.size:
            self.popitem(last=False)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Time of change in ns and size; a file that was replaced differs in one of them."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size


def _frozen(array: Any) -> Any:
    array = np.asarray(array)
    array.setflags(write=False)
    return array


def _check_index(data: h5py.Dataset, i: int) -> None:
    """KeyError for a sample that is not there; h5py would count negative ones from the end."""
    if not 0 <= i < data.shape[0]:
        raise KeyError(i)


def _row(file: h5py.File, path: str, i: int) -> Any:
    data = file[path]
    _check_index(data, i)
    return _frozen(data[i])


_TEXTS = ("event", "cause", "advice", "options")
"""The fields of a ConditionReport that hold text."""


def _read_reports(file: h5py.File) -> tuple[ConditionReport, ...]:
    """The reports of all conditions, without figures: through h5py's low-level interface, which
    takes a tenth of the time, as a run has thousands of them."""
    node = file["report/conditions"]
    reports = []
    number = np.empty(())
    for m in range(int(node.attrs["@length"])):
        group = h5py.h5g.open(node.id, str(m).encode())
        values: dict[str, Any] = {}
        for f in fields(ConditionReport):
            name = f.name.encode()
            if f.name in _TEXTS or not h5py.h5a.exists(group, name):  # one that was None
                continue
            h5py.h5a.open(group, name).read(number, h5py.h5t.NATIVE_DOUBLE)
            values[f.name] = number.item()
        values["condition"] = int(values["condition"])
        if "updated" in values:
            values["updated"] = bool(values["updated"])
        for text in _TEXTS:
            if h5py.h5a.exists(group, text.encode()):
                values[text] = str(h5py.Group(group).attrs[text])
        reports.append(ConditionReport(**values))
    return tuple(reports)


def _read_results(file: h5py.File) -> dict[str, float]:
    """The entries of the metrics that are judged."""
    attributes = file["metrics"].attrs
    return {name: float(attributes[name]) for name in progress.COLUMNS if name in attributes}


def _image_shape(file: h5py.File, m: int) -> tuple[int, int, int] | None:
    group = file[f"rollouts/{m}"]
    if "images" not in group:
        return None
    height, width, channels = group["images"].shape[-3:]
    return int(height), int(width), int(channels)


def _rows(path: Path) -> list[dict[str, float]]:
    """The rows of a table of numbers; none where it cannot be read."""
    with suppress(StoreError):
        return Table(path).rows()
    return []


__all__ = ["Actor", "RunReader", "Sample"]
