"""Half cheetah: a planar animal learns to run from standing, with dynamics fitted to rollouts.

How far it runs stands in the column `distance` of a run: that is what is missing to a mark 15 m
ahead, which is where the wanted speed leads in the five seconds of a rollout.
"""

from gps.agents import MujocoConfig
from gps.algorithms import StepConfig, TrajOptConfig
from gps.control import PDConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost
from gps.distributions import MixturePriorConfig
from gps.dynamics import DynamicsConfig
from gps.pipeline import Experiment

SPEED = 3.0  # m/s; more than four trunks' lengths each second
MARK = 15.0  # m; SPEED for five seconds
ENOUGH = 5.0  # m; forward distance that counts as success
JOINTS = 9  # x, z and pitch of the trunk, then hip, knee and ankle of the hind and the fore leg
X_ONLY = (1.0, *(0.0,) * (JOINTS - 1))
PITCH_ONLY = (0.0, 0.0, 1.0, *(0.0,) * (JOINTS - 3))

experiment = Experiment(
    description="Planar animal with two legs learns to run, one linear controller, fitted dynamics",
    agent=MujocoConfig(model="half_cheetah", T=100, dt=0.05, substeps=5),
    cost=(
        # Speed is all that is asked for; the gait is found.
        StateCost(entry="joint_vel", target=(SPEED, *(0.0,) * (JOINTS - 1)), weights=X_ONLY, l2=1.0)
        # Level. With a weight of 2 a fifth of the rollouts ended on the back: no gait gets up from
        # there, and a fit across both is of no use.
        + 40.0 * StateCost(entry="joint_pos", target=0.0, weights=PITCH_ONLY, l2=1.0)
        # N m. With less, gains and noise grow until it stumbles: with half of it, one rollout in
        # eight at the end.
        + ActionCost(weights=2e-3)
    ),
    # The legs' motors keep the standing pose, softly (N m/rad), with a noise of 14 N m: shaken like
    # that, it creeps about, and some directions turn out better than others.
    initial=PDConfig(
        variance=200.0, position_gain=20.0, velocity_gain=0.1, joints=(3, 4, 5, 6, 7, 8)
    ),
    # One point for each joint, in m and rad; the first one is x.
    measure=EndpointMeasure(
        entry="joint_pos",
        target=(MARK, *(0.0,) * (JOINTS - 1)),
        point_size=1,
        threshold=MARK - ENOUGH,
        unit="m or rad",
    ),
    algorithm=TrajOptConfig(
        # A foot that touches down at another step in every sample makes a fit of one step alone
        # useless: the prior, what all steps together say, counts as much as the samples do.
        dynamics=DynamicsConfig(ridge=1e-4, prior=MixturePriorConfig(strength=20.0)),
        # Long steps: with half of this, as many rollouts led a seventh less far.
        step=StepConfig(kl_max=2.0, min_mult=0.1, max_mult=1.0),
    ),
    samples=20,
    iterations=40,
)
