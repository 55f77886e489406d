"""A run that does not learn says so, and ends; whatever an agent's rollouts are is checked."""

from dataclasses import dataclass, field, fields, replace

import numpy as np
import pytest

import gps
from gps import cli
from gps.agents import DMControlConfig, MujocoConfig
from gps.agents.point_mass import PointMassAgent
from gps.algorithms import MDGPSConfig, StepConfig, TrajOptConfig
from gps.algorithms.state import ConditionReport
from gps.control import DualConfig, OpenLoopConfig
from gps.costs import StateCost
from gps.errors import (
    ConfigError,
    NotLearningError,
    SampleFailure,
    ShapeError,
    SimulationError,
)
from gps.gui.plots import progress
from gps.gui.run_monitor import RunMonitor
from gps.gui.run_reader import RunReader
from gps.pipeline.asynchronous import AsynchronousConfig, resume_asynchronous, run_asynchronous
from gps.pipeline.changes import Change, Changes, live_options
from gps.pipeline.learning import Learning, in_own_terms, joined, own_terms
from gps.pipeline.sampling import checked_rollouts, evaluate_condition
from gps.pipeline.steering import Steering
from gps.pipeline.store import RunFolder
from gps.protocols import control_range_of
from gps.types import Layout

NEVER = DualConfig(eta_min=1e-17, eta_max=1e-16)  # no controller is within the bound
STEP = StepConfig(kl_max=0.01)
POINT = gps.load("point_mass").agent.build()
WEAK = """<mujoco><worldbody><body><joint name="a" axis="0 1 0"/>
  <geom type="capsule" fromto="0 0 0 .3 0 0" size=".03" mass="1.2"/></body></worldbody>
  <actuator><motor name="lift" joint="a" ctrlrange="-.01 .01"/></actuator></mujoco>"""


@pytest.fixture
def stuck():
    """A point mass whose controllers are never updated."""
    e = gps.load("point_mass")
    agent = replace(e.agent, T=12)
    return replace(e, agent=agent, algorithm=TrajOptConfig(step=STEP, dual=NEVER), iterations=9)


@pytest.fixture
def stuck_policy(stuck):
    """The same with a policy."""
    e = gps.load("point_mass_policy")
    training = replace(e.algorithm.training, steps=30)
    algorithm = MDGPSConfig(step=STEP, dual=NEVER, training=training)
    return replace(e, agent=replace(e.agent, T=12), algorithm=algorithm, iterations=9)


def until_it_ends(reports):
    """The reports, and the error that ended the run."""
    seen = []
    with pytest.raises(NotLearningError) as error:
        seen.extend(reports)
    return seen, error.value


# --- a run ends ---------------------------------------------------------------------------------


def test_three_iterations_without_an_update_end_a_run_and_nothing_is_lost(stuck, tmp_path):
    steering = Steering()
    seen, error = until_it_ends(gps.run(stuck, out=tmp_path / "run", steering=steering))
    assert [r.iteration for r in seen] == [1, 2, 3]
    assert [r.row["updated"] for r in seen] == [0.0] * 3
    assert error.iterations == 3
    text = str(error)
    assert text.startswith("no update of any condition in 3 iterations in a row: conditions 0-1: ")
    assert f"gps resume {tmp_path / 'run'} --max-without-update None" in text
    assert "\n" not in text
    assert (steering.status.state, steering.status.note) == ("not learning", text)
    assert RunFolder.open(tmp_path / "run").iterations() == [0, 1, 2, 3]
    # it goes on from there, counting anew
    more, error = until_it_ends(gps.resume(tmp_path / "run"))
    assert [r.iteration for r in more] == [4, 5, 6]


def test_the_number_is_an_option_and_none_goes_on(stuck):
    seen, _ = until_it_ends(gps.run(replace(stuck, max_without_update=1)))
    assert len(seen) == 1
    assert len(list(gps.run(replace(stuck, max_without_update=None), iterations=5))) == 5
    with pytest.raises(ConfigError, match=r"max_without_update must be .*got 0"):
        replace(stuck, max_without_update=0)


