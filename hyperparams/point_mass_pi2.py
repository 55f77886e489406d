"""Point mass by PI2: no dynamics are fitted and no gradient is taken."""

from dataclasses import replace

from gps.algorithms import PI2TrajOptConfig
from gps.control import PI2Config
from gps.hyperparams import point_mass

experiment = replace(
    point_mass.experiment,
    description="2-D point mass to a target by PI2, from sampled costs alone; seconds",
    # PI2 never changes the gains of the initial controllers. Soft ones let the noise of 80 steps
    # add up, and what is left of it at the end hides what an update brought.
    initial=replace(point_mass.initial, stiffness=1.0),
    measure=replace(point_mass.measure, threshold=0.1),
    # More KL learns faster at first, but takes the exploration away before the end is reached.
    algorithm=PI2TrajOptConfig(pi2=PI2Config(kl_max=1.0)),
    samples=20,
    iterations=25,
)
