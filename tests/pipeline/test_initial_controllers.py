"""Where the controllers of the first iteration come from, and what is said of it."""

import logging
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest

import gps
from gps.agents import Condition, MujocoConfig, PointMassConfig
from gps.algorithms import MDGPSConfig, TrajOptConfig
from gps.algorithms.planning import ILQRPlanningConfig
from gps.control import HoldConfig, OpenLoopConfig
from gps.costs import ActionCost, EndpointCost, StateCost, SumCost, WeightedCost
from gps.errors import ConfigError
from gps.pipeline import Experiment
from gps.pipeline.experiment import initial_controller, initial_state
from gps.policies import TrainingConfig

ARM = """<mujoco><option timestep="0.01" integrator="{integrator}"/><worldbody>
  <body>{joint}<geom type="capsule" fromto="0 0 0 .3 0 0" size=".03" mass="1"/>
    <site name="tip" pos=".3 0 0"/></body></worldbody><actuator>{actuator}</actuator></mujoco>"""
HINGE = '<joint name="a" axis="0 1 0" damping="0.5"/>'


def arm(joint=HINGE, actuator='<motor joint="a" gear="5"/>', integrator="Euler", **options):
    xml = ARM.format(joint=joint, actuator=actuator, integrator=integrator)
    return MujocoConfig(model=xml, T=20, dt=0.05, substeps=5, **options)


def experiment(agent, **changes):
    given = {
        "agent": agent,
        "cost": ActionCost(weights=0.1),
        "initial": HoldConfig(),
        "algorithm": TrajOptConfig(),
        "iterations": 1,
    }
    return Experiment(**(given | changes))


def with_policy(e):
    training = TrainingConfig(steps=5)
    return replace(e, algorithm=MDGPSConfig(training=training))


class Hidden:
    """An agent that does not know its model."""

    def __init__(self, agent):
        self._agent = agent
        for name in ("layout", "obs_layout", "T", "dt", "nu", "n_conditions", "n_start"):
            setattr(self, name, getattr(agent, name))
        self.n_test_conditions = 0
        self.start_state, self.rollout = agent.start_state, agent.rollout


@dataclass(frozen=True)
class HiddenConfig:
    inside: MujocoConfig

    def build(self):
        return Hidden(self.inside.build())


@pytest.mark.parametrize(
    ("agent", "initial", "says"),
    [
        (arm(), HoldConfig(), "HoldConfig: from the model's linearisation at the start"),
        (arm(), HoldConfig(gains=(3.0,)), "assumed double integrator: .* by gains per unit"),
        (arm(), HoldConfig(model=False), "assumed double integrator: .* by 1 per unit"),
        (HiddenConfig(arm()), HoldConfig(), "assumed double integrator: .*does not know its own"),
        (arm(), OpenLoopConfig(), "OpenLoopConfig: as configured"),
    ],
)
def test_the_log_says_where_initial_controllers_come_from(agent, initial, says, caplog):
    e = experiment(agent, initial=initial)
    with caplog.at_level(logging.INFO, "gps.pipeline.experiment"):
        state = initial_state(e, e.validate())
    (line,) = [r.getMessage() for r in caplog.records]  # one line for all conditions
    assert line.startswith("initial controller: ")
    assert re.search(says, line)
    assert state.conditions[0].controller.T == 20


def test_a_run_and_a_check_say_where_initial_controllers_come_from(tmp_path):
    e = experiment(arm(conditions=(Condition(), Condition(qpos=(-1.5,)))))
    for folder, reports in (
        ("run", gps.run(e, out=tmp_path / "run")),
        ("asynchronous", gps.run_asynchronous(with_policy(e), out=tmp_path / "asynchronous")),
    ):
        next(reports)
        reports.close()
        log = (tmp_path / folder / "log.txt").read_text()
        said = [x for x in log.splitlines() if "initial controller" in x]
        assert len(said) == 1
        assert said[0].endswith(": HoldConfig: from the model's linearisation at the start")
    found = gps.check(e)
    assert found.initial == (
        "initial controller: HoldConfig: from the model's linearisation at the start",
    )
    assert found.initial[0] in str(found).splitlines()


