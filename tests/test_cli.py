import csv
import io
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from gps import cli
from gps.cli import terminal
from gps.errors import ConfigError, GPSError, SimulationError
from gps.parallel import executors
from gps.pipeline import evaluation, progress, runner, sampling
from gps.pipeline.store import RunFolder

SLOW = '''
"""An agent in which every rollout takes a while."""
import logging
import time
from dataclasses import dataclass, replace

from gps.agents.point_mass import PointMassAgent, PointMassConfig
from gps.algorithms import TrajOptConfig
from gps.control.initial import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost, SumCost, WeightedCost
from gps.pipeline.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class SlowWorld(PointMassConfig):
    pause: float = 0.0
    """Seconds that a rollout sleeps."""

    def build(self, threads=1):
        return SlowAgent(self)


class MyCost(ActionCost):
    pass


class SlowAgent(PointMassAgent):
    def warm_up(self):
        logging.getLogger("gps.compiling").info("compiling a kernel once, about 9 s")
        logging.getLogger("gps.other").info("nobody wants to know")

    def rollout(self, *args, **kwargs):
        time.sleep(self.config.pause)
        return super().rollout(*args, **kwargs)


experiment = Experiment(
    agent=SlowWorld(T=10, starts=((1.0, 1.0), (1.0, -1.0))),
    cost=SumCost(
        terms=(
            WeightedCost(cost=MyCost(weights=0.1)),
            WeightedCost(cost=StateCost(entry="position", target=0.0, l2=1.0)),
        )
    ),
    initial=HoldConfig(position="position", velocity="velocity"),
    measure=EndpointMeasure(entry="position", target=(0.0, 0.0), point_size=2, threshold=0.1),
    algorithm=TrajOptConfig(),
    samples=4,
    iterations=3,
)
'''


