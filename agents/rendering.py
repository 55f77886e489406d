"""Images of a MuJoCo model without a window: `Renderer` for many, `render_states` for a few."""

from __future__ import annotations

import atexit
import ctypes
import operator
import os
import platform
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from gps.errors import ConfigError, GPSError, NonFiniteError, ShapeError, choices
from gps.types import Array

_NO_GL = (
    "no OpenGL for off-screen rendering was found; on Debian and Ubuntu: "
    "apt-get install libegl1 libosmesa6 libgl1-mesa-dri (MUJOCO_GL=egl or osmesa picks one)"
)
_PLATFORMS = {"egl": "mujoco.egl", "osmesa": "mujoco.osmesa"}
_OSMESA = ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")
_SAME: tuple[str, ...] = ("nq", "nbody", "ngeom", "nsite", "ncam", "nlight", "nmesh", "nhfield")
_SAME += ("ntex", "nmat", "ntendon", "nskin", "nflex", "nmocap")
"""Sizes that a model has in common with the one that a Renderer was made with."""


# --- which OpenGL --------------------------------------------------------------------------------


def _loads(*names: str) -> bool:
    return _library(*names) is not None


def _library(*names: str) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


@lru_cache(maxsize=1)
def _egl_works() -> bool:
    """Whether an OpenGL context can be made current on some device of libEGL.

    Asked without PyOpenGL, which settles for one platform for the whole process when it is first
    imported: after a failure of its EGL there is no way back to OSMesa.
    """
    lib = _library("libEGL.so.1")
    if lib is None:
        return False
    # Mesa reports on stderr each device that it cannot use; it reads the level at the first word
    quiet = "EGL_LOG_LEVEL" not in os.environ
    if quiet:
        os.environ["EGL_LOG_LEVEL"] = "fatal"
    try:
        return any(_has_context(lib, display) for display in _egl_displays(lib))
    except (AttributeError, ValueError):  # a library without these functions
        return False
    finally:
        if quiet:
            del os.environ["EGL_LOG_LEVEL"]


def _egl_displays(lib: ctypes.CDLL) -> list[int]:
    """Handles of the displays of all devices, or of the one that MUJOCO_EGL_DEVICE_ID names."""
    pointer, integer = ctypes.c_void_p, ctypes.c_int32
    lib.eglGetProcAddress.restype, lib.eglGetProcAddress.argtypes = pointer, [ctypes.c_char_p]
    query_at, display_at = (
        lib.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT")
    )
    if not query_at or not display_at:
        return []
    count, devices = integer(0), (pointer * 32)()
    query = ctypes.CFUNCTYPE(ctypes.c_uint, integer, pointer, pointer)(query_at)
    get_display = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(display_at)
    if not query(len(devices), devices, ctypes.byref(count)):
        return []
    chosen = list(devices[: count.value])
    if number := os.environ.get("MUJOCO_EGL_DEVICE_ID"):
        chosen = chosen[int(number) : int(number) + 1]
    device_platform = 0x313F  # EGL_PLATFORM_DEVICE_EXT
    return [d for device in chosen if (d := get_display(device_platform, device, None))]


