"""Asynchronous runs, mostly on an executor with a clock of its own."""

import csv
import itertools
import math
import time
from dataclasses import replace

import numpy as np
import pytest
from virtual_executor import Virtual

import gps
from gps import cli
from gps.agents.point_mass import PointMassAgent
from gps.errors import ConfigError, SampleFailure, SimulationError, StoreError
from gps.execution import stage, stage_of
from gps.pipeline import asynchronous
from gps.pipeline.asynchronous import AsynchronousConfig, resume_asynchronous, run_asynchronous
from gps.pipeline.changes import Change, Changes
from gps.pipeline.sampling import evaluate_condition
from gps.pipeline.steering import Command, Steering
from gps.pipeline.store import RunFolder
from gps.policies.sgd import SGDConfig

STAGES = {"rollout": 5.0, "train_policy": 0.9}  # seconds; others take none unless said


@pytest.fixture(scope="module")
def experiment():
    """Three conditions of four samples, and a policy; fractions of a second."""
    e = gps.load("point_mass_policy")
    algorithm = replace(e.algorithm, training=replace(e.algorithm.training, steps=30), restart=True)
    agent = replace(e.agent, T=10, starts=((1.0, 1.0), (1.0, -1.0), (-1.0, 0.5)))
    return replace(e, iterations=3, agent=agent, samples=4, algorithm=algorithm, max_resamples=0)


def virtual(workers=3, rollout=(5.0, 5.0, 5.0), **stages):
    """Workers on which condition m samples for rollout[m] seconds."""
    first: dict[int, bool] = {}

    def seconds(stage, condition):
        if stage == "rollout":  # every other of these calls only hands the rollouts on
            first[condition] = not first.get(condition, False)
            return rollout[condition] if first[condition] else 0.0
        return {**STAGES, **stages}.get(stage, 0.0)

    return Virtual(workers, seconds)


def drain(experiment, ex, out=None, stop=None, **config):
    return list(
        run_asynchronous(
            experiment,
            config=AsynchronousConfig(**config),
            executor=ex,
            clock=getattr(ex, "clock", time.perf_counter),
            out=out,
            stop=stop,
        )
    )