def test_an_option_that_mends_it_in_time_keeps_the_run_going(stuck):
    mended = Changes(((3, Change({"algorithm.dual.eta-max": "1e16"})),))
    reports = list(gps.run(stuck, iterations=5, changes=mended))
    assert [r.row["updated"] for r in reports] == [0.0, 0.0, 1.0, 1.0, 1.0]


def test_the_number_can_change_between_iterations(stuck):
    assert {"max-without-update", "max-resamples"} <= set(live_options(stuck))
    later = Changes(((2, Change({"max-without-update": "None"})),))
    assert len(list(gps.run(stuck, iterations=5, changes=later))) == 5


def test_one_condition_that_is_updated_keeps_the_run_going():
    failed, updated = ([report(m, updated=u) for m in range(2)] for u in (False, True))
    one = [failed[0], updated[1]]
    learning = Learning(3, 2)
    for reports in (one, one, one, failed, failed, updated, failed, failed, one, failed, failed):
        learning.count(reports)
        assert not learning.over
    learning.count(failed)
    assert learning.over
    learning.restart()
    assert not learning.over


def test_updates_that_come_one_by_one_count_by_condition():
    learning = Learning(3, 2)
    for _ in range(5):
        learning.count([report(0, updated=False)])
    assert not learning.over  # nothing is known of the other
    for m, updated in ((1, False), (1, False), (0, False), (1, True), (1, False), (1, False)):
        learning.count([report(m, updated=updated)])
        assert not learning.over
    learning.count([report(1, updated=False)])
    assert learning.over


def test_a_solved_task_has_nothing_left_to_learn(stuck):
    easy = replace(stuck, measure=replace(stuck.measure, threshold=100.0))
    assert len(list(gps.run(easy, iterations=5))) == 5


def test_an_algorithm_that_does_not_say_is_not_ended():
    learning = Learning(1, 1)
    learning.count([replace(report(0), updated=None)])
    assert not learning.over


def test_an_asynchronous_run_ends_too(stuck_policy, tmp_path, capsys):
    out = tmp_path / "run"
    seen, error = until_it_ends(run_asynchronous(stuck_policy, out=out))
    state = seen[-1].state.asynchronous
    assert state is not None
    assert state.counts == (3, 3, 3, 3)
    assert str(error).startswith("no update of any condition in 3 iterations in a row: ")
    more, error = until_it_ends(resume_asynchronous(out))
    assert more[-1].state.asynchronous.counts == (6, 6, 6, 6)
    # what the message says works, and it names no option that such a run refuses
    advice = f"go on all the same with: gps resume {out} --max-without-update None, or with "
    assert advice in str(error)
    assert f"gps resume {out} --algorithm.step.kl-max VALUE; another samples needs" in str(error)
    assert cli.main(["resume", str(out), "--help"]) == 0
    known = capsys.readouterr().out
    assert "--algorithm.step.kl-max (now: " in known
    assert "--samples" not in known
    argv = ["--max-without-update", "None", "--executor", "serial"]
    argv += ["--rollouts", str(28 * stuck_policy.samples)]
    assert cli.main(["resume", str(out), *argv]) == 0
    limit = {"rollouts": 40 * stuck_policy.samples}
    *_, last = resume_asynchronous(out, **limit, changes={"max_without_update": None})
    assert last.state.asynchronous.local_updates == 40
    with pytest.raises(ConfigError, match="'samples' cannot change in an asynchronous run: it"):
        next(resume_asynchronous(out, changes={"max_without_update": None, "samples": 9}))
    on = replace(stuck_policy, max_without_update=None)
    config = AsynchronousConfig(rollouts=5 * 4 * on.samples)
    *_, last = run_asynchronous(on, config=config)
    assert last.state.asynchronous.local_updates == 20


