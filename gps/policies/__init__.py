"""Global policies: networks, their training, their linearisation and their export."""

from gps.policies.export import export_program, load
from gps.policies.exported import ExportedPolicy
from gps.policies.image_module import ImageModuleConfig, ImageModulePolicy
from gps.policies.linearise import LineariseConfig, Linearised, PolicyPrior, linearise
from gps.policies.metadata import PolicyMetadata
from gps.policies.mlp import MLPConfig
from gps.policies.module import ModuleConfig
from gps.policies.neural import NetworkPolicy, TorchNetwork, batch_gradient, prepare, updated
from gps.policies.onnx import export_onnx
from gps.policies.optimisation import (
    AdamState,
    MLPLayout,
    adam_step,
    flatten,
    minibatches,
    schedule,
    unflatten,
)
from gps.policies.policy import BasePolicy, GlobalPolicy, Network, Sizes, fit, initial_policy
from gps.policies.recurrent import RecurrentConfig
from gps.policies.sgd import SGDConfig
from gps.policies.training import (
    Normaliser,
    Problem,
    TrainingConfig,
    TrainingData,
    TrainingResult,
    capped_weights,
    policy_variance,
)
from gps.policies.vision import Encoder, VisionConfig, VisionPolicy
from gps.policies.window import WindowConfig, WindowPolicy

__all__ = [
    "AdamState",
    "BasePolicy",
    "Encoder",
    "ExportedPolicy",
    "GlobalPolicy",
    "ImageModuleConfig",
    "ImageModulePolicy",
    "LineariseConfig",
    "Linearised",
    "MLPConfig",
    "MLPLayout",
    "ModuleConfig",
    "Network",
    "NetworkPolicy",
    "Normaliser",
    "PolicyMetadata",
    "PolicyPrior",
    "Problem",
    "RecurrentConfig",
    "SGDConfig",
    "Sizes",
    "TorchNetwork",
    "TrainingConfig",
    "TrainingData",
    "TrainingResult",
    "VisionConfig",
    "VisionPolicy",
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
