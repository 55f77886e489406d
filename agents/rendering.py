"""Pictures of a MuJoCo model without a window."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Any

import mujoco
import numpy as np

from gps.errors import ConfigError, GPSError, choices
from gps.types import Array

_NO_GL = (
    "no OpenGL for off-screen rendering was found; on Debian and Ubuntu: "
    "apt-get install libegl1 libosmesa6 libgl1-mesa-dri (MUJOCO_GL=egl or osmesa picks one)"
)


def _loads(*names: str) -> bool:
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def _context(width: int, height: int) -> Any:
    """An off-screen OpenGL context: what MUJOCO_GL asks for, else EGL, else OSMesa.

    MuJoCo reads MUJOCO_GL when it is imported and then insists on it, so that setting it here
    would break an import where that library is missing. The contexts are opened directly instead.
    """
    try:
        if platform.system() != "Linux" or os.environ.get("MUJOCO_GL"):
            return mujoco.GLContext(width, height)
        # the libraries are tried first: PyOpenGL settles for one platform for the whole process
        if _loads("libEGL.so.1"):
            from mujoco.egl import GLContext
        elif _loads("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"):
            from mujoco.osmesa import GLContext
        else:
            raise GPSError(_NO_GL)
        return GLContext(width, height)
    except GPSError:
        raise
    except Exception as error:  # each platform has exceptions of its own
        raise GPSError(f"{_NO_GL}: {type(error).__name__}: {error}") from error


def render_states(
    model: mujoco.MjModel, qpos: Array, *, width: int, height: int, camera: str | int
) -> np.ndarray:
    """One picture for each row of `qpos`, (frames, height, width, 3) uint8.

    Shadows, reflections and multisampling are off: they take most of the time in software.
    """
    if width < 1 or height < 1:
        raise ConfigError(f"a picture must be at least 1 x 1 pixel, got {width} x {height}")
    view = mujoco.MjvCamera()
    if isinstance(camera, str):
        names = [model.camera(i).name for i in range(model.ncam)]
        if camera not in names:
            raise ConfigError(choices("camera", camera, names))
        camera = names.index(camera)
    if camera < 0:
        mujoco.mjv_defaultFreeCamera(model, view)
    else:
        view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
    glob = model.vis.global_
    before = glob.offwidth, glob.offheight, model.vis.quality.offsamples
    context = _context(width, height)
    draw = None
    try:
        context.make_current()
        glob.offwidth, glob.offheight, model.vis.quality.offsamples = width, height, 0
        draw = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, draw)
        scene, option = mujoco.MjvScene(model, maxgeom=1000), mujoco.MjvOption()
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            scene.flags[flag] = 0
        data, area = mujoco.MjData(model), mujoco.MjrRect(0, 0, width, height)
        frames = np.empty((len(qpos), height, width, 3), dtype=np.uint8)
        for frame, q in zip(frames, qpos, strict=True):
            data.qpos[:] = q
            mujoco.mj_forward(model, data)
            catmask = mujoco.mjtCatBit.mjCAT_ALL
            mujoco.mjv_updateScene(model, data, option, None, view, catmask, scene)
            mujoco.mjr_render(area, scene, draw)
            mujoco.mjr_readPixels(frame, None, area, draw)
        return np.ascontiguousarray(frames[:, ::-1])  # OpenGL counts rows from the bottom
    finally:
        glob.offwidth, glob.offheight, model.vis.quality.offsamples = before
        if draw is not None:
            draw.free()
        context.free()