def test_the_command_line_ends_with_code_3_and_the_page_says_why(tmp_path, capsys):
    out = tmp_path / "run"
    stuck = ["--algorithm.step.kl-max", "0.01", "--algorithm.dual.eta-min", "1e-17"]
    stuck += ["--algorithm.dual.eta-max", "1e-16", "--agent.T", "12"]
    code = cli.main(["run", "point_mass", "--executor", "serial", "--out", str(out), *stuck])
    said = capsys.readouterr()
    assert code == 3
    (line,) = [x for x in said.err.splitlines() if x.startswith("gps: not learning: ")]
    assert "algorithm.step.kl_max" in line
    assert "conditions 0-1: no update: " in said.out
    assert said.out.count("better controller is within the KL bound") == 1  # once in a run
    monitor, stored = RunMonitor(RunReader(out)), RunFolder.open(out).read(3).report
    for read, kept in zip(monitor.run.condition_reports(3), stored.conditions, strict=True):
        for name in ("condition", "event", "updated", "cause", "advice", "options"):
            assert getattr(read, name) == getattr(kept, name)
    assert stored.conditions[0].cause == "unknown"
    assert stored.conditions[0].options == "samples algorithm.step.kl-max"
    assert stored.conditions[0].figures.samples == 5
    assert monitor.status.state == "not learning"
    assert "no better controller" in monitor.status.note
    assert monitor.can_resume
    plots = {plot.name: plot for plot in progress([monitor.run])}
    assert "clipped actions, share" in {one.label for one in plots["diagnosis"].lines}
    assert [row[:2] for row in plots["events"].rows] == [(n, "0-1") for n in "123"]
    # whoever wants to go on all the same
    on = ["--iterations", "4", "--max-without-update", "None", "--out", str(tmp_path / "on")]
    assert cli.main(["run", "point_mass", "--executor", "serial", *stuck, *on]) == 0


# --- what is said -------------------------------------------------------------------------------


def report(m, event="", cause=None, advice=None, updated=True):
    nan = float("nan")
    return ConditionReport(
        m, 1.0, 1.0, 1.0, nan, nan, 0.0, 0.1, 1.0, nan, event=event, cause=cause, advice=advice,
        updated=updated,
    )  # fmt: skip


def test_texts_that_differ_in_their_numbers_become_one():
    said = [(0, "cost rose from 3 to 1.5e+24"), (1, "cost rose from -2.5 to 7"), (4, "it fell")]
    assert [(who, text) for who, text, _ in joined(said)] == [
        ([0, 1], "cost rose from -2.5..3 to 7..1.5e+24"),
        ([4], "it fell"),
    ]
    # numbers in names are not numbers
    assert len(joined([(0, "entry x1 of b2"), (1, "entry x1 of b3")])) == 2


def test_advice_is_given_once_and_news_of_every_iteration():
    learning = Learning(None, 3)
    advice = [f"grows {m} times: change it" for m in range(3)]
    ill = [report(m, f"no update: {text}", "stiff", text) for m, text in enumerate(advice)]
    assert learning.events(ill) == ("conditions 0-2: no update: grows 0..2 times: change it",)
    assert learning.advice(ill) == ""
    assert learning.events(ill) == ("conditions 0-2: no update, as before",)
    assert learning.advice(ill) == ""  # the event has said it
    rose = [report(1, "sampled cost rose from 1 to 2: back to an earlier controller")]
    assert learning.events(rose) == learning.events(rose)  # what happened is said every time


def test_messages_name_the_options_that_the_experiment_has():
    text = "a step is too long: make agent.dt smaller, or change algorithm.step.kl_max"
    ill = replace(
        report(0, text, "dt", text, updated=False), options="agent.dt algorithm.step.kl-max"
    )
    others = {"agent.dt": "agent.repeat", "algorithm.step.kl_max": "algorithm.pi2.kl_max"}
    pi2 = gps.load("point_mass_pi2")
    other = replace(pi2, agent=DMControlConfig(domain="reacher", task="easy"))
    for experiment, missing in ((gps.load("point_mass"), []), (other, others)):
        learning = Learning(1, 1, "runs/x")
        told = in_own_terms(ill, own_terms(experiment, POINT))
        learning.count([told])
        expected = text
        for name in missing:
            expected = expected.replace(name, others[name])
        assert learning.events([told]) == (f"condition 0: {expected}",)
        error = str(learning.error())
        assert expected in error
        live = "algorithm.pi2.kl-max" if missing else "algorithm.step.kl-max"
        assert f"gps resume runs/x --{live} VALUE" in error
        assert ("another agent.dt needs a new run" in error) is not bool(missing)


