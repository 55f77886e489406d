"""Pictures: what they show, which OpenGL draws them, and in which thread."""

import os
import subprocess
import sys
import threading
from dataclasses import replace

import mujoco
import numpy as np
import pytest

from gps.agents import peg_insertion, rendering
from gps.agents.rendering import Renderer, render_states
from gps.errors import ConfigError, GPSError, NonFiniteError, ShapeError
from gps.rng import stream

AGENT = """
<mujoco>
  <visual><global offwidth="32" offheight="32"/></visual>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1="0 1 0" rgb2="0 1 0" width="8"
      height="48"/>
  </asset>
  <worldbody>
    <light name="sun" pos="0 0 3" dir="0 0 -1" specular="0 0 0"/>
    <camera name="top" pos="0 0 2" fovy="60"/>
    <camera name="side" pos="0 -2 0" xyaxes="1 0 0 0 0 1" fovy="60"/>
    <camera name="watch" pos="1 -2 1" mode="targetbody" target="cart" fovy="40"/>
    <body name="cart">
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
      <geom name="red" type="box" size=".2 .2 .2" rgba="1 0 0 1"/>
      <camera name="follow" pos="0 0 2" mode="trackcom" fovy="60"/>
      <light name="lamp" mode="trackcom" pos="0 0 1" diffuse=".3 .3 .3" specular="0 0 0"/>
      <site name="a" pos="0 0 .3"/>
    </body>
    <body name="anchor" pos="0 .6 .3">
      <geom type="sphere" size=".1" rgba="0 0 1 1"/>
      <site name="b"/>
    </body>
    <body name="ghost" mocap="true" pos="0 -.6 0">
      <geom type="box" size=".1 .1 .1" rgba="1 1 0 1" contype="0" conaffinity="0"/>
    </body>
  </worldbody>
  <tendon><spatial name="rope" width=".03" rgba="0 1 1 1"><site site="a"/><site site="b"/></spatial>
  </tendon>
  <sensor><rangefinder site="a"/></sensor>
</mujoco>
"""


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(AGENT)


@pytest.fixture(autouse=True, scope="module")
def _needs_opengl(model):
    try:
        render_states(model, np.zeros((1, 2)), width=8, height=8, camera="top")
    except GPSError as error:
        pytest.skip(str(error))


def where(mask):
    """Centre (row, column) of a set of pixels."""
    return np.argwhere(mask).mean(axis=0)


def red(image):
    return image[..., 0] > 60 + image[..., 1:].max(axis=-1).astype(int)


def test_a_box_is_drawn_where_the_camera_sees_it(model):
    qpos = np.array([[0.0, 0.0], [0.5, 0.0], [0.0, -0.5], [-0.4, 0.3]])
    with Renderer(model, ("top",), 60, 90) as renderer:
        images = renderer.render(model, qpos)
    assert images.shape == (4, 60, 90, 3)
    assert images.dtype == np.uint8
    for (x, y), image in zip(qpos, images, strict=True):
        # a pinhole above the box, whose top is 1.8 m away: 60 rows see 60 degrees
        pixel = 30 / np.tan(np.radians(30)) / 1.8
        row, column = where(red(image))
        assert abs(row - (29.5 - pixel * y)) < 2.5, "rows count from the top"
        assert abs(column - (44.5 + pixel * x)) < 2.5


def test_cameras_follow_one_another_in_the_channels(model):
    qpos = stream(0, "qpos").uniform(-0.4, 0.4, (5, 2))
    with Renderer(model, ("top", "side", "watch"), 32, 48) as renderer:
        assert renderer.shape == (32, 48, 9)
        together = renderer.render(model, qpos)
    for k, name in enumerate(("top", "side", "watch")):
        with Renderer(model, (name,), 32, 48) as alone:
            np.testing.assert_array_equal(
                alone.render(model, qpos), together[..., 3 * k : 3 * k + 3]
            )
    assert np.abs(together[..., :3].astype(int) - together[..., 3:6]).max() > 100


def test_images_are_those_of_a_full_forward_pass(model, monkeypatch):
    """Tendons, tracking cameras and lamps need more than the positions of the bodies."""
    qpos = stream(1, "qpos").uniform(-0.4, 0.4, (6, 2))
    cameras = ("top", "watch", "follow", -1)
    with Renderer(model, cameras, 48, 48) as renderer:
        fast = renderer.render(model, qpos)
        monkeypatch.setattr(rendering, "_place", mujoco.mj_forward)
        np.testing.assert_array_equal(fast, renderer.render(model, qpos))
    rope = (fast[..., 1] > 100) & (fast[..., 2] > 100) & (fast[..., 0] < 40)
    assert rope.any()


