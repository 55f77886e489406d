"""Ready configurations of the models that come with the toolkit; change them with `replace`."""

from __future__ import annotations

import math
from dataclasses import replace

from gps.agents.mujoco import Condition, MujocoConfig, random_conditions
from gps.rng import stream

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
        conditions=_corners(square),
        test_conditions=random_conditions(n_test, body="base", half_width=square, seed=test_seed),
    )


def _corners(shift: float) -> tuple[Condition, ...]:
    """The body `base` shifted to the corners of a horizontal square, m."""
    return tuple(
        Condition(body_offsets=(("base", (x, y, 0.0)),))
        for x in (-shift, shift)
        for y in (-shift, shift)
    )


def peg_insertion_blind(*, n_test: int = 20, test_seed: int = 0) -> MujocoConfig:
    """As `peg_insertion`, but the policy observes joint positions and velocities only, not the peg.

    Where the base stands is then hidden from it. The shifts are therefore those that contact can
    make up for: up to 8 mm along x and along y, twice the play of the hole. There the round tip of
    the peg meets the rim beside its middle, and the rim pushes it into the hole.
    """
    shift = 0.008
    return replace(
        peg_insertion(),
        obs=FULL_STATE[:2],
        conditions=_corners(shift),
        test_conditions=random_conditions(n_test, body="base", half_width=shift, seed=test_seed),
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


def pilco_cartpole(*, spread: float = 0.0, n_test: int = 0, seed: int = 0) -> MujocoConfig:
    """PILCO's cart-pole: 4 s at 10 Hz, cart and pole of 0.5 kg, 10 N at most, no end of the rail.

    The state is that of `cartpole`. With a `spread` there are four starts, cart and pole displaced
    by so many m and rad to either side, and `n_test` others drawn from between; without, the one
    start of the paper. Every start varies by 0.02 m and rad.
    """
    rng = stream(seed, "test conditions")
    test = rng.uniform(-spread, spread, (n_test, 2))
    corners = [(a, b) for a in (-spread, spread) for b in (-spread, spread)]
    return MujocoConfig(
        model="pilco_cartpole",
        T=40,
        dt=0.1,
        start_qpos_std=0.02,
        conditions=tuple(Condition(qpos_offset=o) for o in (corners if spread else [(0.0, 0.0)])),
        test_conditions=tuple(Condition(qpos_offset=tuple(map(float, o))) for o in test),
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


def reacher(*, n_test: int = 20, test_seed: int = 0) -> MujocoConfig:
    """A two-link arm in the horizontal plane takes its tip to a target that each condition moves.

    The state has 7 values: 2 joint positions and velocities, then the tip's position relative to
    the target, along the world's axes, in m; that and the joints determine where the target is.
    Targets stand in the half of a ring in front of the shoulder, between radii of 0.08 and 0.18 m
    (the arm reaches 0.2 m): eight to train from, on its two borders, and test targets that are
    drawn uniformly from its area.
    """
    inner, outer, widest = 0.08, 0.18, math.pi / 2
    draws = (stream(test_seed, "test conditions", i).uniform(size=2) for i in range(n_test))
    return MujocoConfig(
        model="reacher",
        T=50,
        dt=0.04,
        substeps=4,
        state=("joint_pos", "joint_vel", "sensor:target_to_tip"),
        qpos=(-math.pi / 4, math.pi / 2),
        conditions=tuple(
            _target(radius, share * widest)
            for radius in (inner, outer)
            for share in (-1.0, -1 / 3, 1 / 3, 1.0)
        ),
        # uniform in area: the squared radius is uniform
        test_conditions=tuple(
            _target(math.sqrt(inner**2 + r * (outer**2 - inner**2)), (2 * a - 1) * widest)
            for r, a in draws
        ),
    )


def _target(radius: float, angle: float) -> Condition:
    """The target of `reacher` at polar coordinates about the shoulder, m and rad."""
    place = (radius * math.cos(angle), radius * math.sin(angle), 0.0)
    return Condition(body_offsets=(("target", place),))


def obstacle_nav(*, n_test: int = 20, test_seed: int = 0) -> MujocoConfig:
    """A puck slides round three posts to a goal at (0.9, 0) m, from starts on the left.

    The state has 4 values: the puck's position (m) and velocity. It starts at rest; the test starts
    are drawn uniformly from the box [-1.1, -0.9] x [-0.6, 0.6] m that holds the training starts.
    """
    low, high = (-1.1, -0.6), (-0.9, 0.6)
    return MujocoConfig(
        model="obstacle_nav",
        T=80,
        dt=0.05,
        substeps=5,
        conditions=tuple(Condition(qpos=(-1.0, y)) for y in (-0.55, -0.3, -0.1, 0.1, 0.3, 0.55)),
        test_conditions=tuple(
            Condition(qpos=tuple(stream(test_seed, "test conditions", i).uniform(low, high)))
            for i in range(n_test)
        ),
    )


def gripper_pusher(*, n_test: int = 20, test_seed: int = 0) -> MujocoConfig:
    """A three-joint arm takes a block between its fingers and pushes it over a table.

    The state has 28 values: 8 joint positions and velocities (three of the arm, two of the fingers,
    three of the block), then position and velocity of grip and block. The block starts up to 2 cm
    along x and 6 cm along y from its position in the model: at the corners of this rectangle for
    training, drawn uniformly from it for test. Action noise is smoothed over some steps.
    """
    x, y = 0.02, 0.06
    draws = (stream(test_seed, "test conditions", i).uniform(-1, 1, size=2) for i in range(n_test))
    return MujocoConfig(
        model="gripper_pusher",
        sites=("grip", "block"),
        state=FULL_STATE,
        qpos=(-0.969, 2.263, -1.294, 0.0, 0.0, 0.0, 0.0, 0.0),
        conditions=tuple(_block(i * x, j * y) for i in (-1, 1) for j in (-1, 1)),
        test_conditions=tuple(_block(a * x, b * y) for a, b in draws),
        noise_sigma=1.0,
    )


def _block(x: float, y: float) -> Condition:
    """The block of `gripper_pusher` displaced, m."""
    return Condition(qpos_offset=(0.0, 0.0, 0.0, 0.0, 0.0, float(x), float(y), 0.0))


def door(*, n_test: int = 20, test_seed: int = 0) -> MujocoConfig:
    """A three-joint arm opens a door by its handle, with a hook.

    The state has 20 values: 4 joint positions and velocities (the last one is the door's), then
    position and velocity of hook and handle. The arm's base is shifted by up to 2 cm along x and y,
    the corners of this square for training, drawn uniformly from it for test; the door stays where
    it is. Action noise is smoothed over some steps.
    """
    shift = 0.02
    return MujocoConfig(
        model="door",
        sites=("hook", "handle"),
        state=FULL_STATE,
        qpos=(-0.072, 1.184, -1.112, 0.0),
        conditions=_corners(shift),
        test_conditions=random_conditions(n_test, body="base", half_width=shift, seed=test_seed),
        noise_sigma=1.0,
    )
