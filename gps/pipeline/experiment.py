"""What an experiment consists of: an agent, a cost, a measure of success and an algorithm.

A hyperparams file is plain Python that ends in `experiment = Experiment(...)`. Building one makes
no folder, reads no clock and loads no model; `validate` builds the agent once and refuses whatever
does not fit together, before the first rollout.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, ClassVar, Protocol, runtime_checkable

import numpy as np

from gps.algorithms.state import (
    ConditionState,
    ConditionUpdate,
    GPSState,
    PolicyState,
    Report,
    Source,
)
from gps.costs.base import Cost
from gps.costs.measure import EndpointMeasure
from gps.errors import ConfigError, GPSError, ranges
from gps.execution import Deferred, Executor
from gps.fields import Config, Count, Kind, Range
from gps.policies.training import TrainingData
from gps.protocols import Agent, Linearises, UsesLinearisation, acting
from gps.types import Array, Layout, LinearGaussianController, Rollouts

log = logging.getLogger(__name__)


@runtime_checkable
class AgentConfig(Hashable, Protocol):
    """Configuration of an agent: frozen, hashable, and able to build it."""

    def build(self) -> Agent:
        """Make the agent; ConfigError when the configuration cannot work."""
        ...


@runtime_checkable
class InitialControllerConfig(Protocol):
    """Configuration of the controllers of the first iteration."""

    def controller(
        self, x0: Array, layout: Layout, nu: int, T: int, dt: float
    ) -> LinearGaussianController:
        """The controller for a condition that starts at state `x0` (nx,)."""
        ...


@runtime_checkable
class AlgorithmConfig(Protocol):
    """Configuration of an algorithm, which has the algorithm's functions."""

    trains_policy: ClassVar[bool]
    """Whether the algorithm learns a global policy."""

    @property
    def min_samples(self) -> int:
        """Minimum number of rollouts per condition that its fits need."""
        ...

    def start(
        self,
        costs: tuple[Cost, ...],
        controllers: tuple[LinearGaussianController, ...],
        agent: Agent,
        seed: int,
    ) -> GPSState:
        """The state before the first iteration."""
        ...

    def sampling(self, state: GPSState) -> tuple[Deferred[Source], ...]:
        """What to roll out next, per condition."""
        ...

    def iterate(
        self, state: GPSState, rollouts: tuple[Deferred[Rollouts], ...], executor: Executor
    ) -> tuple[GPSState, Report]:
        """One iteration; pure. The entries of `rollouts` may be handles of the executor."""
        ...


@runtime_checkable
class ChecksAgent(Protocol):
    """A configuration of an algorithm that some agents do not fit."""

    def check(self, agent: Agent) -> None:
        """ConfigError for options that do not fit the agent."""
        ...


@runtime_checkable
class ChoosesImages(Protocol):
    """A configuration of an algorithm that needs the images of rollouts only for some policies."""

    def without_images(self, sources: Sequence[Deferred[Source]]) -> tuple[Deferred[Source], ...]:
        """The sources, marked where the images of their rollouts are not recorded."""
        ...


@runtime_checkable
class AsynchronousAlgorithm(Protocol):
    """What an algorithm's configuration adds if its conditions can run asynchronously."""

    @property
    def keeps_training(self) -> bool:
        """Whether the training is repeated while no new rollouts come: MDGPS with restart=False."""
        ...

    @property
    def trainers(self) -> int:
        """Processes that train the policy at once; the executor keeps so many workers free."""
        ...

    def check_asynchronous(self) -> None:
        """ConfigError when the settings need all conditions at once."""
        ...

    def update_condition(
        self,
        condition: Deferred[ConditionState],
        rollouts: Deferred[Rollouts],
        cost: Cost,
        policy: Deferred[PolicyState] | None,
        at: tuple[int, int, int],
        executor: Executor,
    ) -> ConditionUpdate:
        """Submit all that one condition does after its rollouts.

        policy: None before its first training. at: seed, the condition's own iteration, the
        condition: the address of random numbers.
        """
        ...

    def train(
        self,
        policy: Deferred[PolicyState],
        data: Sequence[Deferred[TrainingData]],
        seed: int,
        version: int,
        executor: Executor,
    ) -> Deferred[PolicyState]:
        """Submit one training of the policy on `data`."""
        ...


Samples = Annotated[int, Range(at_least=1, at_most=100_000)]
"""Rollouts of one condition that are made together; their arrays have to fit into memory."""
Seed = Annotated[int, Range(at_least=0, below=2**63)]
"""Of random streams; the store keeps it in 64 bits."""


def _with_methods_of(protocol: type) -> Kind:
    return Kind(f"a configuration object with the methods of {protocol.__name__}", (protocol,))


