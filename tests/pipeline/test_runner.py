import csv
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace

import numpy as np
import pytest

import gps
from gps.agents.point_mass import PointMassAgent, PointMassConfig
from gps.costs import EndpointMeasure, StateCost
from gps.errors import ConfigError, SampleFailure, SimulationError, StoreError
from gps.execution import map_tree, stage_of
from gps.parallel import Dask
from gps.pipeline import sampling
from gps.pipeline.store import RunFolder, Snapshot, encode, identity_of


@pytest.fixture
def experiment():
    """A short run of linear controllers."""
    experiment = gps.load("point_mass")
    return replace(experiment, iterations=4, agent=replace(experiment.agent, T=12))


@pytest.fixture
def with_policy():
    """A short run with a policy."""
    experiment = gps.load("point_mass_policy")
    training = replace(experiment.algorithm.training, steps=60)
    agent = replace(experiment.agent, T=10, starts=((1.0, 1.0), (1.0, -1.0), (-1.0, 0.5)))
    algorithm = replace(experiment.algorithm, training=training)
    return replace(experiment, iterations=3, agent=agent, samples=4, algorithm=algorithm)


def drain(reports):
    return list(reports)


def hashes(folder):
    files = sorted((folder / "iterations").iterdir())
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def image(report, identity=""):
    """All bytes that would be stored of a report."""
    return encode(
        Snapshot(
            state=report.state,
            rollouts=report.rollouts,
            models=report.report.models,
            metrics=report.row,
            report=report.report,
        ),
        identity,
    )


# --- what a run takes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda e: gps.run("reacher"),
            "run: experiment must be an Experiment as gps.load(name ",
        ),
        (lambda e: gps.run(e, executor="dask"), "run: executor must be an executor such as "),
        (lambda e: gps.run(e, executor=Dask), "run: executor must be an executor such as "),
        (
            lambda e: gps.run(e, steering=3),
            "run: steering must be a gps.pipeline.steering.Steering",
        ),
        (lambda e: gps.run(e, out=3), "run: out must be a path or None, got 3"),
        (lambda e: gps.run(e, source=3), "run: source must be a path or None, got 3"),
        (lambda e: gps.run(e, until_converged="x"), "run: until_converged must be True or False, "),
        (lambda e: gps.run(e, changes={}), "run: changes must be a Changes or None, got {}"),
        (lambda e: gps.resume(3), "resume: path must be a path, got 3"),
        (lambda e: gps.resume("x", executor="dask"), "resume: executor must be an executor such "),
        (
            lambda e: gps.evaluate(3),
            "evaluate: source must be a run folder or an Experiment, got 3",
        ),
        (lambda e: gps.evaluate(None), "evaluate: source must be a run folder or an Experiment, "),
        (lambda e: gps.evaluate(e, state=3), "evaluate: state must be a GPSState or None, got 3"),
        (lambda e: gps.evaluate(e, noise="x"), "evaluate: noise must be True or False, got 'x'"),
        (lambda e: gps.load_policy(3), "load_policy: path must be a path, got 3"),
        (lambda e: gps.export_policy(3, "x.pt2"), "export_policy: run must be a path, got 3"),
    ],
)
def test_a_wrong_kind_of_argument_is_named(call, message, experiment):
    with pytest.raises(ConfigError) as error:
        call(experiment)
    assert str(error.value).startswith(message)


# --- what a run gives