@pytest.fixture
def slow(tmp_path):
    path = tmp_path / "slow.py"
    path.write_text(SLOW)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two serial iterations."""
    path = tmp_path_factory.mktemp("runs") / "run"
    argv = ["run", "point_mass_policy", "--iterations", "2", "--out", str(path)]
    argv += ["--executor", "serial", "--agent.T", "12", "--algorithm.training.steps", "50"]
    assert cli.main(argv) == 0
    return path


def error_of(capsys, *argv):
    """The one line of an error, after the exit code has been checked."""
    assert cli.main([str(a) for a in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("gps: error: ")
    return lines[0].removeprefix("gps: error: ")


# --- the top level


def test_help_and_version(capsys):
    for argv in ([], ["--help"], ["-h"]):
        assert cli.main(argv) == 0
        text = capsys.readouterr().out
        assert all(re.search(rf"^  {name} ", text, re.M) for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert re.match(r"gps \d", capsys.readouterr().out)
    for name in ("resume", "gui", "plot", "evaluate", "export", "list", "new", "check"):
        assert cli.main([name, "--help"]) == 0
        assert f"usage: gps {name}" in capsys.readouterr().out


def test_quick_commands_import_nothing_heavy():
    code = (
        "import sys; from gps.cli import main; main(['list']); main(['--help']);"
        "print('HEAVY', [m for m in ('torch', 'mujoco', 'numba', 'dask', 'h5py') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "HEAVY []" in out.stdout, out.stdout + out.stderr


def test_list_shows_names_with_descriptions(capsys):
    assert cli.main(["list"]) == 0
    assert re.search(r"^point_mass +2-D point mass", capsys.readouterr().out, re.M)


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("gps.pipeline.loader.names", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["list"])


def test_notes_of_an_error_stay_on_its_line(capsys, monkeypatch):
    def fail():
        error = GPSError("two\nlines")
        error.add_note("in iteration 3")
        raise error

    monkeypatch.setattr("gps.pipeline.loader.names", fail)
    assert error_of(capsys, "list") == "two lines (in iteration 3)"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rum"], "unknown command 'rum'; did you mean 'run'"),
        (["run", "point_mas"], "unknown experiment 'point_mas'; did you mean 'point_mass'"),
        (["run", "nowhere/x.py"], "nowhere/x.py does not exist"),
        (
            ["run", "point_mass", "--iteration", "3"],
            "unknown option --iteration; did you mean --it",
        ),
        (
            ["run", "point_mass", "--sampels", "3"],
            "unknown option --sampels; did you mean --samples",
        ),
        (["run", "point_mass", "--samples", "x"], "--samples must be a whole number from 1 to 1"),
        (["run", "point_mass", "--samples", "0"], "Experiment.samples must be"),
        (["run", "point_mass", "--seed", "x"], "--seed must be a whole number, got 'x'"),
        (["run", "point_mass", "--seed", "-1"], "Experiment.seed must be"),
        (["run", "point_mass", "--executor", "mpi"], "--executor must be 'serial' or 'dask', got"),
        (["run", "point_mass", "stray"], "stray"),
        (["run", "point_mass", "--executor", "serial", "--workers", "2"], "need --executor dask"),
        (["resume", "nowhere"], "nowhere does not exist"),
        (["resume"], "the following arguments are required: RUN; see gps resume --help"),
        (["evaluate", "nowhere"], "nowhere does not exist"),
        (["evaluate", "nowhere", "--samples", "0"], "--samples must be a whole number of at "),
        (["evaluate", "nowhere", "--seed", "-1"], "--seed must be a whole number of at least 0"),
        (
            ["resume", "nowhere", "--task-timeout", "x"],
            "--task-timeout must be a number above 0, got",
        ),
        (["evaluate", "nowhere", "--size", "9"], "--size must look like 320x240"),
        (["new", "x"], "one of the arguments --from --model --env --dm is required"),
        (["new", "x", "--model", "nowhere.xml"], "nowhere.xml"),
        (["new", "x", "--dm", "cartpole"], "--dm must look like cartpole:swingup, got 'cartpole'"),
        (["new", "a b", "--model", "reacher"], "is not a name for an experiment"),
        (["check", "nowhere.py"], "nowhere.py does not exist"),
        (["list", "--frob"], "unrecognized arguments: --frob"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_input_is_one_line_and_code_2(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capsys, *argv)
    assert os.listdir(tmp_path) == []  # nothing was begun


def test_run_without_an_experiment(capsys):
    assert cli.main(["run"]) == 2
    assert "gps list shows them" in capsys.readouterr().err


def test_help_of_an_experiment_shows_fixed_and_own_options(capsys, slow):
    assert cli.main(["run", str(slow), "--help"]) == 0
    text = capsys.readouterr().out
    assert "--executor {serial,dask}" in text
    assert "--agent.pause" in text
    assert "Seconds that a rollout sleeps." in text
    assert text.count("--seed ") == 1


def test_new(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "mine", "--from", "point_mass"]) == 0
    assert "gps run mine.py" in capsys.readouterr().out
    assert (tmp_path / "mine.py").is_file()
    assert "exists already" in error_of(capsys, "new", "mine", "--from", "point_mass")
    assert cli.main(["new", "mine", "--from", "point_mass_pi2", "--force"]) == 0
    assert "PI2" in (tmp_path / "mine.py").read_text()


# --- run and resume


def test_run_writes_a_folder_and_prints_a_line_per_iteration(capsys, slow, tmp_path):
    out = tmp_path / "run"
    argv = ["run", str(slow), "--out", str(out), "--executor", "serial", "--seed", "3"]
    assert cli.main([*argv, "--agent.dt", "0.1", "--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(bool(re.match(r" +\d+  ", line)) for line in lines) == 3
    assert lines[0] == f"slow: 3 iterations, serial, in {out}"
    assert f"gps evaluate {out}" in lines[-1]
    folder = RunFolder.open(out)
    assert folder.iterations() == [0, 1, 2, 3]
    assert [row["iteration"] for row in folder.metrics()] == [1, 2, 3]
    experiment = folder.experiment()
    assert (experiment.seed, experiment.agent.dt, experiment.agent.pause) == (3, 0.1, 0.0)
    assert not (out / "lock").exists()
    assert "is not empty" in error_of(capsys, *argv)
    argv = ["resume", str(out), "--executor", "serial"]
    assert cli.main(argv) == 0
    assert "nothing to do" in capsys.readouterr().out
    before = [folder.iteration_path(n).read_bytes() for n in range(4)]
    assert cli.main([*argv, "--from", "1"]) == 0
    assert [folder.iteration_path(n).read_bytes() for n in range(4)] == before
    assert [row["iteration"] for row in folder.metrics()] == [1, 2, 3]
    assert "iteration 9 is not stored; stored: 0-3" in error_of(capsys, *argv, "--from", "9")


@pytest.mark.parametrize(
    ("options", "line", "times"),
    [
        ([], "compiling kernels, once on this machine: up to half a minute", {1}),
        # by each of the two workers; one of them is asked again whether it is ready
        (["--verbose"], "compiling a kernel once, about 9 s", {2, 3}),
    ],
)
def test_a_run_says_that_its_workers_compile(capsys, slow, options, line, times, tmp_path):
    argv = ["run", str(slow), "--workers", "2", "--iterations", "1", "--out", str(tmp_path / "run")]
    assert cli.main([*argv, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.count(line) in times
    assert lines.index(line) < lines.index(terminal.HEADER)
    assert "nobody wants to know" not in lines


def test_the_default_folder(slow, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "slow.py", "--executor", "serial", "--iterations", "1"]) == 0
    (path,) = (tmp_path / "runs" / "slow").iterdir()
    assert path.name.endswith("-seed0")
    assert (path / "hyperparams.py").read_bytes() == slow.read_bytes()


def wait_for(path, process):
    limit = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)


def lines_until(process, start):
    """What a command prints up to the line that begins so."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith(start):
            return "".join(seen)
    raise AssertionError(process.communicate())


