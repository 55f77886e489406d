"""Ready configurations of the models that come with the toolkit; change them with `replace`."""

from __future__ import annotations

from gps.agents.mujoco import Condition, MujocoConfig, random_conditions

FULL_STATE = ("joint_pos", "joint_vel", "end_points", "end_point_velocities")


def peg_insertion(*, n_test: int = 20, test_seed: int = 0) -> MujocoConfig:
    """A seven-joint arm puts a peg into a hole; its base stands elsewhere in each condition.

    The state has 26 values: 7 joint positions and velocities, then position and velocity of the
    peg's tip and top. Four training conditions shift the base by (+-0.08, +-0.08) m; the test
    conditions are drawn uniformly from that square.
    """
    square = 0.08
    return MujocoConfig(
        model="peg_insertion",
        T=100,
        dt=0.05,
        substeps=5,
        sites=("peg_tip", "peg_top"),
        state=FULL_STATE,
        qpos=(-0.74, -0.05, -1.86, -2.01, 1.42, -0.28, 0.07),
        conditions=tuple(
            Condition(body_offsets=(("base", (x, y, 0.0)),))
            for x in (-square, square)
            for y in (-square, square)
        ),
        test_conditions=random_conditions(n_test, body="base", half_width=square, seed=test_seed),
    )


def arm_reach() -> MujocoConfig:
    """A two-link arm swings its tip to a target against gravity, from four start poses.

    The state has 10 values: 2 joint positions and velocities, then the tip's position and
    velocity.
    """
    return MujocoConfig(
        model="arm_reach",
        T=60,
        dt=0.05,
        substeps=5,
        sites=("tip",),
        state=FULL_STATE,
        qpos=(0.2, 0.4),
        conditions=tuple(Condition(qpos_offset=(a, b)) for a in (-0.3, 0.3) for b in (-0.3, 0.3)),
        test_conditions=tuple(
            Condition(qpos_offset=offset) for offset in ((0.0, 0.0), (0.2, -0.1), (-0.2, 0.1))
        ),
    )


def cartpole() -> MujocoConfig:
    """A cart on a rail swings its pole up with limited force, from four starts near hanging.

    The state has 4 values: cart position (m) and pole angle (rad), then their velocities. The pole
    hangs at angle 0 and is upright at pi.
    """
    return MujocoConfig(
        model="cartpole",
        T=100,
        dt=0.04,
        substeps=4,
        conditions=tuple(
            Condition(qpos_offset=o) for o in ((0.0, 0.0), (0.0, 0.3), (0.0, -0.3), (0.3, 0.0))
        ),
        test_conditions=tuple(Condition(qpos_offset=o) for o in ((0.0, 0.15), (-0.2, -0.1))),
    )


def acrobot() -> MujocoConfig:
    """Two links with a motor at the elbow only swing up from hanging, from three starts.

    The state has 4 values: pivot and elbow angle (rad), then their velocities. The links hang at
    (0, 0) and are upright at (pi, 0).
    """
    return MujocoConfig(
        model="acrobot",
        T=125,
        dt=0.04,
        substeps=4,
        conditions=tuple(Condition(qpos_offset=o) for o in ((0.0, 0.0), (0.1, 0.0), (-0.1, 0.0))),
        test_conditions=(Condition(qpos_offset=(0.05, 0.0)),),
    )


def pendulum() -> MujocoConfig:
    """A pendulum whose motor is too weak to lift it swings up, from two starts.

    The state has 2 values: angle (rad) and angular velocity. It hangs at 0 and is upright at pi.
    """
    return MujocoConfig(
        model="pendulum",
        T=60,
        dt=0.05,
        substeps=5,
        conditions=tuple(Condition(qpos_offset=(a,)) for a in (0.0, 0.2)),
        test_conditions=(Condition(qpos_offset=(0.1,)),),
    )