def test_a_batch_is_its_states_one_by_one(model):
    qpos = stream(2, "qpos").uniform(-0.4, 0.4, (7, 2))
    with Renderer(model, ("side",), 24, 24) as renderer:
        batch = renderer.render(model, qpos)
        for i in reversed(range(7)):
            np.testing.assert_array_equal(renderer.render(model, qpos[i : i + 1])[0], batch[i])
        assert renderer.render(model, np.empty((0, 2))).shape == (0, 24, 24, 3)
        out = np.full((7, 24, 24, 3), 7, dtype=np.uint8)
        assert renderer.render(model, qpos, out=out) is out
        np.testing.assert_array_equal(out, batch)


def test_mocap_bodies_go_where_they_are_put_and_back(model):
    def yellow(image):
        return (image[..., 0] > 60) & (image[..., 1] > 60) & (image[..., 2] < 40)

    qpos = np.full((2, 2), 0.5)
    pos = np.array([[[0.0, -0.6, 0.0]], [[-0.6, -0.6, 0.0]]])
    turned = np.array([[np.cos(np.pi / 8), 0.0, 0.0, np.sin(np.pi / 8)]])
    with Renderer(model, ("top",), 60, 60) as renderer:
        at_home = renderer.render(model, qpos)
        moved = renderer.render(model, qpos, mocap_pos=pos)
        np.testing.assert_array_equal(moved[0], at_home[0])
        assert where(yellow(moved[1]))[1] < where(yellow(moved[0]))[1] - 10
        corner = renderer.render(model, qpos, mocap_quat=turned)
        width = [np.ptp(np.argwhere(yellow(p[0]))[:, 1]) for p in (at_home, corner)]
        assert width[1] > width[0]  # a square on its corner
        np.testing.assert_array_equal(renderer.render(model, qpos), at_home)


def test_a_model_of_other_numbers_is_drawn_and_of_another_geometry_refused(model):
    other = mujoco.MjModel.from_xml_string(AGENT)
    other.geom("red").rgba[:] = (0.0, 0.0, 1.0, 1.0)
    other.body("cart").pos[:] = (0.5, 0.0, 0.0)
    q = np.zeros((1, 2))
    with Renderer(model, ("top",), 32, 32) as renderer:
        before = renderer.render(model, q)
        changed = renderer.render(other, q)
        assert red(before[0]).sum() > 20
        assert red(changed[0]).sum() == 0
        np.testing.assert_array_equal(changed, Renderer(other, ("top",), 32, 32).render(other, q))
        np.testing.assert_array_equal(renderer.render(model, q), before)
        with pytest.raises(ConfigError, match="made for a model with nq=2, this one has 7"):
            renderer.render(peg_insertion(n_test=0).build().model, np.zeros((1, 7)))


def test_plain_images_have_no_sky_and_the_others_do(model):
    green = [0, 255, 0]
    sky = render_states(model, np.zeros((1, 2)), width=32, height=32, camera="side")[0, 0, 0]
    assert abs(sky.astype(int) - green).max() < 10
    with Renderer(model, ("side",), 32, 32) as renderer:
        assert renderer.render(model, np.zeros((1, 2)))[0, 0, 0].max() == 0


def test_the_model_is_left_as_it_was(model):
    before = [str(getattr(model.vis, part)) for part in ("global_", "quality")]
    Renderer(model, ("top",), 16, 200).close()
    assert [str(getattr(model.vis, part)) for part in ("global_", "quality")] == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("tpo",), 8, 8), "unknown camera 'tpo'; did you mean 'top'"),
        ((("top", 4), 8, 8), None),
        ((("top", 5), 8, 8), "no camera 5; the model has 5"),
        (((), 8, 8), "no camera was named; known: top, side, watch, follow"),
        (("top", 8, 8), "must be a list of names, got the text 'top'"),
        ((("top",), 0, 8), "at least 1 x 1 pixel.* got height 0"),
        ((("top",), 8, -3), "got width -3"),
        ((("top",), 8, 8.5), "got width 8.5"),
    ],
)
def test_wrong_arguments(model, arguments, message):
    if message is None:
        with pytest.raises(ConfigError, match="no camera 4; the model has 4"):
            Renderer(model, *arguments)
        return
    message = message.replace("the model has 5", "the model has 4")
    with pytest.raises(ConfigError, match=message):
        Renderer(model, *arguments)


