"""How an agent is shown: a condition's own model, and where a state puts its bodies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np

from gps.errors import ShapeError
from gps.types import Array


@dataclass(frozen=True, eq=False)
class Display:
    """A model to look at, and the way from a state of the agent to the model's positions."""

    model: mujoco.MjModel
    """As the condition sees it: its bodies shifted, mocap bodies in their places. A copy."""
    nx: int
    """State size."""
    positions: Callable[[Array], Array]
    """From states (S, nx) to qpos (S, nq)."""

    def data(self) -> mujoco.MjData:
        """A simulator's data for `set_state`, mocap bodies as in the model."""
        return mujoco.MjData(self.model)

    def set_state(self, data: mujoco.MjData, x: Array) -> None:
        """Put everything where the state x (nx,) has it: bodies, shapes, sites, cameras.

        Raises ShapeError. Velocities and forces are left alone, since they are not seen.
        """
        x = np.asarray(x, dtype=np.float64)
        if x.shape != (self.nx,):
            raise ShapeError(f"a state must have shape ({self.nx},), got {x.shape}")
        data.qpos[:] = self.positions(x[None])[0]
        mujoco.mj_kinematics(self.model, data)
        mujoco.mj_camlight(self.model, data)
