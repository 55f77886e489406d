"""Networks of the user's that see: a torch module of pictures and of the robot's own state.

    class MyEyes(torch.nn.Module):
        def __init__(self, no, nu, image_shape, channels):
            super().__init__()
            height, width, colours = image_shape
            self.conv = torch.nn.Conv2d(colours, channels, 5, stride=2)
            self.last = torch.nn.LazyLinear(nu)

        def features(self, images):  # needed for training on a pose only: to (B, n)
            x = images.permute(0, 3, 1, 2).to(self.conv.weight.dtype) / 255.0
            return torch.relu(self.conv(x)).flatten(1)

        def forward(self, obs, images):  # (B, no) whitened, (B, H, W, C) uint8 to (B, nu)
            return self.last(torch.cat([obs, self.features(images)], dim=1))

    network = SeeingModuleConfig(module=MyEyes, arguments=(("channels", 8),))

The whole network is trained end to end on the policy's loss, on the CPU in float64. With `pose` it
is first trained to tell named state entries from the pictures, as `VisionConfig` does it, through
`features` and a linear layer that the policy keeps for that purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from gps.errors import ConfigError, GPSError, ShapeError, choices
from gps.fields import readonly
from gps.policies import training
from gps.policies.module import Sizes, UserModule
from gps.policies.neural import AdamState, NetworkPolicy, predicted
from gps.policies.training import Indices, Problem, TrainingConfig, TrainingData, TrainingResult
from gps.rng import stream
from gps.types import Array, Images, Layout

if TYPE_CHECKING:
    import torch

_CHUNK = 256  # pictures at once where no gradient is needed: bounds the memory


@dataclass(frozen=True, kw_only=True)
class SeeingModuleConfig(UserModule):
    """A network that sees, a torch module of the user's; module(no, nu, image_shape, **arguments).

    image_shape is (height, width, channels). Its forward maps whitened observations (B, no) and
    pictures (B, height, width, channels), uint8, to mean actions (B, nu), float64. For the rest
    `ModuleConfig` says what a module may do and where it must be defined.
    """

    pose: tuple[str, ...] = ()
    """State entries that the module's features learn to tell from the pictures before every
    training; empty for training on the policy's loss alone. Needs a method features(images)."""
    pose_first_steps: int = 500
    """Steps of the first training on the pose; at least 1."""
    pose_steps: int = 100
    """Steps of each later one, which goes on from the last weights; not below 0."""
    pose_batch_size: int = 32
    """Pictures per step on the pose; at least 1."""
    pose_rate: float = 3e-3
    """Adam's step size on the pose, which falls along half a cosine; above zero."""

    sees: ClassVar[bool] = True
    """The policy needs pictures."""
    _given: ClassVar[tuple[str, ...]] = ("observations", "pictures")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.pose, str):
            raise ConfigError(
                f"SeeingModuleConfig.pose must be a tuple of names, got {self.pose!r}"
            )
        object.__setattr__(self, "pose", tuple(self.pose))
        for name, least in (("pose_first_steps", 1), ("pose_steps", 0), ("pose_batch_size", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(
                    f"SeeingModuleConfig.{name} must be a whole number of at least {least}, got "
                    f"{value!r}"
                )
        if not 0 < self.pose_rate < np.inf:
            raise ConfigError(
                f"SeeingModuleConfig.pose_rate must be above 0 and finite, got {self.pose_rate}"
            )

    def check(self, layout: Layout, image_shape: tuple[int, int, int] | None) -> None:
        """ConfigError unless the world has pictures, and the pose entries."""
        if image_shape is None:
            raise ConfigError(
                "SeeingModuleConfig needs pictures, and this world has no cameras; name some in "
                "MujocoConfig.cameras"
            )
        for name in self.pose:
            if name not in layout.names:
                raise ConfigError(
                    f"SeeingModuleConfig.pose: {choices('state entry', name, layout.names)}"
                )

    def build(self, no: int, nu: int) -> torch.nn.Module:
        """Not used: see `SeeingPolicy.built`."""
        raise GPSError("a SeeingModuleConfig makes its policy by initial_policy")

    def initial_weights(self, no: int, nu: int, rng: np.random.Generator) -> tuple[Array, ...]:
        """Not used: see `SeeingModuleConfig.initial_policy`."""
        raise GPSError("a SeeingModuleConfig makes its policy by initial_policy")

    def build_seeing(self, no: int, nu: int, image_shape: tuple[int, ...]) -> torch.nn.Module:
        """The network in float64; always the same, with parameters that are to be replaced."""
        return self._made((no, nu, tuple(image_shape)), seed=0)

    def initial_policy(
        self,
        no: int,
        nu: int,
        image_shape: tuple[int, int, int] | None,
        layout: Layout | None,
        rng: np.random.Generator,
    ) -> SeeingPolicy:
        """An untrained policy; see `gps.policies.initial_policy`."""
        layout = Layout(()) if layout is None else layout
        self.check(layout, image_shape)
        assert image_shape is not None
        weights = self._weights((no, nu, tuple(image_shape)), rng)
        return SeeingPolicy(
            network=self,
            weights=weights,
            obs_mean=np.zeros(no),
            obs_std=np.ones(no),
            chol=np.eye(nu),
            optimiser=AdamState.zero(weights),
            image_shape=tuple(image_shape),
        )

    def _inputs(
        self, network: torch.nn.Module, sizes: Sizes, obs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        import torch

        shape = (len(obs), *sizes[2])
        pictures = stream(0, "pictures").integers(0, 256, size=shape, dtype=np.uint8)
        return obs, torch.tensor(pictures)

    def _seen(
        self, network: torch.nn.Module, sizes: Sizes, inputs: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """The actions; ConfigError where the pictures have no part in them, or features lack."""
        import torch

        obs, images = inputs
        (action,) = self._outputs(network, sizes, inputs)
        (other,) = self._outputs(network, sizes, (obs, 255 - images))
        if torch.equal(action, other):
            raise ConfigError(
                f"{self._shown}: the actions do not depend on the pictures; a network without "
                "sight is named by ModuleConfig"
            )
        if self.pose:
            features = self._features(network, images)
            if features.dim() != 2 or len(features) != len(images):
                raise ConfigError(
                    f"{self._shown}: features must give (B, n) for pictures (B, H, W, C), got "
                    f"shape {tuple(features.shape)} for {len(images)} pictures"
                )
        return action

    def _features(self, network: Any, images: torch.Tensor) -> torch.Tensor:
        import torch

        if not callable(getattr(network, "features", None)):
            raise ConfigError(
                f"{self._shown} must have a method features(images) to be trained on a pose"
            )
        try:
            out = network.features(images)
        except Exception as error:  # the user's code
            raise ConfigError(
                f"{self._shown}: features of pictures {tuple(images.shape)} raised "
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        if not isinstance(out, torch.Tensor) or out.dtype != torch.float64:
            kind = out.dtype if isinstance(out, torch.Tensor) else type(out).__name__
            raise ConfigError(f"{self._shown}: features must give a float64 tensor, got {kind}")
        return out


@dataclass(frozen=True, eq=False)
class SeeingPolicy(NetworkPolicy):
    """u ~ N(action_mean + action_std network((obs - obs_mean) / obs_std, images), chol chol').

    Made by `initial_policy`.
    """

    image_shape: tuple[int, ...] = (0, 0, 0)
    """Height, width and channels of a picture."""
    pose: tuple[Array, ...] = ()
    """Of the pose that `features` tell: linear layer (k, n) and (k,), mean and deviation (k,) of
    the first training; empty before, and without a pose."""

    needs_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "image_shape", tuple(int(n) for n in self.image_shape))
        object.__setattr__(self, "pose", tuple(readonly(a) for a in self.pose))

    @property
    def config(self) -> SeeingModuleConfig:
        """The network's configuration."""
        return cast(SeeingModuleConfig, self.network)

    def restarted(self, rng: np.random.Generator) -> SeeingPolicy:
        """With fresh weights; what was trained on a pose stays, as with `VisionConfig`."""
        fresh = self.config.initial_policy(
            self.no, self.nu, cast(Any, self.image_shape), _any_layout(self.config.pose), rng
        )
        if not self.pose:
            return fresh
        kept = self._seeing()
        weights = tuple(
            old if keep else new
            for old, new, keep in zip(self.weights, fresh.weights, kept, strict=True)
        )
        return replace(fresh, weights=weights, pose=self.pose)

    def _seeing(self) -> list[bool]:
        """Which of the weights `features` depend on."""
        import torch

        network = self.built()
        blank = torch.zeros((1, *self.image_shape), dtype=torch.uint8)
        total = self.config._features(network, blank).sum()
        found = torch.autograd.grad(total, list(network.parameters()), allow_unused=True)
        return [g is not None for g in found]

    def built(self) -> torch.nn.Module:
        """The network with its weights, without the normaliser."""
        from gps.policies import _modules

        network = self.config.build_seeing(self.no, self.nu, self.image_shape)
        _modules.set_parameters(network, self.weights)
        return network

    @cached_property
    def _module(self) -> torch.nn.Module:
        return self.module()

    def mean(self, obs: Array, images: Images | None = None) -> Array:
        """Mean actions (..., nu) for observations (..., no) and pictures (..., H, W, C)."""
        import torch

        from gps.policies import _modules

        obs = np.asarray(obs, dtype=np.float64)
        if obs.ndim == 0 or obs.shape[-1] != self.no:
            raise ShapeError(f"observations must have {self.no} values, got shape {obs.shape}")
        want = (*obs.shape[:-1], *self.image_shape)
        if images is None or images.dtype != np.uint8 or images.shape != want:
            got = "none" if images is None else f"{images.dtype} {images.shape}"
            raise ShapeError(f"this policy sees: images must be uint8 {want}, got {got}")
        rows, pictures = obs.reshape(-1, self.no), images.reshape(-1, *self.image_shape)
        out = np.empty((len(rows), self.nu))
        with _modules.one_thread(), torch.no_grad():
            for i in range(0, len(rows), _CHUNK):
                part = torch.tensor(rows[i : i + _CHUNK]), torch.tensor(pictures[i : i + _CHUNK])
                out[i : i + _CHUNK] = self._module(*part).numpy()
        return out.reshape(*obs.shape[:-1], self.nu)

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
        return predicted(self.mean(obs, images), self.chol, deterministic, rng), None

    def fit(
        self, data: TrainingData, config: TrainingConfig, rng: np.random.Generator
    ) -> TrainingResult:
        """Train on the pose where there is one, then the whole network on the policy's loss."""
        if data.images is None:
            raise ShapeError("TrainingData.images must be given to train a policy that sees")
        policy = self._told(data, rng) if self.config.pose else self
        policy, problem = training.prepare(policy, data, config)
        batches = training.minibatches(data.n, config.steps, config.batch_size, rng)
        gradient = _Seeing(policy.built(), problem, data.images)
        return training.descended(policy, problem, data, gradient, batches, config)

    def _told(self, data: TrainingData, rng: np.random.Generator) -> SeeingPolicy:
        """After a training on the pose; FitError."""
        import torch

        from gps.policies import _modules, _vision

        assert data.images is not None
        c, images = self.config, data.images
        truth = _entries(data, c.pose)
        steps = c.pose_steps if self.pose else c.pose_first_steps
        if not steps:
            return self
        eyes = self.built()
        with torch.no_grad():
            n = self.config._features(eyes, torch.tensor(images[:1])).shape[1]
        layer = torch.nn.utils.skip_init(torch.nn.Linear, n, truth.shape[1], dtype=torch.float64)
        W, b, mean, std = self.pose or (
            rng.normal(size=(truth.shape[1], n)) / np.sqrt(n),
            np.zeros(truth.shape[1]),
            truth.mean(axis=0),
            np.maximum(truth.std(axis=0), 1e-6),
        )
        _modules.set_parameters(layer, (W, b))
        batches = training.minibatches(data.n, steps, c.pose_batch_size, rng)
        network, cpu = _modules.PoseOf(eyes, layer), torch.device("cpu")
        _vision.train_pose(network, images, (truth - mean) / std, batches, c.pose_rate, cpu)
        W, b = _vision.parameters_of(layer)
        return replace(self, weights=_vision.parameters_of(eyes), pose=(W, b, mean, std))

    def told_pose(self, images: Images) -> Array:
        """The pose (n, k) that the features of pictures (n, H, W, C) tell, in the state's units.

        Raises GPSError before a training on a pose.
        """
        import torch

        if not self.pose:
            raise GPSError("the network has not been trained on a pose")
        W, b, mean, std = self.pose
        with torch.no_grad():
            features = self.config._features(self.built(), torch.tensor(images)).numpy()
        told: Array = (features @ W.T + b) * std + mean
        return told

    def module(self) -> torch.nn.Module:
        """A torch module of its own: raw observation and pictures to mean action."""
        from gps.policies import _modules

        return _modules.WhitenedSeeing(self.built(), self.normaliser).eval()


def _entries(data: TrainingData, names: Sequence[str]) -> Array:
    """The named entries of the samples' states, (n, k); ShapeError where there are none."""
    if data.state is None or data.layout is None:
        raise ShapeError("TrainingData.state and .layout must be given to train on a pose")
    return np.concatenate([data.state[:, data.layout.slice(name)] for name in names], axis=1)


def _any_layout(names: Sequence[str]) -> Layout:
    """A layout with those entries, which were found in the world's before."""
    return Layout(tuple((name, 1) for name in names))


class _Seeing(training.TorchGradient):
    """Minibatches of observations and their pictures."""

    def __init__(self, module: torch.nn.Module, problem: Problem, images: Images) -> None:
        super().__init__(module, problem)
        self.images = images

    def means(self, rows: torch.Tensor) -> torch.Tensor:
        """The mean actions (B, nu) of samples."""
        import torch

        at: Indices = rows.numpy()
        action: torch.Tensor = self.module(self.obs[rows], torch.tensor(self.images[at]))
        return action
