"""The pictures of the page in README.md, made anew: python tests/gui/screenshots.py docs

A run of peg_insertion that is paused in the middle, and the same one ended, with two
conditions next to each other and the gains of one. Takes some minutes where Chromium draws in
software.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import browser
from test_browser import Page, command, interrupted, started, url_of

_SIZE = 1500, 1000


def taken(driver, picture: Path) -> None:
    """A picture once scene and charts are drawn, without the notice that no GPU draws them."""
    time.sleep(10)
    buttons = "document.querySelectorAll('.mantine-Notification-closeButton')"
    driver.execute_script(f"for (const e of {buttons}) e.click()")
    time.sleep(2)
    browser.screenshot(driver, picture)


def live(driver, folder: Path, picture: Path) -> None:
    """The page of `gps run peg_insertion --gui`, paused, as a rule after iteration 6 of 12."""
    argv = ("run", "peg_insertion", "--executor", "serial", "--out", folder, "--iterations", 12)
    with started(*argv, "--gui", "--port", 0) as process:
        page = Page(driver, url_of(process))
        page.press("Pause")
        done = int(page.status("paused").split("iteration ")[1].split(" of")[0])
        for i in range(done + 1, 7):
            page.press("One iteration")
            page.status(f"paused, iteration {i} of 12")
        page.unfold("Options")
        page.choose("Condition", "3")
        page.wait("gps-rollout", lambda text: "condition 3, sample 0 of iteration" in text)
        page.type("Time step", "38", slider=True)
        taken(driver, picture)
        page.press("Run")
        page.status("done", "12 of 12")
        interrupted(process)


def stored(driver, folder: Path, picture: Path) -> None:
    """The page of `gps gui RUN`: the gains of a condition."""
    with command("gui", folder, "--iteration", "last", "--port", 0) as process:
        page = Page(driver, url_of(process))
        page.wait("gps-rollout", lambda text: "iteration 12" in text)
        page.choose("Show", "controller")
        page.choose("Condition", "3")
        page.wait("gps-rollout", lambda text: "condition 3, sample 0 of iteration 12" in text)
        page.type("Others", "0, 1")
        page.wait("gps-rollout", lambda text: "condition 1, sample 0" in text)
        page.type("Time step", "29", slider=True)
        taken(driver, picture)


if __name__ == "__main__":
    pictures = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as runs, browser.open_browser(*_SIZE) as driver:
        live(driver, Path(runs, "run"), pictures / "gui_run.png")
        stored(driver, Path(runs, "run"), pictures / "gui_inspector.png")