@pytest.mark.parametrize("name", ["experiment", "with_policy"])
def test_reports_of_a_run_in_memory(name, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = request.getfixturevalue(name)
    reports = drain(gps.run(experiment))
    M, steps = experiment.validate().n_conditions, experiment.agent.T * experiment.samples
    assert [r.iteration for r in reports] == list(range(1, experiment.iterations + 1))
    for r in reports:
        costs = [c.cost_mean for c in r.report.conditions]
        assert len(costs) == len(r.rollouts) == len(r.state.conditions) == M
        assert r.row["iteration"] == r.iteration == r.state.iteration
        assert r.row["cost_mean"] == pytest.approx(np.mean(costs))
        assert r.row["env_steps"] == r.iteration * M * steps
        for m, rollouts in enumerate(r.rollouts):
            assert (rollouts.condition, rollouts.N) == (m, experiment.samples)
            total = experiment.cost.evaluate(rollouts).l.sum(axis=1)
            assert costs[m] == pytest.approx(total.mean())
            assert r.row["cost_min"] <= total.min()
            assert r.row["cost_max"] >= total.max()
        for kind, sources in (
            ("local", r.state.conditions),
            ("policy", [r.state.policy] * M if r.state.policy else []),
        ):
            scored = [
                sampling.evaluate_condition(
                    experiment.agent, experiment.cost, experiment.measure, s.actor, m, 1, 0
                )
                for m, s in enumerate(sources)
            ]
            row = {k: r.row[f"{kind}_{k}"] for k in ("cost_mean", "distance_mean", "distance_max")}
            if not scored:
                assert np.isnan(list(row.values())).all()
                continue
            assert row["cost_mean"] == pytest.approx(np.mean([s.cost[0] for s in scored]))
            assert row["distance_mean"] == pytest.approx(np.mean([s.distance[0] for s in scored]))
            assert row["distance_max"] == pytest.approx(max(s.distance[0] for s in scored))
            want = np.mean([s.success[0] for s in scored])
            assert r.row[f"{kind}_success"] == pytest.approx(want)
        assert r.seconds > 0
        assert sum(r.stage_seconds.values()) <= r.seconds
    assert os.listdir(tmp_path) == []  # nothing is written


def test_a_run_is_decided_by_its_seed(experiment):
    one, same, other = (drain(gps.run(experiment, seed=s, iterations=2)) for s in (3, 3, 4))
    assert len(one) == 2
    assert [image(r) for r in one] == [image(r) for r in same]
    assert [image(r) for r in one] != [image(r) for r in other]
    assert not np.array_equal(one[0].rollouts[0].X, other[0].rollouts[0].X)
    # nor are draws shared between conditions, samples or iterations
    noise = np.concatenate([r.noise for report in one for r in report.rollouts])
    assert len(np.unique(noise[:, 0, 0])) == len(noise) == 2 * 2 * 5


class Late:
    """The handle of a call that has not run yet."""

    def __init__(self, fn, args):
        self.fn, self.args, self.done, self.value = fn, args, False, None

    def get(self):
        if not self.done:
            args = map_tree(lambda x: x.get() if isinstance(x, Late) else x, self.args)
            self.value, self.done = self.fn(*args), True
        return self.value


class Backwards:
    """An executor that does nothing until it must, and then begins with the last call."""

    workers, concurrent = 1, True

    def __init__(self):
        self.waiting, self.order = [], []

    def prepare(self, fn):
        pass

    def together(self):
        return nullcontext()

    def pick(self, handle, name):
        return Late(getattr, (handle, name))

    def keep(self, tree):
        return tree

    def call(self, fn, *args, condition=-1):
        self.waiting.append(Late(fn, args))
        self.order.append((stage_of(fn), condition))
        return self.waiting[-1]

    def gather(self, tree):
        for late in reversed(self.waiting):
            late.get()
        self.waiting = []
        return map_tree(lambda x: x.get() if isinstance(x, Late) else x, tree)

    def doing(self):
        return ""

    def seconds(self):
        return {}

    def memory(self):
        return float("nan")

    def close(self):
        raise AssertionError("an executor that was handed in is not closed")


@pytest.mark.parametrize("name", ["experiment", "with_policy"])
def test_the_order_of_work_changes_nothing(name, request):
    experiment = request.getfixturevalue(name)
    forwards = drain(gps.run(experiment))
    executor = Backwards()
    backwards = drain(gps.run(experiment, executor=executor))
    assert [image(r) for r in forwards] == [image(r) for r in backwards]
    conditions = {c for stage, c in executor.order if stage == "rollout"}
    assert conditions == set(range(experiment.validate().n_conditions))


def test_random_numbers_are_addressed_by_condition(experiment):
    """A condition's draws do not depend on how many others there are."""
    agent = replace(experiment.agent, starts=((1.0, 1.0), (1.0, -0.5)), start_position_std=0.1)
    both = next(gps.run(replace(experiment, agent=agent)))
    more = next(gps.run(replace(experiment, agent=replace(agent, starts=(*agent.starts, (0, 1))))))
    for m in range(2):
        assert both.rollouts[m].X.tobytes() == more.rollouts[m].X.tobytes()
    few = next(gps.run(replace(experiment, agent=agent, samples=3)))
    assert few.rollouts[1].noise.tobytes() == both.rollouts[1].noise[:3].tobytes()


# --- what is stored


def test_a_file_of_another_run_is_not_gone_on_from(experiment, tmp_path, caplog):
    """With the right number, the right layout, and another seed or configuration."""
    folder = tmp_path / "run"
    drain(gps.run(experiment, out=folder, iterations=3))
    mine = (folder / "iterations" / "0003.h5").read_bytes()
    for n, other in enumerate((replace(experiment, seed=7), replace(experiment, samples=4))):
        drain(gps.run(other, out=tmp_path / str(n), iterations=3))
        foreign = tmp_path / str(n) / "iterations" / "0003.h5"
        shutil.copy(foreign, folder / "iterations" / "0003.h5")
        with pytest.raises(StoreError, match=r"0003\.h5 belongs to a run with another config"):
            RunFolder.open(folder).read(3)
        (again,) = gps.resume(folder, iterations=3)
        assert again.iteration == 3
        assert "0003.h5 belongs to a run with another configuration or seed: skipped" in caplog.text
        assert (folder / "iterations" / "0003.h5").read_bytes() == mine
        caplog.clear()
    # one of the same configuration and seed is as good as its own, however long that run was
    drain(gps.run(experiment, out=tmp_path / "longer", iterations=4))
    longer = tmp_path / "longer" / "iterations" / "0003.h5"
    assert longer.read_bytes() == mine


def test_a_run_folder(experiment, tmp_path):
    out = tmp_path / "a" / "run"
    reports = drain(gps.run(experiment, out=out))
    folder = RunFolder.open(out)
    assert folder.iterations() == [0, 1, 2, 3, 4]
    for r in reports:
        stored = folder.read(r.iteration)
        want = image(r, identity_of(experiment))
        assert want == folder.iteration_path(r.iteration).read_bytes()
        assert stored.rollouts[1].X.tobytes() == r.rollouts[1].X.tobytes()
    with open(out / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    needed = ["iteration", "cost_mean", "policy_cost_mean", "policy_distance_mean"]
    needed += ["policy_distance_max", "policy_success", "kl_mean", "step_mult_mean", "seconds"]
    needed += [f"seconds_{name}" for name in (*reports[0].stage_seconds, "store")]
    assert set(needed) <= set(rows[0])
    assert {"seconds_rollout", "seconds_improve", "seconds_fit_dynamics"} <= set(needed)
    assert [row["iteration"] for row in rows] == ["1", "2", "3", "4"]
    for row, r in zip(rows, reports, strict=True):
        for key, value in r.row.items():
            assert float(row[key]) == value or np.isnan(value), key
    assert not (out / "lock").exists()


@pytest.mark.parametrize("kind", ["run", "other", "file"])
def test_a_folder_that_is_not_empty_is_refused(experiment, tmp_path, kind):
    out = tmp_path / "run"
    if kind == "run":
        drain(gps.run(experiment, iterations=1, out=out))
    elif kind == "other":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    else:
        out.write_text("mine")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(StoreError, match=str(out)):
        next(gps.run(experiment, out=out))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_an_empty_folder_is_used(experiment, tmp_path):
    drain(gps.run(experiment, iterations=1, out=tmp_path))
    assert RunFolder.open(tmp_path).iterations() == [0, 1]


# --- resume


@pytest.mark.parametrize("name", ["experiment", "with_policy"])
def test_resume_from_anywhere_gives_the_same_bytes(name, request, tmp_path):
    experiment = request.getfixturevalue(name)
    drain(gps.run(experiment, out=tmp_path / "whole"))
    whole = hashes(tmp_path / "whole")
    run = tmp_path / "run"
    drain(gps.run(experiment, iterations=1, out=run))
    # experiment.json holds one iteration: the rest has to be asked for
    assert drain(gps.resume(run)) == []
    more = drain(gps.resume(run, iterations=experiment.iterations))
    assert [r.iteration for r in more] == list(range(2, experiment.iterations + 1))
    assert hashes(run) == whole
    for start in (0, 1):
        again = drain(gps.resume(run, start=start, iterations=experiment.iterations))
        assert again[0].iteration == start + 1
        assert hashes(run) == whole
    rows = RunFolder.open(run).metrics()
    assert [row["iteration"] for row in rows] == list(range(1, experiment.iterations + 1))
    reference = RunFolder.open(tmp_path / "whole").metrics()
    for a, b in zip(rows, reference, strict=True):
        assert a["cost_mean"] == b["cost_mean"]
        assert a["env_steps"] == b["env_steps"]


def test_resume_stops_at_what_is_not_stored(experiment, tmp_path):
    drain(gps.run(experiment, iterations=2, out=tmp_path / "run"))
    with pytest.raises(StoreError, match="iteration 7 is not stored; stored: 0-2"):
        next(gps.resume(tmp_path / "run", start=7))
    assert RunFolder.open(tmp_path / "run").iterations() == [0, 1, 2]
    with pytest.raises(StoreError, match="does not exist"):
        next(gps.resume(tmp_path / "nowhere"))


def test_a_start_after_which_there_is_nothing_to_do_deletes_nothing(experiment, tmp_path):
    run = tmp_path / "run"
    drain(gps.run(experiment, iterations=3, out=run))
    whole = hashes(run)
    with pytest.raises(ConfigError, match="nothing to do from iteration 2 to 1: iterations 3 to 3"):
        next(gps.resume(run, start=2, iterations=1))
    assert hashes(run) == whole
    assert RunFolder.open(run).iterations() == [0, 1, 2, 3]
    # to cut a run is another thing
    assert drain(gps.resume(run, start=2, iterations=2)) == []
    assert RunFolder.open(run).iterations() == [0, 1, 2]


def test_a_damaged_last_iteration_is_done_again(experiment, tmp_path):
    run = tmp_path / "run"
    drain(gps.run(experiment, out=run))
    whole = hashes(run)
    last = RunFolder.open(run).iteration_path(4)
    last.write_bytes(last.read_bytes()[:1000])
    assert [r.iteration for r in gps.resume(run)] == [4]
    assert hashes(run) == whole


def kill_after(folder, argv, iteration, delay):
    """Start a run in its own process and kill it some time after an iteration was stored."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gps.cli", "run", *argv, "--executor", "serial", "--out", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    path = folder / "iterations" / f"{iteration:04d}.h5"
    deadline = time.monotonic() + 90
    try:
        while not path.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(delay)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "iterations", "options", "longest"),
    [
        ("point_mass", 20, {}, 0.1),
        ("point_mass_policy", 6, {"steps": 4000}, 0.4),
    ],
)
def test_a_killed_run_resumes_to_the_same_bytes(name, iterations, options, longest, tmp_path):
    experiment = replace(gps.load(name), iterations=iterations)
    argv = [name, "--iterations", str(iterations)]
    if options:
        training = replace(experiment.algorithm.training, **options)
        algorithm = replace(experiment.algorithm, training=training)
        experiment = replace(experiment, algorithm=algorithm)
        argv += [x for k, v in options.items() for x in (f"--algorithm.training.{k}", str(v))]
    run = tmp_path / "run"
    kill_after(run, argv, 2, random.uniform(0.0, longest))  # wherever it hits, the bytes agree
    done = RunFolder.open(run).iterations()
    assert done[:3] == [0, 1, 2]
    assert done[-1] < iterations  # it was not ready yet
    assert (run / "lock").exists()
    resumed = drain(gps.resume(run))
    assert resumed[0].iteration == done[-1] + 1
    drain(gps.run(experiment, out=tmp_path / "whole"))
    assert hashes(run) == hashes(tmp_path / "whole")
    assert len(hashes(run)) == iterations + 1
    rows = RunFolder.open(run).metrics()
    assert [row["iteration"] for row in rows] == list(range(1, iterations + 1))


# --- samples that fail, and configurations that cannot work


@dataclass(frozen=True, kw_only=True)
class FragileConfig(PointMassConfig):
    """Breaks where a sample's noise pushes too hard at first."""

    threshold: float = 1.0

    def build(self, threads=1):
        return FragileAgent(self)


class FragileAgent(PointMassAgent):
    def rollout(self, policy, condition, noise, start_noise=None, *, test=False):
        broken = np.flatnonzero(noise[:, 0, 0] > self.config.threshold)
        if len(broken):
            failures = [SampleFailure(int(n), 7, "the mass broke") for n in broken]
            raise SimulationError(condition, failures)
        return super().rollout(policy, condition, noise, start_noise, test=test)


def fragile(experiment, threshold, **changes):
    agent = FragileConfig(T=12, starts=experiment.agent.starts, threshold=threshold)
    return replace(experiment, agent=agent, iterations=1, samples=8, **changes)


def test_a_failed_sample_is_drawn_again(experiment, caplog):
    (sound,) = gps.run(fragile(experiment, 1e9))
    (redrawn,) = gps.run(fragile(experiment, 1.0, max_resamples=10))
    replaced = 0
    for before, after in zip(sound.rollouts, redrawn.rollouts, strict=True):
        assert (after.noise[:, 0, 0] <= 1.0).all()
        for n in range(8):
            if before.noise[n, 0, 0] > 1.0:
                replaced += 1
                assert not np.array_equal(before.noise[n], after.noise[n])
            else:  # the others stay as they were
                assert before.X[n].tobytes() == after.X[n].tobytes()
    assert replaced >= 2
    assert any("the mass broke" in r.message and "again" in r.message for r in caplog.records)
    (same,) = gps.run(fragile(experiment, 1.0, max_resamples=10))
    assert image(same) == image(redrawn)


@pytest.mark.parametrize("max_resamples", [0, 2])
def test_an_agent_that_always_fails_stops_the_run(experiment, max_resamples, caplog, tmp_path):
    agent = fragile(experiment, -50.0, max_resamples=max_resamples)
    with pytest.raises(SimulationError) as caught:
        next(gps.run(agent))
    text = str(caught.value)
    assert text.startswith("condition 0: simulation failed")
    assert text.count("the mass broke") == 1  # for all samples together
    assert "samples 0-7, t=7: the mass broke" in text
    assert len(caught.value.failures) == 8
    again = [r for r in caplog.records if "again" in r.message]
    assert len(again) == min(max_resamples, 1)  # and once, not for every try


@dataclass(frozen=True, kw_only=True)
class UntouchableConfig(PointMassConfig):
    """An agent in which no rollout may be run."""

    def build(self, threads=1):
        return UntouchableAgent(self)


class UntouchableAgent(PointMassAgent):
    def rollout(self, *args, **kwargs):
        raise AssertionError("a rollout was run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cost": StateCost(entry="positon", target=0.0, l2=1.0)}, "did you mean 'position'"),
        (
            {"measure": EndpointMeasure(entry="speed", target=(0.0, 0.0), point_size=2)},
            "unknown state entry 'speed'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_rollout(
    experiment, tmp_path, changes, message
):
    agent = UntouchableConfig(T=12, starts=experiment.agent.starts)
    with pytest.raises(AssertionError, match="a rollout was run"):
        next(gps.run(replace(experiment, agent=agent)))
    wrong = replace(experiment, agent=agent, **changes)
    with pytest.raises(ConfigError, match=message):
        next(gps.run(wrong, out=tmp_path / "run"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 1}, "samples must be at least 2 for TrajOptConfig, got 1"),
        ({"iterations": 0}, "iterations must be a whole number of at least 1 .*, got 0"),
        ({"samples": 2.0}, "samples must be a whole number"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"max_resamples": True}, "max_resamples must be a whole number"),
        ({"agent": PointMassConfig}, "agent must be a configuration object"),
        ({"algorithm": "trajopt"}, "algorithm must be a configuration object .*got 'trajopt'"),
        ({"cost": None}, "cost must be a configuration object"),
        ({"samples": 10**6}, "samples must be a whole number from 1 to 100000"),
        ({"measure": 1}, "measure must be an EndpointMeasure or None, got 1"),
    ],
    ids=str,
)
def test_an_experiment_checks_its_fields(experiment, changes, message):
    with pytest.raises(ConfigError, match=f"Experiment.{message}"):
        replace(experiment, **changes)


def test_an_error_says_in_which_iteration(experiment):
    class Stumbling(Backwards):
        def call(self, fn, *args, condition=-1):
            if stage_of(fn) == "improve" and ("improve", 1) in self.order:
                raise SimulationError(1, ())
            return super().call(fn, *args, condition=condition)

    with pytest.raises(SimulationError) as caught:
        drain(gps.run(experiment, executor=Stumbling()))
    assert caught.value.__notes__ == ["in iteration 2"]
