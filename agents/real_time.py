"""Any agent at a robot's pace: a rollout takes as long as it would on one real robot."""

from __future__ import annotations

import math
import operator
import time
import zlib
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np

from gps.agents.base import Seed
from gps.errors import ConfigError
from gps.fields import Config, NonNegative, Positive
from gps.protocols import Agent, BuildsAgent, Policy
from gps.rng import stream
from gps.types import Array, Rollouts


@dataclass(frozen=True, kw_only=True)
class RealTimeConfig(Config):
    """Another agent, slowed down.

    One robot runs the samples of a batch one after the other: N rollouts of T steps take
    N T dt seconds, times a random factor. What is recorded does not change.
    """

    agent: Any
    """Configuration of the agent that is slowed down."""
    factor_std: NonNegative = 0.3
    """Standard deviation of the logarithm of the factor, whose mean is 1; 0 for none."""
    speed: Positive = 1.0
    """Divides the duration: 10 makes a robot that is ten times as fast."""
    seed: Seed = 0
    """Seed of the factors. A factor depends on the condition and the rollouts' noise alone."""
    noise_free: bool = False
    """Whether rollouts without any exploration noise take time too. A run makes these only to
    report how it does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.agent, type) or not isinstance(self.agent, BuildsAgent):
            raise ConfigError(
                f"RealTimeConfig.agent must be the configuration of an agent, got {self.agent!r}"
            )

    def build(self, threads: int = 1) -> Agent:
        """The slow agent; `threads` goes to the wrapped agent where that takes them."""
        inside = self.agent.build(threads) if threads != 1 else self.agent.build()
        return cast(Agent, RealTime(self, inside))  # its members are those of the wrapped agent


class RealTime:
    """Sleeps for what is left of a rollout's duration; everything else is the wrapped agent.

    Each instance has a class of its own with a property for every public member of the wrapped
    agent: a `__getattr__` would not do, since from Python 3.12 on `isinstance` does not call it to
    find out whether an agent has the members of a protocol.
    """

    def __new__(cls, config: RealTimeConfig, agent: Agent) -> Self:
        """An instance with the public members of the agent."""
        own = {*dir(cls), "config"}
        names = [n for n in dir(agent) if not n.startswith("_") and n not in own]
        members = {n: property(operator.attrgetter(f"_agent.{n}")) for n in names}
        return object.__new__(type(cls.__name__, (cls,), members))

    def __init__(self, config: RealTimeConfig, agent: Agent) -> None:
        self.config, self._agent = config, agent

    def duration(self, condition: int, noise: Array) -> float:
        """Seconds that the rollouts with this noise (N, T, nu) take from this condition."""
        cfg, noise = self.config, np.ascontiguousarray(noise, dtype=np.float64)
        if not cfg.noise_free and not noise.any():
            return 0.0
        address = (condition, zlib.crc32(noise.tobytes()))
        z = stream(cfg.seed, "duration", *address).standard_normal()
        factor = math.exp(cfg.factor_std * z - cfg.factor_std**2 / 2)
        seconds: float = len(noise) * self._agent.T * self._agent.dt / cfg.speed * factor
        return seconds

    def rollout(
        self,
        policy: Policy,
        condition: int,
        noise: Array,
        start_noise: Array | None = None,
        *,
        test: bool = False,
    ) -> Rollouts:
        """See `gps.protocols.Agent`; the bytes of the wrapped agent, after the robot's time.

        Wrong inputs and failed simulations are reported at once.
        """
        begin = time.monotonic()
        rollouts = self._agent.rollout(policy, condition, noise, start_noise, test=test)
        time.sleep(max(0.0, begin + self.duration(condition, noise) - time.monotonic()))
        return rollouts
