"""What a run keeps of the files it was made with, and how they differ from those outside.

    RUN/model/robot-1a2b3c4d5e/    the files of a model, in folders that lie to each other as before
    RUN/hyperparams.py             the hyperparams file, with the modules next to it

The run is continued and evaluated with these copies. What differs is said in a line each.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from gps.errors import GPSError
from gps.kept_files import KeptFiles, bring, found_in, mapped
from gps.pipeline import config_io, loader
from gps.pipeline.changes import live_options
from gps.pipeline.experiment import Experiment
from gps.pipeline.files import write_whole
from gps.pipeline.provenance import versions
from gps.protocols import KeepsFiles

MODELS = "model"
"""The folder of kept files in a run folder."""
_TOLD = ("mujoco", "gymnasium", "gymnasium-robotics", "dm-control")
"""Packages that simulate: another version of them moves otherwise."""
_LISTED = 5

T = TypeVar("T")


def kept(experiment: T) -> T:
    """The experiment with the files that it is made of as they are now, by their content.

    Raises ConfigError where one cannot be read.
    """

    def keep(value: Any) -> Any:
        if isinstance(value, KeepsFiles) and not isinstance(value, type):
            return value.with_kept_files()
        return None

    found: T = mapped(experiment, keep)
    return found


def nameless(experiment: T) -> T:
    """The experiment without where its files lay and what they were called."""

    def plain(value: Any) -> Any:
        if isinstance(value, KeptFiles):
            return replace(value, source="", root="", made=())
        return None

    found: T = mapped(experiment, plain)
    return found


def write(run: Path, experiment: Experiment) -> None:
    """Store the kept files of an experiment in a run folder; raises OSError, ConfigError."""
    written: dict[str, Path] = {}  # by digest: models of one robot share their meshes
    for files in found_in(experiment):
        folder, data = run / MODELS / files.folder, files.read()
        for path, digest in files.files:
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if digest in written:
                with suppress(OSError):
                    os.link(written[digest], place)
                    continue
            write_whole(place, data[path])
            written[digest] = place
    find(run, experiment)


def find(run: Path, experiment: Experiment) -> None:
    """Let the kept files of an experiment be read from its run folder."""
    # not where this process stands: it may go elsewhere
    folder = Path(os.path.abspath(run)) / MODELS
    bring({files.folder: folder / files.folder for files in found_in(experiment)})


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of each file."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def notices(
    run: Path, facts: Mapping[str, Any], base: Experiment, experiment: Experiment
) -> list[str]:
    """What is different now from when a run was made, each in a line.

    facts: the contents of its experiment.json. base: the run's experiment as it began, experiment:
    with its changes.
    """
    lines = []
    for files in found_in(experiment):
        if what := files.outside():
            copy = run / MODELS / files.folder / files.main
            lines.append(f"{what} since the run was made, which uses its copy {copy}")
    now, then = versions(), facts.get("versions") or {}
    lines += [
        f"the run was made with {name} {then[name]}, this is {name} {now[name]}"
        for name in _TOLD
        if name in then and name in now and then[name] != now[name]
    ]
    return lines + _edited(run, facts, base, experiment)


def _edited(
    run: Path, facts: Mapping[str, Any], base: Experiment, experiment: Experiment
) -> list[str]:
    """What became of values and code that were edited in the run's own hyperparams.py."""
    recorded = facts.get("sources") or {}
    changed = [name for name, digest in recorded.items() if _digest(run / name) != digest]
    if not changed:
        return []
    lines = []
    used = config_io.users_of(facts.get("experiment"))
    # helpers run whenever anything of the user's does, the file itself counts where it is named
    if used and (code := [n for n in changed if n != "hyperparams.py" or config_io.USER in used]):
        what = ", ".join(sorted({name for names in used.values() for name in names}))
        lines.append(
            f"{', '.join(str(run / name) for name in code)} changed since the run was made, which "
            f"uses what they define now: {what}"
        )
    if "hyperparams.py" in changed and facts.get("source") and (run / "hyperparams.py").is_file():
        lines += _values(run, base, experiment)
    return lines


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _values(run: Path, base: Experiment, experiment: Experiment) -> list[str]:
    """The values in hyperparams.py that are not those of the run, in one line."""
    path = run / "hyperparams.py"
    try:
        there = loader.load(path).experiment
        given = config_io.to_json(replace(there, name=experiment.name))
    except GPSError as error:
        return [f"{path} changed since the run was made, and does not load: {error}"]
    # what the page or an option of gps resume has changed was not edited in the file
    edited = {name for name, _, _ in _differences(given, config_io.to_json(base), "")}
    edited -= {"iterations", "seed"}  # gps run and gps resume have options for them
    found = list(_differences(given, config_io.to_json(experiment), ""))
    differ = [(name, mine, its) for name, mine, its in found if name in edited]
    if not differ:
        return []
    shown = [f"{name} is {a} in hyperparams.py and {b} in the run" for name, a, b in differ]
    more = f", and {len(shown) - _LISTED} more" if len(shown) > _LISTED else ""
    known = live_options(experiment)
    live = [(n.replace("_", "-"), mine) for n, mine, _ in differ]
    options = "".join(f" --{name} {mine}" for name, mine in live if name in known)
    hint = f"; what can change in a run: gps resume {run}{options}" if options else ""
    return [
        f"{', '.join(shown[:_LISTED])}{more}: a run does not use the values in its copy of the "
        f"hyperparams file{hint}"
    ]


def _differences(a: Any, b: Any, where: str) -> Any:
    """(place, value in a, value in b) of the innermost values that differ, of stored trees."""
    if a == b:
        return
    both = isinstance(a, dict) and isinstance(b, dict)
    if both and a.keys() == b.keys() == {"class", "fields"} and a["class"] == b["class"]:
        mine, its = a["fields"], b["fields"]
        for name in dict.fromkeys((*mine, *its)):
            yield from _differences(mine.get(name), its.get(name), f"{where}.{name}".lstrip("."))
    elif (
        both and a.keys() == b.keys() and len(a) == 1 and isinstance(a[next(iter(a))], list | dict)
    ):
        mine, its = next(iter(a.values())), next(iter(b.values()))
        if type(mine) is not type(its) or len(mine) != len(its):
            yield where, _shown(a), _shown(b)
            return
        keys = range(len(mine)) if isinstance(mine, list) else dict.fromkeys((*mine, *its))
        for key in keys:
            one, other = ((v[key] if isinstance(v, list) else v.get(key)) for v in (mine, its))
            yield from _differences(one, other, f"{where}.{key}")
    elif not _named(a["name"] if isinstance(a, dict) and "name" in a else str(a), b):
        yield where, _shown(a), _shown(b)


def _named(name: str, tree: Any) -> bool:
    """Whether a name may be that of kept files: in the run's folder it leads elsewhere."""
    if isinstance(tree, dict) and tree.get("class") == config_io.name_of(KeptFiles):
        source = str(tree["fields"]["source"])
        return Path(name.rpartition(":")[2]).name == Path(source.removesuffix("()")).name
    return False


def _shown(tree: Any) -> str:
    """A stored value in a few letters."""
    if isinstance(tree, dict):
        kind, body = next(iter(tree.items()), ("", ""))
        if kind == "class" and "source" in tree.get("fields", {}):
            return str(tree["fields"]["source"])
        if kind == "tuple":
            return f"({', '.join(map(_shown, body))})"
        text = str(body)
        return text.rpartition(":")[2] if kind in ("class", "name", "enum") else text
    return str(tree)


__all__ = ["MODELS", "digests", "find", "kept", "nameless", "notices", "write"]
