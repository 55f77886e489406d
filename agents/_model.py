"""MuJoCo models from wherever they come, and where the entries of an agent lie in them."""

from __future__ import annotations

import copy
import io
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import mujoco
import numpy as np

from gps.agents.actions import HISTORY, MOCAP, Actions
from gps.data import located, model_path
from gps.errors import ConfigError, choices
from gps.kept_files import KeptFiles
from gps.types import Array

if TYPE_CHECKING:
    from mujoco.batch import Batch

ENTRIES = ("joint_pos", "joint_vel", "end_points", "end_point_velocities")
JACOBIANS = {"end_points": ENTRIES[:1], "end_point_velocities": ENTRIES[:2]}
"""Entries whose Jacobians rollouts hold, and the entries that these need in the state."""
ACTIVATION, QPOS, PLUGIN = "activation", "qpos", "plugin_state"
HIDDEN = (ACTIVATION, HISTORY, PLUGIN, MOCAP)
"""Entries without which the state of some models is incomplete."""
WARMSTART = "warmstart"
SENSOR = "sensor:"
"""What the name of an entry that is a sensor of the model begins with."""

log = logging.getLogger(__name__)

ModelSource = str | KeptFiles | Callable[[], Any]
"""Name in `gps.data`, path, MJCF or URDF text, or a function without arguments that gives an
MjSpec; in a run the files that these were when it began."""

VEL, ACC = int(mujoco.mjtStage.mjSTAGE_VEL), int(mujoco.mjtStage.mjSTAGE_ACC)
_TURNS = (int(mujoco.mjtJoint.mjJNT_FREE), int(mujoco.mjtJoint.mjJNT_BALL))


def shown(source: ModelSource) -> str:
    """How a message names a model."""
    if isinstance(source, KeptFiles):
        return source.source
    if isinstance(source, str):
        if _is_text(source):
            return f"the {'URDF' if _is_urdf(source, text=True) else 'MJCF'} text"
        return source
    return f"{source.__module__}.{source.__qualname__}"


def _is_text(source: str) -> bool:
    return source.lstrip().startswith("<")


def checked_source(source: Any, where: str) -> ModelSource:
    """The source, a path as absolute text; ConfigError for what cannot name a model in a file."""
    if isinstance(source, KeptFiles):
        return source
    if isinstance(source, os.PathLike):
        source = os.path.join(os.curdir, os.fspath(source))  # a path, also where a name is like it
    if isinstance(source, str) and source.strip():
        return source if _is_text(source) else located(source)
    if not callable(source):
        raise ConfigError(
            f"{where} must be a name, a path to a file that MuJoCo reads, MJCF or URDF text or "
            f"a function that gives a mujoco.MjSpec, got {source!r}"
        )
    # others cannot be found again by name: in another process, or from a stored run
    if "<" in getattr(source, "__qualname__", "<"):
        raise ConfigError(
            f"{where} must be a function that is defined at the top level of a module or of the "
            f"hyperparams file, got {source!r}"
        )
    function: ModelSource = source
    return function


_functions: dict[tuple[str, str], list[Any]] = {}
_KEPT_FUNCTIONS = 8


def interned(source: Any) -> Any:
    """A function that was seen before and does the same, if there is one; else what is given.

    A function of a hyperparams file comes to another process as a copy, a new one each time. As
    functions are equal only to themselves, an agent would be built again for every rollout.
    """
    if source is None or isinstance(source, str | KeptFiles):
        return source
    seen = _functions.setdefault((source.__module__, source.__qualname__), [])
    for other in seen:
        if _same(other, source, set()):
            return other
    seen.append(source)
    del seen[:-_KEPT_FUNCTIONS]
    return source