def test_a_run_names_its_own_actions_and_keeps_them_so(tmp_path):
    experiment = gps.Experiment(
        name="weak",
        agent=MujocoConfig(model=WEAK, T=10, dt=0.02),
        cost=StateCost(entry="joint_pos", target=0.0, l2=1.0),
        initial=OpenLoopConfig(mean=(1.0,), variance=1e-8),
        algorithm=TrajOptConfig(),
        max_without_update=2,
    )
    seen, error = until_it_ends(gps.run(experiment, out=tmp_path / "run"))
    assert "lift to the same end in all samples in 100 % of the steps" in str(error)
    stored = RunFolder.open(tmp_path / "run").read(2)
    for r in (stored.report.conditions[0], stored.state.conditions[0].report):
        assert "lift to the same end" in r.advice
    assert seen[-1].report.conditions == stored.report.conditions
    names = own_terms(experiment, experiment.validate())
    assert names("action 0, x.action 0, action 0.5, action 7.") == (
        "lift, x.action 0, action 0.5, action 7."
    )
    assert own_terms(experiment, POINT)("action 1") == "action 1"  # an agent without names


def test_advice_needs_most_conditions_and_two_iterations_in_a_row():
    ill, well = report(0, "", "noise", "too little noise"), report(1)
    learning = Learning(None, 3)
    assert [learning.advice([ill, well, well]) for _ in range(3)] == [""] * 3
    assert learning.advice([ill, replace(ill, condition=1), well]) == ""
    assert learning.advice([well, well, well]) == ""
    said = [learning.advice([ill, replace(ill, condition=1), well]) for _ in range(4)]
    assert said == ["", "conditions 0-1: too little noise", "", ""]
    # a task that is solved needs none, whatever its cost looks like there
    learning = Learning(None, 1)
    assert [learning.advice([ill], solved=True) for _ in range(3)] == [""] * 3


def test_rollouts_without_noise_that_fail_are_said_once_an_iteration(stuck):
    """Of all conditions together; their cost is infinite."""

    class Later(type(stuck.agent)):
        def build(self, threads=1):
            return LaterAgent(self)

    class LaterAgent(PointMassAgent):
        def rollout(self, policy, condition, noise, start_noise=None, *, test=False):
            if not noise.any():
                raise SimulationError(condition, [SampleFailure(0, 7 + condition, "it fell")])
            return super().rollout(policy, condition, noise, start_noise, test=test)

    values = {f.name: getattr(stuck.agent, f.name) for f in fields(stuck.agent)}
    first = next(gps.run(replace(stuck, agent=Later(**values))))
    assert first.row["local_cost_mean"] == np.inf
    said = [e for e in first.events if "without noise" in e]
    assert said == [
        "conditions 0-1: the rollout of the controller without noise fails (t=7..8: it fell)"
    ]


# --- rollouts -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Faulty(type(gps.load("point_mass").agent)):
    """A point mass whose rollouts differ from what it promises."""

    fault: str = field(default="", kw_only=True)

    def build(self, threads=1):
        return FaultyAgent(self)


