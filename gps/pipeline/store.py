"""What a run leaves behind: one HDF5 file per iteration, metrics, the configuration.

    RUN/experiment.json        configuration, seed, versions, git commit; see `config_io`
    RUN/hyperparams.py         copy of the hyperparams file, where there was one, with the modules
                               beside it that it imports
    RUN/iterations/0000.h5     the state before the first iteration
    RUN/iterations/NNNN.h5     rollouts, fitted models, report of iteration N, the state after
    RUN/metrics.csv            one row per iteration
    RUN/updates.csv            of an asynchronous run: one row per update of a condition
    RUN/changes.json           options that were changed while the run went on; see `changes`
    RUN/log.txt                messages: what was told to the run, warnings, the error that ended it
    RUN/tensorboard/           the same numbers as events
    RUN/lock                   present while a process writes to the run

Every file is written beside its place and renamed: it is there whole or not at all. Iteration files
hold no wall-clock time: the same seed gives the same bytes.

Layout of an iteration file, for readers that have h5py only:

    attributes of /     schema "gps iteration", schema_version 1, iteration, gps_version,
                        identity (a hash of configuration and seed)
    /state              GPSState: all that the next iteration starts from; costs are configuration
    /rollouts/0 ...     Rollouts: X (N, T, nx), U (N, T, nu), obs (N, T, no), noise (N, T, nu)
    /models/cost/0 ...  per stage and condition what was fitted: cost, dynamics, linearised
    /metrics            the row of metrics.csv as attributes, without seconds and memory
    /report             Report

A group holds a record, tuple, list or dict, and its attribute `@type` says which: the class of the
record as `module:qualname`, or `tuple`, `list`, `dict`, or `name` for a class or function, whose
name is the attribute `@name`. Arrays are datasets, named by field,
position or key; numbers, text, booleans and None (an empty attribute) are attributes of the group.
`@units` gives units where they are known, `@keys` the keys of a dict in order (in names, / and @
and % are written %2F, %40, %25). Arrays of equal content are stored once and linked.

Pictures (uint8, four axes or more) are compressed, up to a megabyte of one rollout to a chunk.

    h5py.File("0003.h5")["state/conditions/0/controller/K"][:]
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import math
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from importlib import metadata
from pathlib import Path
from types import FunctionType, MappingProxyType
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import h5py
import numpy as np

from gps.errors import ExperimentError, GPSError, StoreError
from gps.pipeline import changes, config_io, loader, progress
from gps.types import Record, Rollouts

if TYPE_CHECKING:
    from gps.algorithms.state import GPSState, Report
    from gps.pipeline.changes import Changes
    from gps.pipeline.experiment import Experiment

log = logging.getLogger(__name__)

SCHEMA, SCHEMA_VERSION = "gps iteration", 1
PARTS = ("state", "rollouts", "models", "metrics", "report")
UNITS: Mapping[str, Mapping[str, str]] = {
    "gps.algorithms.state:ConditionReport": {"kl": "nat per step", "kl_max": "nat per step"},
    "gps.control.dual:DualResult": {
        "eta": "cost per nat",
        "kl": "nat per step",
        "kl_max": "nat per step",
    },
    "gps.types:Rollouts": {"noise": "1 (unit variance)"},
    "metrics": {
        **{
            f"{who}_distance_{of}": "as the experiment's measure"
            for who in ("local", "policy")
            for of in ("mean", "max")
        },
        "eta_mean": "cost per nat",
        "kl_mean": "nat per step",
        "kl_max": "nat per step",
        "policy_loss": "nat",
    },
}
"""Of the fields of a record class, or of the entries of a dict at the top of the file."""
_LIBVER = ("v110", "v110")  # fixed: another library version must not change the bytes
_MACHINE = ("seconds", "memory")  # columns that tell of the machine, not of the run
_TEXT = h5py.string_dtype()
_DOUBLE = h5py.h5t.py_create(np.dtype("f8"))
_SCALAR, _NOTHING = (h5py.h5s.create(kind) for kind in (h5py.h5s.SCALAR, h5py.h5s.NULL))
_CHUNK = 2**20  # bytes of pictures that are compressed together
_LINK_FROM = 1024  # bytes; smaller arrays cost less than the search for an equal one


@dataclass(frozen=True, eq=False)
class Snapshot(Record):
    """Everything that is stored of one iteration."""

    state: GPSState
    """After the iteration; stored without `costs`, which are configuration."""
    rollouts: tuple[Rollouts, ...] = ()
    models: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Per stage one record per condition."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The row of metrics.csv; what starts with `seconds` or `memory` is left out of the file."""
    report: Report | None = None
    """Without `models`, which have their own place."""

    @classmethod
    def of_start(cls, state: GPSState) -> Snapshot:
        """The snapshot before the first iteration."""
        return cls(state=state)


