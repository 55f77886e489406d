"""The best iteration of a run, and whether it has converged."""

import math
import random
import shutil
from dataclasses import replace

import h5py
import pytest

import gps
from gps.errors import ConfigError, StoreError
from gps.pipeline import progress
from gps.pipeline.steering import Command, Steering
from gps.pipeline.store import RunFolder

NAN, INF = math.nan, math.inf


def rows_of(costs, success=(), who="local", sampled=None):
    """Rows of iterations with these noise-free costs; sampled: cost of the first rollouts."""
    return [
        {
            "iteration": float(n),
            "cost_mean": costs[0] if sampled is None else sampled,
            f"{who}_cost_mean": cost,
            f"{who}_success": success[n - 1] if success else NAN,
        }
        for n, cost in enumerate(costs, 1)
    ]


def decay(n, tau=2.0, size=100.0):
    return [size * math.exp(-k / tau) for k in range(n)]


# --- the best


@pytest.mark.parametrize(
    ("costs", "success", "best"),
    [
        ([3, 1, 2], (), 2),
        ([3, 1, 2], (0.5, 0.5, 1.0), 3),  # success comes first
        ([3, 2, 1], (1.0, 1.0, 0.9), 2),  # and then the cost
        ([2, 1, 1, 1], (), 2),  # of equals the earliest
        ([NAN, 5, INF], (1.0, 0.0, 1.0), 2),  # what cannot be compared does not win
        ([3, 4, 1], (NAN, 0.0, NAN), 2),  # a known success is above an unknown one
        ([NAN, INF], (), None),
        ([], (), None),
    ],
)
def test_the_best_iteration(costs, success, best):
    assert progress.best_iteration(rows_of(costs, success)) == best


def test_the_policy_counts_where_there_is_one():
    local, policy = rows_of([1, 2, 3]), rows_of([3, 2, 1], who="policy")
    both = [a | b for a, b in zip(local, policy, strict=True)]
    assert progress.best_iteration(both) == 3
    nothing = [row | {"policy_cost_mean": NAN, "policy_success": NAN} for row in local]
    assert progress.best_iteration(nothing) == 1


def test_an_iteration_that_was_made_again_counts_as_it_is_now():
    rows = [*rows_of([3, 1, 2]), {"iteration": 2.0, "local_cost_mean": 9.0}]
    assert progress.best_iteration(rows) == 3
    assert progress.best_iteration([{"iteration": 0.0, "local_cost_mean": 0.0}, *rows]) == 3


def test_a_snapshot_before_the_first_training_does_not_count():
    rows = rows_of([1, 2, 3], who="policy")
    rows = [row | {"policy_updates": float(k)} for k, row in enumerate(rows)]
    assert progress.best_iteration(rows) == 2


def test_a_summary_names_the_best_and_the_last():
    rows = rows_of([3.25, 1.5, 2.0], (0.5, 1.0, 1.0), who="policy")
    rows[1]["policy_distance_mean"] = 0.00123
    assert progress.summary(rows) == (
        "best: iteration 2 of 3 (policy: success 100 %, cost 1.5, distance 0.00123); "
        "last: success 100 %, cost 2"
    )
    assert progress.summary(rows_of([2, 1])) == (
        "best: iteration 2 of 2, the last (local controllers: cost 1)"
    )
    assert progress.summary(rows_of([1, NAN])).endswith(
        "(local controllers: cost 1); last: cost nan"
    )
    assert progress.summary([]) == progress.summary(rows_of([NAN])) == ""


@pytest.mark.parametrize(
    ("value", "want"), [("best", "best"), ("last", "last"), (3, 3), ("3", 3), ("0012", 12), (0, 0)]
)
def test_how_an_iteration_is_named(value, want):
    assert progress.choice(value) == want


@pytest.mark.parametrize("value", ["bset", "", "-1", -1, 1.5, True, None])
def test_another_name_is_refused(value):
    with pytest.raises(ConfigError, match="must be best, last or the number of a stored iteration"):
        progress.choice(value)


# --- convergence