@dataclass(frozen=True, kw_only=True)
class Experiment(Config):
    """Everything that defines a run but the machine that makes it."""

    name: str = ""
    """Name of the experiment; the loader fills in the file's name when it is empty."""
    description: str = ""
    """One line for `gps list`."""
    agent: Annotated[AgentConfig, _with_methods_of(AgentConfig)]
    """Configuration of the agent."""
    cost: Annotated[Cost, _with_methods_of(Cost)]
    """The cost that is minimised, the same for every condition."""
    initial: Annotated[InitialControllerConfig, _with_methods_of(InitialControllerConfig)]
    """Configuration of the initial controllers."""
    measure: EndpointMeasure | None = None
    """The task's own measure of success."""
    algorithm: Annotated[AlgorithmConfig, _with_methods_of(AlgorithmConfig)]
    """Configuration of the algorithm."""
    samples: Samples = 5
    """Rollouts per condition and iteration."""
    iterations: Annotated[int, Range(at_least=1, below=2**63)] = 10
    """Iterations of a whole run."""
    seed: Seed = 0
    """Seed of every random stream of a run."""
    max_resamples: Annotated[int, Range(at_least=0, below=2**63)] = 3
    """How often a sample whose simulation fails is drawn again before the run stops."""
    max_without_update: Count | None = 3
    """Iterations in a row without an update of any condition after which the run ends as not
    learning, with what is wrong (`NotLearningError`, exit code 3); it can be resumed. None to go
    on. Iterations in which every condition succeeds do not count."""

    evaluation_steps: Count | None = None
    """Steps of the noise-free rollouts by which the global policy is judged: the columns policy_...
    of metrics.csv, the best iteration, `gps evaluate`. None: those of the agent's rollouts. For
    tasks that go on for longer than the rollouts that are learned from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < self.algorithm.min_samples:
            raise ConfigError(
                f"Experiment.samples must be at least {self.algorithm.min_samples} for "
                f"{type(self.algorithm).__name__}, got {self.samples}"
            )

    @property
    def evaluation_agent(self) -> AgentConfig:
        """The agent whose rollouts judge the global policy; ConfigError where it has no T."""
        steps, agent = self.evaluation_steps, self.agent
        if steps is None:
            return agent
        if not is_dataclass(agent) or "T" not in (f.name for f in fields(agent)):
            raise ConfigError(
                f"Experiment.evaluation_steps must be None: {type(agent).__name__} has no field T"
            )
        return replace(agent, T=steps)

    def validate(self) -> Agent:
        """Build the agent and check that cost, measure and initial controllers fit it.

        Raises ConfigError.
        """
        agent = self.agent.build()
        if not isinstance(agent, Agent):
            members = [n for n in dir(Agent) if not n.startswith("_") and not hasattr(agent, n)]
            raise ConfigError(
                f"Experiment.agent: what {type(self.agent).__name__}.build() makes is no "
                f"gps.protocols.Agent: it lacks {', '.join(members)}"
            )
        self.cost.check(agent.layout, agent.nu, agent.T)
        if self.measure is not None:
            self.measure.check(agent.layout)
        if self.evaluation_steps is not None and self.algorithm.trains_policy:
            longer = self.evaluation_agent.build()
            try:
                self.cost.check(longer.layout, longer.nu, longer.T)
            except GPSError as error:
                raise ConfigError(
                    f"Experiment.evaluation_steps: the cost does not fit {longer.T} steps: {error}"
                ) from error
        if isinstance(self.algorithm, ChecksAgent):
            self.algorithm.check(agent)
        try:
            initial_controller(self.initial, agent, 0)
        except GPSError as error:
            raise ConfigError(
                f"Experiment.initial ({type(self.initial).__name__}): {error}"
            ) from error
        return agent


def initial_controller(
    initial: InitialControllerConfig, agent: Agent, condition: int, *, test: bool = False
) -> tuple[LinearGaussianController, str]:
    """The controller to start a condition with, and in words where it comes from.

    From the agent's linearisation where `initial` takes one and the agent gives one, else from the
    start state alone. Raises what `initial.controller` does, and ConfigError where it needs a
    linearisation that the agent does not give.
    """
    why = ""
    if isinstance(initial, UsesLinearisation) and initial.wants_linearisation is not False:
        try:
            if not isinstance(agent, Linearises):
                raise ConfigError(f"{type(agent).__name__} does not know its own model")

            def predict(controller: LinearGaussianController, noise: Array) -> Array:
                start = np.zeros((len(noise), agent.n_start))
                blind = acting(controller, records_images=False)
                return agent.rollout(blind, condition, noise, start, test=test).X

            return (
                initial.linearised(agent.linearise(condition, test=test), agent.T, predict),
                "from the model's linearisation at the start",
            )
        except GPSError as error:
            if initial.wants_linearisation:
                raise ConfigError(f"no linearisation: {error}") from error
            why = f" ({error})"
    x0 = agent.start_state(condition, test=test)
    controller = initial.controller(x0, agent.layout, agent.nu, agent.T, agent.dt)
    how = initial.assumption if isinstance(initial, UsesLinearisation) else "as configured"
    return controller, f"{how}{why}"


def initial_state(
    experiment: Experiment, agent: Agent, note: Callable[[str], object] = log.info
) -> GPSState:
    """Controllers, and an untrained policy where the algorithm has one.

    note: is told where the controllers come from, in a line for all conditions that are alike.
    """
    initial = experiment.initial
    found = [initial_controller(initial, agent, m) for m in range(agent.n_conditions)]
    alike: dict[str, list[int]] = {}
    for m, (_, how) in enumerate(found):
        alike.setdefault(how, []).append(m)
    for how, which in alike.items():
        where = "" if len(alike) == 1 else f" of condition{'s'[: len(which) - 1]} {ranges(which)}"
        note(f"initial controller{where}: {type(initial).__name__}: {how}")
    controllers = tuple(controller for controller, _ in found)
    costs = (experiment.cost,) * agent.n_conditions
    return experiment.algorithm.start(costs, controllers, agent, experiment.seed)
