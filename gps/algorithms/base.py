"""What the configurations of several algorithms have in common: how a run begins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from gps.algorithms.exploration import ExplorationConfig, action_scale
from gps.algorithms.state import ConditionState, GPSState, PolicyState, Unseen
from gps.algorithms.step_size import StepConfig
from gps.control.kl import raised
from gps.costs.base import Cost
from gps.errors import ConfigError
from gps.policies.linearise import LineariseConfig, check_derivatives
from gps.policies.policy import Network, Sizes
from gps.policies.sgd import SGDConfig
from gps.protocols import Agent
from gps.rng import stream
from gps.types import LinearGaussianController


class LocalAlgorithm:
    """Base of configurations of algorithms without a global policy."""

    trains_policy: ClassVar[bool] = False
    fewest_samples: ClassVar[int] = 2
    exploration: ExplorationConfig = ExplorationConfig(floor=0)
    """The least noise of the controllers; none for an algorithm without a field of this name."""

    @property
    def initial_mult(self) -> float:
        """Step multiplier of the first update; 1 for an algorithm without the field `step`."""
        step: StepConfig | None = getattr(self, "step", None)
        return 1.0 if step is None else step.initial_mult

    def start(
        self,
        costs: tuple[Cost, ...],
        controllers: tuple[LinearGaussianController, ...],
        agent: Agent,
        seed: int,
    ) -> GPSState:
        """The state before the first iteration; initial controllers have the least noise too."""
        conditions = []
        for c in controllers:
            scale = action_scale(agent, c)
            floor = self.exploration.std_floor(scale)
            start = raised(c, floor)
            conditions.append(
                ConditionState(
                    controller=start,
                    previous=start,
                    step_mult=self.initial_mult,
                    action_scale=scale,
                )
            )
        return GPSState(iteration=0, seed=seed, costs=costs, conditions=tuple(conditions))

    def sampling(self, state: GPSState) -> tuple[Any, ...]:
        """Every condition's own controller."""
        return self.unseen(state.conditions)

    def unseen(self, sources: tuple[Any, ...]) -> tuple[Any, ...]:
        """The sources, marked where no picture of their rollouts is used: the policy does not see,
        or there is none."""
        sees = getattr(getattr(self, "network", None), "needs_images", False)
        return sources if sees else tuple(Unseen(source) for source in sources)


class PolicyAlgorithm(LocalAlgorithm):
    """Base of configurations of algorithms with a global policy, of the field `network`."""

    trains_policy: ClassVar[bool] = True
    network: Network
    sgd: SGDConfig
    restart: bool | None
    replay: int

    @property
    def remembers(self) -> bool:
        """Whether the policy has memory, and is trained on whole trajectories."""
        return self.network.has_memory

    def check(self, agent: Agent) -> None:
        """ConfigError for options that cannot be, and where the network depends on more than sizes
        and this world lacks it."""
        if self.restart is not None and type(self.restart) is not bool:
            raise ConfigError(
                f"{type(self).__name__}.restart must be True, False or None, got {self.restart!r}"
            )
        if type(self.replay) is not int or self.replay < 0:
            raise ConfigError(
                f"{type(self).__name__}.replay must be a whole number of rollouts, 0 or more, got "
                f"{self.replay!r}"
            )
        if not isinstance(self.network, Network):
            raise ConfigError(
                f"{type(self).__name__}.network must be a configuration like MLPConfig(), "
                f"got {self.network!r}"
            )
        self.network.check(Sizes.of(agent))
        config: LineariseConfig | None = getattr(self, "linearise", None)
        if config is not None and config.method == "jacobian":
            check_derivatives(self.network, agent)
        sees = self.network.needs_images
        if sees and hasattr(agent, "check_images"):
            agent.check_images()
        if (sees or self.remembers) and self.sgd.mode != "serial":
            network = type(self.network).__name__
            raise ConfigError(
                f"{type(self).__name__}.sgd.mode must be 'serial' for a {network}, whose training "
                f"cannot be divided, got {self.sgd.mode!r}"
            )

    def start(
        self,
        costs: tuple[Cost, ...],
        controllers: tuple[LinearGaussianController, ...],
        agent: Agent,
        seed: int,
    ) -> GPSState:
        """The state before the first iteration, with an untrained policy."""
        state = super().start(costs, controllers, agent, seed)
        rng = stream(seed, "initial policy")
        policy = self.network.initial_policy(Sizes.of(agent), rng)
        return GPSState(
            iteration=0,
            seed=seed,
            costs=costs,
            conditions=tuple(replace(c, obs_layout=agent.obs_layout) for c in state.conditions),
            policy=PolicyState(policy=policy),
        )


def sample_policy(state: GPSState) -> tuple[Any, ...]:
    """What on-policy algorithms roll out: the policy, once it has been trained."""
    if state.iteration > 0:
        return (state.policy,) * len(state.conditions)
    return state.conditions