def test_wrong_states(model):
    with Renderer(model, ("top",), 8, 8) as renderer:
        with pytest.raises(ShapeError, match=r"qpos must have shape \(n, 2\), got \(2,\)"):
            renderer.render(model, np.zeros(2))
        with pytest.raises(ShapeError, match=r"mocap_pos must have shape \(1, 3\) or \(4, 1, 3\)"):
            renderer.render(model, np.zeros((4, 2)), mocap_pos=np.zeros((3, 1, 3)))
        with pytest.raises(NonFiniteError, match="qpos has NaN"):
            renderer.render(model, np.full((1, 2), np.nan))
        with pytest.raises(ShapeError, match="out must be a writable uint8 array"):
            renderer.render(model, np.zeros((1, 2)), out=np.zeros((1, 8, 8, 3)))
    with pytest.raises(GPSError, match="closed"):
        renderer.render(model, np.zeros((1, 2)))
    renderer.close()


def test_more_pixels_than_opengl_has(model):
    with pytest.raises(GPSError, match=r"cannot draw images of 8 x 10000000 pixels"):
        Renderer(model, ("top",), 8, 10_000_000)


def test_threads_with_renderers_of_their_own_and_one_shared(model):
    qpos = stream(3, "qpos").uniform(-0.4, 0.4, (40, 2))
    with Renderer(model, ("top",), 32, 32) as shared:
        want = shared.render(model, qpos)
        problems = []

        def work(k):
            try:
                own = Renderer(model, ("top", "side"), 32, 32)
                for _ in range(3):
                    np.testing.assert_array_equal(own.render(model, qpos)[..., :3], want)
                    np.testing.assert_array_equal(shared.render(model, qpos), want)
                if k:  # the others are left to the collector
                    own.close()
            except Exception as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems
        np.testing.assert_array_equal(shared.render(model, qpos), want)


def test_a_renderer_that_dies_while_another_draws_does_no_harm(model, monkeypatch):
    """The collector may run at any moment; two contexts use the same numbers for their objects."""
    qpos = stream(4, "qpos").uniform(-0.4, 0.4, (4, 2))
    with Renderer(model, ("top",), 32, 32) as renderer:
        want = renderer.render(model, qpos)
        place, victims = rendering._place, [Renderer(model, ("side",), 16, 16) for _ in range(4)]

        def place_and_collect(m, data):
            victims.pop()
            place(m, data)

        monkeypatch.setattr(rendering, "_place", place_and_collect)
        np.testing.assert_array_equal(renderer.render(model, qpos), want)
    assert not victims


SCRIPT = """
import numpy as np, sys
from gps.agents import arm_reach, rendering
agent = arm_reach().build()
image = rendering.render_states(
    agent.model, agent.model.qpos0[None], width=32, height=32, camera=-1)
print(rendering._platform(), int(image.std() > 1))
"""


def drawn(**environment):
    names = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID", "DISPLAY")
    kept = {k: v for k, v in os.environ.items() if k not in names}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=kept | environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout.split(), done.stderr


needs_osmesa = pytest.mark.skipif(
    not rendering._loads(*rendering._OSMESA), reason="OSMesa is not installed"
)


@needs_osmesa
def test_an_egl_that_loads_and_has_no_display_is_passed_over():
    code, words, errors = drawn(__EGL_VENDOR_LIBRARY_FILENAMES="/dev/null")
    assert (code, words) == (0, ["osmesa", "1"]), errors
    assert errors == ""


@needs_osmesa
def test_mujoco_gl_is_honoured():
    assert drawn(MUJOCO_GL="osmesa")[1] == ["osmesa", "1"]
    code, _, errors = drawn(MUJOCO_GL="egl", __EGL_VENDOR_LIBRARY_FILENAMES="/dev/null")
    assert code == 1
    assert "GPSError: MUJOCO_GL=egl does not work here; no OpenGL" in errors


@pytest.mark.skipif(not rendering._egl_works(), reason="EGL does not work here")
def test_egl_is_taken_where_it_works_and_closes_without_a_word():
    code, words, errors = drawn()
    assert (code, words, errors) == (0, ["egl", "1"], "")


def test_peg_images_of_two_conditions_come_from_one_renderer():
    agent = replace(peg_insertion(n_test=0), T=3).build()
    q = np.tile(agent.model.qpos0, (1, 1))
    with Renderer(agent.model, ("main",), 64, 64) as renderer:
        a, b = (renderer.render(agent.model_of(m), q)[0].astype(int) for m in (0, 3))
    assert np.abs(a - b).max() > 50
