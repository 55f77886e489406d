"""Peg insertion with local controllers only: one linear-Gaussian controller per base offset."""

from gps.agents import peg_insertion

from gps.algorithms import StepConfig, TrajOptConfig
from gps.control.initial import HoldConfig
from gps.costs import ActionCost, EndpointCost, EndpointMeasure, SumCost, WeightedCost
from gps.pipeline.experiment import Experiment

GAINS = (3.09, 1.08, 0.393, 0.674, 0.111, 0.152, 0.098)
TARGET = (0.6, 0.0, -0.55, 0.6, 0.0, -0.25)  # peg tip and top at the bottom of the hole, in m

experiment = Experiment(
    description="7-joint arm inserts a peg, linear controllers only",
    world=peg_insertion(),
    cost=SumCost(
        terms=(
            WeightedCost(weight=1.0, cost=ActionCost(weights=1e-3)),
            WeightedCost(
                weight=1.0,
                cost=EndpointCost(target=TARGET, weights=1.0, l2=10.0, log_weight=0.1, alpha=1e-5),
            ),
            WeightedCost(
                weight=1.0,
                cost=EndpointCost(
                    target=TARGET,
                    weights=1.0,
                    log_weight=1.0,
                    l2=1.0,
                    alpha=1e-5,
                    ramp="final",
                    final_multiplier=10.0,
                ),
            ),
        )
    ),
    initial=HoldConfig(),
    measure=EndpointMeasure(target=TARGET),
    algorithm=TrajOptConfig(step=StepConfig(kl_max=1.0)),
    samples=5,
    iterations=10,
)