# --- trees of records in HDF5 --------------------------------------------------------------------


class _Writer:
    """Writes trees of records; the low-level interface of h5py takes a third of the time."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Any, ...], list[tuple[np.ndarray, h5py.h5d.DatasetID]]] = {}
        self._types: dict[np.dtype, tuple[h5py.h5t.TypeID, h5py.h5t.TypeID]] = {}
        self._group_props = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        self._group_props.set_obj_track_times(False)
        self._props = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        self._props.set_obj_track_times(False)
        self._props.set_fill_time(h5py.h5d.FILL_TIME_NEVER)

    def tree(self, parent: h5py.h5g.GroupID, name: str, value: Any, where: str) -> None:
        """Write `value` as `name` into a group; StoreError says which entry has no place."""
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            self._array(parent, name, value)
        elif value is None or isinstance(value, bool | int | float | str | np.generic):
            self._attribute(parent, name, value, where)
        elif isinstance(value, tuple | list) and type(value) in (tuple, list):
            group = self._group(parent, name, type(value).__name__)
            self._attribute(group, "@length", len(value), where)
            for i, item in enumerate(value):
                self.tree(group, str(i), item, f"{where}/{i}")
        elif isinstance(value, dict | MappingProxyType):
            group = self._group(parent, name, "dict")
            if bad := [k for k in value if not isinstance(k, str)]:
                raise StoreError(f"{where}: a key must be text to be stored, got {bad[0]!r}")
            if value:
                h5py.AttributeManager(h5py.Group(group))["@keys"] = list(value)
            for key, item in value.items():
                self.tree(group, _escape(key), item, f"{where}/{key}")
        elif is_dataclass(value) and not isinstance(value, type):
            group = self._group(parent, name, _record_name(type(value), where))
            for f in fields(value):
                absent = "stored" in f.metadata and getattr(value, f.name) is None
                if f.init and not absent:
                    self.tree(group, f.name, getattr(value, f.name), f"{where}/{f.name}")
        elif isinstance(value, type | FunctionType):
            group = self._group(parent, name, "name")
            try:
                self._attribute(group, "@name", config_io.name_of(value), where)
            except ExperimentError as error:
                raise StoreError(f"{where}: {error}") from None
        else:
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            raise StoreError(
                f"{where}: a {kind} cannot be stored; records hold arrays, numbers, text, None "
                "and tuples, lists, dicts and records of them"
            )

    def _group(self, parent: h5py.h5g.GroupID, name: str, kind: str) -> h5py.h5g.GroupID:
        group = h5py.h5g.create(parent, name.encode(), gcpl=self._group_props)
        self._attribute(group, "@type", kind, name)
        if units := UNITS.get(name if kind == "dict" else kind):
            text = "; ".join(f"{k}: {v}" for k, v in units.items())
            self._attribute(group, "@units", text, name)
        return group

    def _attribute(self, group: h5py.h5g.GroupID, name: str, value: Any, where: str) -> None:
        if value is None:
            h5py.h5a.create(group, name.encode(), _DOUBLE, _NOTHING)
            return
        data = _scalar(value, where)
        if data.dtype not in self._types:  # in the file, and in memory
            kinds = [h5py.h5t.py_create(data.dtype, logical=on) for on in (True, False)]
            self._types[data.dtype] = kinds[0], kinds[1]
        kind, memory = self._types[data.dtype]
        h5py.h5a.create(group, name.encode(), kind, _SCALAR).write(data, mtype=memory)

    def _image_props(self, value: np.ndarray) -> h5py.h5p.PropDCID:
        """Pictures compress to a few per cent of their size; no chunk spans two rollouts."""
        props = self._props.copy()
        pictures = max(1, _CHUNK // max(1, math.prod(value.shape[-3:])))
        chunk = [1] * (value.ndim - 4) + [min(value.shape[-4], pictures), *value.shape[-3:]]
        props.set_chunk(tuple(chunk))
        props.set_deflate(1)
        return props

    def _array(self, parent: h5py.h5g.GroupID, name: str, value: np.ndarray) -> None:
        value = np.ascontiguousarray(value).reshape(value.shape)  # it makes 0-d arrays 1-d
        key: tuple[Any, ...] = ()
        if value.nbytes >= _LINK_FROM:
            flat = value.reshape(-1)
            key = (value.dtype.str, value.shape, flat[:: max(1, flat.size // 16)].tobytes())
            for other, dataset in self._seen.get(key, ()):
                if other is value or np.array_equal(_bytes(other), _bytes(value)):
                    h5py.h5o.link(dataset, parent, name.encode())
                    return
        space = (
            h5py.h5s.create_simple(value.shape) if value.ndim else h5py.h5s.create(h5py.h5s.SCALAR)
        )
        kind = h5py.h5t.py_create(value.dtype, logical=True)
        props = self._image_props(value) if _is_images(value) else self._props
        dataset = h5py.h5d.create(parent, name.encode(), kind, space, props)
        if value.size:
            dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, value)
        if key:
            self._seen.setdefault(key, []).append((value, dataset))


def _scalar(value: Any, where: str) -> np.ndarray:
    if isinstance(value, str) and "\0" not in value:
        return np.array(value, dtype=_TEXT)
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return np.asarray(value)
    if isinstance(value, bool | float):
        return np.array(value)
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return np.array(value, dtype=np.int64)
    raise StoreError(f"{where}: {value!r} has no HDF5 type: over 64 bits, or text with a NUL")


def _is_images(value: np.ndarray) -> bool:
    return value.dtype == np.uint8 and value.ndim >= 4 and value.size > 0


def _bytes(value: np.ndarray) -> np.ndarray:
    """As bytes: equal means bit for bit, also for NaN and -0."""
    return value.reshape(-1).view(np.uint8)


def _escape(key: str) -> str:
    """A dict's key as the name of an HDF5 object or attribute."""
    if key in ("", ".", ".."):  # names that HDF5 does not take
        return key.replace(".", "%2E") or "%"
    return quote(key, safe=" +,:;=()[]<>!$&'*?~")


