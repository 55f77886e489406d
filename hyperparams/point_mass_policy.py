"""Point mass with MDGPS: one neural policy for four start positions."""

from dataclasses import replace

from gps.algorithms import MDGPSConfig, StepConfig
from gps.hyperparams import point_mass
from gps.policies import MLPConfig, TrainingConfig

agent = replace(
    point_mass.agent,
    starts=((1.0, 1.0), (1.0, -1.0), (-1.0, -1.0), (-1.0, 1.0)),
    # Never trained from; gps evaluate RUN --conditions test
    test_starts=((0.7, 0.2), (-0.3, 0.9), (-0.8, -0.4), (0.5, -0.9), (0.0, 0.8), (0.9, 0.0)),
)

# The soft and noisy initial controllers of point_mass matter more here: their rollouts are where
# the policy is first trained, and outside of them its actions are arbitrary.
experiment = replace(
    point_mass.experiment,
    description="2-D point mass, four starts, one neural policy by MDGPS; seconds",
    agent=agent,
    measure=replace(point_mass.measure, threshold=0.05),
    algorithm=MDGPSConfig(
        # Smooth units: the policy is linearised in every iteration, and kinks hurt there.
        network=MLPConfig(hidden=(32, 32), activation="tanh"),
        training=TrainingConfig(steps=2000, batch_size=25),
        # Train at the states of the last two iterations: twice the states, no further rollouts.
        replay=10,
        step=StepConfig(kl_max=0.5, max_mult=1.0),
    ),
)