def _same(a: Any, b: Any, pairs: set[tuple[int, int]]) -> bool:
    """Whether two values mean the same in a function; False in case of doubt."""
    if a is b or (id(a), id(b)) in pairs:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, str | bytes | int | float | bool):
        return bool(a == b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(_same(x, y, pairs) for x, y in zip(a, b, strict=True))
    if not isinstance(a, FunctionType) or a.__closure__ or b.__closure__:
        return False
    pairs.add((id(a), id(b)))  # functions that call each other
    names = _names(a.__code__)
    mine, other = ({n: f.__globals__[n] for n in names & f.__globals__.keys()} for f in (a, b))
    return (
        a.__code__ == b.__code__
        and _same(a.__defaults__, b.__defaults__, pairs)
        and a.__kwdefaults__ == b.__kwdefaults__
        and mine.keys() == other.keys()
        and all(_same(value, other[n], pairs) for n, value in mine.items())
    )


def _names(code: CodeType) -> set[str]:
    """Names that a function's code looks up, those of functions inside it too."""
    inner = [_names(c) for c in code.co_consts if isinstance(c, CodeType)]
    return set(code.co_names).union(*inner)


def load_model(source: ModelSource, called: str = "") -> mujoco.MjModel:
    """The compiled model; ConfigError where it does not exist or MuJoCo refuses it.

    Its muscles have the range of controls that MuJoCo clamps them to. called: how messages name
    the copy that a run has kept.
    """
    model = _compiled(source, called)
    for i in np.flatnonzero(model.actuator_dyntype == mujoco.mjtDyn.mjDYN_MUSCLE):
        at = model.actuator_ctrladr[i]
        low, high = model.actuator_ctrlrange[at] if model.actuator_ctrllimited[at] else (0.0, 1.0)
        model.actuator_ctrlrange[at] = np.clip((low, high), 0.0, 1.0)
        model.actuator_ctrllimited[at] = True
    return model


def _compiled(source: ModelSource, called: str) -> mujoco.MjModel:
    """See `load_model`."""
    if isinstance(source, KeptFiles):
        return _load_kept(source)
    name, path, spec = called or shown(source), "", None
    if not isinstance(source, str):
        spec = source()
        if isinstance(spec, mujoco.MjModel):
            return copy.copy(spec)  # the caller's own stays as it is
        if not isinstance(spec, mujoco.MjSpec):
            raise ConfigError(f"{name}() must give a mujoco.MjSpec, got {type(spec).__name__}")
    text = isinstance(source, str) and _is_text(source)
    if isinstance(source, str) and not text:
        path = str(model_path(source))
        name = called or path
    try:
        if spec is None and path.lower().endswith(".mjb") and not text:
            return mujoco.MjModel.from_binary_path(path)
        if spec is None and _is_urdf(str(source) if text else path, text=text):
            read = mujoco.MjSpec.from_string if text else mujoco.MjSpec.from_file
            spec = read(str(source) if text else path)
            _find_packages(spec, Path.cwd() if text else Path(path).absolute().parent)
            added = _add_motors(spec)
            if added and not called:  # a run that has kept it has been told
                warn_once(f"{name} has no actuators: motors added on {added}")
        if spec is not None:
            return spec.compile()
        if text:
            return mujoco.MjModel.from_xml_string(source)
        return mujoco.MjModel.from_xml_path(path)
    except (ValueError, TypeError, mujoco.FatalError) as error:
        raise ConfigError(
            f"{name}: MuJoCo cannot load this model: {_refusal(error, path)}"
        ) from error


def _refusal(error: Exception, path: str) -> str:
    """MuJoCo's message in one line, without the numbers of its parser, and where it looked."""
    what = " ".join(str(error).split())
    found = re.search(r"Error=XML_ERROR_(\w+).*?Line number=(\d+)", what)
    if found is not None:
        about = found[1].removeprefix("PARSING_").replace("_", " ").lower()
        return f"no valid XML, at line {found[2]} ({about})"
    what = what.removeprefix("Error: ")
    missing = re.search(r"Error opening file '([^']*)'", what)
    if missing is not None and path and not os.path.isabs(missing[1]):
        what += f", looked for in {Path(path).absolute().parent}"
    return what


def _is_urdf(source: str, *, text: bool) -> bool:
    """Whether the first element of a file, or of a text, is a robot's."""
    try:
        file: Any = io.BytesIO(source.encode()) if text else source
        return next(ElementTree.iterparse(file, events=("start",)))[1].tag == "robot"
    except (ElementTree.ParseError, OSError, StopIteration):
        return False  # MuJoCo says what is wrong with it


def _find_packages(spec: mujoco.MjSpec, folder: Path) -> None:
    """Replace `package://NAME/mesh.stl` by the file in a folder NAME that is around, or beside."""
    for mesh in spec.meshes:
        found = re.fullmatch(r"package:/+([^/]+)/(.+)", mesh.file)
        if found is None:
            continue
        for parent in (folder, *folder.parents):
            root = parent if parent.name == found[1] else parent / found[1]
            if (root / found[2]).is_file():
                mesh.file = str(root / found[2])
                break


def _add_motors(spec: mujoco.MjSpec) -> str:
    """A motor for each hinge and slide of a robot without actuators, as strong as its effort; on
    which joints, empty for a robot with actuators."""
    if spec.actuators:
        return ""
    kinds = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)
    follow = {e.name1 for e in spec.equalities if e.type == mujoco.mjtEq.mjEQ_JOINT}  # <mimic>
    said = []
    for joint in spec.joints:
        if joint.type not in kinds or joint.name in follow:
            continue
        motor = spec.add_actuator(
            name=joint.name, target=joint.name, trntype=mujoco.mjtTrn.mjTRN_JOINT
        )
        motor.set_to_motor()
        low, high = joint.actfrcrange
        said.append(f"{joint.name} (no effort limit)")
        if low < high:
            motor.ctrlrange, motor.ctrllimited = (low, high), mujoco.mjtLimited.mjLIMITED_TRUE
            unit = "N m" if joint.type == kinds[0] else "N"
            said[-1] = f"{joint.name} ({low:g} to {high:g} {unit})"
    return ", ".join(said) or "no joint"


