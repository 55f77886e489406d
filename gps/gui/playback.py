"""The time step of a rollout that is played back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Player:
    """The time step that is due, by a clock that is passed in.

    steps: of the rollout. dt: duration of a step in seconds. The position is kept in steps and is
    fractional in between, so that a change of speed or a pause loses nothing.
    """

    def __init__(
        self, steps: int, dt: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._steps, self._dt = max(1, int(steps)), float(dt)
        self._at, self._since = 0.0, clock()
        self._playing, self._speed, self._loop = False, 1.0, True

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self._steps

    @property
    def playing(self) -> bool:
        """Whether it is playing; false after the last step unless it loops."""
        self._advance()
        return self._playing

    @property
    def step(self) -> int:
        """The step to show, 0 to steps - 1."""
        self._advance()
        return min(int(self._at), self._steps - 1)

    @property
    def speed(self) -> float:
        """Simulated seconds per second."""
        return self._speed

    @speed.setter
    def speed(self, value: float) -> None:
        self._advance()
        self._speed = max(0.0, float(value))

    @property
    def loop(self) -> bool:
        """Whether the first step follows the last."""
        return self._loop

    @loop.setter
    def loop(self, value: bool) -> None:
        self._advance()
        self._loop = bool(value)

    def play(self) -> None:
        """Play on, from the start if the last step is shown."""
        self._advance()
        if int(self._at) >= self._steps - 1 and not self._playing:
            self._at = 0.0
        self._playing = True

    def pause(self) -> None:
        """Hold at the step that is shown."""
        self._advance()
        self._at, self._playing = float(self.step), False

    def seek(self, step: int) -> None:
        """Go to a step, playing or not; clipped to the steps that exist."""
        self._advance()
        self._at = float(min(max(0, int(step)), self._steps - 1))

    def load(self, steps: int, dt: float) -> None:
        """Another rollout; the step stays where it can."""
        self._advance()
        self._steps, self._dt = max(1, int(steps)), float(dt)
        self._at = min(self._at, float(self._steps - 1))

    def _advance(self) -> None:
        now = self._clock()
        passed, self._since = now - self._since, now
        if not self._playing:
            return
        self._at += max(0.0, passed) * self._speed / self._dt
        if self._at >= self._steps:
            if self._loop:
                self._at = math.fmod(self._at, self._steps)
            else:
                self._at, self._playing = float(self._steps - 1), False


__all__ = ["Player"]
