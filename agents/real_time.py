"""Any agent at a robot's pace: a rollout takes as long as it would on one real robot."""

from __future__ import annotations

import math
import time
import zlib
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from gps.agents.base import require
from gps.errors import ConfigError
from gps.protocols import Agent, Policy
from gps.rng import stream
from gps.types import Array, Rollouts


@dataclass(frozen=True, kw_only=True)
class RealTimeConfig:
    """Another agent, slowed down.

    One robot runs the samples of a batch one after the other: N rollouts of T steps take
    N T dt seconds, times a random factor. What is recorded does not change.
    """

    agent: Any
    """Configuration of the agent that is slowed down."""
    factor_std: float = 0.3
    """Standard deviation of the logarithm of the factor, whose mean is 1; 0 for none."""
    speed: float = 1.0
    """Divides the duration: 10 makes a robot that is ten times as fast."""
    seed: int = 0
    """Seed of the factors. A factor depends on the condition and the rollouts' noise alone."""
    noise_free: bool = False
    """Whether rollouts without any exploration noise take time too. A run makes these only to
    report how it does."""

    def __post_init__(self) -> None:
        build = getattr(self.agent, "build", None)
        require(callable(build), self, "agent", "the configuration of an agent", self.agent)
        for field, low in (("factor_std", 0.0), ("speed", 1e-300)):
            value = getattr(self, field)
            rule = "0 or more" if field == "factor_std" else "above 0"
            require(low <= value < math.inf, self, field, rule, value)
        if type(self.seed) is not int or self.seed < 0:
            raise ConfigError(f"RealTimeConfig.seed must be 0 or more, got {self.seed!r}")

    def build(self, threads: int = 1) -> Agent:
        """The slow agent; `threads` goes to the agent inside where that takes them."""
        inside = self.agent.build(threads) if threads != 1 else self.agent.build()
        return cast(Agent, RealTime(self, inside))  # its attributes are those of the agent inside


class RealTime:
    """Sleeps for what is left of a rollout's duration; everything else is the agent inside."""

    def __init__(self, config: RealTimeConfig, agent: Agent) -> None:
        self.config, self._agent = config, agent

    def __getattr__(self, name: str) -> Any:
        """Everything but the rollouts: layouts, sizes, start states, `render` and so on."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._agent, name)

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
        """See `gps.protocols.Agent`; the bytes of the agent inside, after the robot's time.

        Wrong inputs and failed simulations are told at once.
        """
        begin = time.monotonic()
        rollouts = self._agent.rollout(policy, condition, noise, start_noise, test=test)
        time.sleep(max(0.0, begin + self.duration(condition, noise) - time.monotonic()))
        return rollouts