def _record_name(cls: type, where: str) -> str:
    try:
        name = config_io.name_of(cls)
    except ExperimentError as error:
        raise StoreError(f"{where}: {error}") from None
    if not cast(Any, cls).__dataclass_params__.frozen:
        raise StoreError(f"{where}: {name} is not a frozen dataclass; only records are stored")
    return name


def _read_attribute(value: Any) -> Any:
    if isinstance(value, h5py.Empty):
        return None
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.int64):
        return int(value)
    if isinstance(value, np.float64):
        return float(value)
    return value


def _read_tree(node: h5py.Group | h5py.Dataset, user: config_io.Names | None) -> Any:
    if isinstance(node, h5py.Dataset):
        array = node[()]
        if isinstance(array, np.ndarray):
            array.setflags(write=False)  # the records take it without a copy
            return array
        array = np.asarray(array)
        array.setflags(write=False)
        return array
    kind = node.attrs["@type"]
    items = {k: _read_attribute(v) for k, v in node.attrs.items() if not k.startswith("@")}
    items |= {k: _read_tree(v, user) for k, v in node.items()}
    if kind in ("tuple", "list"):
        values = [items[str(i)] for i in range(int(node.attrs["@length"]))]
        return tuple(values) if kind == "tuple" else values
    if kind == "dict":
        return {k: items[_escape(k)] for k in node.attrs.get("@keys", ())}
    if kind == "name":
        return config_io.find(str(node.attrs["@name"]), user)
    cls = config_io.find_dataclass(kind, user)
    if not cast(Any, cls).__dataclass_params__.frozen:
        raise StoreError(f"{kind} is not a record")
    return config_io.build(kind, items, user)


