"""Global policies: neural networks, their training, their linearisation and their export."""

from gps.policies.export import ExportedPolicy, PolicyFacts, export_program, load
from gps.policies.linearise import (
    LineariseConfig,
    Linearised,
    PolicyPrior,
    linearise,
)
from gps.policies.memory import WindowConfig, WindowPolicy
from gps.policies.module import ModuleConfig
from gps.policies.neural import (
    AdamState,
    GlobalPolicy,
    MLPConfig,
    Network,
    NetworkPolicy,
    NeuralPolicy,
    PlainLayout,
    initial_policy,
)
from gps.policies.onnx import export_onnx
from gps.policies.recurrent import RecurrentConfig, RecurrentPolicy
from gps.policies.seeing import SeeingModuleConfig, SeeingPolicy
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
from gps.policies.visual import Encoder, VisionConfig, VisualPolicy

__all__ = [
    "AdamState",
    "Encoder",
    "ExportedPolicy",
    "GlobalPolicy",
    "LineariseConfig",
    "Linearised",
    "MLPConfig",
    "ModuleConfig",
    "Network",
    "NetworkPolicy",
    "NeuralPolicy",
    "PlainLayout",
    "PolicyFacts",
    "PolicyPrior",
    "Problem",
    "RecurrentConfig",
    "RecurrentPolicy",
    "SGDConfig",
    "SeeingModuleConfig",
    "SeeingPolicy",
    "TrainingConfig",
    "TrainingData",
    "TrainingResult",
    "VisionConfig",
    "VisualPolicy",
    "WindowConfig",
    "WindowPolicy",
    "adam_step",
    "batch_gradient",
    "capped_weights",
    "export_onnx",
    "export_program",
    "fit",
    "flatten",
    "initial_policy",
    "linearise",
    "load",
    "minibatches",
    "policy_variance",
    "prepare",
    "schedule",
    "unflatten",
    "updated",
]
