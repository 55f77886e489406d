"""Point mass by PIGPS: one neural policy for four starts, without dynamics or gradients."""

from dataclasses import replace

from gps.algorithms import PIGPSConfig
from gps.control import PI2Config
from gps.hyperparams import point_mass_pi2, point_mass_policy
from gps.policies import MLPConfig, TrainingConfig

experiment = replace(
    point_mass_pi2.experiment,
    description="2-D point mass, four starts, one neural policy by PIGPS; seconds",
    agent=point_mass_policy.agent,
    algorithm=PIGPSConfig(
        pi2=PI2Config(kl_max=1.0),
        network=MLPConfig(hidden=(32, 32), activation="tanh"),
        training=TrainingConfig(steps=2000, batch_size=25),
    ),
    iterations=15,
)
