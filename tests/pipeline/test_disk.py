"""Disks that are full, read-only or damaged; every fault is caused for real.

A full disk is a small tmpfs where one can be mounted, and everywhere a limit on the size of files.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import h5py
import numpy as np
import pytest

import gps
from gps import cli
from gps.errors import StoreError
from gps.pipeline.asynchronous import run_asynchronous
from gps.pipeline.store import RunFolder

SECONDS = 120  # that a process may take, at most
CONTROLLERS = ["run", "point_mass", "--iterations", "4", "--agent.T", "40"]
POLICY = ["run", "point_mass_policy", "--iterations", "4", "--agent.T", "20"]
POLICY += ["--algorithm.training.steps", "50"]
SERIAL = ["--executor", "serial"]
DASK = ["--workers", "1"]


def hashes(folder):
    files = sorted((folder / "iterations").iterdir())
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing has disturbed; its hashes, and the size of its files."""
    path = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main([*CONTROLLERS, *SERIAL, "--out", str(path)]) == 0
    sizes = [f.stat().st_size for f in sorted((path / "iterations").iterdir())]
    return path, hashes(path), sizes


# --- disks


class Mounted:
    """A tmpfs at a path."""

    def __init__(self, path):
        self.path = path

    def mount(self, *argv):
        subprocess.run(["mount", *argv], check=True, capture_output=True, timeout=30)

    def start(self, size):
        self.path.mkdir()
        self.mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self.path))

    def change(self, options):
        self.mount("-o", f"remount,{options}", str(self.path))

    def end(self):
        for lazily in ([], ["-l"]):
            argv = ["umount", *lazily, str(self.path)]
            if subprocess.run(argv, capture_output=True, timeout=30).returncode == 0:
                return


@pytest.fixture
def disk(tmp_path):
    """A function that makes a disk of so many bytes."""
    made = Mounted(tmp_path / "disk")

    def make(size):
        try:
            made.start(size)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"cannot mount a tmpfs: {error}")
        return made

    yield make
    made.end()


def start(argv, cwd, quota=None, then="sys.exit(main())"):
    """The command line in a process of its own, which may write files of up to `quota` bytes."""
    limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({quota},) * 2)" if quota else ""
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"{limit}\n"
        "from gps.cli import main\n"
        f"{then}\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        start_new_session=True,
    )


