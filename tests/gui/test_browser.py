"""The page in a real browser: a run that goes on is steered, a stored one is looked at."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import browser
import pytest

from gps.pipeline.store import RunFolder

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=f"no {browser.missing()}")
_SLOW = 60.0  # seconds that a page may take on a busy machine

SLOW_RUN = """
import time
from dataclasses import dataclass, replace
import gps
from gps.errors import ConfigError
from gps.agents.point_mass import PointMassAgent, PointMassConfig

class Agent(PointMassAgent):
    def rollout(self, *args, **options):
        time.sleep(0.15)
        return super().rollout(*args, **options)

@dataclass(frozen=True, kw_only=True)
class Config(PointMassConfig):
    def build(self):
        return Agent(self)

known = gps.load("point_mass_policy")
training = replace(known.algorithm.training, steps=100)
experiment = replace(
    known,
    name="slow",
    agent=Config(T=20, starts=((1.0, 1.0), (1.0, -1.0), (-1.0, 0.5))),
    algorithm=replace(known.algorithm, training=training),
    iterations=40,
)
"""

FAILS = """count = 0

    def fine(self):
        type(self).count += 1
        if self.count > 12:
            raise ConfigError("the arm fell off")
        return True

"""


def until(what, seconds=_SLOW):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)
    return found


@contextmanager
def started(*argv, stderr=subprocess.PIPE, **options):
    """A command of gps; it is killed at the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-m", "gps.cli", *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        **options,
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def interrupted(process):
    """What a process still writes to stdout and stderr after Ctrl-C."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    return process.communicate(timeout=_SLOW)


@contextmanager
def command(*argv, **options):
    """A command of gps; at the end it is interrupted and has to end well."""
    with started(*argv, stderr=subprocess.STDOUT, **options) as process:
        yield process
        rest, _ = interrupted(process)
        assert process.returncode == 0, rest
        assert "Traceback" not in rest


def url_of(process):
    seen = []
    for line in process.stdout:
        seen.append(line)
        if found := re.match(r"gui: (http\S+)", line):
            return found[1]
    raise AssertionError("".join(seen))


class Page:
    """What a user sees and does."""

    def __init__(self, driver, url):
        self.driver = driver
        browser.show(driver, url)
        self.wait("gps-status", lambda text: text)

    def text(self, name):
        return self.driver.execute_script(
            "const e = document.getElementById(arguments[0]); return e ? e.textContent : ''", name
        )

    def wait(self, name, test):
        return until(lambda: (text := self.text(name)) and test(text) and text)

    def notes(self, test=bool):
        """The numbers below charts, one text for each, once the test is true of them."""
        find = "return [...document.querySelectorAll('.gps-numbers')].map((e) => e.textContent)"
        return until(lambda: (texts := self.driver.execute_script(find)) and test(texts) and texts)

    def status(self, *words):
        return self.wait("gps-status", lambda text: all(word in text for word in words))

    def _find(self, path):
        return until(
            lambda: [e for e in self.driver.find_elements("xpath", path) if e.is_displayed()]
        )[0]

    def press(self, name):
        self._find(f"//button[normalize-space()='{name}']").click()

    def unfold(self, name):
        self._find(f"//*[normalize-space(text())='{name}']").click()

    def field(self, label):
        return self._find(f"//label[normalize-space()='{label}']/following::input[1]")

    def choose(self, label, value):
        self.field(label).click()
        self._find(f"//*[@role='option'][normalize-space()='{value}']").click()

    def type(self, label, text, *, slider=False):
        from selenium.webdriver.common.keys import Keys

        path = f"//label[normalize-space()='{label}']/following::input"
        field = self._find(f"{path}[not(@type='hidden')][1]" if slider else f"{path}[1]")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.ENTER)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def driver(downloads):
    with browser.open_browser(1400, 1000, downloads) as driver:
        yield driver


def clean(driver):
    assert browser.console_errors(driver) == []
    assert browser.foreign_requests(driver) == []


FOREIGN = """
<img src="http://192.0.2.1/picture.png"><img src="own.png">
<iframe srcdoc="<img src='http://192.0.2.2/framed.png'>"></iframe>
<script>new WebSocket("ws://192.0.2.3/socket");
new Worker(URL.createObjectURL(new Blob(["fetch('data:,')"])))</script>
"""


def test_what_a_page_asks_for_counts_and_what_the_browser_does_not(driver, tmp_path):
    (tmp_path / "index.html").write_text(FOREIGN)
    (tmp_path / "own.html").write_text("<script>new WebSocket(`ws://${location.host}/`)</script>")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        found = set()

        def asked():
            found.update(browser.foreign_requests(driver))
            return len(found) >= 3

        for start in ("chrome://new-tab-page-third-party", "chrome://newtab", "chrome://version"):
            driver.get(start)  # what browsers show at their start
        browser.show(driver, f"{url}/own.html")
        time.sleep(0.5)
        assert browser.foreign_requests(driver) == []
        browser.show(driver, f"{url}/index.html")
        until(asked)
        assert found == {
            "http://192.0.2.1/picture.png",
            "http://192.0.2.2/framed.png",
            "ws://192.0.2.3/socket",
        }
        driver.get("about:blank")
        server.shutdown()


@pytest.mark.slow
def test_a_run_is_paused_stepped_changed_and_stopped(driver, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_RUN)
    out = tmp_path / "run"
    argv = ("run", tmp_path / "slow.py", "--executor", "serial", "--out", out)
    with command(*argv, "--gui", "--port", 0) as process:
        page = Page(driver, url_of(process))
        page.status("running")
        page.press("Pause")
        before = int(re.search(r"paused, iteration (\d+) of 40", page.status("paused"))[1])
        assert RunFolder.open(out).last() == before
        page.press("One iteration")
        page.status(f"paused, iteration {before + 1} of 40")
        page.unfold("Options")
        assert page.field("Option").get_attribute("value") == "algorithm.step.kl-max"
        page.type("Value", "0.125")
        page.press("Change from the next iteration on")
        page.wait("gps-status", lambda _: (out / "changes.json").exists())
        page.press("One iteration")
        page.status(f"paused, iteration {before + 2} of 40")
        made = RunFolder.open(out).changes()
        assert made.options(before + 2) == {"algorithm.step.kl-max": "0.125"}
        assert made.options(before + 1) == {}
        stored = RunFolder.open(out).read(before + 2).report.conditions[0].kl_max
        assert stored <= 0.125
        page.type("Value", "-1")
        page.press("Change from the next iteration on")
        until(lambda: "kl_max must be a number above 0" in driver.page_source)
        page.press("Repeat the last iteration")
        until(lambda: "the same iteration would result again" in driver.page_source)
        page.unfold("Repeat")
        page.type("Seed", "7")
        page.press("Repeat the last iteration")
        page.status("running")
        page.status(f"paused, iteration {before + 2} of 40")
        page.press("Run")
        page.status("running")
        page.press("Stop")
        page.status("stopped")
        lines = (out / "log.txt").read_text()
        for word in (
            "pause",
            "step",
            "change: algorithm.step.kl-max 0.125",
            "repeat: seed 7",
            "run",
            "stop",
        ):
            assert f"command: {word}\n" in lines
        clean(driver)
    folder = RunFolder.open(out)
    assert folder.last() < 40
    assert [row["iteration"] for row in folder.metrics()] == list(range(1, folder.last() + 1))


@pytest.mark.slow
def test_an_error_stays_on_the_page(driver, tmp_path):
    text = SLOW_RUN.replace("time.sleep(0.15)", "assert time.sleep(0.15) or self.fine()").replace(
        "def rollout", FAILS + "    def rollout"
    )
    (tmp_path / "slow.py").write_text(text)
    out = tmp_path / "run"
    argv = ["run", tmp_path / "slow.py", "--executor", "serial", "--out", out, "--gui", "--port", 0]
    with started(*argv) as process:
        page = Page(driver, url_of(process))
        page.status("failed")
        page.wait("gps-errors", lambda text: "the arm fell off" in text and "gps resume" in text)
        clean(driver)
        _, error = interrupted(process)
        assert process.returncode == 2
        assert "gps: error: the arm fell off" in error
    with command("gui", out, "--port", 0) as process:
        page = Page(driver, url_of(process))
        page.wait("gps-errors", lambda text: "the arm fell off" in text)
        clean(driver)


@pytest.mark.slow
def test_the_page_of_a_stored_run(driver, run_path, downloads):
    started = time.monotonic()
    with command("gui", run_path, "--port", 0) as process:
        page = Page(driver, url_of(process))
        assert time.monotonic() - started < _SLOW
        page.status("done, iteration 3 of 3")
        page.wait("gps-best", lambda text: text.startswith("best: iteration 3 of 3, the last (pol"))
        page.wait("gps-rollout", lambda text: "condition 0, sample 0 of iteration 3" in text)
        page.choose("Condition", "2")
        page.wait("gps-rollout", lambda text: "condition 2, sample 0 of iteration 3" in text)
        page.choose("Rollout", "policy")
        page.wait("gps-rollout", lambda text: "policy after iteration 3 without noise" in text)
        page.choose("Show", "trajectory")
        until(lambda: "position: policy; mean and range" in driver.page_source)
        page.choose("Rollout", "sample")
        page.choose("Numbers of", "position")
        page.notes(lambda texts: "time step t (0.05 s each) = 0" in texts[0])
        page.press("Next")
        page.press("Next")
        (text,) = page.notes(lambda texts: "time step t (0.05 s each) = 2" in texts[0])
        X = RunFolder.open(run_path).read(3).rollouts[2].entry("position")
        assert f"{X[0, 2, 0]:.6g}" in text
        page.press("Play")
        time.sleep(1.0)
        page.press("Pause")  # the numbers wait for the end of the playback
        page.notes(lambda texts: texts != [text])
        for name in (
            "cost",
            "controller",
            "dynamics",
            "policy",
            "dual",
            "images",
            "log",
            "progress",
        ):
            page.choose("Show", name)
            time.sleep(0.3)
        until(lambda: driver.find_elements("css selector", ".uplot canvas"))
        page.unfold("Save")
        for button, pattern in (
            ("This plot as PNG", "progress_*.png"),
            ("All plots as PNG (zip)", "*_plots.zip"),
            ("Page as PNG", f"point_mass_policy_{run_path.name}.png"),
        ):
            page.press(button)
            (path,) = until(lambda pattern=pattern: list(downloads.glob(pattern)))
            assert path.stat().st_size > 10_000
        clean(driver)


@pytest.mark.slow
def test_a_stored_run_opens_at_its_best(driver, best_run):
    with command("gui", best_run, "--port", 0) as process:
        page = Page(driver, url_of(process))
        page.wait("gps-best", lambda text: text.startswith("best: iteration 2 of 3 (policy: "))
        page.wait("gps-rollout", lambda text: "sample 0 of iteration 2" in text)
        clean(driver)
    with command("gui", best_run, "--iteration", "last", "--port", 0) as process:
        page = Page(driver, url_of(process))
        page.wait("gps-rollout", lambda text: "sample 0 of iteration 3" in text)


def clicked(page, selector, share, k=0, drag=0):
    """Click in the k-th of these, at a share of its width, or drag from there by so many pixels."""
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    find = f"document.querySelectorAll('{selector}')[{k}]"  # charts are made anew now and then
    rect = f"const r = {find}.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]"
    until(
        lambda: page.driver.execute_script(
            f"return ({find}?.getBoundingClientRect().width ?? 0) > 100"
        )
    )
    page.driver.execute_script(f"{find}.scrollIntoView({{block: 'center'}})")
    last, place = None, page.driver.execute_script(rect)
    while place != last:  # until all is laid out
        time.sleep(0.5)
        last, place = place, page.driver.execute_script(rect)
    x, y, width, height = place
    actions = ActionBuilder(page.driver)
    pointer = actions.pointer_action
    pointer.move_to_location(int(x + share * width), int(y + height / 2)).pause(0.3).pointer_down()
    if drag:
        pointer.move_to_location(int(x + share * width + drag), int(y + height / 2)).pause(0.3)
    pointer.pointer_up()
    actions.perform()
    return y


@pytest.mark.slow
def test_clicks_in_charts_select_and_show_numbers(driver, run_path):
    with command("gui", run_path, "--port", 0) as process:
        page = Page(driver, url_of(process))
        hidden = driver.find_elements("xpath", "//label[.='clicked']")
        assert len(hidden) == 1
        assert not hidden[0].is_displayed()
        page.wait("gps-rollout", lambda text: "iteration 3" in text)

        def titles():
            return driver.execute_script(
                "return [...document.querySelectorAll('.u-title')].map((e) => e.textContent)"
            )

        clicked(page, ".u-over", 0.5)  # iterations 1 to 3
        page.wait("gps-rollout", lambda text: "of iteration 2" in text)
        (note,) = page.notes(lambda texts: "iteration = 2" in texts[0])
        row = RunFolder.open(run_path).metrics()[1]
        assert f"{float(row['cost_mean']):.6g}" in note
        page.choose("Show", "trajectory")
        until(lambda: "velocity" in "".join(titles()[1:2]))
        y = clicked(page, ".u-over", 0.75, 1)  # 80 steps, of the second chart
        (note,) = page.notes(lambda texts: re.search(r"each\) = (59|60|61)velocity", texts[0]))
        t = int(re.search(r"each\) = (\d+)", note)[1])
        X = RunFolder.open(run_path).read(2).rollouts[0].entry("velocity")
        assert f"{X[0, t, 0]:.6g}" in note
        page.press("Next")  # the numbers go with the step
        page.notes(lambda texts: f"{X[0, t + 1, 0]:.6g}" in texts[0])
        # nothing above a chart has moved, and the chart before it gets numbers of its own
        rect = "return document.querySelectorAll('.u-over')[1].getBoundingClientRect().y"
        assert abs(driver.execute_script(rect) - y) < 2
        clicked(page, ".u-over", 0.25)
        two = page.notes(lambda texts: len(texts) == 2 and re.search(r"= (19|20|21)\D", texts[0]))
        assert "position" in two[0]
        assert "velocity" in two[1]
        assert two[0].split("position")[0] == two[1].split("velocity")[0]  # of one step
        clicked(page, ".u-over", 0.2, drag=90)  # a drag chooses what is shown and no step
        time.sleep(1.0)
        assert page.notes() == two
        page.choose("Numbers of", "(none)")
        until(lambda: not driver.find_elements("css selector", ".gps-numbers"))
        page.choose("Show", "controller")
        clicked(page, ".js-plotly-plot .nsewdrag", 0.25)
        page.notes(lambda texts: re.search(r"each\) = (19|20|21)\D", texts[0]))
        clicked(page, ".js-plotly-plot .nsewdrag", 0.25)  # again: closed
        until(lambda: not driver.find_elements("css selector", ".gps-numbers"))
        clean(driver)


USER_PLOTS = """
import numpy as np
from gps.gui import Table