@lru_cache(maxsize=64)
def warn_once(text: str) -> None:
    """Log a warning, once for all the agents that a process builds of a model."""
    log.warning(text)


def _load_kept(source: KeptFiles) -> mujoco.MjModel:
    """The model of files that a run keeps; ConfigError, for a compiled one with the reason."""
    with source.opened() as path:
        try:
            if path.suffix != ".mjb" or path.name not in source.made:
                return load_model(str(path), source.source)
            return mujoco.MjModel.from_binary_path(str(path))
        except (ConfigError, ValueError, mujoco.FatalError) as error:
            hint = ""
            if path.suffix == ".mjb":
                version = mujoco.__version__
                hint = f"; a compiled model is for one version of MuJoCo, and this is {version}"
            raise ConfigError(
                f"{source.source}: MuJoCo cannot load the copy that the run has kept: {error}{hint}"
            ) from error


_OBJECTS: dict[str, tuple[mujoco.mjtObj, Callable[[mujoco.MjModel], int]]] = {
    "body": (mujoco.mjtObj.mjOBJ_BODY, lambda m: m.nbody),
    "geom": (mujoco.mjtObj.mjOBJ_GEOM, lambda m: m.ngeom),
    "joint": (mujoco.mjtObj.mjOBJ_JOINT, lambda m: m.njnt),
    "actuator": (mujoco.mjtObj.mjOBJ_ACTUATOR, lambda m: m.nactuator),
    "site": (mujoco.mjtObj.mjOBJ_SITE, lambda m: m.nsite),
    "sensor": (mujoco.mjtObj.mjOBJ_SENSOR, lambda m: m.nsensor),
    "camera": (mujoco.mjtObj.mjOBJ_CAMERA, lambda m: m.ncam),
}


def ids(model: mujoco.MjModel, kind: str, names: Sequence[str], field: str) -> Any:
    """Numbers of the named objects of one kind, (n,) int64; ConfigError lists the choices."""
    number, count = _OBJECTS[kind]
    known = [mujoco.mj_id2name(model, number, i) for i in range(count(model))]
    for name in names:
        if name not in known:
            raise ConfigError(f"{field}: {choices(kind, name, [n for n in known if n])}")
    return np.array([known.index(name) for name in names], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Compiled:
    """A model and where the agent's entries lie in the simulator's arrays of it."""

    model: mujoco.MjModel
    sizes: dict[str, int]  # of every entry that the agent may name
    maps: tuple[np.ndarray, ...]  # what the kernel needs besides the live arrays
    late: tuple[str, ...]  # entries that are sensors of accelerations or forces
    timing: Timing
    actions: Actions
    group: int = 0  # models of one group have the same arrays in the simulator


@dataclass(frozen=True)
class Timing:
    """At which time steps a model is simulated."""

    own: float  # the model's time step in its file, s
    substeps: int  # simulator steps per control step
    step: float  # the simulator's time step, s

    @property
    def text(self) -> str:
        """The time step of a simulation that failed, and the one that the model asks for."""
        if math.isclose(self.step, self.own, rel_tol=1e-4):
            return f"simulated at the model's own time step of {self.own:g} s"
        return f"simulated at a time step of {self.step:g} s; the model asks for {self.own:g} s"


def hidden_entries(model: mujoco.MjModel, actions: Actions) -> dict[str, int]:
    """Entries, and their sizes, without which the state of the model is incomplete."""
    sizes = {ACTIVATION: model.na, PLUGIN: model.npluginstate, **actions.sizes}
    return {name: sizes[name] for name in HIDDEN if sizes.get(name)}


def locate(
    model: mujoco.MjModel,
    sites: Sequence[str],
    names: Sequence[str],
    timing: Timing,
    actions: Actions,
) -> Compiled:
    """Find the end points and the sensors among the entries `names` in a model."""
    where = ids(model, "site", sites, "MujocoConfig.sites")
    entries = tuple(dict.fromkeys(n for n in names if n.startswith(SENSOR)))
    plain = [n[len(SENSOR) :] for n in entries]
    sensors = ids(model, "sensor", plain, "MujocoConfig.state, obs")
    nv, ns = model.nv, len(sites)
    sizes = dict(zip(ENTRIES, (nv, nv, 3 * ns, 3 * ns), strict=True))
    rows = []
    for name, size, bit in (
        (ACTIVATION, model.na, mujoco.mjtState.mjSTATE_ACT),
        (QPOS, model.nq, mujoco.mjtState.mjSTATE_QPOS),
        (PLUGIN, model.npluginstate, mujoco.mjtState.mjSTATE_PLUGIN),
    ):
        if name in names:
            sizes[name] = size
            rows.append(_state_offset(model, bit) + np.arange(size))
    sizes |= actions.sizes
    if WARMSTART in names:
        sizes[WARMSTART] = nv
    sizes |= {n: int(model.sensor_dim[k]) for n, k in zip(entries, sensors, strict=True)}
    values = [model.sensor_adr[k] + np.arange(model.sensor_dim[k]) for k in sensors]
    pos_at, last, turns = _directions(model)
    bodies = model.site_bodyid[where]
    maps = (
        where,
        model.body_rootid[bodies].astype(np.int64),
        _moving(model, bodies),
        pos_at,
        last,
        turns,
        _references(model, turns),
        _joined(rows),
        _joined(values),
    )
    late = tuple(
        n for n, k in zip(entries, sensors, strict=True) if model.sensor_needstage[k] == ACC
    )
    return Compiled(model, sizes, maps, late, timing, actions)


def _state_offset(model: mujoco.MjModel, bit: Any) -> int:
    """Where a component of the state begins in a row of a batch."""
    # the row has the components in the order of their bits
    before = int(mujoco.mjtState.mjSTATE_INTEGRATION) & (int(bit) - 1)
    return int(mujoco.mj_stateSize(model, before))


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *parts]).astype(np.int64)


