"""What a MuJoCo model says of the entries of a state."""

from __future__ import annotations

import mujoco
import numpy as np

from gps.agents._model import ENTRIES
from gps.types import Layout, StateStructure


def structure_of(model: mujoco.MjModel, layout: Layout) -> StateStructure:
    """Hinges without limits turn without end; what slides, turns about one axis or is a free
    joint's place moves with its velocity. Rotation vectors do not integrate angular velocities."""
    kinds = mujoco.mjtJoint
    hinge, slide, free = map(int, (kinds.mjJNT_HINGE, kinds.mjJNT_SLIDE, kinds.mjJNT_FREE))
    joint = model.dof_jntid
    kind = model.jnt_type[joint]
    place = (kind == free) & (np.arange(model.nv) - model.jnt_dofadr[joint] < 3)
    turns = (kind == hinge) & (model.jnt_limited[joint] == 0)
    moves = (kind == hinge) | (kind == slide) | place
    periodic, velocity = np.zeros(layout.size, dtype=bool), np.full(layout.size, -1)
    if ENTRIES[0] in layout.names:
        positions = layout.slice(ENTRIES[0])
        periodic[positions] = turns
        if ENTRIES[1] in layout.names:
            begin = layout.slice(ENTRIES[1]).start
            velocity[positions] = np.where(moves, begin + np.arange(model.nv), -1)
    return StateStructure(tuple(map(bool, periodic)), tuple(map(int, velocity)))
