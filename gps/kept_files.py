"""Files by their content: what a configuration was made of when its run began.

A configuration that is made of files, such as a robot's model, names a place; what is there may
change or go. In a run `KeptFiles` stand in the place of that name: which files, and the SHA-256 of
each. So two configurations are equal only if their files are, a run folder can hold them
(RUN/model), and another process gets them, once, by `contents` and `bring`; the configuration,
which goes with every task, stays small.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from gps.errors import ConfigError
from gps.types import iter_fields

__all__ = ["KeptFiles", "bring", "contents", "found_in", "mapped"]

Contents = Mapping[str, bytes]
"""Files by their path below a common folder, with / between its parts."""


@dataclass(frozen=True)
class KeptFiles:
    """Files below a common folder, and which of them is the one to open.

    Equal where the files are, whatever they were called and wherever they lay.
    """

    source: str = field(compare=False)
    """How they were named before: `robot.xml`."""
    main: str
    """The file to open, by its path below the common folder."""
    files: tuple[tuple[str, str], ...]
    """Path below the common folder and SHA-256 of each, in order."""
    root: str = field(default="", compare=False)
    """The folder that they were read from; empty for what was made, not read."""
    made: tuple[str, ...] = field(default=(), compare=False)
    """Those that were made: they lay nowhere before."""

    def __post_init__(self) -> None:
        # a stored name may be a stranger's, and files are written under it in other processes
        for path in (self.main, *(path for path, _ in self.files)):
            place = PurePosixPath(path)
            if place.is_absolute() or ".." in place.parts or not place.parts:
                raise ConfigError(
                    f"KeptFiles.files must be paths below their common folder, got {path!r}"
                )

    @classmethod
    def of(
        cls,
        data: Contents,
        main: str,
        *,
        source: str,
        root: str | Path = "",
        made: tuple[str, ...] = (),
    ) -> KeptFiles:
        """Those files, whose content this process knows from now on."""
        files = tuple(sorted((path, _sha256(content)) for path, content in data.items()))
        kept = cls(source, main, files, str(root), made)
        bring({kept.folder: data})
        return kept

    @property
    def folder(self) -> str:
        """Name of a folder for them, the same for the same files: `robot-1a2b3c4d5e`."""
        whole = _sha256("\n".join([self.main, *map(" ".join, self.files)]).encode())
        stem = re.sub(r"[^\w.+-]+", "_", Path(self.main).stem)
        return f"{stem}-{whole[:10]}"

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """The main file, with the others in their places, as long as the block lasts.

        In a run folder if they are there, else in a folder that is made for the purpose. Raises
        ConfigError where this process has none of them.
        """
        place = _place(self)
        if isinstance(place, Path):
            yield place / self.main
            return
        with tempfile.TemporaryDirectory(prefix="gps-") as name:
            folder = Path(name)
            for path, content in place.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
            yield folder / self.main

    def read(self) -> Contents:
        """The files; raises ConfigError where this process has none of them."""
        place = _place(self)
        if isinstance(place, Path):
            return {path: (place / path).read_bytes() for path, _ in self.files}
        return place

    def outside(self) -> str:
        """What is different now where the files were read: `robot.xml has changed`; or empty."""
        if not self.root:
            return ""
        read = tuple(pair for pair in self.files if pair[0] not in self.made)
        fault = _fault(replace(self, files=read), Path(self.root))
        return f"{fault[0]} {fault[1]}" if fault else ""


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- where they are ------------------------------------------------------------------------------

_places: dict[str, list[Path | Contents]] = {}
"""By the name of their folder: contents, and folders that hold, or held, them; newest first. As
names are made of contents, it does not matter which place answers."""
_lock = threading.Lock()


def bring(places: Mapping[str, Path | Contents]) -> None:
    """Have this process know where kept files are, or what is in them, by `KeptFiles.folder`."""
    with _lock:
        for name, place in places.items():
            known = _places.setdefault(name, [])
            if isinstance(place, Path):  # so no copy in memory is needed
                known[:] = [place, *(p for p in known if isinstance(p, Path) and p != place)][:4]
            elif all(isinstance(p, Path) for p in known):
                known.append(place)


def contents(tree: Any) -> dict[str, Contents]:
    """What another process needs of all kept files in a configuration, for `bring`."""
    return {kept.folder: kept.read() for kept in found_in(tree)}


def _place(kept: KeptFiles) -> Path | Contents:
    faults = []
    for place in _places.get(kept.folder, ()):
        if not isinstance(place, Path):
            return place
        fault = _fault(kept, place)
        if not fault:
            return place
        faults.append(f"{fault[0]} {fault[1]}")
    what = f": {faults[0]} since the run was made" if faults else ""
    raise ConfigError(f"the files of {kept.source} that the run has kept are not to be had{what}")


def _fault(kept: KeptFiles, folder: Path) -> tuple[Path, str] | None:
    """The first file in a folder that is not as it was, and what is wrong with it."""
    # the one that the user knows first
    for path, digest in sorted(kept.files, key=lambda item: item[0] != kept.main):
        try:
            if _sha256((folder / path).read_bytes()) != digest:
                return folder / path, "has changed"
        except FileNotFoundError:
            return folder / path, "is gone"
        except OSError as error:
            return folder / path, f"cannot be read ({error.strerror})"
    return None


# --- in configurations ---------------------------------------------------------------------------


def found_in(tree: Any) -> list[KeptFiles]:
    """All kept files in a configuration, each once, in order."""
    found: dict[KeptFiles, None] = {}

    def see(value: Any) -> Any:
        if isinstance(value, KeptFiles):
            found.setdefault(value)
            return value
        return None

    mapped(tree, see)
    return list(found)


def mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """A tree of dataclasses, tuples, lists and dicts with some of its values replaced.

    change: gives what is to stand in place of a value, or None to go on inside it. What holds
    nothing that is replaced stays the same object.
    """
    new = change(tree)
    if new is not None:
        return new
    if isinstance(tree, tuple | list) and type(tree) in (tuple, list):
        items = [mapped(item, change) for item in tree]
        return tree if all(a is b for a, b in zip(items, tree, strict=True)) else type(tree)(items)
    if type(tree) is dict:
        values = {key: mapped(item, change) for key, item in tree.items()}
        return tree if all(values[k] is v for k, v in tree.items()) else values
    if is_dataclass(tree) and not isinstance(tree, type):
        given = {f for f, v in tree.__dataclass_fields__.items() if v.init}
        changed = {}
        for name, item in iter_fields(tree):
            if name in given and (other := mapped(item, change)) is not item:
                changed[name] = other
        return replace(tree, **changed) if changed else tree
    return tree
