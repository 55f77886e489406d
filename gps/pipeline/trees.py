"""Trees of records in HDF5.

A group holds a record, tuple, list or dict, and its attribute `@type` says which: the class of the
record as `module:qualname`, or `tuple`, `list`, `dict`, or `name` for a class or function, whose
name is the attribute `@name`. Arrays are datasets, named by field, position or key; numbers, text,
booleans and None (an empty attribute) are attributes of the group. `@units` gives units where they
are known, `@keys` the keys of a dict in order (in names, / and @ and % are written %2F, %40, %25).
Arrays of equal content are stored once and linked.

Images (uint8, four axes or more) are compressed, up to a megabyte of one rollout to a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from types import FunctionType, MappingProxyType
from typing import Any, cast
from urllib.parse import quote

import h5py
import numpy as np

from gps.errors import ExperimentError, StoreError
from gps.pipeline import config_io
from gps.types import iter_fields

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
_TEXT = h5py.string_dtype()
_DOUBLE = h5py.h5t.py_create(np.dtype("f8"))
_SCALAR, _NOTHING = (h5py.h5s.create(kind) for kind in (h5py.h5s.SCALAR, h5py.h5s.NULL))
_CHUNK = 2**20  # bytes of images that are compressed together
_LINK_FROM = 1024  # bytes; smaller arrays cost less than the search for an equal one


class TreeWriter:
    """Writes trees of records; the low-level interface of h5py takes a third of the time."""

    def __init__(self, has: Callable[[str], bool] | None = None) -> None:
        """has: see `config_io.name_of`."""
        self._has = has
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
            group = self._group(parent, name, _record_name(type(value), where, self._has))
            for f, (name, item) in zip(fields(value), iter_fields(value), strict=True):
                absent = "stored" in f.metadata and item is None
                if f.init and not absent:
                    self.tree(group, name, item, f"{where}/{name}")
        elif isinstance(value, type | FunctionType):
            group = self._group(parent, name, "name")
            try:
                self._attribute(group, "@name", config_io.name_of(value, self._has), where)
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
        """Images compress to a few per cent of their size; no chunk spans two rollouts."""
        props = self._props.copy()
        images = max(1, _CHUNK // max(1, math.prod(value.shape[-3:])))
        chunk = [1] * (value.ndim - 4) + [min(value.shape[-4], images), *value.shape[-3:]]
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


def _record_name(cls: type, where: str, has: Callable[[str], bool] | None) -> str:
    try:
        name = config_io.name_of(cls, has)
    except ExperimentError as error:
        raise StoreError(f"{where}: {error}") from None
    if not cast(Any, cls).__dataclass_params__.frozen:
        raise StoreError(f"{where}: {name} is not a frozen dataclass; only records are stored")
    return name


def read_attribute(value: Any) -> Any:
    """An attribute as Python has it."""
    if isinstance(value, h5py.Empty):
        return None
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.int64):
        return int(value)
    if isinstance(value, np.float64):
        return float(value)
    return value


def read_tree(node: h5py.Group | h5py.Dataset, user: config_io.Names | None) -> Any:
    """What `TreeWriter.tree` has written; user: names of the hyperparams file. Raises GPSError."""
    if isinstance(node, h5py.Dataset):
        array = node[()]
        if isinstance(array, np.ndarray):
            array.setflags(write=False)  # the records take it without a copy
            return array
        array = np.asarray(array)
        array.setflags(write=False)
        return array
    kind = node.attrs["@type"]
    items = {k: read_attribute(v) for k, v in node.attrs.items() if not k.startswith("@")}
    items |= {k: read_tree(v, user) for k, v in node.items()}
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
