"""Every example runs by itself, away from the checkout, and prints what it is there to show."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
NUMBER = r"(-?\d+\.?\d*(?:e[+-]?\d+)?)"


def output(command: list[str], cwd: Path, *, quiet: bool = True) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not (quiet and done.stderr), done.stderr  # no warning either
    return done.stdout


def example(name: str, cwd: Path, *, quiet: bool = True) -> str:
    return output([sys.executable, str(EXAMPLES / f"{name}.py")], cwd, quiet=quiet)


def numbers(pattern: str, text: str) -> list[float]:
    """The numbers in the places marked # of a pattern, over all its occurrences."""
    found = re.findall(pattern.replace("#", NUMBER), text)
    assert found, f"nothing like {pattern!r} in:\n{text}"
    return [float(x) for match in found for x in (match if isinstance(match, tuple) else (match,))]


def test_every_example_is_tested():
    tested = set(re.findall(r'example\("(\w+)"', Path(__file__).read_text()))
    assert tested == {path.stem for path in EXAMPLES.glob("*.py")}


def test_lqr_with_kl_bound(tmp_path):
    text = example("lqr_with_kl_bound", tmp_path)
    table = numbers(r"(?m)^ +# +# +# +#$", text)
    bound, used, eta, cost = (table[i::4] for i in range(4))
    assert len(bound) == 7
    assert used == pytest.approx(bound, rel=0.011)  # DualConfig.tol and the rounding
    assert eta == sorted(eta, reverse=True)
    (previous,), (best,) = numbers(r"\(previous\) +[\d.]+ +#", text), numbers(r"\(LQR\) +#", text)
    assert previous > cost[0]
    assert cost == sorted(cost, reverse=True)
    assert cost[-1] == pytest.approx(best, rel=1e-3)
    # eta is the slope of cost over total KL (40 steps), so it bounds every stretch's chord
    for i in range(5):
        chord = (cost[i] - cost[i + 1]) / (40 * (used[i + 1] - used[i]))
        assert eta[i + 1] < chord < eta[i]


def test_fit_dynamics(tmp_path):
    text = example("fit_dynamics", tmp_path)
    table = numbers(r"# rollouts +# +#", text)
    rollouts, without, prior = table[::3], table[1::3], table[2::3]
    (nothing,) = numbers(r"no model +#", text)
    assert rollouts == [3, 5, 10, 20]
    assert max(prior) < 0.02 * nothing
    assert prior[1] < 0.1 * without[1]
    assert prior[-1] == pytest.approx(without[-1], rel=0.3)  # enough samples need no prior


def test_run_in_python(tmp_path):
    text = example("run_in_python", tmp_path)
    cost = numbers(r"sampled cost +#", text)
    assert len(cost) == 4
    assert cost[-1] < 0.2 * cost[0]
    assert numbers(r"policy ends # m", text)[-1] < 0.05
    assert numbers(r"from there ends # m", text)[0] < 0.1
    assert not list(tmp_path.iterdir())  # kept in memory


def test_own_agent(tmp_path):
    off = numbers(r"ends # rad off", example("own_agent", tmp_path))
    assert len(off) == 10
    assert off[-1] < 0.05 < 0.5 < off[0]


def test_own_cost(tmp_path):
    off = numbers(r"# m off the circle", example("own_cost", tmp_path))
    assert len(off) == 10
    assert off[-1] < 0.1 < 0.5 < off[0]


@pytest.mark.slow
def test_own_plot(tmp_path):
    text = example("own_plot", tmp_path)
    points = numbers(r"(?:lowest_cost|custom_speed)\.png: # points", text)
    assert points == [3, 5 * 80]  # iterations; samples of 80 steps


@pytest.mark.slow
def test_a_file_with_an_agent_or_a_cost_is_an_experiment(tmp_path):
    gps = [sys.executable, "-m", "gps.cli"]
    for name, option in (
        ("own_agent", "agent.torque-limit"),
        ("own_cost", "cost.terms.0.cost.speed"),
    ):
        command = [*gps, "run", str(EXAMPLES / f"{name}.py"), "--executor", "serial"]
        output([*command, "--iterations", "2", "--out", name, f"--{option}", "0.75"], tmp_path)
        # finds the classes in the stored copy
        text = output([*gps, "evaluate", name, "--iteration", "last"], tmp_path)
        assert f"{name}, iteration 2" in text
        assert "0.75" in (tmp_path / name / "experiment.json").read_text()


def test_store_with_h5py(tmp_path):
    text = example("store_with_h5py", tmp_path)
    assert "iterations/0000.h5, iterations/0001.h5, iterations/0002.h5" in text
    assert numbers(r"stored actions: within # N", text)[0] < 1e-12
    (stored,) = numbers(r"mean over all: #", text)
    assert stored in numbers(r"'cost_mean': '#'", text)