@pytest.mark.parametrize(
    ("executor", "number", "signals"),
    [
        ("serial", signal.SIGINT, 2),
        pytest.param("dask", signal.SIGINT, 1, marks=pytest.mark.slow),
        pytest.param("dask", signal.SIGHUP, 1, marks=pytest.mark.slow),
        pytest.param("serial", signal.SIGTERM, 1, marks=pytest.mark.slow),
    ],
)
def test_interrupts(slow, tmp_path, executor, number, signals):
    """One Ctrl-C lets the iteration finish, two do not; a resumed run gives the same bytes.

    So does the end of a terminal, and of a job.
    """
    out, whole = tmp_path / "run", tmp_path / "whole"
    argv = [sys.executable, "-m", "gps.cli", "run", str(slow), "--executor", executor]
    if executor == "dask":
        argv += ["--workers", "1"]
    process = subprocess.Popen(
        [*argv, "--out", str(out), "--agent.pause", "0.3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    seen = lines_until(process, "   1 ")  # stored and reported: the next one has begun
    time.sleep(0.1)  # an iteration takes 1.2 s of pauses, on workers less what storing took
    for _ in range(signals):
        os.killpg(process.pid, number)  # a terminal too sends it to the workers
        time.sleep(0.1)
    try:
        stdout, stderr = process.communicate(timeout=60)
        stdout = seen + stdout
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert "stopping after this iteration" in stderr
    last = len(RunFolder.open(out).results())
    assert re.search(rf"^best: iteration {last} of {last}, the last \(", stdout, re.M)
    assert f"gps resume {out}" in stdout
    # of SIGHUP multiprocessing's resource tracker dies, and another one complains
    assert "Traceback" not in stderr or number == signal.SIGHUP
    assert not (out / "lock").exists()
    folder = RunFolder.open(out)
    assert process.returncode == (0 if signals == 1 else 130)
    done = folder.iterations()
    assert done == ([0, 1, 2] if signals == 1 else [0, 1])
    assert len(folder.metrics()) == done[-1]
    assert cli.main(["resume", str(out), "--executor", "serial"]) == 0
    argv = ["run", str(slow), "--executor", "serial", "--out", str(whole), "--agent.pause", "0.3"]
    assert cli.main(argv) == 0
    for n in range(4):
        other = RunFolder.open(whole).iteration_path(n)
        assert folder.iteration_path(n).read_bytes() == other.read_bytes(), n


def fake_report(n):
    row = {"iteration": float(n), "cost_mean": 1.0, "seconds": 0.1}
    return SimpleNamespace(
        iteration=n,
        row=row,
        stage_seconds={"rollout": 0.05},
        events=("condition 1: went back",),
        news="",
    )


def test_an_event_is_a_line_and_an_error_ends_the_run(capsys, slow, tmp_path, monkeypatch):
    def reports(experiment, **kwargs):
        yield fake_report(1)
        logging.getLogger("gps.algorithms").warning("careful")
        raise SimulationError(2, ())

    monkeypatch.setattr(import_module("gps.pipeline.runner"), "run", reports)
    argv = ["run", str(slow), "--executor", "serial", "--out", str(tmp_path / "x")]
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert "condition 1: went back" in captured.out
    assert "warning: careful" in captured.out
    assert captured.err == "gps: error: condition 2: simulation failed ()\n"


# --- asynchronous runs


@pytest.fixture
def slow_policy(slow):
    """The slow agent with a policy."""
    text = SLOW.replace("import TrajOptConfig", "import MDGPSConfig")
    text = text.replace("TrajOptConfig()", "MDGPSConfig(training=TrainingConfig(steps=20))")
    slow.write_text(
        text.replace("@dataclass", "from gps.policies import TrainingConfig\n\n\n@dataclass")
    )
    return slow


def test_what_excludes_each_other_is_refused_before_a_word(capsys):
    argv = ["run", "point_mass", "--workers", "2", "--scheduler", "tcp://x"]
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert (out, "not allowed with argument --workers; see gps run --help" in err) == ("", True)


def test_advice_after_a_failure(capsys, finished, tmp_path, monkeypatch):
    """Resumed, it does not name the command that has failed, unless that has got further."""
    out, real = tmp_path / "run", runner.metrics_row
    shutil.copytree(finished, out)
    argv = ["resume", out, "--executor", "serial", "--iterations", 4]
    fails = [True]

    def metrics_row(*args):
        if fails.pop(0):
            raise GPSError("no")
        return real(*args)

    monkeypatch.setattr(runner, "metrics_row", metrics_row)
    copy = f"(the run uses its copy {out / 'hyperparams.py'})"
    assert error_of(capsys, *argv) == f"no {copy}"
    fails[:] = [False, True]
    assert error_of(capsys, *argv) == f"no (resume with: gps resume {out}) {copy}"


def test_an_asynchronous_run(capsys, slow_policy, tmp_path, monkeypatch):
    out, reserved = tmp_path / "run", []
    real = executors.make_executor

    def make_executor(*args, reserve, **kwargs):
        reserved.append(reserve)
        return real(*args, reserve=reserve, **kwargs)

    monkeypatch.setattr(executors, "make_executor", make_executor)
    argv = ["run", slow_policy, "--asynchronous", "--executor", "serial", "--out", out]
    assert cli.main([str(a) for a in (*argv, "--rollouts", "16", "--replay-batches", "1")]) == 0
    text = capsys.readouterr().out
    assert "asynchronous, 16 rollouts, serial, in" in text
    assert "4 updates of conditions, 2 of the policy (age 0 on average, 0 at most)" in text
    folder = RunFolder.open(out)
    assert folder.iterations() == [0, 1, 2]
    assert [len(m) for m in folder.read_state(2).asynchronous.replay_buffer] == [1, 1]
    assert f"\n{progress.summary(folder.results())}\n" in text
    argv = ["resume", str(out), "--executor", "serial"]
    assert "--until-converged is for" in error_of(capsys, *argv, "--until-converged")
    assert cli.main(argv) == 0
    text = capsys.readouterr().out
    assert "does not give the same bytes" in text
    assert f"nothing to do: {out} has reached its 16 rollouts\n" in text
    assert reserved == [1, 1]  # a worker is free to train the policy
    assert cli.main([*argv, "--updates", "3"]) == 0
    assert "6 updates of conditions, 3 of the policy" in capsys.readouterr().out
    assert cli.main([*argv, "--iterations", "4", "--replay-batches", "2"]) == 0
    assert "8 updates of conditions, 4 of the policy" in capsys.readouterr().out
    assert [len(m) for m in RunFolder.open(out).read_state(4).asynchronous.replay_buffer] == [2, 2]
    assert cli.main(["evaluate", str(out)]) == 0
    rows = (out / "updates.csv").read_text().splitlines()
    assert len(rows) == 1 + 8


def test_wrong_asynchronous_options(capsys, slow, finished):
    for option in ("--rollouts", "--updates", "--replay-batches"):
        assert f"{option} needs --asynchronous" in error_of(capsys, "run", slow, option, 3)
    message = error_of(capsys, "run", slow, "--asynchronous", "--executor", "serial")
    assert "TrajOptConfig cannot run asynchronously" in message
    message = error_of(capsys, "run", "point_mass_policy", "--asynchronous", "--rollouts", 0)
    assert "--rollouts must be a whole number of at least 1, got 0" in message
    for option in ("--rollouts", "--replay-batches"):
        assert "for asynchronous runs" in error_of(capsys, "resume", finished, option, 3)


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_interrupts_of_an_asynchronous_run(slow_policy, tmp_path, signals):
    """One Ctrl-C stores what is finished first; nothing stored is damaged by two."""
    out = tmp_path / "run"
    argv = [sys.executable, "-m", "gps.cli", "run", str(slow_policy), "--asynchronous"]
    argv += ["--executor", "dask", "--workers", "2", "--rollouts", "4000", "--out", str(out)]
    process = subprocess.Popen(
        [*argv, "--agent.pause", "0.3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(out / "iterations" / "0001.h5", process)
    for _ in range(signals):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    try:
        stdout, stderr = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert "stopping after a snapshot is stored" in stderr
    if signals == 1:
        assert f"\n{progress.summary(RunFolder.open(out).results())}\n" in stdout
    assert f"gps resume {out}" in stdout
    assert "Traceback" not in stderr
    assert process.returncode == (0 if signals == 1 else 130)
    assert not (out / "lock").exists()
    folder = RunFolder.open(out)
    last = folder.last()
    done = folder.read_state(last).asynchronous.local_updates
    written = len((out / "updates.csv").read_text().splitlines()) - 1
    assert written == done if signals == 1 else written >= done
    more = str(4 * (done + 2))
    assert cli.main(["resume", str(out), "--executor", "serial", "--rollouts", more]) == 0
    assert len((out / "updates.csv").read_text().splitlines()) - 1 == done + 2


# --- evaluate


def test_evaluate_writes_one_row_per_condition_of_the_policy(capsys, finished):
    for kind, count in (("train", 4), ("test", 6)):
        argv = ["evaluate", str(finished), "--conditions", kind, "--samples", "2"]
        assert cli.main(argv) == 0
        text = capsys.readouterr().out
        assert ("local cost" in text) == (kind == "train")
        assert "policy cost" in text
        with open(finished / f"evaluation_{kind}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["condition", "cost", "distance", "success", "iteration"]
        assert {r["iteration"] for r in rows} == {"2"}
        assert [int(r["condition"]) for r in rows] == list(range(count))
        folder = RunFolder.open(finished)
        experiment, policy = folder.experiment(), folder.read_state(2).policy.policy
        for r in rows:
            want = sampling.evaluate_condition(
                experiment.agent,
                experiment.cost,
                experiment.measure,
                policy,
                int(r["condition"]),
                2,
                0,
                test=kind == "test",
            )
            assert float(r["cost"]) == want.cost.mean()
            assert float(r["distance"]) == want.distance.mean()


def test_evaluate_an_earlier_iteration_and_with_noise(capsys, finished):
    costs = []
    for more, name in (
        ([], "evaluation_train.csv"),
        (["--iteration", "1"], "evaluation_train_0001.csv"),
        (["--iteration", "2", "--noise", "--samples", "3"], "evaluation_train_0002.csv"),
    ):
        assert cli.main(["evaluate", str(finished), *more]) == 0
        with open(finished / name, newline="") as file:
            costs.append([float(r["cost"]) for r in csv.DictReader(file)])
    assert costs[0] != costs[1] != costs[2] != costs[0]
    capsys.readouterr()
    assert "iteration 7 is not stored" in error_of(capsys, "evaluate", finished, "--iteration", "7")


def test_the_best_iteration_is_evaluated_by_default(capsys, finished, tmp_path):
    path = shutil.copytree(finished, tmp_path / "run")
    for name in path.glob("evaluation_*"):
        name.unlink()
    with h5py.File(RunFolder.open(path).iteration_path(1), "r+") as file:
        file["metrics"].attrs["policy_success"] = 2.0
    for more, place, name in (
        ([], "iteration 1 (the best)", ""),
        (["--iteration", "last"], "iteration 2 (the last)", "_0002"),
        (["--iteration", "1"], "iteration 1", "_0001"),
        (["--iteration", "best"], "iteration 1 (the best)", ""),
    ):
        assert cli.main(["evaluate", str(path), *more]) == 0
        said = capsys.readouterr().out
        assert f"point_mass_policy, {place}, train conditions" in said
        assert f"wrote {path}/evaluation_train{name}.csv" in said
    tables = {p.name: p.read_text().splitlines()[1][-2:] for p in path.glob("evaluation_*.csv")}
    assert tables == {
        "evaluation_train.csv": ",1",
        "evaluation_train_0001.csv": ",1",
        "evaluation_train_0002.csv": ",2",
    }
    for command in (["evaluate", path], ["plot", path, "--out", path], ["export", path, "x.pt2"]):
        for wrong in ("fisrt", "-1", "1.5"):
            assert error_of(capsys, *command, "--iteration", wrong) == (
                f"iteration must be best, last or the number of a stored iteration, got '{wrong}'"
            )
    pytest.importorskip("viser")
    assert "must be best, last" in error_of(capsys, "gui", path, "--iteration", "x")
    capsys.readouterr()
    message = error_of(capsys, "gui", path, "--iteration", "9", "--port", 0)
    assert "iteration 9 is not stored; stored: 0, 1, 2" in message


def test_a_run_names_its_best_iteration_at_the_end(capsys, slow, tmp_path):
    out = tmp_path / "run"
    argv = ["run", str(slow), "--out", str(out), "--executor", "serial"]
    assert cli.main([*argv, "--iterations", "14", "--until-converged"]) == 0
    *_, news, best, end = capsys.readouterr().out.splitlines()
    rows = RunFolder.open(out).results()
    assert len(rows) < 14
    assert news.strip() == progress.news(rows)
    assert news.strip().startswith("converged: ")
    assert best == progress.summary(rows)
    assert best.startswith("best: iteration ")
    assert end.startswith("done; ")
    argv = ["resume", str(out), "--executor", "serial"]
    assert cli.main([*argv, "--until-converged"]) == 0
    *_, best, end = capsys.readouterr().out.splitlines()
    assert best == progress.summary(rows)
    assert end == f"nothing to do: {out} has converged; continue without --until-converged"
    assert cli.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = RunFolder.open(out).results()
    assert len(rows) == 14
    assert lines[-2] == progress.summary(rows)
    assert not any("converged" in line for line in lines)  # it was said when it happened
    argv = ["run", "point_mass_policy", "--asynchronous", "--until-converged"]
    assert error_of(capsys, *argv).startswith("--until-converged is for synchronous runs; an asyn")


def test_the_table_of_another_iteration_is_set_aside(capsys, finished):
    path, kept = (finished / f"evaluation_test{end}.csv" for end in ("", "_0001"))
    text = "condition,cost,distance,success,iteration\n0,1.0,2.0,0.0,1\n"
    path.write_text(text)  # as when the run had one iteration, and was resumed
    assert cli.main(["evaluate", str(finished), "--conditions", "test"]) == 0
    assert kept.read_text() == text
    assert path.read_text().splitlines()[1].endswith(",2")
    assert f"iteration 1 as {kept}" in capsys.readouterr().out


def test_evaluate_without_a_policy_or_test_conditions(capsys, slow, tmp_path):
    out = tmp_path / "run"
    argv = ["run", str(slow), "--executor", "serial", "--iterations", "1", "--out", str(out)]
    assert cli.main(argv) == 0
    assert cli.main(["evaluate", str(out)]) == 0
    assert "local cost" in capsys.readouterr().out
    assert len((out / "evaluation_train.csv").read_text().splitlines()) == 3
    test = ["evaluate", out, "--conditions", "test"]
    assert "slow has no test conditions" in error_of(capsys, *test)
    argv = [*argv[:-1], str(tmp_path / "two"), "--agent.test_starts", "0.5", "0.5"]
    assert cli.main(argv) == 0
    test[1] = tmp_path / "two"
    capsys.readouterr()
    assert "trains no global policy" in error_of(capsys, *test)


def test_a_failed_simulation_is_a_row_not_a_crash(capsys, finished, monkeypatch):
    real = sampling.evaluate_condition

    def sometimes(agent, cost, measure, policy, condition, *args, **kwargs):
        if condition == 1:
            raise SimulationError(1, ())
        return real(agent, cost, measure, policy, condition, *args, **kwargs)

    monkeypatch.setattr(sampling, "evaluate_condition", sometimes)
    assert cli.main(["evaluate", str(finished)]) == 0
    with open(finished / "evaluation_train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (rows[1]["cost"], rows[1]["success"]) == ("inf", "0.0")
    assert math.isfinite(float(rows[0]["cost"]))
    assert "condition 1: simulation failed" in capsys.readouterr().err


def test_images_and_films(capsys, finished, tmp_path, monkeypatch):
    from PIL import Image

    from gps.agents.point_mass import PointMassAgent

    png, mp4 = tmp_path / "a.png", tmp_path / "a.mp4"
    assert "PointMassAgent draws no images" in error_of(
        capsys, "evaluate", finished, "--images", png
    )

    def render(self, rollouts, sample, *, width, height, camera, every, test):
        steps = range(0, rollouts.T, every)
        return np.full((len(steps), height, width, 3), 10 * rollouts.condition, dtype=np.uint8)

    monkeypatch.setattr(PointMassAgent, "render", render, raising=False)
    assert cli.main(["evaluate", str(finished), "--images", str(png), "--size", "20x10"]) == 0
    with Image.open(png) as image:
        assert image.size == (6 * 20, 4 * 10)  # a row of images for each condition
        assert image.getpixel((0, 35)) == (30, 30, 30)
    assert cli.main(["evaluate", str(finished), "--video", str(mp4), "--size", "20x10"]) == 0
    assert mp4.stat().st_size > 100
    capsys.readouterr()
    monkeypatch.setattr(sampling, "evaluate_condition", lambda *a, **k: pytest.fail("rolled out"))

    def refuse(self, *, width, height, camera, test):
        raise ConfigError(f"unknown camera {camera!r}" if camera != -1 else f"not {width} pixels")

    monkeypatch.setattr(PointMassAgent, "check_render", refuse, raising=False)
    for argv, message in (
        (["--images", tmp_path / "no" / "a.png"], f"the folder {tmp_path / 'no'} does not exist"),
        (["--images", png / "a.png"], f"the folder {png} is not a folder"),
        (["--images", tmp_path], "must be a file that ends in .png, .jpg"),
        (["--video", "a.gif"], "must be a file that ends in .mp4, .mkv"),
        (["--video", mp4, "--size", "21x10"], "--size must be two even numbers for --video"),
        (["--images", png, "--camera", "side"], "--camera: unknown camera 'side'"),
        (["--images", png, "--size", "9x9"], "--size: not 9 pixels"),
        (["--camera", "side"], "--camera needs --images or --video"),
    ):
        assert message in error_of(capsys, "evaluate", finished, *argv)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "a.png"]
    monkeypatch.setitem(sys.modules, "imageio", None)
    monkeypatch.setitem(sys.modules, "imageio.v2", None)
    message = error_of(capsys, "evaluate", finished, "--video", mp4)
    assert "guided-policy-search[video]" in message


def test_a_run_folder_that_cannot_be_written_is_refused_first(capsys, finished, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(evaluation.tempfile, "TemporaryFile", fail)
    monkeypatch.setattr(sampling, "evaluate_condition", lambda *a, **k: pytest.fail("rolled out"))
    (finished / "evaluation_train.csv").unlink(missing_ok=True)
    assert "Read-only file system" in error_of(capsys, "evaluate", finished)


# --- the terminal


def test_the_line_of_an_iteration():
    row = {
        "iteration": 3.0,
        "cost_mean": -12.3456789,
        "cost_min": -20.0,
        "cost_max": 1.0,
        "local_distance_mean": 0.5,
        "local_success": 0.25,
        "policy_distance_mean": float("nan"),
        "kl_mean": 0.991,
        "kl_max": 1.0,
        "step_mult_mean": 0.5,
        "seconds": 1.234,
        "memory_driver": 512.4e6,
        "memory_worker": float("nan"),
    }
    stages = {"rollout": 0.5, "improve": 0.25, "score": 0.001, "train": 0.3, "cost": 0.1}
    line = terminal.iteration_line(row, stages)
    assert line.split()[:6] == ["3", "-12.346", "-20", "1", "0.5", "25"]
    assert "0.991/1" in line
    assert line.endswith("  512     1.23  rollout 0.5, train 0.3, improve 0.25")
    line = terminal.iteration_line(row | {"memory_worker": 430e6}, stages)
    assert "  512/430     1.23  rollout" in line
    heads, cells = terminal.HEADER, terminal.iteration_line(row | {"policy_success": 0.25}, stages)
    assert heads.index("seconds") + len("seconds") == cells.index("1.23") + len("1.23")
    line = terminal.iteration_line(row | {"policy_distance_mean": 0.125, "policy_success": 1.0}, {})
    assert line.split()[4:6] == ["0.125", "100"]
    assert "nan" not in terminal.iteration_line({"iteration": 1.0, "seconds": 1.0}, {})


@pytest.mark.parametrize("live", [False, True])
def test_progress_on_a_terminal_and_elsewhere(live):
    stream = io.StringIO()
    with terminal.Progress(2, stream=stream, live=live) as progress:
        progress.waiting("loading")
        progress.iteration(fake_report(1).row, {})
        progress.log_handler().emit(logging.LogRecord("x", 30, "", 0, "odd [%s]", ("red",), None))
    text = stream.getvalue()
    assert "cost" in text
    assert "warning: odd [red]" in text
    assert text.count("lowest") == 1
    assert ("iteration 2 of 2" in text) <= live


def test_a_wrong_mujoco_gl_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    assert cli.main(["list"]) == 2
    assert "MUJOCO_GL must be egl, osmesa, glfw or disable" in capsys.readouterr().err
