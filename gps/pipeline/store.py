"""What a run leaves behind: one HDF5 file per iteration, metrics, the configuration.

    RUN/experiment.json        configuration, seed, versions, git commit; see `config_io`
    RUN/hyperparams.py         copy of the hyperparams file, where there was one, with the modules
                               next to it that it imports
    RUN/model/NAME-DIGEST/     files that the experiment is made of, such as a robot's model with
                               its meshes; see `keeping`
    RUN/iterations/0000.h5     the state before the first iteration
    RUN/iterations/NNNN.h5     rollouts, fitted models, report of iteration N, the state after
    RUN/metrics.csv            one row per iteration
    RUN/updates.csv            of an asynchronous run: one row per update of a condition
    RUN/evaluation_*.csv       tables of `gps evaluate`; see `evaluation`
    RUN/changes.json           options that were changed during the run; see `changes`
    RUN/log.txt                messages: commands to the run, warnings, the error that ended it
    RUN/tensorboard/           the same numbers as events
    RUN/lock                   present while a process writes to the run

Every file is written next to its place and renamed: it is there whole or not at all. Iteration
files hold no wall-clock time: the same seed gives the same bytes.

`snapshot` says what an iteration file holds, `trees` how.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import h5py

from gps.errors import GPSError, StoreError, ranges
from gps.pipeline import changes, config_io, keeping, loader, progress
from gps.pipeline.events import Events
from gps.pipeline.files import reason, write_whole
from gps.pipeline.lock import FolderLock
from gps.pipeline.provenance import (
    SCHEMA_VERSION,
    git_commit,
    other_version,
    read_facts,
    versions,
)
from gps.pipeline.snapshot import (
    PARTS,
    SCHEMA,
    Snapshot,
    encode,
    identity_of,
)
from gps.pipeline.tables import Table, evaluated
from gps.pipeline.trees import read_attribute, read_tree

if TYPE_CHECKING:
    from gps.algorithms.state import GPSState
    from gps.pipeline.changes import Changes
    from gps.pipeline.experiment import Experiment

log = logging.getLogger(__name__)


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
        raise StoreError(f"cannot make the run folder {path}: {reason(error)}") from error
    what = "is not empty" if path.is_dir() else "is a file"
    hint = f", or continue the run that is there with: gps resume {path}" if path.is_dir() else ""
    raise StoreError(f"{path} {what}; give a new folder with --out{hint}")


_IMPORTS = "# Added by gps: packages of this run's experiment that the file does not import.\n"


def _copied(source: str | Path, tree: Any) -> dict[str, bytes]:
    """A hyperparams file and the modules next to it that it imports, by their place in the run
    folder; StoreError where a run has something else of that name.

    Packages that the experiment names, and the file does not, are imported at its end.
    """
    copied = {"hyperparams.py": Path(source).read_bytes()}
    for place, data in loader.modules_beside(source).items():
        _require_free(place, str(source))
        copied[place.as_posix()] = data
    if packages := config_io.packages_of(tree):
        known = {name.partition(".")[0] for name in loader.imports(source)}
        new = [f"import {m}\n" for m in packages if m.partition(".")[0] not in known]
        if new:
            copied["hyperparams.py"] += f"\n\n{_IMPORTS}{''.join(new)}".encode()
    return copied


def _scripted(tree: Any, known: Mapping[str, bytes] = MappingProxyType({})) -> dict[str, bytes]:
    """The modules, not installed as packages, that a script took the parts of its experiment from,
    and a hyperparams.py that imports them, and those of packages; none where there are none, or all
    are known."""
    modules = sorted(filter(None, (n.partition(".")[2] for n in config_io.users_of(tree))))
    places = {m: m.replace(".", "/") for m in modules}
    modules = [m for m, p in places.items() if not {f"{p}.py", f"{p}/__init__.py"} & known.keys()]
    packages = [] if known else config_io.packages_of(tree)
    if not modules and not packages:
        return {}
    head = "# Made by gps: what the experiment of this run, which a script has built, is made of.\n"
    text = head + "".join(f"import {module}\n" for module in (*modules, *packages))
    copied = {"hyperparams.py": text.encode()}
    for place, data in loader.modules_of(modules).items():
        _require_free(place, "the experiment")
        copied[place.as_posix()] = data
    return copied


def _require_free(place: Path, whose: str) -> None:
    taken = place.parts[0].removesuffix(".py")
    if taken in ("hyperparams", "iterations", "tensorboard", keeping.MODELS):
        raise StoreError(
            f"{whose}: its module {place} cannot be copied to where a run has its own "
            f"{taken}; give the module another name"
        )


class RunFolder:
    """A run on the disk. Reading takes no lock; the first writing call takes it until `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FolderLock(path / "lock")
        self._events: Events | None = None
        self._metrics = Table(path / "metrics.csv")
        self._known_identity: str | None = None

    @classmethod
    def create(
        cls,
        path: str | Path,
        experiment: Experiment,
        source: str | Path | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> RunFolder:
        """A new run in a folder that is new or empty; raises StoreError.

        source: the hyperparams file, to be copied with the modules next to it that it imports; None
        for that which classes and functions of the experiment come from, if there is one.
        extra: more entries for experiment.json.
        """
        path = Path(path)
        folder = cls(path)
        require_new(path)
        tree = config_io.to_json(experiment)
        source = loader.source_of(experiment) if source is None else source
        copied = _scripted(tree) if source is None else _copied(source, tree)
        others = {} if source is None else _scripted(tree, copied)
        copied = others | copied
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the run folder {path}: {reason(error)}") from error
        folder._lock.take()
        try:
            with folder._writing(path / "iterations"):
                (path / "iterations").mkdir()
            for place, data in copied.items():
                with folder._writing(path / place):
                    (path / place).parent.mkdir(parents=True, exist_ok=True)
                    write_whole(path / place, data)
            with folder._writing(path / keeping.MODELS):
                keeping.write(path, experiment)
            facts: dict[str, Any] = {
                "schema": "gps experiment",
                "schema_version": SCHEMA_VERSION,
                "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "name": experiment.name,
                "seed": experiment.seed,
                "identity": identity_of(experiment),
                "source": None if source is None else str(Path(source).resolve()),
                "sources": keeping.digests(copied),
                "command": list(sys.argv),
                "versions": versions(),
                "git": git_commit(Path(__file__).parent),
                "machine": {"host": socket.gethostname(), "platform": platform.platform()},
                **(extra or {}),
                "experiment": tree,
            }
            with folder._writing(path / "experiment.json"):
                text = json.dumps(facts, indent=2, allow_nan=False) + "\n"
                write_whole(path / "experiment.json", text.encode())
            folder._try_reading(tree, bool(others))
        except BaseException:
            folder.close()
            raise
        return folder

    def _try_reading(self, tree: Any, must: bool) -> None:
        """Say now, and not after days, that the copies cannot be read; must: raise StoreError."""
        if not config_io.users_of(tree) and not config_io.packages_of(tree):
            return
        try:
            self.experiment()
        except StoreError as error:
            if must:
                raise
            log.warning(
                "the run will not be readable again: %s; what a hyperparams file reads is not "
                "copied, only what it imports from its folder, and models",
                error,
            )

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """A run that exists; raises StoreError when the folder holds none that this gps reads."""
        read_facts(Path(path))
        return cls(Path(path))

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock and close the event file; the folder can still be read."""
        self._close_events()
        self._lock.release()

    # configuration

    def info(self) -> dict[str, Any]:
        """The contents of experiment.json; raises StoreError."""
        return read_facts(self.path)

    def experiment(self) -> Experiment:
        """The experiment that the run was made from, overrides included; raises StoreError."""
        from gps.pipeline.experiment import Experiment

        facts = self.info()
        try:
            experiment = config_io.from_json(facts.get("experiment"), self._user_names())
        except GPSError as error:
            raise StoreError(f"{self.path / 'experiment.json'}: {error}") from error
        if not isinstance(experiment, Experiment):
            raise StoreError(f"{self.path / 'experiment.json'} holds no experiment")
        keeping.find(self.path, experiment)
        return experiment

    def notices(self, base: Experiment | None = None) -> list[str]:
        """What is different now from when the run was made, each in a line: a file outside that the
        run keeps, values in its copy of the hyperparams file. Raises StoreError.

        base: what `experiment` gives, where that is known.
        """
        base = self.experiment() if base is None else base
        experiment = self.changes().apply(base, self.last() + 1)
        return keeping.notices(self.path, self.info(), base, experiment)

    def _identity(self) -> str:
        if self._known_identity is None:
            self._known_identity = str(self.info().get("identity", ""))
        return self._known_identity

    def _has_module(self, name: str) -> bool:
        """Whether a module of the user's was copied into the run."""
        path = self.path.joinpath(*name.split("."))
        return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()

    def _user_names(self) -> config_io.Names:
        """What the copied hyperparams file defines: executed once, when a name is asked for."""
        return cache(lambda: vars(loader.execute(self.path / "hyperparams.py")))

    # iterations

    def iteration_path(self, n: int) -> Path:
        """Where iteration `n` is stored."""
        return self.path / "iterations" / f"{n:04d}.h5"

    def iterations(self) -> list[int]:
        """The stored iterations whose files are whole; a warning in the log names the others."""
        return [n for n in self._numbers() if not self._fault(n)]

    def last(self) -> int:
        """The last whole iteration; StoreError when there is none."""
        faults = []
        for n in reversed(self._numbers()):
            fault = self._fault(n)
            if not fault:
                return n
            faults.append(fault)
        ended = "the run ended before its first state was stored, start it again with gps run"
        raise StoreError(f"{self.path}: no whole iteration file; {[*faults, ended][0]}")

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
            raise StoreError(f"cannot read {self.path / 'iterations'}: {reason(error)}") from error
        found = [int(name[:-3]) for name in names if re.fullmatch(r"\d{4,}\.h5", name)]
        return sorted(n for n in found if self.iteration_path(n).name in names)

    def _fault(self, n: int) -> str:
        """Why an iteration file cannot be used, which is logged too; empty if it is whole."""
        try:
            with self._opened(n, advice=""):
                return ""
        except StoreError as error:
            log.warning("%s: skipped", error)
            return str(error)

    @contextmanager
    def _opened(self, n: int, advice: str | None = None) -> Iterator[h5py.File]:
        """An iteration file, checked; every failure to read it becomes a StoreError.

        advice: what the error advises the user to do; None for deleting a file that is no use.
        """
        path = self.iteration_path(n)
        if advice is None:
            advice = f"; delete it and resume from an earlier one with: gps resume {self.path}"
        if not path.exists():
            stored = ranges(self._numbers())
            raise StoreError(f"{self.path}: iteration {n} is not stored; stored: {stored}")
        try:
            with h5py.File(path, "r") as file:
                schema, version = file.attrs.get("schema"), file.attrs.get("schema_version")
                if schema != SCHEMA:
                    raise StoreError(f"{path} was not written by gps{advice}")
                if version != SCHEMA_VERSION:
                    raise StoreError(other_version(path, file.attrs.get("gps_version")))
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
            raise StoreError(f"{path} is damaged ({reason(error)}){advice}") from error

    def check(self, n: int) -> None:
        """Raise StoreError unless iteration `n` is stored in a file of ours that can be opened."""
        with self._opened(n):
            pass

    def read(self, n: int) -> Snapshot:
        """Iteration `n`; `state.costs` is empty. Raises StoreError."""
        with self._opened(n) as file:
            user = self._user_names()
            parts = {name: read_tree(file[name], user) for name in PARTS if name in file}
            return Snapshot(**{"report": None, **parts})

    def read_state(self, n: int) -> GPSState:
        """The state after iteration `n`, without `costs`; raises StoreError."""
        with self._opened(n) as file:
            state: GPSState = read_tree(file["state"], self._user_names())
            return state

    def read_part(self, n: int, part: str) -> Any:
        """One part of iteration `n`, such as `models/dynamics/0/fit`, without the rest of its file.

        None where the file has no such part. Raises StoreError.
        """
        with self._opened(n) as file:
            if part in file:
                return read_tree(file[part], self._user_names())
            group, _, name = part.rpartition("/")
            attributes = file[group].attrs if group in file else {}
            return read_attribute(attributes[name]) if name in attributes else None

    def write(self, snapshot: Snapshot) -> None:
        """Store an iteration, whole or not at all; raises StoreError."""
        self._lock.take()
        path = self.iteration_path(snapshot.state.iteration)
        data = encode(snapshot, self._identity(), self._has_module)
        with self._writing(path):
            write_whole(path, data)

    def truncate(self, after: int) -> None:
        """Forget everything after iteration `after`, so that the run can be resumed from there.

        metrics.csv and the tables of evaluations are made to agree with the iteration files that
        stay. Raises StoreError.
        """
        self._lock.take()
        self.read_state(after)  # before anything is deleted
        rows = {int(row["iteration"]): row for row in self.metrics()}
        for n in reversed(self._numbers()):
            if n > after:
                with self._writing(self.iteration_path(n)):
                    self.iteration_path(n).unlink()
        for path in self.path.glob("evaluation_*.csv"):
            if (evaluated(path) or 0) > after:
                with self._writing(path):
                    path.unlink()
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
        self._events_from(after + 1)  # has TensorBoard forget the later steps

    def _stored_metrics(self, n: int) -> dict[str, float]:
        """The row in an iteration's file, without seconds and memory."""
        with self._opened(n) as file:
            found = file["metrics"].attrs.items() if "metrics" in file else ()
            return {k: float(v) for k, v in found if k[0] != "@"} | {"iteration": float(n)}

    # metrics

    def append_metrics(self, row: Mapping[str, float]) -> None:
        """Add a row to metrics.csv and to the TensorBoard events; raises StoreError."""
        self._lock.take()
        with self._writing(self._metrics.path):
            self._metrics.append(row)
        events = self._events_from(int(row["iteration"]))
        with self._writing(events.path):
            events.write(int(row["iteration"]), row)

    def metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.csv; a last line that was cut short is left out."""
        return self._metrics.rows()

    def forget_metrics(self, start: int) -> None:
        """Drop the rows of metrics.csv from iteration `start` on, which is repeated."""
        self._lock.take()
        rows = self.metrics()
        kept = [row for row in rows if row["iteration"] < start]
        if len(kept) < len(rows):
            self._write_metrics(kept)
            self._close_events()
            self._events_from(start)

    # changes of options, and the log

    def changes(self) -> Changes:
        """Options that were changed during the run; raises StoreError."""
        return changes.read(self.path / "changes.json")

    def write_changes(self, made: Changes) -> None:
        """Store the changes in place of those that are there; raises StoreError."""
        self._lock.take()
        path = self.path / "changes.json"
        with self._writing(path):
            write_whole(path, changes.encode(made))

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Write the library's messages to log.txt too, inside the block."""
        self._lock.take()
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
        self._lock.take()
        with self._writing(self.path / name):
            Table(self.path / name).append(row)

    def cut_lines(self, name: str, rows: int) -> None:
        """Keep the first `rows` rows of the table `name`; raises StoreError."""
        self._lock.take()
        with self._writing(self.path / name):
            Table(self.path / name).keep(rows)

    def _write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        with self._writing(self._metrics.path):
            self._metrics.write(rows)

    def _close_events(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None

    def _events_from(self, step: int) -> Events:
        if self._events is None:
            with self._writing(self.path / "tensorboard"):
                self._events = Events(self.path / "tensorboard", step)
        return self._events

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Turn an OSError into a StoreError that says what is safe."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot write {path}: {reason(error)}; the iterations stored before are whole, "
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


__all__ = ["RunFolder", "Snapshot", "default_path", "encode", "identity_of", "require_new"]
