"""Models as a run keeps them: their files, with what they include and their meshes and textures."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import mujoco

from gps.agents._model import ModelSource, load_model, shown
from gps.data import model_path
from gps.errors import ConfigError
from gps.kept_files import KeptFiles

_TEXT = "text.xml"
"""What a model that is given as text is called as a file."""

_FILE = r"""\bfile\w*\s*=\s*["']([^"']*)"""
_PACKAGE = r"""\bpackage:/+([^/"']+)/"""
_FOLDER = r"""\b\w+dir\s*=\s*["']([^"']*)"""


def kept(source: ModelSource) -> ModelSource:
    """The files of a model; a text that needs none stays itself. Raises ConfigError.

    A file is kept with all that MuJoCo reads besides, in folders that lie to each other as before.
    What a function gives is kept as MuJoCo's binary file, which is the same to the bit (MJCF that
    is written of it is not), and as MJCF to be read.
    """
    if isinstance(source, KeptFiles):
        return source
    if not isinstance(source, str):
        return _of_function(source)
    if source.lstrip().startswith("<"):
        return _of_text(source)
    path = Path(os.path.abspath(model_path(source)))
    if not _is_xml(path.name):
        data = {path.name: _bytes(path)}
        return KeptFiles.of(data, path.name, source=source, root=path.parent)
    model = load_model(source)
    files = [Path(name) for name in _named(path)] + _used(path.parent, model)
    return _gathered(path, files, source, model)


def _gathered(
    path: Path,
    files: Sequence[Path],
    source: str,
    model: mujoco.MjModel,
    made: Mapping[str, bytes] = MappingProxyType({}),
) -> KeptFiles:
    """A model file with what it needs; compiled too, if that lies at absolute paths.

    made: what lies nowhere, by its name in the folder of the model file.
    """
    places = dict.fromkeys(Path(os.path.normpath(path.parent / file)) for file in files)
    needed = [file for file in places if file.is_file() and file != path]
    read = [file for file in (path, *needed) if file.name not in made and _is_xml(file.name)]
    texts = [d.decode(errors="replace") for d in (*made.values(), *map(_bytes, read))]
    above = [path.parent, *path.parent.parents][: 1 + _ups(texts)][-1]
    folders = [above, path.parent, *(file.parent for file in needed)]
    # `package://NAME/mesh.stl` is looked for in a folder of that name around the model's
    packages = {name for text in texts for name in re.findall(_PACKAGE, text)}
    folders += [f.parent for one in folders for f in (one, *one.parents) if f.name in packages]
    root = Path(os.path.commonpath(folders))
    here = path.parent.relative_to(root)
    data = {(here / name).as_posix(): content for name, content in made.items()}
    written = tuple(data)
    for file in needed if data else [path, *needed]:
        data[file.relative_to(root).as_posix()] = _bytes(file)
    if _elsewhere(data):
        return _compiled(model, data, path.stem, source, root, written)
    main = path.relative_to(root).as_posix()
    return KeptFiles.of(data, main, source=source, root=root, made=written)


def _ups(texts: Sequence[str]) -> int:
    """How many folders up the names in MJCF files may lead, be it only to come down again."""
    folders = {name for text in texts for name in re.findall(_FOLDER, text)}
    files = {os.path.dirname(name) for text in texts for name in re.findall(_FILE, text)}
    most = 0
    for folder in {"", *folders}:
        for file in {"", *files}:
            ups = 0
            for part in PurePosixPath(folder, file).parts:
                ups += 1 if part == ".." else -1
                most = max(most, ups)
    return most


def _named(path: Path) -> list[str]:
    """The files that an MJCF file names, and those that these name, itself among them."""
    try:
        return list(mujoco.mju_getXMLDependencies(str(path)))
    except (ValueError, mujoco.FatalError):
        return []


def _used(folder: Path, model: mujoco.MjModel) -> list[Path]:
    """Meshes, textures and the like of a model. What it includes is not among them; but the other
    list misses some, since it looks for meshes where no included file's meshdir says."""
    return [folder / os.fsdecode(name) for name in model.paths.split(b"\0") if name]


def _is_xml(name: str) -> bool:
    return name.lower().endswith((".xml", ".urdf"))


def _elsewhere(data: Mapping[str, bytes]) -> bool:
    """Whether an MJCF or URDF file names others by absolute paths."""
    texts = [d.decode(errors="replace") for path, d in data.items() if _is_xml(path)]
    names = [n for text in texts for kind in (_FOLDER, _FILE) for n in re.findall(kind, text)]
    return any(re.match(r"/|~|[A-Za-z]:[\\/]|file:", name) for name in names)


def _compiled(
    model: mujoco.MjModel,
    data: Mapping[str, bytes],
    stem: str,
    source: str,
    root: Path | str = "",
    made: tuple[str, ...] = (),
) -> KeptFiles:
    """A compiled model, with files beside it that are there to be read."""
    main = f"{stem}.mjb"
    with tempfile.TemporaryDirectory(prefix="gps-") as folder:
        path = Path(folder) / main
        mujoco.mj_saveModel(model, str(path))
        content = path.read_bytes()
    return KeptFiles.of({**data, main: content}, main, source=source, root=root, made=(main, *made))


def _of_text(source: str) -> ModelSource:
    """A text whose files lie below the current folder, with them."""
    if not re.search(_FILE, source):
        return source
    model, here = load_model(source), Path.cwd()
    files = [here / name for name in re.findall(_FILE, source)]
    files += [Path(n) for f in files if _is_xml(f.name) and f.is_file() for n in _named(f)]
    files += _used(here, model)
    return _gathered(here / _TEXT, files, shown(source), model, {_TEXT: source.encode()})


def _of_function(source: ModelSource) -> KeptFiles:
    """What a function gives now."""
    model = load_model(source)
    stem = source.__qualname__  # type: ignore[union-attr]
    try:
        text = source().to_xml()  # type: ignore[operator]
    except (ValueError, mujoco.FatalError):  # MuJoCo does not write every MjSpec
        text = ""
    data = {f"{stem}.xml": text.encode()} if text else {}
    return _compiled(model, data, stem, f"{stem}()", made=tuple(data))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