@pytest.mark.slow
def test_asynchronous_robots(tmp_path):
    text = example("asynchronous_robots", tmp_path)
    assert numbers(r"rollouts in all: #", text) == [60]
    cost = numbers(r"cost +#", text)
    assert cost[-1] < 0.5 * cost[0]
    assert all(0.2 < busy / 100 <= 1 for busy in numbers(r"busy # %", text))
    assert all(0 <= age < 20 for age in numbers(r"age #", text))
    assert numbers(r"and +# of the policy", text)[-1] > 2


@pytest.mark.slow
def test_ilqr_swing_up(tmp_path):
    text = example("ilqr_swing_up", tmp_path)
    rows = numbers(r"(?m)^ *(?:inf|10|6) +# +cost +# +# +# +# +#$", text)
    iterations, cost, force, end, disturbed, without = (rows[i::6] for i in range(6))
    assert len(iterations) == 3
    assert max(iterations) < 200
    assert cost == sorted(cost)  # limits cost something
    assert force[1:] == [10.0, 6.0]
    assert force[0] > 10
    assert max(map(abs, end)) < 0.01
    assert max(map(abs, disturbed)) < 0.01  # feedback brings it back
    assert all(abs(w) > 10 * abs(d) for w, d in zip(without, disturbed, strict=True))


def test_pi2_region(tmp_path):
    rows = numbers(r"(?m)^ +# +# +# +# +#$", example("pi2_region", tmp_path))
    cost, inside, spread = rows[1::5], rows[2::5], rows[4::5]
    assert len(cost) == 25
    assert sum(inside[:3]) < 0.2 < 0.4 < min(inside[-3:])
    assert min(cost[-3:]) < 0.5 * cost[0]
    assert spread[-1] < 0.5 * spread[0]


