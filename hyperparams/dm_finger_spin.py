"""dm_control's finger: it learns to spin a body by its contacts, one policy by MDGPS."""

from gps.agents import DMControlConfig, random_episodes
from gps.algorithms import MDGPSConfig, StepConfig
from gps.control import OpenLoopConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost
from gps.distributions import MixturePriorConfig
from gps.dynamics import DynamicsConfig
from gps.pipeline import Experiment
from gps.policies import MLPConfig, TrainingConfig

SPIN = -25.0  # rad/s; the task asks for -15 or less
HINGE_ONLY = (0.0, 0.0, 1.0)  # the finger's two joints, then the body's hinge

experiment = Experiment(
    description="dm_control's finger spins a body by contact, one policy by MDGPS",
    agent=DMControlConfig(
        domain="finger",
        task="spin",
        T=100,
        noise_sigma=2.0,
        conditions=random_episodes(8, seed=1, purpose="training conditions"),
        test_conditions=random_episodes(10, seed=1),
    ),
    cost=(
        StateCost(entry="joint_vel", target=SPIN, weights=HINGE_ONLY, l2=0.01)
        + ActionCost(weights=0.02)
    ),
    # Wide noise: the finger has to hit the body before anything can be learnt of it.
    initial=OpenLoopConfig(variance=0.5),
    measure=EndpointMeasure(
        entry="joint_vel",
        target=(0.0, 0.0, SPIN),
        point_size=1,
        success_point=2,
        threshold=10.0,
        unit="rad/s",
    ),
    algorithm=MDGPSConfig(
        network=MLPConfig(hidden=(64, 64), activation="tanh"),
        training=TrainingConfig(steps=4000, batch_size=50),
        dynamics=DynamicsConfig(ridge=1e-4, prior=MixturePriorConfig(strength=20.0)),
        step=StepConfig(kl_max=2.0, max_mult=1.0),
    ),
    samples=10,
    iterations=12,
)