def gain(context):
    K = context.run.controller(context.iteration, context.condition).K
    yield context.columns("gain", "Largest gain", "gain", abs(K).max(axis=2), ["x", "y"])

def fails(context):
    yield Table("first", "First of two", ("a",), (("1",),))
    context.nothing

condition_plots = [gain, fails]
"""


@pytest.mark.slow
def test_plots_of_a_users_own(driver, run_path, tmp_path):
    (tmp_path / "mine.py").write_text(USER_PLOTS)
    with started("gui", run_path, "--port", 0, "--plots", tmp_path / "mine.py") as process:
        page = Page(driver, url_of(process))
        page.wait("gps-rollout", lambda text: "iteration 3" in text)
        page.choose("Show", "custom")
        until(lambda: "Largest gain" in driver.page_source and "First of two" in driver.page_source)
        page.wait("gps-errors", lambda text: "mine.py:11: AttributeError" in text)
        page.choose("Show", "cost")  # the page goes on
        until(lambda: "Cost per step" in driver.page_source)
        clean(driver)
        _, error = interrupted(process)
        assert process.returncode == 0
        assert error.count("Traceback") == 1
        assert "context.nothing" in error


@pytest.mark.slow
def test_several_browsers_agree(driver, run_path):
    with command("gui", run_path, "--port", 0) as process:
        url = url_of(process)
        page = Page(driver, url)
        with browser.open_browser(900, 700) as second:
            other = Page(second, url)
            page.choose("Condition", "1")
            other.wait("gps-rollout", lambda text: "condition 1" in text)
            clean(second)


def children_of(pid):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_a_page_that_dies_does_not_touch_the_run(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_RUN)
    out = tmp_path / "run"
    argv = ("run", tmp_path / "slow.py", "--executor", "serial", "--out", out)
    with command(*argv, "--iterations", 6, "--gui", "--port", 0) as process:
        url_of(process)
        (page,) = [
            pid
            for pid in children_of(process.pid)
            if b"gui" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        ]
        assert RunFolder.open(out).last() < 6
        os.kill(page, signal.SIGKILL)
        process.wait(_SLOW)
    assert RunFolder.open(out).last() == 6
    assert json.loads((out / "experiment.json").read_text())["name"] == "slow"


def test_the_page_ends_with_the_run_it_belongs_to(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_RUN)
    out = tmp_path / "run"
    argv = ("run", tmp_path / "slow.py", "--executor", "serial", "--out", out)
    process = subprocess.Popen(
        [sys.executable, "-m", "gps.cli", *map(str, argv), "--gui", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    url_of(process)
    (page,) = [
        pid
        for pid in children_of(process.pid)
        if b"gui" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    ]
    process.kill()
    process.wait(10)
    process.stdout.close()
    until(lambda: not Path(f"/proc/{page}").exists())