def _has_context(lib: ctypes.CDLL, display: int) -> bool:
    """Whether OpenGL runs on a display; leaves the display as it was."""
    pointer, integer = ctypes.c_void_p, ctypes.c_int32
    lib.eglInitialize.argtypes = [pointer, pointer, pointer]
    lib.eglTerminate.argtypes = lib.eglTerminate.argtypes or [pointer]
    lib.eglChooseConfig.argtypes = [pointer, pointer, pointer, integer, pointer]
    lib.eglCreateContext.restype = pointer
    lib.eglCreateContext.argtypes = [pointer, pointer, pointer, pointer]
    lib.eglMakeCurrent.argtypes = [pointer, pointer, pointer, pointer]
    lib.eglDestroyContext.argtypes = [pointer, pointer]
    if not lib.eglInitialize(display, None, None):
        return False
    try:
        # 8 bits each of red, green, blue, alpha and stencil, 24 of depth, off-screen, OpenGL
        asked = {0x3024: 8, 0x3023: 8, 0x3022: 8, 0x3021: 8, 0x3026: 8, 0x3025: 24}
        asked |= {0x3033: 0x1, 0x3040: 0x8}
        end = 0x3038
        wanted = (integer * (2 * len(asked) + 1))(*(v for pair in asked.items() for v in pair), end)
        config, count = pointer(), integer(0)
        found = lib.eglChooseConfig(display, wanted, ctypes.byref(config), 1, ctypes.byref(count))
        if not found or count.value < 1 or not lib.eglBindAPI(0x30A2):  # EGL_OPENGL_API
            return False
        context = lib.eglCreateContext(display, config, None, None)
        if not context:
            return False
        current = bool(lib.eglMakeCurrent(display, None, None, context))
        lib.eglMakeCurrent(display, None, None, None)
        lib.eglDestroyContext(display, context)
        return current
    finally:
        lib.eglTerminate(display)


def _platform() -> str | None:
    """`egl` or `osmesa`; None for what MuJoCo itself takes (other systems, MUJOCO_GL=glfw)."""
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    if asked:
        return asked if asked in _PLATFORMS else None
    if platform.system() != "Linux":
        return None
    there = [
        name for name, files in (("egl", ("libEGL.so.1",)), ("osmesa", _OSMESA)) if _loads(*files)
    ]
    # what PyOpenGL was configured for, or another library has chosen, cannot be changed any more
    settled = os.environ.get("PYOPENGL_PLATFORM", "").strip().lower()
    if settled in there:
        return settled
    if "egl" in there and _egl_works():
        return "egl"
    if "osmesa" in there:
        return "osmesa"
    raise GPSError(_NO_GL)


_WINDOWS = ("glfw", "glx", "enable", "enabled", "on", "true", "1")
"""Values of MUJOCO_GL with which MuJoCo opens a window, if a hidden one."""


def require_display() -> None:
    """GPSError where MUJOCO_GL asks for a window and no display is named to open it on."""
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    named = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if platform.system() == "Linux" and asked in _WINDOWS and not named:
        raise GPSError(
            f"MUJOCO_GL={asked} needs a display, and DISPLAY is not set; set MUJOCO_GL to egl or "
            "osmesa, or unset it"
        )


def _no_gl(error: Exception) -> str:
    """The message for a context that could not be opened."""
    asked = os.environ.get("MUJOCO_GL")
    tried = f"MUJOCO_GL={asked} does not work here; " if asked else ""
    return f"{tried}{_NO_GL}: {type(error).__name__}: {error}"


class _Active(threading.local):
    """The contexts that a thread has entered, the current one last."""

    def __init__(self) -> None:
        self.stack: list[_Context] = []