class FaultyAgent(PointMassAgent):
    def rollout(self, policy, condition, noise, start_noise=None, *, test=False):
        r = super().rollout(policy, condition, noise, start_noise, test=test)
        X, U, half = r.X.copy(), r.U.copy(), self.T // 2
        match self.config.fault:
            case "short":
                cut = {name: getattr(r, name)[:, :half] for name in ("X", "U", "obs", "noise")}
                return replace(r, **cut)
            case "fewer":
                cut = {name: getattr(r, name)[:-1] for name in ("X", "U", "obs", "noise")}
                return replace(r, **cut)
            case "order":
                return replace(r, layout=Layout((("velocity", 2), ("position", 2))))
            case "condition":
                return replace(r, condition=1 - condition)
            case "observation":
                return replace(r, obs=r.obs[:, :, :3])
            case "nan":
                X[-1, 4, 1] = np.nan
                return replace(r, X=X)
            case "commanded":
                U[0, 3, 1] = 11.0
                return replace(r, U=U)
            case "array":
                return X
            case "lists":
                arrays = {name: getattr(r, name).tolist() for name in ("X", "U", "obs", "noise")}
                J = np.zeros((r.N, r.T, 2, 4)).tolist()
                return replace(r, **arrays, jacobians={"position": J})
            case "text":
                return replace(r, jacobians={"position": "text"})
        return r


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        ("short", ShapeError, r"gave X of shape \(\d, 6, 4\) in .*; .*promises \(\d, 12, 4\)"),
        ("fewer", ShapeError, r"gave X of shape \(\d, 12, 4\).*promises \(\d, 12, 4\)"),
        ("order", ShapeError, r"gave .* velocity \(2\), position \(2\); .*position \(2\), vel"),
        ("condition", ShapeError, r"gave condition 1 where 0 was asked for"),
        ("observation", ShapeError, r"gave obs of shape \(\d, 12, 3\).*promises \(\d, 12, 4\)"),
        ("nan", SimulationError, r"sample \d, t=4: FaultyAgent.rollout gave X that is NaN"),
        ("commanded", ConfigError, r"gave 11 for action 1 at t=3; .*within .* -10 to 10"),
        ("text", ShapeError, r"jacobians\['position'\] must be an array of numbers: real numbers"),
        ("array", ShapeError, r"must return gps.types.Rollouts, got ndarray"),
    ],
)
@pytest.mark.parametrize("evaluated", [False, True])
def test_rollouts_that_an_agent_did_not_promise_are_refused(stuck, fault, error, text, evaluated):
    values = {f: getattr(stuck.agent, f) for f in ("T", "dt", "starts", "force_limit")}
    experiment = replace(stuck, agent=Faulty(fault=fault, **values))
    agent, cost, controller = experiment.agent, experiment.cost, _hold(experiment)

    def make():
        if evaluated:
            evaluate_condition(agent, cost, None, controller, 0, 2, 0)
        else:
            next(gps.run(experiment))

    with pytest.raises(error, match=text) as found:
        make()
    assert fault == "text" or "FaultyAgent" in str(found.value)
    assert "\n" not in str(found.value)


def test_lists_in_an_agents_rollouts_become_arrays_in_all_of_them(stuck):
    values = {f: getattr(stuck.agent, f) for f in ("T", "dt", "starts", "force_limit")}
    lists = replace(stuck, agent=Faulty(fault="lists", **values), max_without_update=None)
    (found,) = gps.run(lists, iterations=1)
    (expected,) = gps.run(replace(stuck, max_without_update=None), iterations=1)
    for r, e in zip(found.rollouts, expected.rollouts, strict=True):
        for name in ("X", "U", "obs", "noise"):
            np.testing.assert_array_equal(getattr(r, name), getattr(e, name))
        assert r.jacobians["position"].shape == (5, 12, 2, 4)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (([-1.0], [1.0, 1.0, 1.0]), r"of 2 actions, got shapes \(1,\), \(3,\)"),
        ((-1.0,), r"two arrays, .* got shapes \(\)$"),
        (("low", "high"), r"an array of numbers: real numbers are needed"),
    ],
)
def test_a_control_range_of_another_kind_is_refused(limits, text):
    agent = PointMassAgent(gps.load("point_mass").agent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PointMassAgent, "control_range", limits)
        with pytest.raises(ShapeError, match=rf"^PointMassAgent\.control_range must be .*{text}"):
            control_range_of(agent)
        patch.setattr(PointMassAgent, "control_range", ([-1, -2], 3))
        low, high = control_range_of(agent)
    assert (low.tolist(), high.tolist()) == ([-1.0, -2.0], [3.0, 3.0])


def _hold(experiment):
    agent = experiment.agent.build()
    return experiment.initial.controller(
        agent.start_state(0), agent.layout, agent.nu, agent.T, agent.dt
    )


def test_actions_that_were_clipped_in_single_precision_pass(stuck):
    agent = stuck.agent.build()
    r = agent.rollout(_hold(stuck), 0, np.zeros((2, 12, 2)))
    U = r.U.copy()
    U[0, 0, 0] = np.float64(np.float32(10.0)) * (1 + 1e-7)
    assert checked_rollouts(agent, replace(r, U=U), 2, 0) is not None