def _moving(model: mujoco.MjModel, bodies: np.ndarray) -> np.ndarray:
    """Whether each direction of motion lies between the world and the body, (ns, nv)."""
    moves = np.zeros((len(bodies), model.nv), dtype=np.bool_)
    for s, body in enumerate(bodies):
        while body:
            first, n = model.body_dofadr[body], model.body_dofnum[body]
            moves[s, first : first + n] = n > 0
            body = model.body_parentid[body]
    return moves


def _directions(model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every direction its position in qpos and the end of its turn; then the turns."""
    pos_at = np.arange(model.nv, dtype=np.int64)
    last, turns = pos_at.copy(), []
    for kind, at, q in zip(model.jnt_type, model.jnt_dofadr, model.jnt_qposadr, strict=True):
        free = int(kind) == _TURNS[0]
        pos_at[at : at + 3 if free else at + 1] = np.arange(q, q + 3 if free else q + 1)
        if int(kind) in _TURNS:
            first, quat = (at + 3, q + 3) if free else (at, q)
            turns.append((first, quat))
            last[first : first + 3] = first + 2
            pos_at[first : first + 3] = quat
    return pos_at, last, np.array(turns, dtype=np.int64).reshape(-1, 2)


def _references(model: mujoco.MjModel, turns: np.ndarray) -> Array:
    """The quaternions of qpos0, (nb, 4)."""
    return np.array([model.qpos0[q : q + 4] for _, q in turns], dtype=np.float64).reshape(-1, 4)


def moved(model: mujoco.MjModel, qpos: Array, by: Array) -> Array:
    """Positions (..., nq) moved along (..., nv): added, and quaternions turned in their body."""
    if model.nq == model.nv:
        return qpos + by
    shape = np.broadcast_shapes(qpos.shape[:-1], by.shape[:-1])
    out = np.array(np.broadcast_to(qpos, (*shape, model.nq)), order="C")
    steps = np.ascontiguousarray(np.broadcast_to(by, (*shape, model.nv)))
    for q, v in zip(out.reshape(-1, model.nq), steps.reshape(-1, model.nv), strict=True):
        mujoco.mj_integratePos(model, q, v, 1.0)
    return out


def origin(model: mujoco.MjModel, nominal: Array) -> Array:
    """qpos (nq,) from which positions count: the quaternions of a pose (nq,), else zero."""
    out = np.zeros(model.nq)
    _, _, turns = _directions(model)
    for _, quat in turns:
        out[quat : quat + 4] = nominal[quat : quat + 4]
    return out


def raw_positions(compiled: Compiled, joint_pos: Array) -> Array:
    """qpos (S, nq) of the entry joint_pos (S, nv): the way back from rotation vectors."""
    model = compiled.model
    if model.nq == model.nv:
        return joint_pos
    pos_at, _, turns, refs = compiled.maps[3:7]
    plain = np.ones(model.nv, dtype=np.bool_)
    qpos = np.zeros((len(joint_pos), model.nq))
    for first, _ in turns:
        plain[first : first + 3] = False
    qpos[:, pos_at[plain]] = joint_pos[:, plain]
    for (first, quat), ref in zip(turns, refs, strict=True):
        qpos[:, quat : quat + 4] = ref
        for q, r in zip(qpos, joint_pos, strict=True):
            mujoco.mju_quatIntegrate(q[quat : quat + 4], r[first : first + 3], 1.0)
    return qpos


def joint_positions(compiled: Compiled, qpos: Array) -> Array:
    """The entry joint_pos (nv,) of qpos (nq,): rotations as vectors from those of qpos0."""
    pos_at, _, turns, refs = compiled.maps[3:7]
    out: Array = qpos[pos_at].copy()
    for (first, quat), ref in zip(turns, refs, strict=True):
        mujoco.mju_subQuat(out[first : first + 3], qpos[quat : quat + 4], ref)
    return out


def grouped(models: Sequence[mujoco.MjModel], batch: Callable[..., Batch]) -> list[int]:
    """A number for each model; those of one number can be simulated by one batch."""
    firsts: list[Batch] = []

    def group_of(model: mujoco.MjModel) -> int:
        for number, first in enumerate(firsts):
            try:
                first.set_models(model)
            except mujoco.FatalError:  # the simulator's arrays would have other sizes
                continue
            return number
        firsts.append(batch(model, 1, 1, persistent=True))
        return len(firsts) - 1

    return [group_of(model) for model in models]


def set_const(model: mujoco.MjModel, data: mujoco.MjData | None = None) -> None:
    """`mujoco.mj_setConst`, but for the welds of mocap bodies, which stay as the model has them.

    It would take the poses where mocap bodies are put for those in which their welds are at rest.
    """
    body, pair = mujoco.mjtObj.mjOBJ_BODY, (model.eq_obj1id, model.eq_obj2id)
    mocap = [model.body_mocapid[np.where(model.eq_objtype == body, ids, 0)] >= 0 for ids in pair]
    rows = np.flatnonzero(mocap[0] | mocap[1])
    kept = model.eq_data[rows].copy()
    mujoco.mj_setConst(model, mujoco.MjData(model) if data is None else data)
    model.eq_data[rows] = kept


def mocap_poses(model: mujoco.MjModel) -> tuple[Array, Array]:
    """Places (nmocap, 3) and quaternions (nmocap, 4) at which mocap bodies stand in a model."""
    bodies = np.flatnonzero(model.body_mocapid >= 0)
    return model.body_pos[bodies], model.body_quat[bodies]


def put_mocap(model: mujoco.MjModel, poses: tuple[Array, Array]) -> None:
    """Let mocap bodies stand there in the model, see `mocap_poses`."""
    bodies = np.flatnonzero(model.body_mocapid >= 0)
    model.body_pos[bodies], model.body_quat[bodies] = poses


_LARGE = (
    "bvh_",
    "hfield_",
    "mesh_",
    "name",
    "oct_",
    "skin_",
    "tex_",
)  # nothing follows from places
_PLACES = ("body_pos", "body_quat")


def same_but_mocap(model: mujoco.MjModel, other: mujoco.MjModel) -> bool:
    """Whether simulations on a copy of a model differ by where its mocap bodies stand alone.

    other: the copy, after `set_const`.
    """
    fixed = model.body_mocapid < 0
    moving = int(mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM)
    rows = dict.fromkeys(_PLACES, fixed)
    # read by cameras and lights that follow a centre of mass
    rows |= {f"{n}_poscom0": getattr(model, f"{n}_mode") == moving for n in ("cam", "light")}
    for name in dir(model):
        if name.startswith(("_", *_LARGE)):
            continue
        a, b = getattr(model, name), getattr(other, name)
        if isinstance(a, np.ndarray):
            some = rows.get(name, ...)
            if not np.array_equal(a[some], b[some]):
                return False
    return True


def refuse_free(model: mujoco.MjModel, body: int, what: str) -> None:
    """ConfigError for a body with a free joint, whose place in the model is not where it is."""
    joint = model.body_jntadr[body]
    if joint >= 0 and model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE:
        name = model.body(body).name
        raise ConfigError(
            f"{what}: the body {name} has a free joint, whose start is in the joint positions; use "
            "qpos_offset, sample_conditions(qpos_std=...) or start_qpos_std"
        )