def test_conditions_that_start_in_another_way_are_named(monkeypatch):
    e = experiment(arm(conditions=tuple(Condition(qpos=(0.1 * m,)) for m in range(4))))
    agent, said = e.validate(), []
    known = agent.linearise

    def some(condition, *, test=False):
        if condition in (1, 2):
            raise ConfigError("it falls")
        return known(condition, test=test)

    monkeypatch.setattr(agent, "linearise", some)
    initial_state(e, agent, said.append)
    assert [x.split(":")[0] for x in said] == [
        "initial controller of conditions 0, 3",
        "initial controller of conditions 1-2",
    ]


def test_a_model_that_is_asked_for_has_to_be_there():
    with pytest.raises(ConfigError, match=r"Experiment\.initial \(HoldConfig\): no linearisation"):
        experiment(HiddenConfig(arm()), initial=HoldConfig(model=True)).validate()


def test_an_agent_that_cannot_be_linearised_starts_as_one_without_a_model(monkeypatch):
    agent = arm().build()

    def fails(condition, *, test=False):
        raise ConfigError("the start is not finite")

    monkeypatch.setattr(agent, "linearise", fails)
    controller, how = initial_controller(HoldConfig(), agent, 0)
    assert how.endswith("(the start is not finite)")
    plain = HoldConfig().controller(agent.start_state(0), agent.layout, 1, 20, 0.05)
    np.testing.assert_array_equal(controller.K, plain.K)


def test_conditions_get_the_controllers_of_their_own_starts():
    agent = arm(conditions=(Condition(qpos=(0.0,)), Condition(qpos=(-1.57,)))).build()
    flat, hanging = (initial_controller(HoldConfig(), agent, m)[0] for m in range(2))
    at = [c.K[0] @ agent.start_state(m) + c.k[0] for m, c in enumerate((flat, hanging))]
    assert abs(at[0][0]) > 0.25
    assert abs(at[1][0]) < 1e-2


def test_the_point_mass_needs_no_names():
    e = experiment(PointMassConfig(T=20), initial=HoldConfig())
    assert initial_state(e, e.validate()).conditions[0].controller.K.any()


MUSCLES = "".join(
    f'<muscle joint="a" gear="{g}" force="80" ctrllimited="true" ctrlrange="0 1" '
    'lengthrange="-4 4"/>'
    for g in (1, -1)
)


@pytest.mark.parametrize(
    "agent",
    [
        arm(integrator="RK4"),
        arm(integrator="implicit"),
        arm(actuator=MUSCLES, state=("joint_pos", "joint_vel", "activation")),
        arm(
            joint='<joint name="a" type="ball" damping="0.5"/>',
            actuator='<motor joint="a" gear="1 5 1"/>',
        ),
        arm(joint='<freejoint name="a"/>', actuator='<motor site="tip" gear="0 0 12 0 0 0"/>'),
    ],
    ids=["RK4", "implicit", "muscles", "ball", "free"],
)
def test_plans_of_models_of_every_kind(agent):
    state = (*agent.build().layout.names, "end_points")
    agent = replace(agent, sites=("tip",), state=state)
    cost = SumCost(
        terms=(
            WeightedCost(cost=EndpointCost(target=(0.28, 0.0, 0.1), l2=50.0)),
            WeightedCost(cost=StateCost(entry="joint_vel", target=0.0, l2=1e-3)),
            WeightedCost(cost=ActionCost(weights=1e-3)),
        )
    )
    e = experiment(
        agent,
        cost=cost,
        algorithm=ILQRPlanningConfig(model=agent, steps_per_iteration=4, exploration=1e-6),
        samples=1,
        iterations=2,
    )
    first, second = (r.report.conditions[0] for r in gps.run(e))
    assert first.predicted_cost < first.expected_cost
    # what is planned is what the agent does; muscles that pull together magnify noise
    assert second.cost_mean == pytest.approx(first.predicted_cost, rel=1e-3)


def test_what_cannot_be_planned_with_is_refused_by_validate():
    late = arm(actuator='<motor joint="a" delay="0.02" nsample="4"/>')
    e = experiment(late, algorithm=ILQRPlanningConfig(model=late), initial=OpenLoopConfig())
    with pytest.raises(ConfigError, match="delays"):
        e.validate()
