"""The panels of the page on a server that no browser is connected to."""

from __future__ import annotations

import pytest

from gps.gui.plots import load_plots
from gps.gui.run_reader import RunReader
from gps.gui.session import Session

pytest.importorskip("viser")

from gps.gui.panels import Page
from gps.gui.panels.page import LOADING_DELAY
from gps.gui.server import SecureServer


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def server():
    server = SecureServer(port=0)
    yield server
    server.stop()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def page(server, run_path, clock):
    """The page of a stored run, its experiment loaded."""
    page = Page(server, Session(RunReader(run_path), clock=clock), clock=clock)
    assert not page.context.loaded  # what can be read at once is shown first
    clock.now += LOADING_DELAY
    page.step(0.0)
    assert page.context.loaded
    yield page
    page.context.session.close()
    page.context.scene.clear()
    server.gui.reset()


def enter(page, handle, value):
    """What the user does: viser calls the handlers of a widget for values set here too."""
    handle.value = value
    page.step(0.0)


def test_widgets_change_the_selection_and_all_panels_follow(page):
    session = page.context.session
    assert session.selection.condition == 0
    enter(page, page.selection._condition, "2")
    assert session.selection.condition == 2
    assert "condition 2, sample 0 of iteration 3" in page.playback._label.content
    enter(page, page.selection._source, "policy")
    assert "condition 2, policy after iteration 3" in page.playback._label.content
    assert not page.selection._sample.visible
    enter(page, page.selection._iteration, 2)
    assert (session.selection.iteration, page.selection._newest.value) == (2, False)
    assert {p.marker for p in page.plots.progress.plots if hasattr(p, "marker")} == {2.0}


def test_of_several_positions_of_a_slider_only_the_last_counts(page):
    shown = []
    page.context.on_step = (lambda: shown.append(page.context.player.step),)
    for t in (5, 9, 30):
        page.playback._t.value = t
    page.step(0.0)
    assert shown == [30]


def test_a_wrong_entry_leaves_the_page_as_it_is(page):
    before = page.context.session.selection
    enter(page, page.selection._others, "17")
    assert page.context.session.selection == before
    assert page.context.fault == ""
    page.context.guard(lambda: [][0])
    page.commands.show()
    assert "IndexError" in page.commands._errors.content  # a fault of the page, and it goes on
    enter(page, page.selection._others, "1, 3")
    assert page.context.session.conditions == [0, 1, 3]
    assert set(page.context.scene._slots) == {0, 1, 2}
    enter(page, page.selection._others, "")
    assert set(page.context.scene._slots) == {0}


def test_the_time_step_follows_the_clock_while_playing(page, clock):
    page.context.player.play()
    clock.now += 0.52
    page.step(0.0)
    assert (page.playback._t.value, page.context.session.selection.t) == (10, 10)  # of 0.05 s
    page.playback._pressed("Next")
    assert page.context.session.selection.t == 11
    assert not page.context.player.playing


def test_a_click_selects_and_opens_the_numbers_of_a_chart(page):
    progress, session = page.plots.progress, page.context.session
    chart = progress._charts._charts[0]
    page.plots._click(chart.key, 1.2)
    assert session.selection.iteration == 1
    assert "iteration = 1" in chart._note.content
    page.plots._click(chart.key, 1.0)  # again: closed
    assert chart._note.content == ""
    enter(page, page.plots._page, "controller")
    assert all(name.startswith("controller_") for name in page.plots.plots)
    assert page.download._plot.options == tuple(page.plots.plots)
    gains = page.plots.condition._charts._charts[0]
    page.plots._click(gains.key, 12.0)
    assert (session.selection.t, page.plots.condition._number.value) == (12, "gains")
    assert "= 12" in gains._note.content
    enter(page, page.plots.condition._number, "(none)")
    assert gains._note.content == ""
    page.plots._click("of no chart", 3.0)
    assert session.selection.t == 12


def test_only_the_visible_folder_is_computed(page, monkeypatch):
    monkeypatch.setattr(page.context.session, "progress_plots", lambda: 1 / 0)
    enter(page, page.plots._page, "log")
    enter(page, page.selection._condition, "1")
    assert page.context.fault == ""
    assert "the run is done" in page.plots.log._text.content
    enter(page, page.plots._page, "progress")
    assert "ZeroDivisionError" in page.context.fault


def test_images_of_a_run_with_cameras(server, image_run, clock):
    page = Page(server, Session(RunReader(image_run), iteration=1, clock=clock), clock=clock)
    enter(page, page.plots._page, "images")
    (shown,) = page.plots.images._images
    assert shown.image.shape == (6 * 4, 6 * 5, 3)
    assert shown.label == "camera 0, step 0"
    enter(page, page.selection._iteration, 2)
    assert not shown.visible
    assert "stores no images" in page.plots.images._empty.content
    page.context.session.close()
    server.gui.reset()


def test_plots_of_the_user_have_a_topic(server, run_path, clock, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def fails(context):\n    return 1 / 0\n\ncondition_plots = [fails]\n")
    page = Page(server, Session(RunReader(run_path), user=load_plots(path)), clock=clock)
    assert "custom" in page.plots._page.options
    enter(page, page.plots._page, "custom")
    page.commands.show()
    assert "mine.py:2: ZeroDivisionError" in page.commands._errors.content
    enter(page, page.plots._page, "cost")
    assert "cost_per_step" in page.plots.plots
    page.context.session.close()
    server.gui.reset()
