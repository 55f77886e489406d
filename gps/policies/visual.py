"""Policies that see: convolutions and spatial softmax make feature points of the pictures, and a
multi-layer perceptron turns these and the robot's own state into actions.

The convolutions are trained to tell the pose of things, which the local controllers know in
training, and may then be trained together with the perceptron on the policy's own loss.
Source: S. Levine, C. Finn, T. Darrell, P. Abbeel, End-to-End Training of Deep Visuomotor Policies,
JMLR 17(39), 2016, section 5.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from gps.errors import ConfigError, FitError, GPSError, ShapeError, choices
from gps.fields import readonly
from gps.policies import training
from gps.policies.neural import MLPConfig, NeuralPolicy, PlainLayout
from gps.policies.training import TrainingConfig, TrainingData, TrainingResult
from gps.types import Array, Images, Layout, Record, freeze, optional, shape_of

if TYPE_CHECKING:
    import torch

    from gps.policies import _vision

log = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "float64")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Convolutions, a spatial softmax, then `head` on its feature points and the observation."""

    head: MLPConfig = field(default_factory=MLPConfig)
    """The perceptron that acts; it sees the vector observation and the feature points."""
    channels: tuple[int, ...] = (16, 16, 16)
    """Channels of the convolutions; the last are the feature points, two numbers each."""
    kernels: tuple[int, ...] = (7, 5, 3)
    """Widths of their kernels, in pixels of their input."""
    strides: tuple[int, ...] = (2, 2, 1)
    """Their strides; a stride of 2 halves the picture, and makes the rest four times as fast."""
    pose: tuple[str, ...] = ()
    """State entries that the convolutions learn to tell from the pictures in every training; empty
    to train them by `finetune_steps` alone."""
    through_pose: bool = False
    """Whether the head sees the pose that the convolutions tell, and not the feature points: it
    then acts in unseen places as well as one that is told the pose, and learns from few start
    conditions, but knows nothing that the pose does not say."""
    first_steps: int = 1000
    """Steps of the first training on the pose."""
    steps: int = 200
    """Steps of each later one, which goes on from the last weights."""
    batch_size: int = 32
    """Pictures per step."""
    learning_rate: float = 6e-3
    """Adam's step size on the pose; it falls along half a cosine."""
    finetune_steps: int = 0
    """Steps in which convolutions and head are trained together on the policy's loss, after the
    head was trained on fixed feature points."""
    finetune_rate: float = 1e-4
    """Adam's step size there."""
    device: str = "auto"
    """Where the convolutions are computed: cpu, cuda, or auto for a GPU if torch finds one. Bytes
    differ between devices. A trained policy acts on the CPU where there is no GPU."""

    precision: str | None = optional()
    """How the convolutions act: None or float32 as they are trained; float64, which takes longer
    and makes exported programs agree with the policy to 1e-9 and not only to 1e-5 of the largest
    action."""

    sees: ClassVar[bool] = True
    """The policy needs pictures, and its training has several parts."""

    def __post_init__(self) -> None:
        sizes = [len(v) for v in (self.channels, self.kernels, self.strides)]
        for name in ("channels", "kernels", "strides"):
            value = getattr(self, name)
            good = (
                isinstance(value, tuple) and value and all(type(n) is int and n > 0 for n in value)
            )
            if not good:
                raise ConfigError(
                    f"VisionConfig.{name} must be a tuple of whole numbers above 0, got {value!r}"
                )
        if len(set(sizes)) > 1:
            raise ConfigError(
                "VisionConfig.channels, kernels and strides must have one value for each "
                f"convolution, got {sizes[0]}, {sizes[1]} and {sizes[2]}"
            )
        if isinstance(self.pose, str):
            raise ConfigError(f"VisionConfig.pose must be a tuple of names, got {self.pose!r}")
        object.__setattr__(self, "pose", tuple(self.pose))
        for name, least in (("first_steps", 0), ("steps", 0), ("finetune_steps", 0),
                            ("batch_size", 1)):  # fmt: skip
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(
                    f"VisionConfig.{name} must be a whole number of at least {least}, got {value!r}"
                )
        for name in ("learning_rate", "finetune_rate"):
            value = getattr(self, name)
            if not 0 < value < np.inf:
                raise ConfigError(f"VisionConfig.{name} must be above 0 and finite, got {value}")
        if self.device not in DEVICES:
            raise ConfigError(f"VisionConfig.device: {choices('device', self.device, DEVICES)}")
        if self.precision not in (None, *PRECISIONS):
            text = choices("precision", str(self.precision), PRECISIONS)
            raise ConfigError(f"VisionConfig.precision: {text}")
        if self.through_pose and not self.pose:
            raise ConfigError("VisionConfig.through_pose needs state entries in pose")

    @property
    def single(self) -> bool:
        """Whether the policy acts on what convolutions in float32 see."""
        return self.precision != "float64"

    @property
    def n_points(self) -> int:
        """Feature points."""
        return self.channels[-1]

    def check(self, layout: Layout, image_shape: tuple[int, int, int] | None) -> None:
        """ConfigError unless the world has pictures that are large enough, and the pose entries."""
        if image_shape is None:
            raise ConfigError(
                "VisionConfig needs pictures, and this world has no cameras; name some in "
                "MujocoConfig.cameras"
            )
        learns = bool(self.pose) and self.first_steps + self.steps > 0
        if not learns and not self.finetune_steps:
            raise ConfigError(
                "VisionConfig: the convolutions would never be trained; name state entries in "
                "pose, or set finetune_steps"
            )
        for name in self.pose:
            if name not in layout.names:
                raise ConfigError(
                    f"VisionConfig.pose: {choices('state entry', name, layout.names)}"
                )
        if self.device == "cuda":
            from gps.policies import _vision

            _vision.training_device_of(self.device)
        height, width, _ = image_shape
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            height, width = ((size - kernel) // stride + 1 for size in (height, width))
        if min(height, width) < 2:
            raise ConfigError(
                f"VisionConfig.kernels and strides leave {height} x {width} of a picture of "
                f"{image_shape[0]} x {image_shape[1]}; at least 2 x 2 must be left"
            )

    def build(self, no: int, nu: int) -> torch.nn.Module:
        """Not used: see `VisualPolicy.module`."""
        raise GPSError("a VisionConfig makes its policy by initial_policy, with an image_shape")

    def initial_weights(self, no: int, nu: int, rng: np.random.Generator) -> tuple[Array, ...]:
        """Not used: see `VisionConfig.initial_policy`."""
        raise GPSError("a VisionConfig makes its policy by initial_policy, with an image_shape")

    def plain_layout(self, no: int, nu: int) -> PlainLayout | None:
        """None: the fast kernels compute the head alone."""
        return None

    def initial_policy(
        self,
        no: int,
        nu: int,
        image_shape: tuple[int, int, int] | None,
        layout: Layout | None,
        rng: np.random.Generator,
    ) -> VisualPolicy:
        """An untrained policy: all weights from `rng`; see `gps.policies.initial_policy`."""
        layout = Layout(()) if layout is None else layout
        self.check(layout, image_shape)
        assert image_shape is not None
        n, k = 2 * self.n_points, sum(layout.length(name) for name in self.pose)
        weights = self._weights(image_shape, rng)
        linear = (rng.normal(size=(k, n)) / np.sqrt(n), np.zeros(k)) if k else ()
        encoder = Encoder(
            config=self,
            image_shape=image_shape,
            weights=weights,
            pose_weights=linear,
            pose_mean=np.zeros(k),
            pose_std=np.ones(k),
        )
        head = NeuralPolicy.initial(self.head, no + encoder.n_features, nu, rng)
        return VisualPolicy(encoder=encoder, head=head)

    def _weights(
        self, image_shape: tuple[int, int, int], rng: np.random.Generator
    ) -> tuple[Array, ...]:
        """Normal weights with deviations after He, biases 0."""
        weights: list[Array] = []
        for (n, m), kernel in zip(
            pairwise((image_shape[2], *self.channels)), self.kernels, strict=True
        ):
            deviation = np.sqrt(2.0 / (n * kernel**2))
            weights += [rng.normal(size=(m, n, kernel, kernel)) * deviation, np.zeros(m)]
        return tuple(weights)


@dataclass(frozen=True, eq=False)
class Encoder(Record):
    """The convolutions, and the linear layer that tells the whitened pose from their points."""

    config: VisionConfig
    image_shape: tuple[int, int, int]
    """Height, width and channels of a picture."""
    weights: tuple[Array, ...]
    """Of each convolution (m, n, kernel, kernel) and (m,)."""
    pose_weights: tuple[Array, ...]
    """Of the linear layer (k, 2 points) and (k,); empty where there is no pose to learn."""
    pose_mean: Array  # (k,) in the state's units
    pose_std: Array  # (k,) above zero
    trainings: int = 0
    """Trainings on the pose so far; the first one sets `pose_mean` and `pose_std`."""
    pose_loss: float = float("nan")
    """Mean squared error of the whitened pose, over the last tenth of the last training."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_shape", tuple(int(n) for n in self.image_shape))
        for name in ("weights", "pose_weights"):
            object.__setattr__(self, name, tuple(readonly(a) for a in getattr(self, name)))
        (k,) = shape_of(self, "pose_mean", 1)
        freeze(self, pose_mean=(k,), pose_std=(k,))

    @property
    def n_features(self) -> int:
        """Numbers that the head is given."""
        return len(self.pose_mean) if self.config.through_pose else 2 * self.config.n_points

    @cached_property
    def _module(self) -> _vision.FeaturePoints:
        from gps.policies import _vision

        module = self._points_module().to(_vision.device_of(self.config.device))
        return module if self.config.single else module.double()

    def _points_module(self) -> _vision.FeaturePoints:
        from gps.policies import _modules, _vision

        c = self.config
        module = _vision.FeaturePoints(self.image_shape, c.channels, c.kernels, c.strides)
        _modules.set_parameters(module, self.weights)
        return module.eval()

    def _pose_module(self) -> _vision.PoseNetwork:
        from gps.policies import _modules, _vision

        points, n = self._points_module(), self.config.n_points
        module = _vision.PoseNetwork(points, n, len(self.pose_mean))
        _modules.set_parameters(module, (*self.weights, *self.pose_weights))
        return module.eval()

    def module(self) -> torch.nn.Module:
        """A torch module of its own: pictures (B, H, W, C) uint8 to features (B, n_features)."""
        return self._pose_module() if self.config.through_pose else self._points_module()

    def with_parameters(self, weights: Sequence[Array]) -> Encoder:
        """The encoder with those parameters, in the order of `module().parameters()`."""
        n = len(self.weights)
        linear = tuple(weights[n:]) or self.pose_weights
        return replace(self, weights=tuple(weights[:n]), pose_weights=linear)

    def points(self, images: Images) -> Array:
        """Feature points (..., 2 points) of pictures (..., H, W, C); ShapeError."""
        from gps.policies import _vision

        images = self._checked(images)
        lead = images.shape[:-3]
        flat = images.reshape(-1, *self.image_shape)
        out = _vision.points_of(self._module, flat)
        return out.reshape(*lead, 2 * self.config.n_points)

    def features(self, images: Images) -> Array:
        """What the head is given of pictures (..., H, W, C): points or whitened pose."""
        points = self.points(images)
        return self._whitened_pose(points) if self.config.through_pose else points

    def pose(self, images: Images) -> Array:
        """The pose (..., k) that the convolutions see, in the units of the state; GPSError."""
        if not self.trainings:
            raise GPSError("the convolutions have not been trained on a pose")
        return self._whitened_pose(self.points(images)) * self.pose_std + self.pose_mean

    def _whitened_pose(self, points: Array) -> Array:
        W, b = self.pose_weights
        pose: Array = points @ W.T + b
        return pose

    def _checked(self, images: Images) -> Images:
        if (
            not isinstance(images, np.ndarray)
            or images.dtype != np.uint8
            or images.shape[-3:] != self.image_shape
        ):
            what = getattr(images, "dtype", type(images).__name__), np.shape(images)
            raise ShapeError(
                f"images must be uint8 (..., {', '.join(map(str, self.image_shape))}), got "
                f"{what[0]} {what[1]}"
            )
        return images

    def trained(self, images: Images, pose: Array, rng: np.random.Generator) -> Encoder:
        """The encoder after one more training on pictures (n, H, W, C) and their poses (n, k).

        The first one sets the pose's mean and deviation. Raises FitError.
        """
        from gps.policies import _vision

        c, images = self.config, self._checked(images)
        first = not self.trainings
        steps = c.first_steps if first else c.steps
        encoder = replace(self, trainings=self.trainings + 1)
        if first:
            std = np.maximum(pose.std(axis=0), 1e-6)
            encoder = replace(encoder, pose_mean=pose.mean(axis=0), pose_std=std)
        if not steps:
            return encoder
        network = encoder._pose_module()
        white = (pose - encoder.pose_mean) / encoder.pose_std
        batches = training.minibatches(len(images), steps, c.batch_size, rng)
        device = _vision.training_device_of(c.device)
        losses = _vision.train_pose(network, images, white, batches, c.learning_rate, device)
        last = float(losses[-max(1, steps // 10) :].mean())
        log.debug("convolutions: pose error %.3g -> %.3g (whitened)", losses[0], last)
        encoder = encoder.with_parameters(_vision.parameters_of(network))
        return replace(encoder, pose_loss=last)


@dataclass(frozen=True, eq=False)
class VisualPolicy(Record):
    """u ~ N(head([obs; features(images)]), chol chol'); made by `initial_policy`."""

    encoder: Encoder
    head: NeuralPolicy

    needs_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.head.no < self.encoder.n_features:
            raise ShapeError(
                f"VisualPolicy.head takes {self.head.no} values, the encoder alone gives "
                f"{self.encoder.n_features}"
            )

    @property
    def network(self) -> VisionConfig:
        """The configuration."""
        return self.encoder.config

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the pictures."""
        return self.encoder.image_shape

    @property
    def no(self) -> int:
        """Size of the vector observation, without the pictures."""
        return self.head.no - self.encoder.n_features

    @property
    def nu(self) -> int:
        """Action size."""
        return self.head.nu

    @property
    def obs_mean(self) -> Array:
        """Mean of the vector observation, (no,), that it is whitened with."""
        return self.head.obs_mean[: self.no]

    @property
    def obs_std(self) -> Array:
        """Its deviation, (no,)."""
        return self.head.obs_std[: self.no]

    @property
    def chol(self) -> Array:
        """Lower Cholesky factor of the action covariance, (nu, nu)."""
        return self.head.chol

    @property
    def Sigma(self) -> Array:
        """Action covariance, (nu, nu), the same at every step and observation."""
        return self.head.Sigma

    @property
    def trained(self) -> bool:
        """Whether `fit` has updated the weights."""
        return self.head.trained

    @property
    def renormalises(self) -> bool:
        """Whether a further training takes the normaliser of its data."""
        return self.head.renormalises

    def restarted(self, rng: np.random.Generator) -> VisualPolicy:
        """With a fresh head; what the convolutions have learned about pictures stays."""
        return replace(self, head=self.head.restarted(rng))

    def joined(self, obs: Array, images: Images | None) -> Array:
        """What the head sees, (..., no + n_features); ShapeError when there are no pictures."""
        obs = np.asarray(obs, dtype=np.float64)
        if obs.ndim == 0 or obs.shape[-1] != self.no:
            raise ShapeError(f"observations must have {self.no} values, got shape {obs.shape}")
        if images is None:
            raise ShapeError("this policy sees pictures: images must be given")
        seen = self.encoder.features(images)
        if seen.shape[:-1] != obs.shape[:-1]:
            raise ShapeError(
                f"there must be a picture for each observation: {obs.shape[:-1]} observations, "
                f"{seen.shape[:-1]} pictures"
            )
        return np.concatenate([obs, seen], axis=-1)

    def mean(self, obs: Array, images: Images | None = None) -> Array:
        """Mean actions (..., nu) for observations (..., no) and pictures (..., H, W, C)."""
        return self.head.mean(self.joined(obs, images))

    def act(
        self, x: Array, obs: Array, t: int, noise: Array, images: Images | None = None
    ) -> Array:
        """Actions (N, nu) for observations (N, no), pictures and unit-variance noise (N, nu)."""
        return self.mean(obs, images) + noise @ self.chol.T

    def predict(
        self,
        obs: Array,
        state: object = None,
        episode_start: object = None,
        deterministic: bool = True,
        *,
        images: Images | None = None,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, None]:
        """Action (..., nu) and None, as `NeuralPolicy.predict`; `images` must be given."""
        return self.head.predict(
            self.joined(obs, images), state, episode_start, deterministic, rng=rng
        )

    def fit(
        self, data: TrainingData, config: TrainingConfig, rng: np.random.Generator
    ) -> TrainingResult:
        """See the function `fit`."""
        return fit(self, data, config, rng)

    def module(self) -> torch.nn.Module:
        """A torch module of its own: raw observation and pictures to mean action."""
        from gps.policies import _vision

        return _vision.SeeingNetwork(self.encoder.module(), self.head.module()).eval()


def fit(
    policy: VisualPolicy, data: TrainingData, config: TrainingConfig, rng: np.random.Generator
) -> TrainingResult:
    """Train convolutions and head; see `gps.policies.training.fit`, which calls this.

    First the convolutions on the pose (`VisionConfig.pose`), then the head on the feature points
    as any perceptron, by the fast kernels; then both together for `VisionConfig.finetune_steps`.
    """
    c, encoder = policy.network, policy.encoder
    if data.images is None:
        raise ShapeError("TrainingData.images must be given to train a policy that sees")
    if c.pose:
        encoder = encoder.trained(data.images, _pose(data, c.pose), rng)
    policy = replace(policy, encoder=encoder)
    seen = replace(
        data, obs=policy.joined(data.obs, data.images), images=None, state=None, layout=None
    )
    result = training.fit(policy.head, seen, config, rng)
    policy = replace(policy, head=cast(NeuralPolicy, result.policy))
    if not c.finetune_steps:
        return replace(result, policy=policy)
    return _finetuned(policy, result, data, seen, config, rng)


def _pose(data: TrainingData, names: Sequence[str]) -> Array:
    """The named entries of the samples' states, (n, k)."""
    if data.state is None or data.layout is None:
        raise ShapeError("TrainingData.state and .layout must be given to train on a pose")
    return np.concatenate([data.state[:, data.layout.slice(name)] for name in names], axis=1)


def _finetuned(
    policy: VisualPolicy,
    result: TrainingResult,
    data: TrainingData,
    seen: TrainingData,
    config: TrainingConfig,
    rng: np.random.Generator,
) -> TrainingResult:
    """Head and convolutions after training together on the policy's loss."""
    from gps.policies import _modules, _vision

    c, head = policy.network, policy.head
    _, problem = training.prepare(head, seen, config)
    device = _vision.training_device_of(c.device)
    # the problem's actions are the outputs of the network
    normaliser = head.normaliser._replace(
        action_mean=np.zeros(head.nu), action_std=np.ones(head.nu)
    )
    whitened = _modules.WhitenedNetwork(head.built(), normaliser)
    network = _vision.SeeingNetwork(policy.encoder.module(), whitened)
    batches = training.minibatches(data.n, c.finetune_steps, c.batch_size, rng)
    assert data.images is not None
    losses = _vision.train_whole(
        network, data.obs, data.images, problem, batches, c.finetune_rate, device
    )
    encoder = policy.encoder.with_parameters(_vision.parameters_of(network.encoder))
    head = replace(head, weights=_vision.parameters_of(network.head))
    policy = VisualPolicy(encoder=encoder, head=head)
    loss = problem.loss(policy.mean(data.obs, data.images))
    if not np.isfinite(loss):
        raise FitError("the policy's loss is not finite; lower VisionConfig.finetune_rate")
    parts = np.array_split(losses * problem.scale, min(config.trace_points, len(losses)))
    trace = np.concatenate([result.trace, [part.mean() for part in parts]])
    return replace(result, policy=policy, loss=loss, trace=trace)
