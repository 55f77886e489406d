"""The comparison with reinforcement learning: both are judged alike, and only learning is timed."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import gps
from gps.errors import ConfigError

pytest.importorskip("stable_baselines3")
pytest.importorskip("gymnasium")

JUDGED = ("success", "distance_mean", "distance_max", "cost_mean")
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "bench_rl.py"


@pytest.fixture
def bench(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_rl", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_rl", module)  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "N_STARTS", 30)
    return module


@pytest.fixture(scope="module")
def peg():
    """Peg insertion with short episodes and three unseen conditions."""
    e = gps.load("peg_insertion")
    return replace(e, agent=replace(e.agent, T=20, test_conditions=e.agent.test_conditions[:3]))


def line(bench, success, steps):
    labels = {"experiment": "peg", "method": "sac", "normalise": "none", "starts": "drawn"}
    numbers = dict.fromkeys(
        ("seconds", "cpu_seconds", "distance_mean", "distance_max", "cost_mean"), 0.5
    )
    return bench.Point(**labels, **numbers, seed=0, steps=steps, success=success)


@pytest.mark.parametrize("normalise", ["none", "both"])
@pytest.mark.parametrize("method", ["sac", "ppo"])
def test_rollouts_judge_a_model_as_its_environment_does(bench, peg, method, normalise):
    env = bench.environment(peg, peg.agent, normalise)
    model = bench.make_model(method, env, 3)
    env.reset()
    for _ in range(25):  # statistics of observations that are not those of the start
        env.step(np.array([env.action_space.sample()]))
    inner = env.envs[0]
    space = inner.unwrapped.action_space
    policy = bench.Learned(model, (space.low, space.high))
    distances, costs = [], []
    for m in range(3):
        start = np.zeros(inner.unwrapped.agent.n_start)
        obs, _ = inner.reset(options={"condition": m, "test": True, "start_noise": start})
        total, over = 0.0, False
        while not over:
            seen = env.normalize_obs(obs) if normalise == "both" else obs
            action, _ = model.predict(seen, deterministic=True)
            obs, reward, _, over, info = inner.step(action)
            total -= reward
        distances.append(info["distance"])
        costs.append(total)
    scores = bench.judge(peg, policy)
    assert scores["distance_mean"] == pytest.approx(np.mean(distances), abs=1e-4)
    assert scores["distance_max"] == pytest.approx(max(distances), abs=1e-4)
    assert scores["cost_mean"] == pytest.approx(np.mean(costs), rel=1e-3)
    assert np.ptp(distances) > 1e-3


def test_a_policy_that_breaks_the_simulation_has_not_succeeded(bench, peg):
    class Broken:
        def act(self, x, obs, t, noise):
            return np.full((1, 7), np.nan)

    scores = bench.judge(peg, Broken())
    assert scores["success"] == 0
    assert scores["distance_mean"] == np.inf


def test_starts_are_drawn_like_the_test_conditions_and_are_none_of_them(bench, peg):
    def places(agent_conditions):
        return np.array([c.body_offsets[0][1][:2] for c in agent_conditions])

    agent = bench.learning_agent(peg, "peg_insertion", "drawn", 0)
    assert replace(agent, conditions=peg.agent.conditions) == peg.agent
    drawn = places(agent.conditions)
    assert drawn.shape == (30, 2)
    assert np.abs(drawn).max() <= 0.08
    # uniform on +-0.08: five standard errors
    assert np.std(drawn) == pytest.approx(0.08 / np.sqrt(3), abs=5 * 0.08 * 0.5 / np.sqrt(60))
    for others in (peg.agent.test_conditions, bench.drawn_starts("peg_insertion", 1)):
        assert not {tuple(p) for p in drawn} & {tuple(p) for p in places(others)}
    assert bench.drawn_starts("peg_insertion_badmm", 0) == agent.conditions
    assert bench.learning_agent(peg, "peg_insertion", "training", 0) == peg.agent
    with pytest.raises(ConfigError, match="--starts training"):
        bench.drawn_starts("arm_reach", 0)
    leaked = replace(peg, agent=replace(peg.agent, test_conditions=agent.conditions[4:5]))
    with pytest.raises(ConfigError, match="is a test condition"):
        bench.learning_agent(leaked, "peg_insertion", "drawn", 0)


def test_reached_tells_the_first_success_from_the_one_that_stays(bench):
    def curve(*success):
        return [line(bench, s, 100 * (i + 1)) for i, s in enumerate(success)]

    def steps(*success):
        return [p and p.steps for p in bench.reached(curve(*success))]

    assert steps(0.0, 0.95, 0.9, 1.0, 1.0) == [200, 400]
    assert steps(1.0, 1.0) == [100, 100]
    assert steps(0.0, 1.0, 0.5) == [200, None]
    assert steps(0.0, 0.9) == [None, None]
    text = bench.table([curve(0.0, 1.0, 0.5), curve(0.0, 0.5)])
    assert "200 [1 of 2]" in text
    assert "does not stay" in text
    assert "not within 200" in bench.table([curve(0.0, 0.5)])


def test_three_methods_leave_curves_and_only_learning_is_timed(
    bench, tmp_path, monkeypatch, capsys
):
    seen, policies, jump = [], [], [0.0]

    def judge(experiment, policy):
        jump[0] += 1e5  # as if it took a day
        policies.append(policy)
        actions = policy.act(None, np.zeros((1, 26)), 0, np.zeros((1, 7)))
        seen.append(np.array(actions))
        good = float(len(seen) in (2, 5))
        return {"success": good, "distance_mean": 0.1, "distance_max": 0.2, "cost_mean": -3.0}

    def short_ppo(method, env, seed):
        from stable_baselines3 import PPO

        return PPO("MlpPolicy", env, n_steps=64, seed=seed, device="cpu")

    now, make = bench.Clock._now, bench.make_model
    monkeypatch.setattr(bench.Clock, "_now", staticmethod(lambda: now() + jump[0]))
    monkeypatch.setattr(
        bench, "make_model", lambda *a: short_ppo(*a) if a[0] == "ppo" else make(*a)
    )
    monkeypatch.setattr(bench, "judge", judge)
    budgets = ["--max-steps", "gps=4000", "sac=150", "ppo=128"]
    bench.main(["--out", str(tmp_path), *budgets, "--every", "sac=40", "ppo=1"])
    curves = {c[0].method: c for c in bench.read(tmp_path, "peg_insertion")}
    assert list(curves) == ["gps", "sac", "ppo"]
    steps = {method: [p.steps for p in c] for method, c in curves.items()}
    # PPO learns after rollouts of 64 steps here, and is judged after that
    assert steps == {"gps": [2000, 4000], "sac": [40, 80, 120, 150], "ppo": [64, 128]}
    for c in curves.values():
        assert np.all(np.diff([0.0] + [p.seconds for p in c]) > 0)
        assert np.all(np.diff([0.0] + [p.cpu_seconds for p in c]) > 0)
        assert c[-1].seconds < 1e5
        assert c[-1].cpu_seconds < 1e5
    # judged as it was then: SAC learns from step 100 on, PPO from the start; the last as in the end
    assert all(a.shape == (1, 7) for a in seen)
    same = [np.array_equal(a, b) for a, b in pairwise(seen)]
    assert same == [False, False, True, False, False, False, False]
    for i in (5, 7):
        last = policies[i].act(None, np.zeros((1, 26)), 0, None)
        np.testing.assert_array_equal(last, seen[i])
    text = capsys.readouterr().out
    assert "| GPS | 0 | 4,000 |" in text
    assert "| SAC, drawn starts, VecNormalize none | 0 | 120 |" in text
    assert "not within 128" in text

    bench.main(["--out", str(tmp_path), "--table"])
    again, alone = capsys.readouterr().out.split("| method")[1].split("\na step of the env")
    assert again == text.split("| method")[1]
    assert 0.0 < float(alone.split(":")[1].split()[0]) < 100.0
    assert len(seen) == 8


def test_curves_are_drawn(bench, tmp_path, monkeypatch):
    for method, seed in (("gps", 0), ("ppo", 0), ("ppo", 1)):
        labels = {"experiment": "reacher", "method": method, "normalise": "none"}
        labels |= {"starts": "drawn", "seed": seed}
        curve = bench.Curve(tmp_path, None, labels)
        monkeypatch.setattr(bench, "judge", lambda *_: dict.fromkeys(JUDGED, 0.5))
        for steps in (100, 200):
            curve.add(steps, None)
    bench.main(
        ["--experiment", "reacher", "--out", str(tmp_path), "--plot", str(tmp_path / "c.png")]
    )
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_a_run_ends_at_success_or_when_its_time_is_over(bench, tmp_path, monkeypatch):
    scores = {"success": 1.0, "distance_mean": 0.1, "distance_max": 0.2, "cost_mean": 0.0}
    monkeypatch.setattr(bench, "judge", lambda experiment, policy: scores)

    def ends(method, *options):
        out = tmp_path / "_".join((method, *options)).replace("/", "")
        bench.main(["--methods", method, "--every", "sac=30", "--out", str(out), *options])
        (curve,) = bench.read(out, "peg_insertion")
        return [p.steps for p in curve]

    assert ends("sac", "--stop", "--max-steps", "sac=90") == [30]
    assert ends("gps", "--stop") == [2000]
    late = ends("sac", "--max-minutes", "0.001", "--max-steps", "sac=5000")
    assert late[-1] < 5000


def test_the_command_line_names_what_is_wrong(bench, capsys):
    for argv, text in (
        (["--methods", "gps,td3"], "unknown method 'td3'"),
        (["--max-steps", "sac=0"], "METHOD=NUMBER"),
        (["--experiment", "peg_insertion_local"], "trains no policy"),
    ):
        with pytest.raises(SystemExit):
            bench.main(argv)
        assert text in capsys.readouterr().err