@pytest.mark.slow
def test_the_algorithm_of_contributing(tmp_path):
    """A file of 40 lines at most that runs, learns, and resumes to the same bytes."""
    text = (EXAMPLES.parent / "CONTRIBUTING.md").read_text()
    (code,) = re.findall(r"```python\n(.*?class CEMConfig.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) <= 40
    (tmp_path / "cem.py").write_text(code)
    gps = [sys.executable, "-m", "gps.cli"]
    options = ["--executor", "serial", "--out"]
    whole = output([*gps, "run", "cem.py", "--iterations", "8", *options, "whole"], tmp_path)
    costs = numbers(r"(?m)^ +\d+ +# ", whole)
    assert len(costs) == 8
    assert costs[-1] < 0.5 * costs[0]
    output([*gps, "run", "cem.py", "--iterations", "3", *options, "parts"], tmp_path)
    output([*gps, "resume", "parts", "--iterations", "8", *options[:2]], tmp_path)
    last = Path("iterations") / "0008.h5"
    assert (tmp_path / "whole" / last).read_bytes() == (tmp_path / "parts" / last).read_bytes()


@pytest.mark.slow
def test_pilqr_region(tmp_path):
    rows = numbers(r"(?m)^ +# +# +# +# +# +# +# +#$", example("pilqr_region", tmp_path))
    lqr, pi2, both, share = (rows[i::8] for i in (1, 3, 5, 7))
    assert len(share) == 15
    assert lqr[-1] > 0  # the model does not know of the reward
    assert both[-1] < 1.3 * pi2[-1] < 0
    assert share[0] > 0.05


@pytest.mark.slow
def test_torch_cost(tmp_path):
    text = example("torch_cost", tmp_path)
    without, around = numbers(r"cost with the disc +#", text)
    assert around < 0.1 * without
    near, far = numbers(r"# radii from the centre", text)
    assert near < 0.5 < 1.0 < far
    assert max(numbers(r"ends # m from the target", text)) < 0.03
    assert text.count("*") > 20  # both ways are drawn
    assert text.count("o") > 20


@pytest.mark.slow
def test_track_reference(tmp_path):
    rows = numbers(
        r"(?m)^(?:wave|zigzag) +\w+ +# +# +# +# +#$", example("track_reference", tmp_path)
    )
    off, raw, filtered, sigma, smoothed = (rows[i::5] for i in range(5))
    assert len(off) == 4
    assert raw == pytest.approx([5.0] * 4, rel=0.03)  # the sensor's
    assert filtered == pytest.approx(sigma, rel=0.03)  # the filter knows how good it is
    assert all(s < 0.7 * f < 0.35 * r for s, f, r in zip(smoothed, filtered, raw, strict=True))
    assert off[0] < 0.2 * off[1]  # with the state, the wave is followed; without, to the estimate
    assert off[1] == pytest.approx(filtered[1], rel=0.5)
    assert off[2] > 5 * off[0]  # no cart can follow a corner


def test_batched_lqr(tmp_path):
    text = example("batched_lqr", tmp_path)
    light, least, heavy, most = numbers(r"a cart of # kg costs #", text)
    assert light < 0.6 < 4.5 < heavy
    assert least < most
    assert "same bytes: True" in text
    assert numbers(r"one by one take # times as long", text)[0] > 0
    bounds = [float(x) for x in text.split("KL bound")[1].split("\n")[0].split()]
    cost = [float(x) for x in text.split("\ncost")[1].split("\n")[0].split()]
    assert len(bounds) == len(cost) == 7
    assert cost == sorted(cost, reverse=True)
    assert cost[-1] < 0.7 * cost[0]
    assert "199 of 200 solved; problem 7: dynamics.F is not finite at t=20" in text


@pytest.mark.slow
def test_gymnasium_environment(tmp_path):
    pytest.importorskip("gymnasium")
    text = example("gymnasium_environment", tmp_path)
    (idle,) = numbers(r"no force: +cost +#", text)
    search = numbers(r"random search, +\d+ episodes: +cost +#", text)
    (ours,) = numbers(r"trajectory optimisation.*cost +#, success True", text)
    (rollout,) = numbers(r"in a rollout: cost +#", text)
    assert len(search) == 2
    assert ours < 1.01 * search[1]
    assert search[1] <= search[0] < 0.5 * idle
    assert rollout == pytest.approx(ours, abs=0.006)


@pytest.mark.slow
def test_export_policy(tmp_path):
    text = example("export_policy", tmp_path)
    assert "learned in point_mass_policy iteration 4 seed 3" in text
    assert "gps imported: False" in text
    there, here = numbers(r"force: # #", text), numbers(r"force here: # #", text)
    assert there == pytest.approx(here, rel=1e-6)  # the robot's observation is float32
    assert max(map(abs, here)) > 0.1
    assert numbers(r"differ by # N", text)[0] < 1e-12
    assert all(0 < sd < 10 for sd in numbers(r"deviation: # #", text))
    assert numbers(r"ends # m off", text)[0] < 0.1


def test_remote_robot(tmp_path):
    text = example("remote_robot", tmp_path)
    assert "('position', 'velocity'), 50 steps, 4 conditions" in text
    assert text.count("the bytes of a local rollout: True") == 2
    assert max(numbers(r"ends # m off", text)) < 0.5  # from 1.4 m
    assert re.search(r"without it: robot at 127\.0\.0\.1:\d+, condition 0, .*no connection", text)


@pytest.mark.slow
def test_gymnasium_agent(tmp_path):
    pytest.importorskip("gymnasium.envs.mujoco.mujoco_env")
    pytest.importorskip("imageio")  # gymnasium's MuJoCo environments load it
    text = example("gymnasium_agent", tmp_path)
    known = numbers(r"known +\d: returns +# +#", text)
    fitted = numbers(r"fitted +\d: returns +# +#", text)
    assert len(known) == len(fitted) == 6  # two conditions after 1, 4 and 8 iterations
    for returns in (known, fitted):
        assert sum(returns[-2:]) > 0.7 * sum(returns[:2])  # they are below zero
    # without the reward written down it takes twice the samples to get about as far
    assert sum(fitted[-2:]) > 2.0 * sum(known[-2:])
    assert not list(tmp_path.iterdir())


def test_gymnasium_pendulum(tmp_path):
    pytest.importorskip("gymnasium")
    off = numbers(r"ends # rad # rad off", example("gymnasium_pendulum", tmp_path))
    assert len(off) == 6  # two conditions after 5, 10 and 15 iterations
    assert max(off[-2:]) < 0.2


@pytest.mark.slow
def test_own_network(tmp_path):
    text = example("own_network", tmp_path)
    cost = numbers(r"(?m)^\d: cost +#", text)
    assert len(cost) == 5
    assert cost[-1] < 0.2 * cost[0]
    ends = numbers(r"it ends # m", text)
    assert len(ends) == 6  # starts that it was never trained from
    assert max(ends) < 0.05
    weights, gain = numbers(r"# weights; gain at the target #", text)
    assert weights == 16 * 5 + 10 * 17
    assert gain > 1


@pytest.mark.slow
def test_recurrent_network(tmp_path):
    text = example("recurrent_network", tmp_path)
    rows = numbers(r": cost #, ends # m off; new start # m", text)
    cost, off, new = (rows[i::3] for i in range(3))
    assert len(cost) == 3  # no memory, a window, a GRU
    assert max(cost[1:]) < 0.6 * cost[0]
    assert max(off[1:]) < 0.25 * off[0]
    assert max(new[1:]) < 0.3 * new[0]
    assert text.count("hidden state of 16 numbers") == 3


def test_mujoco_agent(tmp_path):
    worst = numbers(r"(?m)^\d: +# mm", example("mujoco_agent", tmp_path))
    assert len(worst) == 6
    assert max(worst[-3:]) < 30


@pytest.mark.slow
def test_fetch_reach(tmp_path):
    pytest.importorskip("gymnasium_robotics")  # which warns of other environments
    text = example("fetch_reach", tmp_path, quiet=False)
    dense = numbers(r"Dense-v4: mean #, worst #", text)[::2]
    assert dense[0] < -1.5
    assert dense[-1] > -1.0
