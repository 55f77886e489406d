"""A compiled model that somebody else has made, as a MujocoConfig takes one."""

from __future__ import annotations

import mujoco


class Given:
    """A function without arguments that gives a model; equal where it is the same model.

    For agents that build a MujocoAgent of their own in the same process: neither stored nor sent.
    """

    def __init__(self, model: mujoco.MjModel, name: str) -> None:
        self._model = model
        self.__module__, _, self.__qualname__ = name.rpartition(".")  # what messages show

    def __call__(self) -> mujoco.MjModel:
        return self._model

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Given) and other._model is self._model

    def __hash__(self) -> int:
        return id(self._model)
