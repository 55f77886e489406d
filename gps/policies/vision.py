"""Policies with images: convolutions and a spatial softmax make feature points of the images, and a
multi-layer perceptron makes actions of these and of the observation.

The convolutions are trained to regress the pose of objects, which the local controllers know in
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
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import numpy as np

from gps.errors import ConfigError, FitError, GPSError, ShapeError
from gps.fields import Positive, Range, Shape
from gps.policies.features import FeaturePolicy
from gps.policies.mlp import MLPConfig
from gps.policies.neural import NetworkPolicy, prepare, trace_of
from gps.policies.optimisation import freeze_tuples, minibatches
from gps.policies.policy import Network, Sizes
from gps.policies.training import (
    POSE_FLOOR,
    BatchSize,
    Steps,
    TrainingConfig,
    TrainingData,
    TrainingResult,
    check_draws,
    whitening_std,
)
from gps.types import Array, Images, Record, optional

if TYPE_CHECKING:
    import torch

    from gps.policies import _vision

log = logging.getLogger(__name__)

Size = Annotated[int, Range(at_least=1, at_most=10_000)]


@dataclass(frozen=True, kw_only=True)
class VisionConfig(Network):
    """Convolutions, a spatial softmax, then `head` on its feature points and the observation."""

    head: MLPConfig = field(default_factory=MLPConfig)
    """The perceptron that acts; its inputs are the vector observation and the feature points."""
    channels: tuple[Size, ...] = (16, 16, 16)
    """Channels of the convolutions; the last are the feature points, two numbers each."""
    kernels: tuple[Size, ...] = (7, 5, 3)
    """Widths of their kernels, in pixels of their input."""
    strides: tuple[Size, ...] = (2, 2, 1)
    """Their strides; a stride of 2 halves the image, and makes the rest four times as fast."""
    pose: tuple[str, ...] = ()
    """State entries that the convolutions learn to regress from the images in every training; empty
    to train them by `finetune_steps` alone."""
    through_pose: bool = False
    """Whether the head is given the predicted pose in place of the feature points: it then acts in
    unseen places as well as one that is given the true pose, and learns from few start conditions,
    but has no information that is not in the pose."""
    first_steps: Steps = 1000
    """Steps of the first training on the pose."""
    steps: Steps = 200
    """Steps of each later one, which continues from the last weights."""
    batch_size: BatchSize = 32
    """Images per step."""
    learning_rate: Positive = 6e-3
    """Adam's step size on the pose; it falls along half a cosine."""
    finetune_steps: Steps = 0
    """Steps in which convolutions and head are trained together on the policy's loss, after the
    head was trained on fixed feature points."""
    finetune_rate: Positive = 1e-4
    """Adam's step size there."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the convolutions are computed; auto for a GPU if torch finds one. Bytes differ between
    devices. A trained policy acts on the CPU where there is no GPU."""
    precision: Literal["float32", "float64"] | None = optional()
    """How the convolutions act: None or float32 as they are trained; float64, which takes longer
    and makes exported programs agree with the policy to 1e-9 and not only to 1e-5 of the largest
    action."""

    needs_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = [len(v) for v in (self.channels, self.kernels, self.strides)]
        if len(set(sizes)) > 1 or not sizes[0]:
            raise ConfigError(
                "VisionConfig.channels, kernels and strides must have one value for each "
                f"convolution, got {sizes[0]}, {sizes[1]} and {sizes[2]}"
            )
        for steps in ("first_steps", "steps", "finetune_steps"):
            check_draws(self, steps, "batch_size")
        if self.through_pose and not self.pose:
            raise ConfigError("VisionConfig.through_pose needs state entries in pose")

    @property
    def single_precision(self) -> bool:
        """Whether the convolutions act in float32."""
        return self.precision != "float64"

    @property
    def n_points(self) -> int:
        """Feature points."""
        return self.channels[-1]

    def check(self, sizes: Sizes) -> None:
        """ConfigError unless the agent has images that are large enough, and the pose entries."""
        super().check(sizes)
        learns = bool(self.pose) and self.first_steps + self.steps > 0
        if not learns and not self.finetune_steps:
            raise ConfigError(
                "VisionConfig: the convolutions would never be trained; name state entries in "
                "pose, or set finetune_steps"
            )
        self.check_pose(self.pose, sizes.layout)
        if self.device == "cuda":
            from gps.policies import _vision

            _vision.training_device_of(self.device)
        assert sizes.image_shape is not None
        rows, columns, _ = sizes.image_shape
        height, width = rows, columns
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            height, width = ((size - kernel) // stride + 1 for size in (height, width))
        if min(height, width) < 2:
            raise ConfigError(
                f"VisionConfig.kernels and strides leave {height} x {width} of an image of "
                f"{rows} x {columns}; at least 2 x 2 must be left"
            )

    def initial_policy(self, sizes: Sizes, rng: np.random.Generator) -> VisionPolicy:
        """See `Network.initial_policy`."""
        self.check(sizes)
        assert sizes.image_shape is not None
        n, k = 2 * self.n_points, sum(sizes.layout.length(name) for name in self.pose)
        weights = self._weights(sizes.image_shape, rng)
        linear = (rng.normal(size=(k, n)) / np.sqrt(n), np.zeros(k)) if k else ()
        encoder = Encoder(
            config=self,
            image_shape=sizes.image_shape,
            weights=weights,
            pose_weights=linear,
            pose_mean=np.zeros(k),
            pose_std=np.ones(k),
        )
        inputs = Sizes(sizes.no + encoder.n_features, sizes.nu)
        return VisionPolicy(head=NetworkPolicy.initial(self.head, inputs, rng), encoder=encoder)

    def _weights(
        self, image_shape: tuple[int, int, int], rng: np.random.Generator
    ) -> tuple[Array, ...]:
        """Normal weights with standard deviations after He, biases 0."""
        weights: list[Array] = []
        for (n, m), kernel in zip(
            pairwise((image_shape[2], *self.channels)), self.kernels, strict=True
        ):
            std = np.sqrt(2.0 / (n * kernel**2))
            weights += [rng.normal(size=(m, n, kernel, kernel)) * std, np.zeros(m)]
        return tuple(weights)


@dataclass(frozen=True, eq=False)
class Encoder(Record):
    """The convolutions, and the linear layer from their feature points to the whitened pose."""

    config: VisionConfig
    image_shape: tuple[int, int, int]
    """Height, width and channels of an image."""
    weights: tuple[Array, ...]
    """Of each convolution (m, n, kernel, kernel) and (m,)."""
    pose_weights: tuple[Array, ...]
    """Of the linear layer (k, 2 points) and (k,); empty where there is no pose to learn."""
    pose_mean: Annotated[Array, Shape("k")]
    """In the state's units."""
    pose_std: Annotated[Array, Shape("k")]
    """Above zero."""
    trainings: int = 0
    """Trainings on the pose so far; the first one sets `pose_mean` and `pose_std`."""
    pose_loss: float = float("nan")
    """Mean squared error of the whitened pose, over the last tenth of the last training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        freeze_tuples(self, "weights", "pose_weights")

    @property
    def n_features(self) -> int:
        """Number of features."""
        return len(self.pose_mean) if self.config.through_pose else 2 * self.config.n_points

    @cached_property
    def _module(self) -> _vision.FeaturePoints:
        from gps.policies import _vision

        module = self._points_module().to(_vision.device_of(self.config.device))
        return module if self.config.single_precision else module.double()

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
        """A torch module of its own: images (B, H, W, C) uint8 to features (B, n_features)."""
        return self._pose_module() if self.config.through_pose else self._points_module()

    def with_parameters(self, weights: Sequence[Array]) -> Encoder:
        """The encoder with those parameters, in the order of `module().parameters()`."""
        n = len(self.weights)
        linear = tuple(weights[n:]) or self.pose_weights
        return replace(self, weights=tuple(weights[:n]), pose_weights=linear)

    def points(self, images: Images) -> Array:
        """Feature points (..., 2 points) of images (..., H, W, C); ShapeError."""
        from gps.policies import _vision

        images = self._checked(images)
        lead = images.shape[:-3]
        flat = images.reshape(-1, *self.image_shape)
        out = _vision.points_of(self._module, flat)
        return out.reshape(*lead, 2 * self.config.n_points)

    def pixels(self, image: Images) -> Array:
        """The feature points (k, 2) of one observation's images, as column and row in pixels.

        A point lies between the middles of the outermost receptive fields.
        """
        field_, stride, sizes = 1, 1, np.array([image.shape[1], image.shape[0]])
        for kernel, step in zip(self.config.kernels, self.config.strides, strict=True):
            field_, stride = field_ + (kernel - 1) * stride, stride * step
            sizes = (sizes - kernel) // step + 1
        at = self.points(image).reshape(2, -1).T  # n times x, then n times y
        pixels: Array = (field_ - 1) / 2 + (at + 1) / 2 * (sizes - 1) * stride
        return pixels

    def features(self, images: Images) -> Array:
        """Features (..., n_features) of images (..., H, W, C): points or whitened pose."""
        points = self.points(images)
        return self._whitened_pose(points) if self.config.through_pose else points

    def pose(self, images: Images) -> Array:
        """The pose (..., k) regressed from images, in the units of the state; GPSError."""
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
            kind = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
            raise ShapeError(
                f"images must be uint8 (..., {', '.join(map(str, self.image_shape))}), got "
                f"{kind} {np.shape(images)}"
            )
        return images

    def trained(self, images: Images, pose: Array, rng: np.random.Generator) -> Encoder:
        """The encoder after one more training on images (n, H, W, C) and their poses (n, k).

        The first one sets the pose's mean and standard deviation. Raises FitError.
        """
        from gps.policies import _vision

        c, images = self.config, self._checked(images)
        first = not self.trainings
        steps = c.first_steps if first else c.steps
        encoder = replace(self, trainings=self.trainings + 1)
        if first:
            std = whitening_std(pose, POSE_FLOOR)
            encoder = replace(encoder, pose_mean=pose.mean(axis=0), pose_std=std)
        if not steps:
            return encoder
        network = encoder._pose_module()
        white = (pose - encoder.pose_mean) / encoder.pose_std
        batches = minibatches(len(images), steps, c.batch_size, rng)
        device = _vision.training_device_of(c.device)
        losses = _vision.train_pose(network, images, white, batches, c.learning_rate, device)
        last = float(losses[-max(1, steps // 10) :].mean())
        log.debug("convolutions: pose error %.3g -> %.3g (whitened)", losses[0], last)
        encoder = encoder.with_parameters(_vision.parameters_of(network))
        return replace(encoder, pose_loss=last)


@dataclass(frozen=True, eq=False)
class VisionPolicy(FeaturePolicy):
    """u ~ N(head([obs; features(images)]), chol chol'); made by `initial_policy`."""

    encoder: Encoder

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head.no < self.encoder.n_features:
            raise ShapeError(
                f"VisionPolicy.head takes {self.head.no} values, the encoder alone gives "
                f"{self.encoder.n_features}"
            )

    @property
    def network(self) -> VisionConfig:
        """The configuration."""
        return self.encoder.config

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        return self.encoder.image_shape

    @property
    def no(self) -> int:
        """Size of the vector observation, without the images."""
        return self.head.no - self.encoder.n_features

    @property
    def obs_entries(self) -> slice:
        """The first ones, before the features of the images."""
        return slice(self.no)

    def feature_points(self, images: Images) -> Array | None:
        """See `BasePolicy.feature_points`."""
        return self.encoder.pixels(images) if images.shape == self.image_shape else None

    def _rows(self, obs: Array, images: Images | None, memory: Array) -> tuple[Array, Array]:
        assert images is not None
        return self.head.mean(self._joined(obs, images)), memory

    def _joined(self, obs: Array, images: Images) -> Array:
        """The head's inputs, (B, no + n_features)."""
        return np.concatenate([obs, self.encoder.features(images)], axis=-1)

    def fit(
        self, data: TrainingData, config: TrainingConfig, rng: np.random.Generator
    ) -> TrainingResult[Self]:
        """Train convolutions and head.

        First the convolutions on the pose (`VisionConfig.pose`), then the head on the feature
        points as any perceptron, by the compiled kernels; then both together for
        `VisionConfig.finetune_steps`.
        """
        c, encoder, images = self.network, self.encoder, self._needed(data)
        if c.pose:
            encoder = encoder.trained(images, data.entries(c.pose), rng)
        policy = replace(self, encoder=encoder)
        features = policy._joined(data.obs, images)
        given = replace(data, obs=features, images=None, state=None, layout=None)
        result = self.head.fit(given, config, rng)
        policy = replace(policy, head=result.policy)
        trained = TrainingResult(policy, result.trace, result.loss)
        return policy._finetuned(trained, data, given, config, rng) if c.finetune_steps else trained

    def _finetuned(
        self,
        result: TrainingResult[Self],
        data: TrainingData,
        features: TrainingData,
        config: TrainingConfig,
        rng: np.random.Generator,
    ) -> TrainingResult[Self]:
        """After head and convolutions were trained together on the policy's loss."""
        from gps.policies import _modules, _vision

        c, head, images = self.network, self.head, self._needed(data)
        _, problem = prepare(head, features, config)
        device = _vision.training_device_of(c.device)
        # the problem's actions are the outputs of the network
        normaliser = head.normaliser._replace(
            action_mean=np.zeros(head.nu), action_std=np.ones(head.nu)
        )
        whitened = _modules.WhitenedNetwork(head.built(), normaliser)
        network = _vision.VisionNetwork(self.encoder.module(), whitened)
        batches = minibatches(data.n, c.finetune_steps, c.batch_size, rng)
        losses = _vision.train_whole(
            network, data.obs, images, problem, batches, c.finetune_rate, device
        )
        encoder = self.encoder.with_parameters(_vision.parameters_of(network.encoder))
        head = replace(head, weights=_vision.parameters_of(network.head))
        policy = replace(self, encoder=encoder, head=head)
        loss = problem.loss(policy.mean(data.obs, images))
        if not np.isfinite(loss):
            raise FitError("the policy's loss is not finite; lower VisionConfig.finetune_rate")
        trace = np.concatenate([result.trace, trace_of(losses * problem.scale, config)])
        return replace(result, policy=policy, loss=loss, trace=trace)

    def module(self) -> torch.nn.Module:
        """See `GlobalPolicy.module`."""
        from gps.policies import _vision

        return _vision.VisionNetwork(self.encoder.module(), self.head.module()).eval()