def first(costs, success=(), **options):
    """The first verdict that says that nothing improves, and the iteration where it is given."""
    rows = rows_of(costs, success)
    for n in range(1, len(rows) + 1):
        if (found := progress.verdict(rows[:n], **options)) != "improving":
            return n, found
    return None


def test_a_run_that_improves_no_more_has_converged():
    n, found = first(decay(40))
    assert found == "converged"
    # e^(-(n-10)/2) is a hundredth at n-1-10 = 9.2
    assert n == 21
    assert first(decay(40), patience=3)[0] < n
    assert first(decay(40), tolerance=0.1)[0] < n
    assert first([5.0] * 20) == (11, "converged")  # that was the optimum


@pytest.mark.parametrize(
    "costs",
    [
        [-float(k) for k in range(200)],  # as much every time
        decay(60, tau=40.0),  # slowly
        decay(10),  # too early to say
        [NAN] * 30,
        [],
    ],
    ids=["steady", "slow", "short", "unknown", "empty"],
)
def test_a_run_that_still_improves_has_not_converged(costs):
    assert first(costs) is None


def test_a_rise_of_success_is_an_improvement():
    costs = decay(40)
    risen = [0.5] * 20 + [0.75] * 20
    assert first(costs, [0.5] * 40) == (21, "converged")
    assert first(costs, [0.5] * 20 + [0.75] * 20)[0] == 31
    assert progress.verdict(rows_of(costs[:30], risen[:30])) == "improving"


def test_a_run_that_gets_worse_has_not_converged():
    worse = decay(12) + [10.0 + 5 * k for k in range(20)]
    assert first(worse)[1] == "stalled"
    assert not any(progress.converged(rows_of(worse[:n])) for n in range(33))
    assert first([float(k) for k in range(20)]) == (11, "stalled")  # from the very beginning
    lost = [1.0] * 20 + [0.5] * 10
    assert progress.verdict(rows_of(decay(30), lost)) == "stalled"  # success is gone, not the cost
    gone = decay(22) + [NAN] * 6
    assert progress.verdict(rows_of(gone)) == "stalled"
    assert progress.verdict(rows_of(gone[:23])) == "converged"


def test_noise_is_neither_improvement_nor_loss():
    for seed in range(20):
        rng = random.Random(seed)
        costs = [c + rng.gauss(0, 0.3) for c in decay(60)]
        n, found = first(costs)
        assert found == "converged"
        assert 15 <= n <= 45
        drift = [-k + rng.gauss(0, 1) for k in range(60)]
        assert first(drift) is None


def test_the_luckiest_of_equals_is_no_loss():
    """Without any improvement the best lies some deviations below the others: that is no loss, and
    nothing that a run has converged to either."""
    found = []
    for seed in range(20):
        rng = random.Random(seed)
        level = rows_of([5 + rng.gauss(0, 1) for _ in range(60)], sampled=6.0)
        found += [v for n in range(61) if (v := progress.verdict(level[:n])) != "improving"]
    assert found.count("noise") > 5 * found.count("stalled")
    assert found.count("noise") > 3 * found.count("converged")


def test_a_run_that_loses_all_again_in_jumps_has_not_converged():
    """The more it jumps about, the less can be known; what it had reached is lost."""
    costs = [4.6, 3.4, 2.2, 1.34, 5.3, 3.1, 6.2, 3.6, 5.9, 3.9, 4.67, 3.2, 5.6, 5.4]
    rows = rows_of(costs, [0.0] * 14, sampled=4.81)
    assert progress.verdict(rows) == "noise"
    assert not progress.converged(rows)
    assert progress.standing(rows) == (
        "no improvement since iteration 4, in which 0 % succeed, and from one to the next the "
        "costs differ by as much as the whole run has brought"
    )
    # the same jumps at the foot of a long way down are noise about a level
    rows = rows_of([100.0, 50.0, 20.0, *costs], sampled=200.0)
    assert progress.verdict(rows) == "converged"


