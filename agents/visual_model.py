"""The visual model of an agent: a condition's own MuJoCo model, and the pose that a state gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np

from gps.errors import ShapeError
from gps.types import Array


@dataclass(frozen=True, eq=False)
class MujocoVisualModel:
    """A `gps.protocols.VisualModel` with MuJoCo's own model of an agent."""

    model: mujoco.MjModel
    """Of the condition: its bodies shifted, mocap bodies in their places. A copy."""
    nx: int
    """State size."""
    positions: Callable[[Array], Array]
    """From states (S, nx) to qpos (S, nq)."""
    place: Callable[[mujoco.MjData, Array], None] | None = None
    """Puts the mocap bodies that actions move where the state x (nx,) has them."""

    def data(self) -> mujoco.MjData:
        """A simulator's data for `set_state`, mocap bodies as in the model."""
        return mujoco.MjData(self.model)

    def set_state(self, data: mujoco.MjData, x: Array) -> None:
        """Forward kinematics of the state x (nx,): poses of bodies, geoms, sites and cameras.

        Raises ShapeError. Velocities and forces stay as they are, since they are not drawn.
        """
        x = np.asarray(x, dtype=np.float64)
        if x.shape != (self.nx,):
            raise ShapeError(f"a state must have shape ({self.nx},), got {x.shape}")
        data.qpos[:] = self.positions(x[None])[0]
        mujoco.mj_kinematics(self.model, data)
        if self.place is not None:
            self.place(data, x)
            mujoco.mj_kinematics(self.model, data)
        mujoco.mj_camlight(self.model, data)