def encode(snapshot: Snapshot, identity: str = "") -> bytes:
    """The iteration file of a snapshot, as bytes; identity: of its run, see `identity_of`."""
    metrics = {k: float(v) for k, v in snapshot.metrics.items() if not k.startswith(_MACHINE)}
    report = snapshot.report
    values = {
        "state": replace(snapshot.state, costs=()),
        "rollouts": snapshot.rollouts,
        "models": snapshot.models,
        "metrics": metrics,
        "report": None if report is None else replace(report, models={}),
    }
    # in memory first: HDF5 does not survive a disk that fills up under an open file
    with h5py.File("gps", "w", driver="core", backing_store=False, libver=_LIBVER) as file:
        file.attrs["schema"] = SCHEMA
        file.attrs["schema_version"] = SCHEMA_VERSION
        file.attrs["iteration"] = snapshot.state.iteration
        file.attrs["identity"] = identity
        file.attrs["gps_version"] = _version("guided-policy-search")
        writer = _Writer()
        for part in PARTS:
            writer.tree(file.id, part, values[part], part)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def identity_of(experiment: Experiment) -> str:
    """The same for all runs whose iterations are the same: a hash of the configuration and seed."""
    plain = config_io.to_json(replace(experiment, iterations=1))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


# --- files ---------------------------------------------------------------------------------------


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside its place, flush it to the disk and rename it; raises OSError."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def default_path(experiment: Experiment, base: Path = Path("runs")) -> Path:
    """`runs/<experiment>/<time>-seed<k>`, with a counter where two runs start in one second."""
    name = re.sub(r"[^\w.+-]+", "-", experiment.name) or "experiment"
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-seed{experiment.seed}"
    path, n = base / name / stem, 1
    while path.exists():
        n += 1
        path = base / name / f"{stem}-{n}"
    return path


def require_new(path: Path) -> None:
    """Raise StoreError unless a run folder can be made here: nothing there, or an empty folder."""
    try:
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return
    except OSError as error:
        raise StoreError(f"cannot make the run folder {path}: {_reason(error)}") from error
    what = "is not empty" if path.is_dir() else "is a file"
    hint = f", or continue the run that is there with: gps resume {path}" if path.is_dir() else ""
    raise StoreError(f"{path} {what}; give a new folder with --out{hint}")


def _modules_of(source: Path) -> dict[Path, bytes]:
    """The modules beside a hyperparams file that it imports, by their place in the run folder.

    StoreError where a run has something else of that name.
    """
    modules = loader.modules_beside(source)
    for place in modules:
        taken = place.parts[0].removesuffix(".py")
        if taken in ("hyperparams", "iterations", "tensorboard"):
            raise StoreError(
                f"{source}: its module {place} cannot be copied to where a run has its own "
                f"{taken}; give the module another name"
            )
    return modules