class _Context:
    """An off-screen OpenGL context that is current inside `with` only, in whatever thread.

    A context can be current in one thread at a time. Inside, another one may be entered: it ends
    with the outer one current again, so that a Renderer may be collected at any moment.
    """

    _active = _Active()

    def __init__(self) -> None:
        # MuJoCo reads MUJOCO_GL when it is imported and then insists on it, so that setting it here
        # would break an import where that library is missing. The contexts are opened directly.
        require_display()
        name = _platform()
        try:
            with warnings.catch_warnings():
                if name is None:
                    warnings.simplefilter("error")  # glfw only warns that there is no window
                module = mujoco if name is None else import_module(_PLATFORMS[name])
                # everything is drawn into a buffer that MuJoCo makes: this one is never shown
                self._context = module.GLContext(16, 16)
            self._release = _release(name)
        except Exception as error:  # each platform has exceptions of its own
            raise GPSError(_no_gl(error)) from error
        self._back_to_outer()  # as in free

    @classmethod
    def _stack(cls) -> list[_Context]:
        return cls._active.stack

    def __enter__(self) -> _Context:
        self._context.make_current()
        self._stack().append(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack().pop()
        if not self._back_to_outer():
            self._release()

    @classmethod
    def _back_to_outer(cls) -> bool:
        """Make the context of the surrounding `with` current again; whether there is one."""
        stack = cls._stack()
        if stack:
            stack[-1]._context.make_current()
        return bool(stack)

    def free(self) -> None:
        """Give the context back; it must not be current."""
        self._context.free()
        self._back_to_outer()  # with EGL, MuJoCo releases whatever context the thread had


def _release(name: str | None) -> Callable[[], object]:
    """What leaves the calling thread without a context."""
    if name == "osmesa":
        gl, osmesa = import_module("OpenGL.GL"), import_module("OpenGL.osmesa")
        return lambda: osmesa.OSMesaMakeCurrent(None, None, gl.GL_FLOAT, 0, 0)
    if name == "egl":
        from mujoco import egl

        none = egl.EGL.EGL_NO_SURFACE
        no_context = egl.EGL.EGL_NO_CONTEXT
        return lambda: egl.EGL.eglMakeCurrent(egl.EGL_DISPLAY, none, none, no_context)
    return lambda: None  # MuJoCo's own contexts of other systems cannot be released


# --- drawing -------------------------------------------------------------------------------------

_LIVE: weakref.WeakSet[Renderer] = weakref.WeakSet()


class Renderer:
    """Images of many states of one model, by one or more cameras.

    cameras: names of cameras of the model, in the order of the image's channels; -1 is MuJoCo's
    free camera. height, width: of each image, in pixels. plain: without shadows, reflections,
    haze and sky, and with round shapes of fewer faces in small images, for policies with images;
    without it haze, sky and faces are the model's. Multisampling, shadows and reflections are
    always off: they take most of the time in software.

    Textures, meshes and the OpenGL context are kept until `close`. Any thread may call it, one at
    a time (a second one waits); a Renderer per thread draws at the same time. It can not be sent
    to another process. Raises ConfigError for a camera that is not there, no camera, or a size
    below 1 pixel; GPSError where OpenGL is missing.
    """

    _lock: Any = None

    def __init__(
        self,
        model: mujoco.MjModel,
        cameras: Sequence[str | int] = ("front",),
        height: int = 64,
        width: int = 64,
        *,
        plain: bool = True,
    ) -> None:
        self._draw: Any = None
        self._context: _Context | None = None
        self._lock = threading.RLock()
        self._views = _views(model, cameras)
        for name, value in (("height", height), ("width", width)):
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
                raise ConfigError(
                    f"an image must be at least 1 x 1 pixel, in whole numbers; got {name} {value!r}"
                )
        self._height, self._width = int(height), int(width)
        self._sizes = _sizes(model)
        self._data = mujoco.MjData(model)
        self._option = mujoco.MjvOption()
        # what a rangefinder measures is no part of the agent, and not computed here
        self._option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = 0
        most = 1000 + 2 * (model.ngeom + model.nsite + model.nwrap)
        self._scene = mujoco.MjvScene(model, maxgeom=most)
        flags = mujoco.mjtRndFlag
        off = [flags.mjRND_SHADOW, flags.mjRND_REFLECTION]
        for flag in off + ([flags.mjRND_HAZE, flags.mjRND_SKYBOX] if plain else []):
            self._scene.flags[flag] = 0
        self._area = mujoco.MjrRect(0, 0, self._width, self._height)
        self._upside_down = np.empty((self._height, self._width, 3), dtype=np.uint8)
        self._context = _Context()
        with self._context:
            self._draw = self._upload(model, plain)
        if not _LIVE:  # after the first context: its platform must be closed after us
            atexit.unregister(_close_all)
            atexit.register(_close_all)
        _LIVE.add(self)

    def _upload(self, model: mujoco.MjModel, plain: bool) -> Any:
        """MuJoCo's side of the context; it reads the buffer's size and the faces off the model."""
        glob, quality = model.vis.global_, model.vis.quality
        wanted: list[tuple[Any, str, int]] = [
            (glob, "offwidth", self._width),
            (glob, "offheight", self._height),
            (quality, "offsamples", 0),
        ]
        if plain:  # details finer than a pixel or two are invisible, and cost most of the time
            fine = max(self._height, self._width)
            for name, least, each in (("numslices", 12, 4), ("numstacks", 6, 8)):
                wanted.append(
                    (quality, name, min(getattr(quality, name), max(least, fine // each)))
                )
            wanted.append((quality, "numquads", min(quality.numquads, max(1, fine // 32))))
        before = [(record, name, getattr(record, name)) for record, name, _ in wanted]
        try:
            for record, name, value in wanted:
                setattr(record, name, value)
            draw = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        except Exception as error:
            if "gladLoadGL" in str(error):  # there is a context, and no OpenGL behind it
                raise GPSError(_no_gl(error)) from error
            raise GPSError(
                f"OpenGL cannot draw images of {self._height} x {self._width} pixels of this "
                f"model: {error}"
            ) from error
        finally:
            for record, name, value in before:
                setattr(record, name, value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, draw)
        return draw

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of what is drawn of one state, (height, width, 3 * cameras)."""
        return self._height, self._width, 3 * len(self._views)

    def render(
        self,
        model: mujoco.MjModel,
        qpos: ArrayLike,
        mocap_pos: ArrayLike | None = None,
        mocap_quat: ArrayLike | None = None,
        out: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """One image for each row of `qpos`, (n, height, width, 3 * cameras) uint8, red first.

        model: the one that the Renderer was made with, or one of the same geometry that differs
        in numbers (positions of bodies, colours). qpos: (n, nq). mocap_pos, mocap_quat: poses of
        the mocap bodies, (n, nmocap, 3) in m and (n, nmocap, 4), or without n where all states
        share them; default: the model's. out: written into if given. Raises ShapeError and
        NonFiniteError, GPSError after `close`, ConfigError for a model of another geometry.
        """
        for name, given in _sizes(model).items():
            if given != self._sizes[name]:
                raise ConfigError(
                    f"the Renderer was made for a model with {name}={self._sizes[name]}, this one "
                    f"has {given}; make another Renderer for it"
                )
        rows = np.ascontiguousarray(qpos, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != model.nq:
            raise ShapeError(f"qpos must have shape (n, {model.nq}), got {rows.shape}")
        n = len(rows)
        mocap = {
            "mocap_pos": _poses("mocap_pos", mocap_pos, n, model.nmocap, 3),
            "mocap_quat": _poses("mocap_quat", mocap_quat, n, model.nmocap, 4),
        }
        poses = {name: a for name, a in mocap.items() if a is not None}
        for name, array in (("qpos", rows), *poses.items()):
            if not np.isfinite(array).all():
                raise NonFiniteError(f"{name} has NaN or infinity, which cannot be drawn")
        if out is None:
            out = np.empty((n, *self.shape), dtype=np.uint8)
        elif out.shape != (n, *self.shape) or out.dtype != np.uint8 or not out.flags.writeable:
            raise ShapeError(
                f"out must be a writable uint8 array of shape {(n, *self.shape)}, got "
                f"{out.dtype} of shape {out.shape}"
            )
        with self._lock:
            if self._context is None or self._draw is None:
                raise GPSError("this Renderer has been closed")
            with self._context:
                self._render_all(model, rows, poses, out)
        return out

    def _render_all(
        self,
        model: mujoco.MjModel,
        qpos: Array,
        poses: dict[str, Array],
        out: NDArray[np.uint8],
    ) -> None:
        data, image = self._data, self._upside_down
        mocap = {"mocap_pos": data.mocap_pos, "mocap_quat": data.mocap_quat}
        mujoco.mj_resetData(model, data)  # mocap bodies go where this model has them
        every = mujoco.mjtCatBit.mjCAT_ALL
        for i, q in enumerate(qpos):
            data.qpos[:] = q
            for name, pose in poses.items():
                mocap[name][:] = pose[i]
            _place(model, data)
            for k, view in enumerate(self._views):
                mujoco.mjv_updateScene(model, data, self._option, None, view, every, self._scene)
                mujoco.mjr_render(self._area, self._scene, self._draw)
                mujoco.mjr_readPixels(image, None, self._area, self._draw)
                # OpenGL counts rows from the bottom
                out[i, :, :, 3 * k : 3 * k + 3] = image[::-1]

    def close(self) -> None:
        """Give everything back; a second call does nothing."""
        with self._lock:
            context, self._context = self._context, None
            draw, self._draw = self._draw, None
            if context is None:
                return
            if draw is not None:
                with context:  # names of OpenGL mean something in their own context only
                    draw.free()
            context.free()

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._lock is not None:  # else __init__ was not called: wrong arguments
            self.close()


def _close_all() -> None:
    """Close what is still open before the libraries below are gone."""
    for renderer in list(_LIVE):
        renderer.close()


def _sizes(model: mujoco.MjModel) -> dict[str, int]:
    """What has to be the same in all models that a Renderer draws."""
    return dict(zip(_SAME, operator.attrgetter(*_SAME)(model), strict=True))


def _views(model: mujoco.MjModel, cameras: Sequence[str | int]) -> list[mujoco.MjvCamera]:
    """MuJoCo's records of the cameras."""
    names = [model.camera(i).name for i in range(model.ncam)]
    if isinstance(cameras, str):
        raise ConfigError(f"cameras must be a list of names, got the text {cameras!r}")
    if not cameras:
        raise ConfigError(f"no camera was named; known: {', '.join(names) or 'none'}")
    views = []
    for camera in cameras:
        view = mujoco.MjvCamera()
        if isinstance(camera, str):
            if camera not in names:
                raise ConfigError(choices("camera", camera, names))
            number = names.index(camera)
        else:
            number = camera
            if number >= model.ncam:
                raise ConfigError(f"there is no camera {number}; the model has {model.ncam}")
        if number < 0:
            mujoco.mjv_defaultFreeCamera(model, view)
        else:
            view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, number
        views.append(view)
    return views


def _poses(name: str, given: ArrayLike | None, n: int, nmocap: int, size: int) -> Array | None:
    """Poses of the mocap bodies for every state, (n, nmocap, size)."""
    if given is None:
        return None
    array = np.asarray(given, dtype=np.float64)
    if array.shape not in ((nmocap, size), (n, nmocap, size)):
        raise ShapeError(
            f"{name} must have shape ({nmocap}, {size}) or ({n}, {nmocap}, {size}), got "
            f"{array.shape}"
        )
    return np.broadcast_to(array, (n, nmocap, size))


def _place(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Everything that an image shows, and nothing else: no contacts, no forces, no sensors."""
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)
    if model.nflex:
        mujoco.mj_flex(model, data)
    if model.ntendon:
        mujoco.mj_tendon(model, data)


def render_states(
    model: mujoco.MjModel,
    qpos: Array,
    mocap_pos: Array | None = None,
    mocap_quat: Array | None = None,
    *,
    width: int,
    height: int,
    camera: str | int,
) -> NDArray[np.uint8]:
    """One image for each row of `qpos`, (frames, height, width, 3) uint8, for humans.

    A Renderer that is used once; its arguments and errors.
    """
    with Renderer(model, (camera,), height, width, plain=False) as renderer:
        return renderer.render(model, qpos, mocap_pos, mocap_quat)
