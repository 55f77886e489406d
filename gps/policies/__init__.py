"""Global policies: neural networks, their supervised training and their linearisation."""

from gps.policies.linearise import (
    LineariseConfig,
    Linearised,
    PolicyPrior,
    linearise,
)
from gps.policies.neural import (
    AdamState,
    MLPConfig,
    Network,
    NeuralPolicy,
    PlainLayout,
    initial_policy,
)
from gps.policies.sgd import SGDConfig
from gps.policies.training import (
    Problem,
    TrainingConfig,
    TrainingData,
    TrainingResult,
    adam_step,
    batch_gradient,
    capped_weights,
    fit,
    flatten,
    minibatches,
    policy_variance,
    prepare,
    schedule,
    unflatten,
    updated,
)

__all__ = [
    "AdamState",
    "LineariseConfig",
    "Linearised",
    "MLPConfig",
    "Network",
    "NeuralPolicy",
    "PlainLayout",
    "PolicyPrior",
    "Problem",
    "SGDConfig",
    "TrainingConfig",
    "TrainingData",
    "TrainingResult",
    "adam_step",
    "batch_gradient",
    "capped_weights",
    "fit",
    "flatten",
    "initial_policy",
    "linearise",
    "minibatches",
    "policy_variance",
    "prepare",
    "schedule",
    "unflatten",
    "updated",
]