class RunFolder:
    """A run on the disk. Reading takes no lock; the first writing call takes it until `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._locked = False
        self._events: _Events | None = None
        self._columns: list[str] | None = None
        self._known_identity: str | None = None

    @classmethod
    def create(
        cls,
        path: str | Path,
        experiment: Experiment,
        source: Path | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> RunFolder:
        """A new run in a folder that is new or empty; raises StoreError.

        source: the hyperparams file, to be copied with the modules beside it that it imports.
        extra: more entries for experiment.json.
        """
        path = Path(path)
        folder = cls(path)
        require_new(path)
        modules = {} if source is None else _modules_of(source)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the run folder {path}: {_reason(error)}") from error
        folder._lock()
        try:
            with folder._writing(path / "iterations"):
                (path / "iterations").mkdir()
            if source is not None:
                with folder._writing(path / "hyperparams.py"):
                    write_whole(path / "hyperparams.py", Path(source).read_bytes())
            for place, data in modules.items():
                with folder._writing(path / place):
                    (path / place).parent.mkdir(parents=True, exist_ok=True)
                    write_whole(path / place, data)
            facts: dict[str, Any] = {
                "schema": "gps experiment",
                "schema_version": SCHEMA_VERSION,
                "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "name": experiment.name,
                "seed": experiment.seed,
                "identity": identity_of(experiment),
                "source": None if source is None else str(Path(source).resolve()),
                "command": list(sys.argv),
                "versions": versions(),
                "git": git_commit(Path(__file__).parent),
                "machine": {"host": socket.gethostname(), "platform": platform.platform()},
                **(extra or {}),
                "experiment": config_io.to_json(experiment),
            }
            with folder._writing(path / "experiment.json"):
                text = json.dumps(facts, indent=2, allow_nan=False) + "\n"
                write_whole(path / "experiment.json", text.encode())
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """A run that exists; raises StoreError when the folder holds none."""
        path = Path(path)
        if not (path / "experiment.json").is_file():
            what = (
                "is no run folder: it has no experiment.json" if path.exists() else "does not exist"
            )
            raise StoreError(f"{path} {what}")
        return cls(path)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock and close the event file; the folder can still be read."""
        self._close_events()
        if self._locked:
            self._locked = False
            with suppress(OSError):
                self._lock_path.unlink()

    # configuration

    def info(self) -> dict[str, Any]:
        """The contents of experiment.json; raises StoreError."""
        path = self.path / "experiment.json"
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read {path}: {_reason(error)}") from error
        if not isinstance(facts, dict) or facts.get("schema") != "gps experiment":
            raise StoreError(f"{path} was not written by gps")
        if facts.get("schema_version") != SCHEMA_VERSION:
            raise StoreError(
                f"{path} has schema version {facts.get('schema_version')}, this gps reads "
                f"{SCHEMA_VERSION}; use the version of gps in the file's `versions`"
            )
        return facts

    def experiment(self) -> Experiment:
        """The experiment that the run was made from, overrides included; raises StoreError."""
        from gps.pipeline.experiment import Experiment

        facts = self.info()
        try:
            experiment = config_io.from_json(facts.get("experiment"), self._user_names)
        except GPSError as error:
            raise StoreError(f"{self.path / 'experiment.json'}: {error}") from error
        if not isinstance(experiment, Experiment):
            raise StoreError(f"{self.path / 'experiment.json'} holds no experiment")
        return experiment

    def _identity(self) -> str:
        if self._known_identity is None:
            self._known_identity = str(self.info().get("identity", ""))
        return self._known_identity

    def _user_names(self) -> Mapping[str, Any]:
        """What the copied hyperparams file defines."""
        return vars(loader.execute(self.path / "hyperparams.py"))

    # iterations

    def iteration_path(self, n: int) -> Path:
        """Where iteration `n` is stored."""
        return self.path / "iterations" / f"{n:04d}.h5"

    def iterations(self) -> list[int]:
        """The stored iterations whose files are whole; a warning in the log names the others."""
        return [n for n in self._numbers() if self._is_whole(n)]

    def last(self) -> int:
        """The last whole iteration; StoreError when there is none."""
        for n in reversed(self._numbers()):
            if self._is_whole(n):
                return n
        raise StoreError(
            f"{self.path}: no whole iteration file; the run ended before its first state was "
            "stored, start it again with gps run"
        )

    def results(self) -> list[dict[str, float]]:
        """The rows of all whole iterations, from their files: metrics.csv may lack the last one of
        a process that was killed. Seconds and memory are not among them."""
        return [self._stored_metrics(n) for n in self.iterations() if n > 0]

    def choose(self, iteration: int | progress.Choice = "best") -> int:
        """The number of an iteration: of the best (see `progress.best_iteration`; of the last where
        none can be judged), of the last whole one, or the number itself, unchecked.

        Raises ConfigError for anything else, StoreError where none is stored.
        """
        chosen = progress.choice(iteration)
        if chosen == "best":
            found = progress.best_iteration(self.results())
            return self.last() if found is None else found
        return self.last() if chosen == "last" else chosen

    def _numbers(self) -> list[int]:
        """All that are called like iteration files, in order."""
        try:
            names = os.listdir(self.path / "iterations")
        except OSError as error:
            raise StoreError(f"cannot read {self.path / 'iterations'}: {_reason(error)}") from error
        found = [int(name[:-3]) for name in names if re.fullmatch(r"\d{4,}\.h5", name)]
        return sorted(n for n in found if self.iteration_path(n).name in names)

    def _is_whole(self, n: int) -> bool:
        try:
            with self._opened(n, advice=""):
                pass
        except StoreError as error:
            log.warning("%s: skipped", error)
            return False
        return True

    @contextmanager
    def _opened(self, n: int, advice: str | None = None) -> Iterator[h5py.File]:
        """An iteration file, checked; every failure to read it becomes a StoreError.

        advice: what the error tells the user to do; None for deleting a file that is no use.
        """
        path = self.iteration_path(n)
        if advice is None:
            advice = f"; delete it and go on from an earlier one with: gps resume {self.path}"
        if not path.exists():
            stored = _ranges(self._numbers())
            raise StoreError(f"{self.path}: iteration {n} is not stored; stored: {stored}")
        try:
            with h5py.File(path, "r") as file:
                schema, version = file.attrs.get("schema"), file.attrs.get("schema_version")
                if schema != SCHEMA:
                    raise StoreError(f"{path} was not written by gps{advice}")
                if version != SCHEMA_VERSION:
                    raise StoreError(
                        f"{path} has schema version {version}, this gps reads {SCHEMA_VERSION}; "
                        f"use gps {file.attrs.get('gps_version')}"
                    )
                if file.attrs.get("identity", "") not in ("", self._identity()):
                    raise StoreError(
                        f"{path} belongs to a run with another configuration or seed{advice}"
                    )
                if file.attrs["iteration"] != n or any(part not in file for part in PARTS[:3]):
                    raise StoreError(f"{path} does not hold iteration {n}{advice}")
                yield file
        except StoreError:
            raise
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, GPSError) as error:
            raise StoreError(f"{path} is damaged ({_reason(error)}){advice}") from error

    def check(self, n: int) -> None:
        """Raise StoreError unless iteration `n` is stored in a file of ours that can be opened."""
        with self._opened(n):
            pass

    def read(self, n: int) -> Snapshot:
        """Iteration `n`; `state.costs` is empty. Raises StoreError."""
        with self._opened(n) as file:
            parts = {
                name: _read_tree(file[name], self._user_names) for name in PARTS if name in file
            }
            return Snapshot(**{"report": None, **parts})

    def read_state(self, n: int) -> GPSState:
        """The state after iteration `n`, without `costs`; raises StoreError."""
        with self._opened(n) as file:
            state: GPSState = _read_tree(file["state"], self._user_names)
            return state

    def read_part(self, n: int, part: str) -> Any:
        """One part of iteration `n`, such as `models/dynamics/0/fit`, without the rest of its file.

        None where the file has no such part. Raises StoreError.
        """
        with self._opened(n) as file:
            if part in file:
                return _read_tree(file[part], self._user_names)
            group, _, name = part.rpartition("/")
            attributes = file[group].attrs if group in file else {}
            return _read_attribute(attributes[name]) if name in attributes else None

    def write(self, snapshot: Snapshot) -> None:
        """Store an iteration, whole or not at all; raises StoreError."""
        self._lock()
        path = self.iteration_path(snapshot.state.iteration)
        data = encode(snapshot, self._identity())
        with self._writing(path):
            write_whole(path, data)

    def truncate(self, after: int) -> None:
        """Forget everything after iteration `after`, so that the run can go on from there.

        metrics.csv is made to agree with the iteration files that stay. Raises StoreError.
        """
        self._lock()
        self.read_state(after)  # before anything is deleted
        rows = {int(row["iteration"]): row for row in self.metrics()}
        for n in reversed(self._numbers()):
            if n > after:
                with self._writing(self.iteration_path(n)):
                    self.iteration_path(n).unlink()
        for name in os.listdir(self.path / "iterations"):
            if name.endswith(".tmp"):  # of a process that was killed
                with suppress(OSError):
                    (self.path / "iterations" / name).unlink()
        kept = []
        for n in self.iterations():
            if n > 0:
                kept.append(rows.get(n) or self._stored_metrics(n))
        if kept or (self.path / "metrics.csv").exists():
            self._write_metrics(kept)
        self._close_events()
        self._events_from(after + 1)  # tells TensorBoard to forget the later steps

    def _stored_metrics(self, n: int) -> dict[str, float]:
        """The row in an iteration's file, without seconds and memory."""
        with self._opened(n) as file:
            found = file["metrics"].attrs.items() if "metrics" in file else ()
            return {k: float(v) for k, v in found if k[0] != "@"} | {"iteration": float(n)}

    # metrics

    def append_metrics(self, row: Mapping[str, float]) -> None:
        """Add a row to metrics.csv and to the TensorBoard events; raises StoreError."""
        self._lock()
        path = self.path / "metrics.csv"
        if self._columns is None:
            self._columns = _header(path)
        if self._columns is None or not set(row) <= set(self._columns):
            rows = self.metrics() if self._columns else []
            self._write_metrics([*rows, dict(row)])
        else:
            with self._writing(path), open(path, "a", encoding="utf-8", newline="") as file:
                file.write(_csv_line([_number(k, row.get(k, math.nan)) for k in self._columns]))
        events = self._events_from(int(row["iteration"]))
        if events is not None:
            with self._writing(events.path):
                events.write(int(row["iteration"]), row)

    def metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.csv; a last line that was cut short is left out."""
        path = self.path / "metrics.csv"
        columns = _header(path)
        if columns is None:
            return []
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]
        rows = []
        for line in lines:
            cells = next(csv.reader([line]))
            try:
                if line.endswith("\n") and len(cells) == len(columns):
                    rows.append(dict(zip(columns, map(float, cells), strict=True)))
            except ValueError:
                log.warning("%s: skipped a line that holds no numbers: %s", path, line.strip())
        return rows

    def forget_metrics(self, start: int) -> None:
        """Drop the rows of metrics.csv from iteration `start` on, which is made again."""
        self._lock()
        rows = self.metrics()
        kept = [row for row in rows if row["iteration"] < start]
        if len(kept) < len(rows):
            self._write_metrics(kept)
            self._close_events()
            self._events_from(start)

    # changes of options, and the log

    def changes(self) -> Changes:
        """Options that were changed while the run went on; raises StoreError."""
        return changes.read(self.path / "changes.json")

    def write_changes(self, made: Changes) -> None:
        """Store the changes in place of those that are there; raises StoreError."""
        self._lock()
        path = self.path / "changes.json"
        with self._writing(path):
            write_whole(path, changes.encode(made))

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Write the library's messages to log.txt too, inside the block."""
        self._lock()
        handler = _LogFile(self.path / "log.txt")
        logger = logging.getLogger("gps")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            handler.close()

    def note(self, text: str, level: int = logging.INFO) -> None:
        """Add a line of one's own to log.txt; a disk that is full does not matter here."""
        _LogFile(self.path / "log.txt").emit(
            logging.LogRecord("gps", level, "", 0, "%s", (text,), None)
        )

    # other tables

    def append_line(self, name: str, row: Mapping[str, float | int]) -> None:
        """Add a row to the table `name` in the run folder at once; raises StoreError."""
        self._lock()
        path = self.path / name
        with self._writing(path), open(path, "a", encoding="utf-8", newline="") as file:
            head = _csv_line(list(row)) if file.tell() == 0 else ""
            file.write(head + _csv_line([repr(value) for value in row.values()]))

    def cut_lines(self, name: str, rows: int) -> None:
        """Keep the first `rows` rows of the table `name`; raises StoreError."""
        self._lock()
        path = self.path / name
        with self._writing(path):
            if path.exists():
                write_whole(path, b"".join(path.read_bytes().splitlines(True)[: rows + 1]))

    def _write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        columns = list(dict.fromkeys(k for row in rows for k in row)) or ["iteration"]
        lines = [_csv_line([_number(k, r.get(k, math.nan)) for k in columns]) for r in rows]
        path = self.path / "metrics.csv"
        with self._writing(path):
            write_whole(path, (_csv_line(columns) + "".join(lines)).encode())
        self._columns = columns

    def _close_events(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None

    def _events_from(self, step: int) -> _Events | None:
        if self._events is None:
            try:
                self._events = _Events(self.path / "tensorboard", step)
            except ImportError:
                log.info("tensorboard is not installed: no event files")
                self._events = _Events(None, step)
            except OSError as error:
                raise StoreError(
                    f"cannot write {self.path / 'tensorboard'}: {_reason(error)}"
                ) from error
        return self._events

    # the lock, and errors of the disk

    @property
    def _lock_path(self) -> Path:
        return self.path / "lock"

    def _lock(self) -> None:
        """Take the lock unless this object has it; StoreError when another process writes."""
        if self._locked:
            return
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}
        for _ in range(3):
            try:
                # the file appears with its contents: no other process can read it half written
                with tempfile.NamedTemporaryFile("w", dir=self.path, prefix=".lock") as f:
                    json.dump(mine, f)
                    f.flush()
                    os.link(f.name, self._lock_path)
                self._locked = True
                return
            except FileExistsError:
                owner = self._lock_owner()
                if owner is not None:
                    raise StoreError(
                        f"{self.path} is being written by {owner}; wait for it, or delete "
                        f"{self._lock_path} if no such process runs"
                    ) from None
                log.info("%s: took over the lock of a process that is gone", self.path)
                with suppress(OSError):
                    self._lock_path.unlink()
            except OSError as error:
                raise StoreError(f"cannot write {self._lock_path}: {_reason(error)}") from error
        raise StoreError(f"{self.path}: cannot take the lock {self._lock_path}; try again")

    def _lock_owner(self) -> str | None:
        """The process that holds the lock, in words; None when it is gone."""
        try:
            lock = json.loads(self._lock_path.read_text())
            pid, host = int(lock["pid"]), str(lock["host"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if host != socket.gethostname():
            return f"process {pid} on {host}"
        if not _alive(pid) or _started(pid) != lock.get("started"):
            return None
        return f"process {pid}"

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Turn an OSError into a StoreError that says what is safe."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot write {path}: {_reason(error)}; the iterations stored before are whole, "
                f"continue later with: gps resume {self.path}"
            ) from error


class _LogFile(logging.Handler):
    """A line per message: time, level, text. It is never in the way of the run."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Add a record; errors of the disk are those of the iterations, which say so."""
        with suppress(OSError):
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
            text = " ".join(record.getMessage().split())
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(f"{stamp} {record.levelname.lower()} {text}\n")


class _Events:
    """Scalars for TensorBoard; one file for each process that writes to the run."""

    def __init__(self, folder: Path | None, step: int) -> None:
        self.path = folder or Path()
        self._writer: Any = None
        if folder is None:
            return
        from tensorboard.compat.proto import (  # type: ignore[import-untyped]
            event_pb2,
            summary_pb2,
        )
        from tensorboard.summary.writer.record_writer import (  # type: ignore[import-untyped]
            RecordWriter,
        )

        self._event, self._summary = event_pb2, summary_pb2
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{step}"
        self.path = folder / name
        self._writer = RecordWriter(open(self.path, "ab"))  # noqa: SIM115 (closed by `close`)
        self._write(file_version="brain.Event:2")
        # steps of an earlier file from here on were forgotten
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=step, session_log=start)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Add the finite numbers of a row."""
        if self._writer is None:
            return
        value = self._summary.Summary.Value
        values = [
            value(tag=_tag(k), simple_value=v)
            for k, v in row.items()
            if k != "iteration" and math.isfinite(v)
        ]
        self._write(step=step, summary=self._summary.Summary(value=values))

    def _write(self, **event: Any) -> None:
        data = self._event.Event(wall_time=time.time(), **event).SerializeToString()
        self._writer.write(data)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
            self._writer = None


def _tag(column: str) -> str:
    """`policy_cost_mean` becomes `policy/cost_mean`, so that TensorBoard groups the plots."""
    head, underscore, tail = column.partition("_")
    grouped = head in ("local", "policy", "seconds", "memory", "cost", "kl") and underscore
    return f"{head}/{tail}" if grouped else column


def _header(path: Path) -> list[str] | None:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            line = file.readline()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {_reason(error)}") from error
    return next(csv.reader([line])) if line.endswith("\n") else None


def _number(column: str, value: float) -> str:
    if column == "iteration":
        return str(int(value))
    return repr(float(value))


def _csv_line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3, 5`."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and parts[-1][1] == n - 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts) or "none"


def _reason(error: BaseException) -> str:
    """An error in a few words, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it belongs to somebody else
    return True


def _started(pid: int) -> str:
    """When a process started, to tell it from a later one with the same number; "" if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    packages = ("numpy", "scipy", "torch", "mujoco", "numba", "h5py", "dask", "distributed")
    found = {name: _version(name) for name in packages}
    return {"gps": _version("guided-policy-search"), "python": platform.python_version(), **found}


def git_commit(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that a folder lies in, and whether it was changed; None outside."""
    try:
        run = lambda *a: subprocess.run(  # noqa: E731
            ["git", "-C", str(folder), *a], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        if not run("ls-files", "--error-unmatch", __file__):
            return None
        return {
            "commit": run("rev-parse", "HEAD"),
            "changed": bool(run("status", "--porcelain", "-uno")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


__all__ = [
    "RunFolder",
    "Snapshot",
    "default_path",
    "encode",
    "git_commit",
    "versions",
    "write_whole",
]