def ended(process):
    """Exit code, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode, out, err


def one_line(err):
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("gps: error: ")
    return lines[0].removeprefix("gps: error: ")


def error_of(capsys, *argv):
    """The one line of an error, after the exit code has been checked."""
    capsys.readouterr()
    assert cli.main([str(a) for a in argv]) == 2
    return one_line(capsys.readouterr().err)


def require_whole(run, want, count):
    """The first `count` iterations are there and can be read, and nothing else is."""
    names = sorted(want)[:count]
    assert hashes(run) == {name: want[name] for name in names}
    folder = RunFolder.open(run)
    for n in range(count):
        assert folder.read(n).state.iteration == n
    assert not (run / "lock").exists()


def resume(run, *more):
    assert cli.main(["resume", str(run), *SERIAL, *more]) == 0


# --- full


def test_a_quota_stops_a_run(whole, tmp_path):
    """The second iteration's file is larger than the first one's, and than what is allowed."""
    _, want, sizes = whole
    assert sizes[1] < sizes[2]
    run, quota = tmp_path / "run", (sizes[1] + sizes[2]) // 2
    code, out, err = ended(start([*CONTROLLERS, *SERIAL, "--out", run], tmp_path, quota))
    assert code == 2, out + err
    line = one_line(err)
    assert line.startswith(f"cannot write {run / 'iterations' / '0002.h5'}: File too large;")
    assert f"gps resume {run}" in line
    require_whole(run, want, 2)
    resume(run)
    assert hashes(run) == want


@pytest.mark.parametrize("executor", [SERIAL, DASK], ids=["serial", "dask"])
def test_a_full_disk_stops_a_run(executor, whole, disk, tmp_path):
    _, want, sizes = whole
    full = disk(sum(sizes[:3]) + sizes[3] // 2)
    run = full.path / "run"
    code, out, err = ended(start([*CONTROLLERS, *executor, "--out", run], tmp_path))
    assert code == 2, out + err
    line = one_line(err)
    path = run / "iterations" / "0003.h5"
    assert line.startswith(f"cannot write {path}: No space left on device;")
    assert f"gps resume {run}" in line
    require_whole(run, want, 3)
    full.change(f"size={4 * sum(sizes)}")
    resume(run)
    assert hashes(run) == want


@pytest.mark.parametrize(
    ("where", "free"),
    [("lock", 0), ("metrics.csv", 1), ("0003.h5", 2)]
    + [("0003.h5", 1000 + n) for n in (0, 1)]  # the lock and the events need one each
    + [("0004.h5", 1000 + n) for n in (2, 5)],
)
def test_a_disk_full_at_any_point(where, free, whole, disk, capsys):
    """Also for the small files: so many pages are free, or so many more than 0003.h5 needs."""
    _, want, sizes = whole
    full = disk(4 * sum(sizes))
    run, page = full.path / "run", os.sysconf("SC_PAGE_SIZE")
    argv = [*CONTROLLERS, *SERIAL, "--out", str(run), "--iterations", "2"]
    assert cli.main(argv) == 0
    before = (run / "experiment.json").read_bytes()
    pages = free if free < 1000 else -(-sizes[3] // page) + free - 1000
    ballast = full.path / "ballast"
    fill(ballast, shutil.disk_usage(full.path).free - pages * page)
    assert shutil.disk_usage(full.path).free == pages * page
    goal = ["--iterations", "4"]
    line = error_of(capsys, "resume", run, *SERIAL, *goal)
    assert re.match(rf"cannot write {run}/\S*{where}\S*: No space left on device", line)
    done = 3 if where == "0004.h5" else 2
    require_whole(run, want, 1 + done)
    assert (run / "experiment.json").read_bytes() == before
    assert [row["iteration"] for row in RunFolder.open(run).metrics()] == list(range(1, 1 + done))
    ballast.unlink()
    resume(run, *goal)
    assert hashes(run) == want
    assert [row["iteration"] for row in RunFolder.open(run).metrics()] == [1, 2, 3, 4]
    assert not [f.name for f in run.rglob("*") if ".lock" in f.name or f.suffix == ".tmp"]


@pytest.mark.parametrize("name", ["", "iterations", "metrics.csv", "tensorboard"])
def test_a_part_of_the_folder_that_cannot_be_written(name, whole, tmp_path, capsys):
    path, want, _ = whole
    run = tmp_path / "run"
    shutil.copytree(path, run)
    (run / "iterations" / "0004.h5").unlink()
    give_back = protect(run / name)
    try:
        line = error_of(capsys, "resume", run, *SERIAL)
    finally:
        give_back()
    assert re.match(
        rf"cannot write {run / name}\S*: (Permission denied|Operation not permitted)", line
    )
    require_whole(run, want, 4)
    resume(run)
    assert hashes(run) == want
    assert [row["iteration"] for row in RunFolder.open(run).metrics()] == [1, 2, 3, 4]


def fill(path, size):
    with open(path, "wb") as file:
        file.write(bytes(size))


def test_a_disk_that_is_full_from_the_beginning(whole, disk, capsys):
    """Nothing of the run has begun, and it can begin in the same folder when there is space."""
    _, want, sizes = whole
    full = disk(4 * sum(sizes))
    fill(full.path / "ballast", shutil.disk_usage(full.path).free)
    line = error_of(capsys, *CONTROLLERS, *SERIAL, "--out", full.path / "run")
    assert "No space left on device" in line
    (full.path / "ballast").unlink()
    assert cli.main([*CONTROLLERS, *SERIAL, "--out", str(full.path / "run")]) == 0
    assert hashes(full.path / "run") == want


# --- read-only


def test_a_run_on_a_read_only_disk(whole, disk, capsys):
    _, want, sizes = whole
    protected = disk(4 * sum(sizes))
    run = protected.path / "run"
    assert cli.main([*CONTROLLERS, *SERIAL, "--out", str(run), "--iterations", "2"]) == 0
    metrics = (run / "metrics.csv").read_bytes()
    protected.change("ro")
    for argv in (
        ["resume", run, *SERIAL, "--iterations", "4"],
        [*CONTROLLERS, *SERIAL, "--out", protected.path / "other"],
        ["evaluate", run],
    ):
        line = error_of(capsys, *argv)
        assert re.search(rf"{protected.path}/\S+: Read-only file system", line)
    require_whole(run, want, 3)
    assert (run / "metrics.csv").read_bytes() == metrics
    protected.change("rw")
    resume(run, "--iterations", "4")
    assert hashes(run) == want


def test_a_folder_that_becomes_read_only(whole, tmp_path):
    """In the middle of a run, while files of it are open."""
    _, want, _ = whole
    run = tmp_path / "run"
    folder = run / "iterations"
    reports = (
        "import gps.pipeline.runner as runner, time\n"
        "real = runner.Snapshot\n"
        "def slow(*args, **kwargs):\n"
        "    time.sleep(1.5)\n"
        "    return real(*args, **kwargs)\n"
        "slow.of_start = real.of_start\n"
        "runner.Snapshot = slow\n"
        "sys.exit(main())"
    )
    process = start([*CONTROLLERS, *SERIAL, "--out", run], tmp_path, then=reports)
    try:
        deadline = time.monotonic() + SECONDS
        while not (run / "iterations" / "0001.h5").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        give_back = protect(folder)
        try:
            code, out, err = ended(process)
        finally:
            give_back()
    finally:
        ended(process)
    assert code == 2, out + err
    assert re.match(
        rf"cannot write {folder}/0002.h5: (Permission denied|Operation not permitted);",
        one_line(err),
    )
    require_whole(run, want, 2)
    resume(run)
    assert hashes(run) == want


def protect(path):
    """Let nothing be written into a folder or a file; returns what takes it back."""
    if os.geteuid() != 0:
        path.chmod(0o555)
        return lambda: path.chmod(0o755)
    try:  # a mode does not stop root
        subprocess.run(["chattr", "+i", str(path)], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"root can write to anything, and chattr +i fails: {error}")
    return lambda: subprocess.run(["chattr", "-i", str(path)], check=True, timeout=30)


# --- damaged


def shortened(path):
    path.write_bytes(path.read_bytes()[:-3000])


def first_page(path):
    path.write_bytes(path.read_bytes()[:4096])


def emptied(path):
    path.write_bytes(b"")


def zeros(path):
    """What some file systems leave after the power has failed."""
    path.write_bytes(bytes(path.stat().st_size))


def text(path):
    path.write_text("iteration,cost\n1,2\n")


def foreign(path):
    path.unlink()
    with h5py.File(path, "w") as file:
        file["state"] = [1.0, 2.0]


def renamed(path):
    shutil.copy(path.with_name("0001.h5"), path)


DAMAGES = [shortened, first_page, emptied, zeros, text, foreign, renamed]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("last", [3, 5], ids=["of the run", "beyond its end"])
def test_resume_continues_from_the_last_whole_iteration(damage, last, whole, tmp_path, capsys):
    """The newest file is damaged, or one lies there that was never of this run."""
    path, want, _ = whole
    run = tmp_path / "run"
    shutil.copytree(path, run)
    newest = run / "iterations" / f"{last:04d}.h5"
    if last == 3:
        (run / "iterations" / "0004.h5").unlink()
    else:
        shutil.copy(run / "iterations" / "0004.h5", newest)
    damage(newest)
    capsys.readouterr()
    resume(run)
    captured = capsys.readouterr()
    # once; stderr before the progress lines begin
    assert newest.name in captured.out + captured.err
    assert "Traceback" not in captured.out + captured.err
    assert hashes(run) == want
    assert [row["iteration"] for row in RunFolder.open(run).metrics()] == [1, 2, 3, 4]


@pytest.mark.parametrize("damage", [shortened, text, foreign], ids=lambda f: f.__name__)
def test_no_whole_iteration_is_one_line(damage, whole, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    for path in (run / "iterations").iterdir():
        damage(path)
    for command in ("resume", "evaluate"):
        capsys.readouterr()
        assert cli.main([command, str(run)]) == 2
        err = capsys.readouterr().err.splitlines()
        errors = [line for line in err if line.startswith("gps: error: ")]
        assert len(errors) == 1
        assert f"{run}: no whole iteration file" in errors[0]
        # the log names every file that was passed over
        warnings = [line for line in err if line.startswith("gps: WARNING: ")]
        assert len(warnings) + 1 == len(err)
        assert sorted(set(re.findall(r"\d{4}\.h5", "".join(warnings)))) == sorted(
            f"{n:04d}.h5" for n in range(5)
        )


@pytest.mark.parametrize("seed", range(20))
def test_garbage_inside_a_file_is_an_error_of_ours_or_harmless(seed, whole, tmp_path):
    """Never a crash, nor an exception that says nothing of the file."""
    rng = np.random.default_rng(seed)
    path, _, _ = whole
    (tmp_path / "run").mkdir()
    for name in ("experiment.json", "hyperparams.py", "iterations"):
        source = path / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / "run" / name)
    run = RunFolder.open(tmp_path / "run")
    target = run.iteration_path(4)
    data = np.frombuffer(target.read_bytes(), np.uint8).copy()
    for _ in range(int(rng.integers(1, 40))):
        # most of what is not numbers lies at the beginning
        at = int(data.size * rng.uniform() ** 3)
        piece = rng.integers(0, 256, size=int(rng.integers(1, 600)))
        data[at : at + piece.size] = piece[: data.size - at]
    target.write_bytes(data.tobytes())
    with suppress(StoreError):
        run.read(4)
    assert set(run.iterations()) >= {0, 1, 2, 3}


# --- asynchronous runs


@pytest.mark.parametrize(
    "executor",
    [pytest.param(SERIAL, id="serial"), pytest.param(DASK, id="dask", marks=pytest.mark.slow)],
)
def test_a_full_disk_stops_an_asynchronous_run(executor, disk, tmp_path, capsys):
    argv = [*POLICY, "--asynchronous"]
    assert cli.main([*argv, *SERIAL, "--out", str(tmp_path / "sizes")]) == 0
    sizes = [f.stat().st_size for f in sorted((tmp_path / "sizes" / "iterations").iterdir())]
    assert len(sizes) == 5
    full = disk(sum(sizes[:3]) + sizes[3] // 2)
    run = full.path / "run"
    code, out, err = ended(start([*argv, *executor, "--out", run], tmp_path))
    assert code == 2, out + err
    line = one_line(err)
    assert re.match(rf"cannot write {run}/iterations/\d{{4}}.h5: No space left on device;", line)
    folder = RunFolder.open(run)
    done = folder.iterations()
    assert len(done) >= 2  # as many as there is space for depends on the clock with workers
    for n in done:
        assert folder.read(n).state.iteration == n
    assert not (run / "lock").exists()
    full.change(f"size={8 * sum(sizes)}")
    resume(run)
    state = folder.read_state(folder.last())
    assert sum(state.asynchronous.counts) == 16  # all that were asked for
    rows = (run / "updates.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [str(n) for n in range(1, 17)]
    if executor is SERIAL:  # the files differ in the seconds that they hold
        other = RunFolder.open(tmp_path / "sizes").read_state(4)
        assert state.policy.loss == other.policy.loss
        for a, b in zip(state.conditions, other.conditions, strict=True):
            assert a.controller.K.tobytes() == b.controller.K.tobytes()


def test_a_table_of_updates_that_cannot_be_written(tmp_path):
    """What was finished before is stored; later the table continues without a gap."""
    experiment = gps.load("point_mass_policy")
    training = replace(experiment.algorithm.training, steps=50)
    experiment = replace(
        experiment,
        iterations=4,
        agent=replace(experiment.agent, T=20),
        algorithm=replace(experiment.algorithm, training=training),
    )
    run = tmp_path / "run"
    table, give_back = run / "updates.csv", []

    def stop():
        if not give_back and table.exists() and len(table.read_text().splitlines()) > 6:
            give_back.append(protect(table))
        return False

    try:
        with pytest.raises(StoreError, match=rf"cannot write {table}: .*gps resume {run}"):
            list(run_asynchronous(experiment, out=run, stop=stop))
    finally:
        for undo in give_back:
            undo()
    folder = RunFolder.open(run)
    finished = sum(folder.read_state(folder.last()).asynchronous.counts)
    assert 4 <= finished <= len(table.read_text().splitlines()) - 1
    resume(run)
    assert sum(folder.read_state(folder.last()).asynchronous.counts) == 16
    rows = table.read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [str(n) for n in range(1, 17)]