def test_how_many_succeed_is_said_where_not_all_do():
    costs = [*decay(12), *[0.1] * 12]
    for share, words in ((0.25, ", in which 25 % succeed"), (1.0, "")):
        standing = progress.standing(rows_of(costs, [share] * 24))
        assert standing.endswith(f"the best is iteration 13{words}"), standing
    assert progress.standing(rows_of(costs)).endswith("the best is iteration 13")


def test_a_cost_that_explodes_at_first_does_not_hide_what_follows():
    slow = decay(30, tau=10.0)
    rows = rows_of([1e9, *slow[1:]], sampled=100.0)
    assert all(progress.verdict(rows[:n]) == "improving" for n in range(31))
    rows = rows_of(slow, sampled=1e9)
    assert all(progress.verdict(rows[:n]) == "improving" for n in range(31))


@pytest.mark.parametrize("factor", [1e-6, 0.37, 8.0, 1e5])
@pytest.mark.parametrize("constant", [0.0, -733.0, 1e4])
def test_verdicts_know_no_unit_of_the_cost(factor, constant):
    rng = random.Random(3)
    runs = [
        decay(40),
        decay(12) + [10.0 + 5 * k for k in range(20)],
        [-float(k) for k in range(30)],
    ]
    runs += [[c + rng.gauss(0, 0.3) for c in decay(40)], [NAN, *decay(30)], [3.0] * 20]
    for costs in runs:
        other = [factor * (c + constant) for c in costs]
        for n in range(len(costs) + 1):
            a, b = rows_of(costs[:n]), rows_of(other[:n])
            assert progress.verdict(a) == progress.verdict(b)
            assert progress.best_iteration(a) == progress.best_iteration(b)


def test_news_are_told_once_and_differ():
    rows = rows_of(decay(60))
    said = {n: text for n in range(61) if (text := progress.news(rows[:n]))}
    assert list(said) == [21]
    assert said[21].startswith(
        "converged: the last 10 iterations brought less than 1 % of the impr"
    )
    worse = rows_of(decay(12) + [10.0 + 5 * k for k in range(40)])
    said = {n: text for n in range(53) if (text := progress.news(worse[:n]))}
    (text,) = said.values()
    assert text == "no improvement since iteration 12, and the last ones are far worse"
    # converged, then better by more than before, and converged again
    again = rows_of(decay(30) + [-90.0] * 30)
    assert [n for n in range(61) if progress.news(again[:n])] == [21, 41]


@pytest.mark.parametrize("options", [{"patience": 0}, {"tolerance": -0.1}, {"tolerance": 1.0}])
def test_wrong_numbers_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        progress.converged([], **options)


# --- stored runs


@pytest.fixture(scope="module")
def converging():
    """A run of linear controllers that is done with improving long before its end."""
    experiment = gps.load("point_mass")
    return replace(experiment, iterations=25, agent=replace(experiment.agent, T=12))


