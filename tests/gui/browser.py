"""A headless Chromium for tests of the GUI: started, asked for errors, and watched.

`open_browser` is a context manager; without chromium, chromedriver or selenium, `missing` says so.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_PROGRAMS = ("chromium", "chromedriver")
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--no-first-run",
    "--no-default-browser-check",
)
_LOCAL = ("127.0.0.1", "localhost", "::1")
_NETWORK = ("http", "https", "ws", "wss")
_PAGES = ("http", "https", "blob", "data", "about", "")
"""Schemes of documents and scripts of pages; those of the browser itself have schemes of their own,
such as `chrome` and `chrome-untrusted`."""


def missing() -> str:
    """What a browser test lacks here, in words; empty where nothing is missing."""
    gone = [name for name in _PROGRAMS if shutil.which(name) is None]
    try:
        import selenium  # noqa: F401
    except ImportError:
        gone.append("selenium")
    return ", ".join(gone)


@contextmanager
def open_browser(
    width: int = 1280, height: int = 800, downloads: Path | None = None
) -> Iterator[Any]:
    """A driver of a fresh browser with a window of this size in pixels, closed at the end.

    downloads: where it puts files without asking.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = shutil.which("chromium") or ""
        for option in (*_OPTIONS, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
            options.add_argument(option)
        if downloads is not None:
            folder = {"download.default_directory": str(downloads)}
            options.add_experimental_option("prefs", folder)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        try:
            driver.set_page_load_timeout(60)
            driver.set_script_timeout(60)
            yield driver
        finally:
            driver.quit()


def console_errors(driver: Any) -> list[str]:
    """Errors in the console since the last call: of scripts, of the network, of the policy."""
    return [e["message"] for e in driver.get_log("browser") if e["level"] == "SEVERE"]


def show(driver: Any, url: str) -> None:
    """Open a page; errors and requests of what was open before are forgotten, whether of a page
    or of what the browser opens at its start, which may be a page on another machine."""
    driver.get("about:blank")  # what was there has ended, and asks for no more
    for log in ("browser", "performance"):
        driver.get_log(log)
    driver.get(url)


def foreign_requests(driver: Any) -> list[str]:
    """Addresses that the page asked for since `show` or the last call, not of this machine.

    What the browser asks for by itself, such as the parts of its page for a new tab, is left out.
    """
    asked = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        params = message.get("params", {})
        if message["method"] == "Network.requestWillBeSent":
            url = params["request"]["url"]
        elif message["method"] == "Network.webSocketCreated":
            url = params["url"]
        else:
            continue
        if urlsplit(_asker(params)).scheme in _PAGES:
            asked.append(url)
    parts = [(url, urlsplit(url)) for url in asked]
    return [u for u, p in parts if p.scheme in _NETWORK and p.hostname not in _LOCAL]


def _asker(params: dict[str, Any]) -> str:
    """The document that made a request, or the script that opened a socket; empty if unknown."""
    if params.get("documentURL"):
        return str(params["documentURL"])
    initiator = params.get("initiator", {})
    frames = initiator.get("stack", {}).get("callFrames", [])
    return str(initiator.get("url") or (frames[0]["url"] if frames else ""))


def screenshot(driver: Any, path: Path) -> None:
    """Write what the window shows as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    driver.save_screenshot(str(path))