def lines(folder):
    with open(folder / "updates.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def counts(report):
    return report.state.asynchronous.counts


# --- when a run ends


@pytest.mark.parametrize("rollouts", [None, 30, 32])
def test_a_run_samples_as_many_rollouts_as_asked_for(experiment, rollouts):
    ex = virtual(rollout=(9.0, 2.0, 3.1))
    reports = drain(experiment, ex, rollouts=rollouts)
    batches = 9 if rollouts is None else 8
    assert sum(counts(reports[-1])) == batches
    assert sum(stage == "improve" for stage, *_ in ex.log) == batches
    assert reports[-1].row["env_steps"] == batches * 4 * 10
    assert reports[-1].row["local_updates"] == batches
    assert [r.iteration for r in reports] == list(range(1, len(reports) + 1))
    last = max(end for stage, _, _, end in ex.log if stage == "improve")
    trained = [begin for stage, _, begin, _ in ex.log if stage == "train_policy"]
    assert trained[-1] >= last  # the policy has seen everything
    assert reports[-1].row["policy_updates"] == len(trained)


def test_a_run_ends_after_policy_updates(experiment):
    ex = virtual(rollout=(3.0, 4.0, 7.0))
    reports = drain(experiment, ex, updates=4)
    assert reports[-1].row["policy_updates"] == 4
    assert sum(stage == "train_policy" for stage, *_ in ex.log) == 4
    # what was under way is not thrown away
    done = sum(stage == "improve" for stage, *_ in ex.log)
    assert sum(counts(reports[-1])) == done == sum(s == "closing" for s, *_ in ex.log)


def test_the_policy_is_judged_over_the_steps_that_are_asked_for(experiment):
    *_, plain = drain(experiment, virtual(), updates=2)
    *_, longer = drain(replace(experiment, evaluation_steps=20), virtual(), updates=2)
    assert longer.row["local_cost_mean"] == plain.row["local_cost_mean"]
    assert longer.row["policy_cost_mean"] != plain.row["policy_cost_mean"]
    policy = longer.state.policy.policy
    agent = replace(experiment.agent, T=20)
    want = [
        evaluate_condition(agent, experiment.cost, None, policy, m, 1, 0).cost[0] for m in range(3)
    ]
    assert longer.row["policy_cost_mean"] == pytest.approx(np.mean(want), rel=1e-12)


def test_every_condition_is_sampled_once_at_least(experiment):
    assert [counts(r) for r in drain(experiment, virtual(), rollouts=1)] == [(1, 1, 1)]
    assert [counts(r) for r in run_asynchronous(experiment, config=AsynchronousConfig(rollouts=5))]


def test_whichever_limit_comes_first(experiment):
    reports = drain(experiment, virtual(), updates=50, rollouts=12)
    assert sum(counts(reports[-1])) == 3
    assert reports[-1].row["policy_updates"] < 50


def test_a_stop_stores_what_is_finished_and_waits_for_nothing(experiment, tmp_path):
    ex = virtual(rollout=(100.0, 3.0, 3.0), train_policy=0.01)
    out = tmp_path / "run"
    reports = drain(
        experiment,
        *(ex, out),
        rollouts=10_000,
        snapshot_every=50,
        stop=lambda: ex.now > 150,
    )
    assert ex.now < 151  # the second rollouts of condition 0 would have ended at 200
    assert counts(reports[-1])[0] == 1
    assert counts(reports[-1])[1] > 40
    assert sum(counts(reports[-1])) == len(lines(out))
    assert RunFolder.open(out).last() == reports[-1].iteration


def test_a_stop_before_the_first_snapshot_waits_for_every_condition(experiment):
    ex = virtual(rollout=(20.0, 3.0, 3.0))
    reports = drain(experiment, ex, stop=lambda: ex.now > 4)
    assert [counts(r) for r in reports] == [(1, 1, 1)]


def test_a_command_stops_it_and_others_are_refused(experiment, tmp_path):
    steering = Steering(pausable=False)
    out = tmp_path / "run"
    reports = []
    for report in gps.run_asynchronous(experiment, out=out, steering=steering):
        reports.append(report)
        assert steering.status.state == ("running" if len(reports) == 1 else "stopping")
        with pytest.raises(ConfigError, match="it takes stop"):
            steering.send(Command(kind="pause"))
        steering.send(Command(kind="stop"))
    assert steering.status.state == "stopped"
    assert RunFolder.open(out).last() == reports[-1].iteration
    said = (out / "log.txt").read_text()
    assert "command: stop" in said
    assert f"snapshot {reports[-1].iteration} is stored" in said
    assert said.endswith("the run is stopped\n")


# --- nobody waits


def test_a_slow_condition_holds_up_no_other(experiment):
    ex = virtual(rollout=(20.0, 3.0, 3.0), improve=0.25)
    reports = drain(experiment, ex, rollouts=80, snapshot_every=5)
    slow, *fast = counts(reports[-1])
    assert slow * 3 < min(fast)
    for m in (1, 2):
        began = [b for s, c, b, e in ex.log if (s, c) == ("rollout", m) and e > b]
        closed = [e for s, c, _, e in ex.log if (s, c) == ("closing", m)]
        assert began[1:] == pytest.approx(closed[: len(began) - 1])  # at once
    # the first snapshot is made when the slow one has its first update
    assert counts(reports[0])[0] == 1
    assert counts(reports[0])[1] > 4


def test_a_long_training_holds_up_nobody(experiment):
    ex = virtual(train_policy=40.0)
    reports = drain(experiment, ex, rollouts=96)
    assert reports[0].row["policy_updates"] == 0  # the first updates start from the controllers
    closed = max(e for s, _, _, e in ex.log if s == "closing")
    assert closed == pytest.approx(8 * 5.0)


def test_utilisation(experiment):
    ex = virtual(improve=0.75, targets=0.5)
    for report in drain(experiment, ex):
        assert report.row["utilisation"] == pytest.approx(5 / 6.25)
    ex = virtual(workers=1, improve=0.75, targets=0.5)  # three conditions on one worker
    last = drain(experiment, ex, rollouts=120)[-1]
    assert last.row["utilisation"] == pytest.approx(5 / 6.25, rel=0.02)


# --- which policy an update uses


def test_the_age_of_the_policy_is_written_down(experiment, tmp_path):
    algorithm = replace(experiment.algorithm, restart=False)  # trains all the time
    ex = virtual(rollout=(5.03, 6.17, 3.11), improve=2.9, train_policy=0.7137)
    out = tmp_path / "run"
    reports = drain(replace(experiment, algorithm=algorithm), ex, out, rollouts=60)
    published = np.array([e for s, _, _, e in ex.log if s == "train_policy"])
    rows = lines(out)
    assert len(rows) == 15
    for m in range(3):
        sampled = [e for s, c, b, e in ex.log if (s, c) == ("rollout", m) and e > b]
        closed = [e for s, c, _, e in ex.log if (s, c) == ("closing", m)]
        mine = [row for row in rows if row["condition"] == m]
        assert [row["iteration"] for row in mine] == list(range(1, len(mine) + 1))
        for row, begin, end in zip(mine, sampled, closed, strict=True):
            used = (published <= begin + 1e-9).sum()
            assert row["version"] == used
            assert row["age"] == (published <= end + 1e-9).sum() - used
            assert row["seconds"] == pytest.approx(end, abs=1e-3)
            assert row["sampling_seconds"] == pytest.approx((5.03, 6.17, 3.11)[m])
            assert row["chain_seconds"] == pytest.approx((5.03, 6.17, 3.11)[m] + 2.9, abs=1e-3)
    assert max(row["age"] for row in rows) >= 3
    at = [0] + [r.state.asynchronous.local_updates for r in reports]
    for (first, last), report in zip(itertools.pairwise(at), reports, strict=True):
        ages = [row["age"] for row in rows[first:last]]
        assert ages == [] or report.row["age_mean"] == pytest.approx(np.mean(ages))
        assert ages == [] or report.row["age_max"] == max(ages)


def test_the_first_updates_start_from_the_condition_s_own_controller(experiment):
    ex = virtual()
    first = next(iter(run_asynchronous(experiment, executor=ex, clock=ex.clock)))
    for linearised, condition in zip(
        first.report.models["linearised"], first.state.conditions, strict=True
    ):
        assert linearised.controller.K.tobytes() == condition.previous.K.tobytes()


# --- the memory


@pytest.mark.parametrize("replay", [1, 2, 3])
def test_the_policy_is_trained_on_the_last_batches(experiment, replay, monkeypatch):
    seen, ex = [], virtual(rollout=(3.0, 5.0, 7.0))
    call = ex.call

    def spy(fn, *args, condition=-1):
        stage = stage_of(fn)
        if stage == "train_policy":
            seen.append([h.value for h in args[1]])
        if stage == "targets":
            made.setdefault(condition, [])
        handle = call(fn, *args, condition=condition)
        if stage == "targets":
            made[condition].append(handle)
        return handle

    made: dict[int, list] = {}
    monkeypatch.setattr(ex, "call", spy)
    last = drain(experiment, ex, rollouts=96, replay_batches=replay)[-1]
    memory = last.state.asynchronous.replay_buffer
    for m in range(3):
        assert [d.obs.tobytes() for d in memory[m]] == [
            h.value.obs.tobytes() for h in made[m][-replay:]
        ]
    assert max(map(len, seen)) == 3 * replay
    assert {d.obs.tobytes() for d in seen[-1]} == {d.obs.tobytes() for k in memory for d in k}


# --- what is stored


def test_a_stored_run_and_its_readers(experiment, tmp_path, capsys):
    out = tmp_path / "run"
    reports = drain(experiment, None, out, rollouts=36)
    folder = RunFolder.open(out)
    assert folder.iterations() == [0, 1, 2, 3]
    for report, row in zip(reports, folder.metrics(), strict=True):
        stored = folder.read(report.iteration)
        assert stored.state.asynchronous.counts == counts(report)
        assert stored.rollouts[2].X.tobytes() == report.rollouts[2].X.tobytes()
        assert stored.report.conditions == report.report.conditions
        assert row["local_updates"] == report.row["local_updates"]
        assert {"policy_updates", "age_mean", "age_max", "utilisation"} <= set(row)
    rows = lines(out)
    assert [row["update"] for row in rows] == list(range(1, 10))
    assert cli.main(["evaluate", str(out), "--iteration", "last"]) == 0
    assert "iteration 3" in capsys.readouterr().out


def test_one_worker_repeats_itself_and_learns(experiment):
    """Conditions that take turns, with one training after each turn."""
    longer = replace(
        experiment,
        iterations=6,
        algorithm=replace(
            experiment.algorithm, training=replace(experiment.algorithm.training, steps=400)
        ),
    )
    one, two = (list(run_asynchronous(longer)) for _ in range(2))
    a, b = one[-1].state, two[-1].state
    assert a.conditions[0].controller.k.tobytes() == b.conditions[0].controller.k.tobytes()
    assert a.policy.loss == b.policy.loss
    assert one[-1].row["age_max"] == 0
    assert one[-1].row["policy_updates"] == 6
    synchronous = list(gps.run(longer))[-1].row
    assert one[-1].row["policy_cost_mean"] < 1.1 * synchronous["policy_cost_mean"]


def test_resume(experiment, tmp_path):
    out = tmp_path / "run"
    whole = list(run_asynchronous(experiment, out=tmp_path / "whole"))  # 36 rollouts
    drain(experiment, None, out, rollouts=24)
    assert len(lines(out)) == 6
    more = list(resume_asynchronous(out, rollouts=36))
    assert [r.iteration for r in more] == [3]
    assert counts(more[-1]) == (3, 3, 3)
    assert more[-1].row["policy_updates"] == whole[-1].row["policy_updates"] == 3
    assert more[-1].state.policy.loss == whole[-1].state.policy.loss  # on one worker
    assert [row["update"] for row in lines(out)] == list(range(1, 10))
    times = [row["seconds"] for row in lines(out)]
    assert times == sorted(times)
    # from an earlier snapshot: what came after it is gone
    again = resume_asynchronous(out, start=1, rollouts=36)
    first = next(again)
    again.close()
    assert first.iteration == 2
    assert len(lines(out)) == counts(first)[0] * 3 == 6
    assert RunFolder.open(out).iterations() == [0, 1, 2]
    assert list(resume_asynchronous(out, rollouts=24)) == []


def test_a_resumed_run_takes_other_options_and_records_them(experiment, tmp_path):
    out = tmp_path / "run"
    drain(experiment, None, out, rollouts=24)
    changes = {"algorithm.step.kl_max": 0.125, "seed": 7}
    assert list(resume_asynchronous(out, rollouts=24, changes=changes)) == []
    assert RunFolder.open(out).changes() == Changes()  # there was nothing to do
    (more,) = resume_asynchronous(out, rollouts=36, changes=changes)
    at_three = Changes(((3, Change({"algorithm.step.kl-max": "0.125"}, 7)),))
    assert RunFolder.open(out).changes() == at_three
    assert more.state.seed == 7
    bounds = [r.kl_max / r.step_mult for r in more.report.conditions]
    assert bounds == [0.125] * 3
    (plain,) = resume_asynchronous(out, rollouts=48)  # they hold from then on
    assert [r.kl_max / r.step_mult for r in plain.report.conditions] == bounds
    # from before they were made they are gone, like the snapshots
    first = next(resume_asynchronous(out, start=1, rollouts=36))
    assert first.report.conditions[0].kl_max / first.report.conditions[0].step_mult != 0.125
    assert RunFolder.open(out).changes() == Changes()


def test_options_that_an_asynchronous_run_keeps_are_refused_with_the_reason(experiment, tmp_path):
    out = tmp_path / "run"
    drain(experiment, None, out, rollouts=24)
    for name, why in (
        ("samples", "counts its rollouts in batches"),
        ("iterations", "limits of their own"),
        ("cost.terms.0.weight", "compared by it"),
        ("algorithm.network.hidden", "weights that have been learned"),
    ):
        with pytest.raises(ConfigError, match=rf"'{name}'.* cannot change .*: .*{why}"):
            next(resume_asynchronous(out, rollouts=36, changes={name: "3"}))
    assert RunFolder.open(out).iterations() == [0, 1, 2]


def test_a_resumed_run_on_several_workers(experiment, tmp_path):
    """Batches under way at the snapshot are sampled again; counters and limits go on."""
    out = tmp_path / "run"
    ex = virtual(rollout=(3.0, 5.0, 11.0))
    drain(experiment, ex, out, rollouts=200, stop=lambda: ex.now > 30)
    before = RunFolder.open(out).read_state(RunFolder.open(out).last()).asynchronous
    # nothing more to sample, but the training that was under way
    assert before.fresh
    ex, done = virtual(), 4 * before.local_updates
    (only,) = resume_asynchronous(out, rollouts=done, executor=ex, clock=ex.clock)
    assert only.row["policy_updates"] == before.version + 1
    assert only.row["env_steps"] == done * 10
    ex = virtual(rollout=(3.0, 5.0, 11.0))
    last = list(resume_asynchronous(out, rollouts=100, executor=ex, clock=ex.clock))[-1]
    after = last.state.asynchronous
    assert after.local_updates == 25 == len(lines(out))
    assert all(b > a for a, b in zip(before.counts, after.counts, strict=True))
    assert after.version > before.version + 1
    assert after.seconds > before.seconds >= 30
    assert last.row["utilisation"] == pytest.approx(1.0, abs=0.02)
    by_condition = [row["iteration"] for row in lines(out) if row["condition"] == 1]
    assert by_condition == list(range(1, len(by_condition) + 1))


def test_a_synchronous_run_is_not_resumed_asynchronously(experiment, tmp_path):
    list(gps.run(experiment, iterations=1, out=tmp_path / "run"))
    with pytest.raises(StoreError, match="synchronous run"):
        next(resume_asynchronous(tmp_path / "run"))


# --- what goes wrong


@pytest.mark.parametrize(
    "error", [SimulationError(1, [SampleFailure(0, 4, "flew away")]), ZeroDivisionError("a bug")]
)
def test_a_failed_condition_ends_the_run_and_the_rest_is_stored(
    error, experiment, tmp_path, monkeypatch
):
    plain, tries = PointMassAgent.rollout, []

    def fails_late(self, policy, condition, noise, *args, **kwargs):
        if condition == 1 and noise.any():
            tries.append(condition)
            if len(tries) == 3:
                raise error
        return plain(self, policy, condition, noise, *args, **kwargs)

    monkeypatch.setattr(PointMassAgent, "rollout", fails_late)
    for ex in (virtual(rollout=(4.0, 5.0, 3.0)), None):
        tries.clear()
        out, reports = tmp_path / str(ex is None), []
        run = run_asynchronous(
            experiment,
            config=AsynchronousConfig(rollouts=100, snapshot_every=99),
            out=out,
            executor=ex,
            clock=ex.clock if ex else time.perf_counter,
        )
        error.__notes__ = []
        with pytest.raises(type(error), match=r"flew away|a bug") as caught:
            reports.extend(run)
        assert "in rollout of condition 1" in str(caught.value.__notes__)
        assert caught.traceback[-1].name == "fails_late"
        assert len(reports) == 1
        assert counts(reports[0])[1] == 2
        assert counts(reports[0])[0] >= 2
        assert RunFolder.open(out).last() == 1
        assert len(lines(out)) == sum(counts(reports[0]))
        assert not (out / "lock").exists()


def test_a_judgement_that_fails_loses_no_update(experiment, tmp_path, monkeypatch):
    """Scores only report: the snapshot is stored without them, then the run ends."""
    plain, seen = asynchronous.sampling.score, []

    @stage("score")
    def fails_late(*args):
        seen.append(args)
        if len(seen) > 4:
            raise KeyError("no such key")
        return plain(*args)

    monkeypatch.setattr(asynchronous.sampling, "score", fails_late)
    for ex in (virtual(rollout=(4.0, 5.0, 3.0)), None):
        seen.clear()
        reports, out = [], tmp_path / str(ex is None)
        clock = ex.clock if ex else time.perf_counter
        with pytest.raises(KeyError) as caught:
            reports.extend(run_asynchronous(experiment, out=out, executor=ex, clock=clock))
        assert "was evaluated" in str(caught.value.__notes__)
        stored = RunFolder.open(out)
        assert stored.last() == reports[-1].iteration
        assert stored.read_state(stored.last()).asynchronous.local_updates == len(lines(out))
        assert math.isnan(reports[-1].row["policy_cost_mean"])


def test_no_finite_cost_at_all(experiment):
    class Nan:
        def __init__(self, cost):
            self.cost = cost

        def evaluate(self, rollouts):
            terms = self.cost.evaluate(rollouts)
            return replace(terms, l=np.full_like(terms.l, math.nan))

        def check(self, *args):
            pass

    with pytest.raises(gps.GPSError, match="cost of every condition is NaN"):
        list(run_asynchronous(replace(experiment, cost=Nan(experiment.cost))))


def test_algorithms_that_cannot(experiment):
    with pytest.raises(ConfigError, match="TrajOptConfig cannot run asynchronously; it trains no"):
        next(run_asynchronous(gps.load("point_mass")))
    policy = replace(experiment.algorithm, sample_from="policy")
    with pytest.raises(ConfigError, match="sample_from='policy' cannot run asynchronously"):
        next(run_asynchronous(replace(experiment, algorithm=policy)))
    server = replace(experiment.algorithm, sgd=SGDConfig(mode="asynchronous"))
    with pytest.raises(ConfigError, match=r"sgd\.mode='asynchronous' cannot be used"):
        next(run_asynchronous(replace(experiment, algorithm=server)))


@pytest.mark.parametrize("name", ["replay_batches", "snapshot_every", "rollouts", "updates"])
def test_wrong_configurations(name):
    for value in (0, -1, 1.5, True):
        with pytest.raises(ConfigError, match=rf"AsynchronousConfig\.{name} must be"):
            AsynchronousConfig(**{name: value})


# --- on a cluster


def test_on_dask(experiment, tmp_path):
    distributed = pytest.importorskip("distributed")
    from gps.agents import RealTimeConfig
    from gps.parallel import Dask

    slow = replace(experiment, agent=RealTimeConfig(agent=experiment.agent, speed=10.0))
    with (
        distributed.LocalCluster(
            n_workers=4, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        ex = Dask(client, reserve=1)
        reports = drain(slow, ex, tmp_path / "run", rollouts=60, stop=None)
        ex.close()
    assert sum(counts(reports[-1])) == 15
    assert len(lines(tmp_path / "run")) == 15
    assert RunFolder.open(tmp_path / "run").last() == reports[-1].iteration
    assert reports[-1].row["policy_cost_mean"] < reports[0].row["cost_mean"]