@pytest.fixture(scope="module")
def whole(converging, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    reports = list(gps.run(converging, out=path))
    return path, reports


def score(path, n, **values):
    """Let a stored iteration have reached something else."""
    with h5py.File(RunFolder.open(path).iteration_path(n), "r+") as file:
        for name, value in values.items():
            file["metrics"].attrs[name] = float(value)


def test_the_best_of_a_stored_run_is_read_from_its_iterations(whole, tmp_path):
    path = shutil.copytree(whole[0], tmp_path / "run")
    folder = RunFolder.open(path)
    rows = [r.row for r in whole[1]]
    assert folder.choose() == progress.best_iteration(rows)
    assert folder.choose("last") == 25
    assert folder.choose(7) == 7
    score(path, 4, local_cost_mean=-1e6)
    assert folder.choose("best") == 4
    (path / "metrics.csv").unlink()  # of a process that was killed, it may lack a row
    assert folder.choose("best") == 4
    folder.iteration_path(4).write_bytes(b"")  # damaged
    assert folder.choose("best") == progress.best_iteration(
        [r for r in rows if r["iteration"] != 4]
    )
    with pytest.raises(ConfigError, match="best, last or the number"):
        folder.choose("newest")
    for n in range(1, 26):
        folder.iteration_path(n).unlink()
    assert folder.choose("best") == 0  # there is nothing to judge
    folder.iteration_path(0).unlink()
    with pytest.raises(StoreError, match="no whole iteration"):
        folder.choose("best")


def test_a_run_ends_when_it_has_converged_with_the_same_bytes(converging, whole, tmp_path):
    path, out = tmp_path / "run", whole[0]
    reports = list(gps.run(converging, out=path, until_converged=True))
    done = len(reports)
    rows = [r.row for r in whole[1]]
    assert 10 < done < 25
    assert progress.converged(rows[:done])
    assert not progress.converged(rows[: done - 1])
    assert [r.iteration for r in reports if r.news] == [done]
    assert [r.news for r in whole[1]][:done] == [r.news for r in reports]

    def same(n):
        mine, other = (RunFolder.open(p).iteration_path(n).read_bytes() for p in (path, out))
        return mine == other

    assert all(same(n) for n in range(done + 1))
    said = [line.split(" ", 2)[2] for line in (path / "log.txt").read_text().splitlines()]
    assert said[-3].startswith("converged: ")
    assert said[-2] == progress.summary(rows[:done])
    assert said[-1] == "the run is done"
    # there is nothing to do until it has converged, but more without that
    assert list(gps.resume(path, until_converged=True)) == []
    assert [r.iteration for r in gps.resume(path, iterations=done + 2)] == [done + 1, done + 2]
    assert list(gps.resume(path, until_converged=True)) == []
    # from before that, it ends where it ended
    assert [r.iteration for r in gps.resume(path, start=done - 3, until_converged=True)] == [
        *range(done - 2, done + 1)
    ]
    assert all(same(n) for n in range(done + 1))
    assert [r.iteration for r in gps.run(converging, until_converged=True)][-1] == done  # in memory
    assert len(list(gps.run(converging, iterations=3, until_converged=True))) == 3


def test_an_iteration_that_is_made_again_is_judged_anew(converging, tmp_path):
    steering, seen = Steering(), []
    for report in gps.run(converging, steering=steering, until_converged=True):
        seen.append(report)
        if len(seen) == 5:
            steering.send(Command(kind="repeat", seed=4))
            steering.send(Command(kind="run"))
        if len(seen) == 6:
            steering.send(Command(kind="run"))
    numbers = [r.iteration for r in seen]
    assert numbers[:7] == [1, 2, 3, 4, 5, 5, 6]
    rows = [r.row for r in seen]
    assert progress.converged(rows)
    assert not progress.converged(rows[:-1])


def test_snapshots_of_an_asynchronous_run_are_judged(tmp_path):
    experiment = gps.load("point_mass_policy")
    agent = replace(experiment.agent, T=10, starts=((1.0, 1.0), (1.0, -1.0)))
    training = replace(experiment.algorithm.training, steps=60)
    algorithm = replace(experiment.algorithm, training=training)
    experiment = replace(experiment, agent=agent, algorithm=algorithm, iterations=24)
    reports = list(gps.run_asynchronous(experiment, out=tmp_path / "run"))
    rows = [r.row for r in reports]
    folder = RunFolder.open(tmp_path / "run")
    assert folder.choose("best") == progress.best_iteration(rows)
    assert gps.load_policy(tmp_path / "run").iteration == folder.choose("best")
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert lines[-2].endswith(progress.summary(rows))
    said = [progress.news(rows[: k + 1]) for k in range(len(rows))]
    assert any(said)
    assert [r.news for r in reports] == said
    assert [line.split(" ", 2)[2] for line in lines if "converged" in line] == list(
        filter(None, said)
    )
    score(tmp_path / "run", 1, policy_success=2.0)
    assert gps.load_policy(tmp_path / "run").iteration == 1
    assert gps.load_policy(tmp_path / "run", "last").iteration == len(reports)
    with pytest.raises(ConfigError, match="best, last or the number"):
        gps.load_policy(tmp_path / "run", "frist")
