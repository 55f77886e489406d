"""dm_control's reacher: one policy by MDGPS for targets anywhere, from poses that are drawn too."""

from gps.agents import DMControlConfig, random_episodes
from gps.algorithms import MDGPSConfig, StepConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost
from gps.dynamics import DynamicsConfig
from gps.pipeline import Experiment
from gps.policies import MLPConfig, TrainingConfig

OFFSET = "to_target"  # from the finger to the target, m

agent = DMControlConfig(
    domain="reacher",
    task="easy",
    # An action for 0.04 s, a rollout of 3 s: an episode has 20 s, of which the rest is holding.
    repeat=2,
    T=75,
    state=("joint_pos", "joint_vel", OFFSET),
    obs=("joint_directions", OFFSET, "velocity"),
    conditions=random_episodes(100, seed=1, purpose="training conditions"),
    test_conditions=random_episodes(20, seed=1),
)

experiment = Experiment(
    description="dm_control's reacher to targets that are drawn, one policy by MDGPS",
    agent=agent,
    cost=(
        ActionCost(weights=0.05)
        + StateCost(entry=OFFSET, target=0.0, l2=100.0, log_weight=0.1, alpha=1e-3)
        + 0.01 * StateCost(entry="joint_vel", target=0.0, l2=1.0)
    ),
    initial=HoldConfig(),
    # The finger's radius and the target's are 0.06 m together.
    measure=EndpointMeasure(entry=OFFSET, target=(0.0, 0.0), point_size=2, threshold=0.05),
    algorithm=MDGPSConfig(
        network=MLPConfig(hidden=(100, 100), activation="tanh"),
        restart=True,
        training=TrainingConfig(steps=15000, batch_size=100, learning_rate=3e-3, weight_decay=3e-4),
        dynamics=DynamicsConfig(ridge=1e-4),
        step=StepConfig(kl_max=2.0, max_mult=1.0),
    ),
    samples=3,
    iterations=6,
)
