"""What the page costs: how soon it can be used, how large runs open, how much a run is slowed down.

    python tests/benchmarks/bench_gui.py

- the time from `gps gui RUN` to a page that can be used in headless Chromium, which draws in
  software on the same cores: a run of `peg_insertion` with 12 iterations, and a run of 50
  iterations with 20 conditions and 20 samples each (a point mass; 0.5 GB); both are made first;
- `gps run peg_insertion` with and without the page, in turns, both with one worker: seconds of an
  iteration. A client takes all that the server sends, as a browser would; drawing is left out,
  since it is another machine's work, or the graphics card's.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gps

sys.path.insert(0, str(Path(__file__).parent.parent / "gui"))
import browser

NAMES = ("page", "large", "slowdown")


def gps_command(*argv: object) -> subprocess.Popen[str]:
    """A command of gps whose output can be read line by line."""
    return subprocess.Popen(
        [sys.executable, "-m", "gps.cli", *map(str, argv)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Interrupt a command at the end of the block."""
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def url_of(process: subprocess.Popen[str]) -> str:
    """The address that the command prints."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.match(r"gui: (http\S+)", line):
            return found[1]
    raise SystemExit("no address")


def usable(driver: Any, begin: float) -> float:
    """Seconds from `begin` until status, rollout and first chart are on the page."""
    script = (
        "const has = id => { const e = document.getElementById(id); return e && e.textContent; };"
        "return has('gps-status') && has('gps-rollout') && document.querySelector('.uplot canvas')"
    )
    while not driver.execute_script(script):
        time.sleep(0.02)
    return time.perf_counter() - begin


def show_page(title: str, run: Path, rounds: int) -> None:
    """Times from the command to the address, and to a page that can be used."""
    addresses, pages = [], []
    with browser.open_browser() as driver:
        for k in range(rounds + 1):
            begin = time.perf_counter()
            with ended(gps_command("gui", run, "--port", 0)) as process:
                url = url_of(process)
                address = time.perf_counter() - begin
                driver.get(url)
                page = usable(driver, begin)
                driver.get("about:blank")  # a page without its server keeps the browser busy
            if k:  # the first fills the caches of the disk and of the browser
                addresses.append(address)
                pages.append(page)
    print(f"{title}, {rounds} times: address after {statistics.median(addresses):.1f} s,", end=" ")
    print(
        f"usable after {statistics.median(pages):.1f} s ({max(pages):.1f} s at worst)", flush=True
    )


def large(iterations: int) -> Any:
    """A point mass with 20 conditions and 20 samples."""
    known = gps.load("point_mass_policy")
    starts = tuple((1.0 + 0.1 * (i % 5), -1.0 + 0.5 * (i // 5)) for i in range(20))
    training = replace(known.algorithm.training, steps=200)
    return replace(
        known,
        agent=replace(known.agent, starts=starts),
        samples=20,
        iterations=iterations,
        algorithm=replace(known.algorithm, training=training),
    )


def listen(url: str, stop: threading.Event) -> int:
    """Take all that the server sends, as a browser would; the number of bytes."""
    import viser
    import websockets

    async def take() -> int:
        size = 0
        address = url.replace("http", "ws", 1)
        protocol: Any = f"viser-v{viser.__version__}"
        async with websockets.connect(
            address, subprotocols=[protocol], max_size=None, compression=None
        ) as socket:
            while not stop.is_set():
                with suppress(asyncio.TimeoutError):
                    size += len(await asyncio.wait_for(socket.recv(), 0.2))
        return size

    try:
        return asyncio.run(take())
    except Exception as error:  # the run has ended, and the server with it
        print(f"  (client: {type(error).__name__})")
        return 0


def iterations_of(run: Path) -> list[float]:
    """Seconds of the iterations of a stored run, the first left out: it trains twice."""
    with open(run / "metrics.csv", newline="") as file:
        return [float(row["seconds"]) for row in csv.DictReader(file)][1:]


def one_run(folder: Path, name: str, page: bool, iterations: int) -> list[float]:
    """Seconds of the iterations of one run."""
    argv: list[object] = ["run", "peg_insertion", "--workers", 1, "--iterations", iterations]
    argv += ["--out", folder / name]
    stop = threading.Event()
    with ended(gps_command(*argv, *(("--gui", "--port", 0) if page else ()))) as process:
        assert process.stdout is not None
        lines: Iterator[str] = iter(process.stdout)
        client: threading.Thread | None = None
        if page:
            url = url_of(process)
            client = threading.Thread(target=listen, args=(url, stop), daemon=True)
            client.start()
        for line in lines:
            if line.startswith("done"):
                break
        stop.set()
        if client is not None:
            client.join(10)
    return iterations_of(folder / name)


def show_slowdown(folder: Path, rounds: int, iterations: int) -> None:
    """Iterations of runs with and without the page, in turns."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for k in range(rounds):
        for page in (False, True):
            times[page] += one_run(folder, f"{'page' if page else 'plain'}{k}", page, iterations)
    for title, estimate in (("median", statistics.median), ("quickest", min)):
        plain, page_time = estimate(times[False]), estimate(times[True])
        print(
            f"peg_insertion, one worker, {len(times[False])} iterations each, {title}: "
            f"{plain:.3f} s without, {page_time:.3f} s with the page: {page_time / plain:.3f}",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparisons that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="which parts")
    parser.add_argument("--rounds", type=int, default=3, help="repeats")
    parser.add_argument("--iterations", type=int, default=8, help="of a run for the slowdown")
    parser.add_argument("--large", type=int, default=50, help="iterations of the large run")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "page" in args.only:
            for _ in gps.run(gps.load("peg_insertion"), out=folder / "peg"):
                pass
            show_page("12 iterations of peg_insertion", folder / "peg", args.rounds)
        if "large" in args.only:
            for _ in gps.run(large(args.large), out=folder / "large"):
                pass
            size = sum(p.stat().st_size for p in (folder / "large").rglob("*") if p.is_file())
            title = f"{args.large} iterations x 20 conditions x 20 samples, {size / 1e9:.1f} GB"
            show_page(title, folder / "large", args.rounds)
        if "slowdown" in args.only:
            show_slowdown(folder, args.rounds, args.iterations)


if __name__ == "__main__":
    main()
