"""A slowed agent: its durations, and that nothing else about it changes."""

import time
from dataclasses import replace

import numpy as np
import pytest

from gps.agents import PointMassConfig, RealTime, RealTimeConfig, arm_reach
from gps.agents.base import Steppable
from gps.errors import ConfigError, SimulationError
from gps.protocols import (
    Agent,
    HasControlRange,
    HasImages,
    HasObservationNoise,
    Renders,
    Stoppable,
    WarmsUp,
    control_range_of,
    image_shape_of,
)
from gps.rng import stream

AGENT = PointMassConfig(T=20, dt=0.05, test_starts=((0.5, 0.2),), start_position_std=0.1)
SLOW = RealTimeConfig(agent=AGENT, speed=50.0)


class Push:
    def act(self, x, obs, t, noise):
        return 0.5 * noise - 0.3 * x[:, : noise.shape[1]]


def draw(agent, N=5, seed=0):
    noise = stream(seed, "noise").standard_normal((N, agent.T, agent.nu))
    return noise, stream(seed, "start").standard_normal((N, agent.n_start))


def test_the_bytes_are_those_of_the_agent_inside():
    slow, plain = replace(SLOW, speed=1e6).build(), AGENT.build()
    assert isinstance(slow, Agent)
    noise, start = draw(plain)
    for m, test in ((2, False), (0, True)):
        a, b = (agent.rollout(Push(), m, noise, start, test=test) for agent in (slow, plain))
        assert a.X.tobytes() == b.X.tobytes()
        assert a.U.tobytes() == b.U.tobytes()
        assert a.obs.tobytes() == b.obs.tobytes()
        assert slow.start_state(m, test=test).tobytes() == plain.start_state(m, test=test).tobytes()
    for name in ("layout", "obs_layout", "T", "dt", "nu", "n_start", "n_conditions"):
        assert getattr(slow, name) == getattr(plain, name), name
    assert slow.n_test_conditions == 1


def test_a_batch_takes_its_duration():
    agent = SLOW.build()
    noise, start = draw(agent)
    want = agent.duration(0, noise)
    assert 0.02 < want < 0.3  # 5 x 20 x 0.05 s / 50 = 0.1 s, times a factor
    begin = time.monotonic()
    agent.rollout(Push(), 0, noise, start)
    took = time.monotonic() - begin
    assert want <= took < want + 0.2


def test_durations_depend_on_condition_and_content_alone():
    agent, again = SLOW.build(), SLOW.build()
    noises = [draw(agent, seed=s)[0] for s in range(200)]
    first = [agent.duration(0, n) for n in noises]
    assert [again.duration(0, n) for n in reversed(noises)] == first[::-1]
    assert agent.duration(1, noises[0]) != first[0]
    assert replace(SLOW, seed=1).build().duration(0, noises[0]) != first[0]
    half = replace(SLOW, speed=25.0).build()
    assert half.duration(0, noises[0]) == pytest.approx(2 * first[0])
    factors = np.array(first) / 0.1
    assert factors.mean() == pytest.approx(1.0, abs=0.08)
    assert np.log(factors).std() == pytest.approx(0.3, abs=0.06)
    exact = replace(SLOW, factor_std=0.0).build()
    assert exact.duration(3, noises[0][:2]) == pytest.approx(2 * 20 * 0.05 / 50)


def test_rollouts_without_noise_take_no_time_unless_asked():
    quiet = np.zeros((1, 20, 2))
    assert SLOW.build().duration(0, quiet) == 0.0
    assert replace(SLOW, noise_free=True).build().duration(0, quiet) > 0.0


def test_failures_are_told_at_once():
    class Nan(Push):
        def act(self, x, obs, t, noise):
            return np.full((len(x), 2), np.nan)

    agent = replace(SLOW, speed=1e-3).build()
    begin = time.monotonic()
    with pytest.raises(SimulationError, match="condition 0"):
        agent.rollout(Nan(), 0, *draw(agent))
    assert time.monotonic() - begin < 5


def test_what_only_the_agent_inside_has():
    slow = RealTimeConfig(agent=arm_reach()).build()
    assert slow.control_range[0].shape == (2,)
    with pytest.raises(AttributeError, match="nothing"):
        _ = slow.nothing


PROTOCOLS = (Agent, HasControlRange, HasImages, HasObservationNoise, Renders, Steppable, WarmsUp)


@pytest.mark.parametrize("config", [AGENT, arm_reach()], ids=["point_mass", "mujoco"])
def test_a_slowed_agent_can_what_the_one_inside_can(config):
    slow, plain = RealTimeConfig(agent=config).build(), config.build()
    found = [isinstance(slow, protocol) for protocol in PROTOCOLS]
    assert found == [isinstance(plain, protocol) for protocol in PROTOCOLS]
    assert found[0]
    assert found[1]
    assert not isinstance(slow, Stoppable)
    assert all(hasattr(type(slow), n) for n in ("layout", "T", "start_state"))  # as 3.12 asks
    assert image_shape_of(slow) is None
    np.testing.assert_array_equal(control_range_of(slow), control_range_of(plain))
    assert isinstance(slow, RealTime)
    assert slow.config == RealTimeConfig(agent=config)


def test_an_agent_with_the_members_of_the_protocol_alone_can_nothing_else():
    class Plain:
        layout = obs_layout = AGENT.build().layout
        T, dt, nu, n_start, n_conditions, n_test_conditions = 20, 0.05, 2, 0, 1, 0

        def start_state(self, condition, *, test=False):
            return np.zeros(4)

        def rollout(self, policy, condition, noise, start_noise=None, *, test=False):
            return AGENT.build().rollout(policy, condition, noise, test=test)

    class Config:
        def build(self):
            return Plain()

    slow = RealTimeConfig(agent=Config(), speed=1e6).build()
    for agent in (Plain(), slow):
        assert [isinstance(agent, p) for p in PROTOCOLS] == [True, *[False] * (len(PROTOCOLS) - 1)]
        assert image_shape_of(agent) is None
        assert control_range_of(agent) is None
    assert slow.rollout(Push(), 0, np.ones((2, 20, 2))).N == 2


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"agent": 3}, r"RealTimeConfig\.agent"),
        ({"factor_std": -1.0}, r"\.factor_std must be a number of at least 0"),
        ({"factor_std": float("nan")}, r"\.factor_std"),
        ({"speed": 0.0}, r"\.speed must be a number above 0"),
        ({"seed": -1}, r"\.seed"),
    ],
)
def test_wrong_configurations(changes, match):
    with pytest.raises(ConfigError, match=match):
        replace(SLOW, **changes)
