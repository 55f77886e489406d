"""What a policy is: one function (observation, images, memory) -> (mean action, memory).

Memory is one array, a row for each sample, that goes into every step and comes out of it; its size
is 0 where a policy has none, and the policy itself keeps nothing:

    memory = np.tile(policy.memory0, (N, 1))
    mean, memory = policy.step(obs, memory)

Everything else that a policy does follows from that step, and is written here once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self, TypeVar, overload

import numpy as np

from gps.errors import ConfigError, NonFiniteError, ShapeError, choices
from gps.fields import Config, readonly
from gps.policies.training import TrainingConfig, TrainingData, TrainingResult
from gps.protocols import Agent, image_shape_of
from gps.types import Array, Images, Layout, Record

if TYPE_CHECKING:
    import torch

NO_MEMORY: Array = readonly(np.zeros(0))
"""`memory0` of a policy without memory."""


class Sizes(NamedTuple):
    """What a policy is made for: the sizes of an agent's observations, images and actions."""

    no: int
    """Observation size."""
    nu: int
    """Action size."""
    image_shape: tuple[int, int, int] | None = None
    """Height, width and channels of an observation's images; None without cameras."""
    layout: Layout = Layout(())
    """Named entries of the state, of which a policy may regress some from the images."""

    @classmethod
    def of(cls, agent: Agent) -> Sizes:
        """Those of an agent."""
        return cls(agent.obs_layout.size, agent.nu, image_shape_of(agent), agent.layout)


class Network(Config, ABC):
    """Base of the configurations of networks: hashable, and all that is needed to make a policy."""

    needs_images: ClassVar[bool] = False
    """Whether the policy's actions depend on images."""
    has_memory: ClassVar[bool] = False
    """Whether they depend on earlier observations; training then takes whole trajectories."""

    @property
    def single_precision(self) -> bool:
        """Whether a part of the policy is computed in float32."""
        return False

    def check(self, sizes: Sizes) -> None:
        """ConfigError unless the policy can be made for an agent of these sizes."""
        if self.needs_images and sizes.image_shape is None:
            raise ConfigError(
                f"{type(self).__name__} needs images, and this agent has no cameras; name some in "
                "MujocoConfig.cameras"
            )

    def check_pose(self, pose: tuple[str, ...], layout: Layout) -> None:
        """ConfigError for names that are not entries of the state."""
        for name in pose:
            if name not in layout.names:
                text = choices("state entry", name, layout.names)
                raise ConfigError(f"{type(self).__name__}.pose: {text}")

    @abstractmethod
    def initial_policy(self, sizes: Sizes, rng: np.random.Generator) -> GlobalPolicy:
        """An untrained policy: all weights drawn from `rng`, no whitening yet, unit covariance.

        Raises ConfigError where `check` does.
        """


class BasePolicy(ABC):
    """u ~ N(mean, chol chol') with mean, memory = step(obs, memory, images).

    Base of all policies but the local controllers; a subclass defines `_rows`, and has the
    attributes `no`, `nu` and `chol`.
    """

    if TYPE_CHECKING:  # at run time a dataclass would take properties for defaults of its fields

        @property
        def no(self) -> int:
            """Observation size."""
            raise NotImplementedError

        @property
        def nu(self) -> int:
            """Action size."""
            raise NotImplementedError

        @property
        def chol(self) -> Array:
            """Lower Cholesky factor of the action covariance, (nu, nu)."""
            raise NotImplementedError

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of the images that the policy needs; None if it needs none."""
        return None

    @property
    def memory0(self) -> Array:
        """Memory before the first observation, (size,); NaN for a missing observation."""
        return NO_MEMORY

    @property
    def needs_images(self) -> bool:
        """Whether `mean`, `step`, `act` and `predict` must be given images."""
        return self.image_shape is not None

    @property
    def has_memory(self) -> bool:
        """Whether actions depend on earlier observations."""
        return self.memory0.size > 0

    @property
    def Sigma(self) -> Array:
        """Action covariance, (nu, nu), the same at every step and observation."""
        return self.chol @ self.chol.T

    @abstractmethod
    def _rows(self, obs: Array, images: Images | None, memory: Array) -> tuple[Array, Array]:
        """One step of B >= 1 rows: obs (B, no), images (B, height, width, channels) or None,
        memory (B, size) to mean actions (B, nu) and memory (B, size). A policy without memory
        returns its argument."""

    def step(
        self, obs: Array, memory: Array = NO_MEMORY, images: Images | None = None
    ) -> tuple[Array, Array]:
        """Mean actions (..., nu) and the memory for the next step, (..., size); ShapeError.

        obs: (..., no). memory: (..., size), as the last step returned it, or `memory0` at first.
        images: (..., height, width, channels) uint8, ignored by a policy that needs none.
        """
        obs = self._observations(obs)
        memory, size = np.asarray(memory, dtype=np.float64), self.memory0.size
        if not size and memory.shape == (0,):
            return self._step(obs, NO_MEMORY, images)
        if memory.shape != (*obs.shape[:-1], size):
            raise ShapeError(
                f"a step takes observations (..., {self.no}) and memory (..., {size}) of as many "
                f"rows, got shapes {obs.shape} and {memory.shape}"
            )
        return self._step(obs, memory, images)

    def mean(self, obs: Array, images: Images | None = None) -> Array:
        """Mean actions (..., nu) for observations (..., no), NaN where the observation has NaN.

        With memory: those along trajectories, (..., T, nu) for (..., T, no), each from its
        beginning. images: one for each observation, ignored by a policy that needs none.
        Raises ShapeError.
        """
        obs = self._observations(obs)
        if not self.has_memory:
            return self._step(obs, NO_MEMORY, images)[0]
        if obs.ndim < 2 or obs.shape[-2] < 1:
            raise ShapeError(
                "a policy with memory takes whole trajectories of observations, (..., T, no); got "
                f"shape {obs.shape}. Step by step: predict(obs, state)"
            )
        images = self._images(obs, images)
        *lead, T, _ = obs.shape
        if images is not None:
            images = images.reshape(-1, T, *images.shape[-3:])
        mean = self._along(obs.reshape(-1, T, self.no), images)
        return mean.reshape(*lead, T, self.nu)

    @overload
    def act(
        self, x: Array, obs: Array, t: int, noise: Array, images: Images | None = None
    ) -> Array: ...
    @overload
    def act(
        self,
        x: Array,
        obs: Array,
        t: int,
        noise: Array,
        images: Images | None = None,
        *,
        memory: Array,
    ) -> tuple[Array, Array]: ...

    def act(
        self,
        x: Array,
        obs: Array,
        t: int,
        noise: Array,
        images: Images | None = None,
        *,
        memory: Array | None = None,
    ) -> Array | tuple[Array, Array]:
        """Actions (N, nu) for observations (N, no) and unit-variance noise (N, nu).

        Given memory (N, size): actions and the memory for the next step. A policy with memory must
        be given it; `gps.protocols.acting` carries it from step to step.
        """
        if memory is not None:
            mean, memory = self.step(obs, memory, images)
            return mean + noise @ self.chol.T, memory
        if self.has_memory:
            raise ShapeError("a policy with memory acts through gps.protocols.acting(policy)")
        return self.mean(obs, images) + noise @ self.chol.T

    def predict(
        self,
        obs: Array,
        state: Array | None = None,
        episode_start: Array | bool | None = None,
        deterministic: bool = True,
        *,
        images: Images | None = None,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, Array | None]:
        """Action (..., nu) and the state for the next call, in the manner of Stable-Baselines3.

        state: the memory (..., size), None at the beginning of an episode; in both directions None
        for a policy without memory. episode_start (...): where true, the state is that of a
        beginning whatever was given. With `deterministic=False` the policy's noise is drawn from
        `rng`, which must be given. Raises NonFiniteError where the mean action is not finite.
        """
        if not self.has_memory:
            return predicted(self.mean(obs, images), self.chol, deterministic, rng), None
        obs = self._observations(obs)
        memory = np.tile(self.memory0, (*obs.shape[:-1], 1))
        if state is not None:
            if np.shape(state) != memory.shape:
                raise ShapeError(
                    f"the policy's state must have shape {memory.shape}, got {np.shape(state)}"
                )
            start = np.zeros(obs.shape[:-1], dtype=bool)
            start |= np.asarray(False if episode_start is None else episode_start, dtype=bool)
            memory = np.where(start[..., None], memory, state)
        mean, memory = self.step(obs, memory, images)
        return predicted(mean, self.chol, deterministic, rng), memory

    def feature_points(self, images: Images) -> Array | None:
        """Feature points (k, 2) in one observation's images, as column and row in pixels; None for
        a policy that has none, or needs images of another shape."""
        return None

    def _along(self, obs: Array, images: Images | None) -> Array:
        """Mean actions (B, T, nu) along trajectories of observations (B, T, no), B may be 0."""
        memory, means = np.tile(self.memory0, (len(obs), 1)), []
        for t in range(obs.shape[1]):
            frame = None if images is None else images[:, t]
            mean, memory = self.step(obs[:, t], memory, frame)
            means.append(mean)
        return np.stack(means, axis=1)

    def _step(self, obs: Array, memory: Array, images: Images | None) -> tuple[Array, Array]:
        """`step` of checked observations and memory; NO_MEMORY stands for any rows without."""
        images = self._images(obs, images)
        if obs.ndim == 2 and len(obs):
            return self._rows(obs, images, memory)
        lead, n = obs.shape[:-1], obs.size // obs.shape[-1]
        if not n:  # a network of the user's may not take none
            return np.zeros((*lead, self.nu)), memory
        if images is not None:
            images = images.reshape(n, *images.shape[-3:])
        if memory is NO_MEMORY:
            mean, _ = self._rows(obs.reshape(n, -1), images, memory)
            return mean.reshape(*lead, -1), memory
        mean, after = self._rows(obs.reshape(n, -1), images, memory.reshape(n, -1))
        return mean.reshape(*lead, -1), after.reshape(memory.shape)

    @property
    def _entries(self) -> str:
        """What the observation's values are, for errors."""
        return ""

    def _observations(self, obs: Array) -> Array:
        """As float64; ShapeError for another size."""
        obs = np.asarray(obs, dtype=np.float64)
        if obs.ndim == 0 or obs.shape[-1] != self.no:
            raise ShapeError(
                f"observations must have {self.no} values{self._entries}, got shape {obs.shape}"
            )
        return obs

    def _images(self, obs: Array, images: Images | None) -> Images | None:
        """Those of the observations, None for a policy that needs none; ShapeError."""
        shape = self.image_shape
        if shape is None:
            return None
        want = (*obs.shape[:-1], *shape)
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape != want:
            got = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else "none"
            raise ShapeError(f"this policy needs images: they must be uint8 {want}, got {got}")
        return images


class GlobalPolicy(BasePolicy, Record):
    """Base of the policies that are trained."""

    if TYPE_CHECKING:

        @property
        def network(self) -> Network:
            """The configuration."""
            raise NotImplementedError

        @property
        def obs_mean(self) -> Array:
            """What observations are centred at, (no,)."""
            raise NotImplementedError

        @property
        def obs_std(self) -> Array:
            """What they are divided by then, (no,)."""
            raise NotImplementedError

        @property
        def trained(self) -> bool:
            """Whether it has been trained."""
            raise NotImplementedError

        @property
        def renormalises(self) -> bool:
            """Whether a further training takes the normaliser of its data, so that it may continue
            from the last weights; see `NetworkPolicy.renormalised`."""
            raise NotImplementedError

    @abstractmethod
    def restarted(self, rng: np.random.Generator) -> Self:
        """The policy that a training from scratch starts from: fresh weights from `rng`."""

    @abstractmethod
    def fit(
        self, data: TrainingData, config: TrainingConfig, rng: np.random.Generator
    ) -> TrainingResult[Self]:
        """Train further on `data`; minibatches are drawn from `rng`. Raises ShapeError,
        NonFiniteError, FitError."""

    @abstractmethod
    def module(self) -> torch.nn.Module:
        """A torch module of its own, normaliser inside: raw observations (B, no), then images and
        memory where the policy has them, to mean actions (B, nu), and memory where it has one."""

    def _needed(self, data: TrainingData) -> Images:
        """The images to train on; ShapeError."""
        if data.images is None:
            raise ShapeError("TrainingData.images must be given to train a policy that needs them")
        return data.images


P = TypeVar("P", bound=GlobalPolicy)


def means_at(policy: BasePolicy, data: TrainingData) -> Array:
    """The policy's mean actions at the samples, (n, nu); ShapeError."""
    if not policy.has_memory:
        return policy.mean(data.obs, data.images)
    images, obs = data.images, data.trajectories
    if images is not None:
        images = images.reshape(*obs.shape[:2], *images.shape[1:])
    return policy.mean(obs, images).reshape(data.n, -1)


def initial_policy(
    network: Network,
    no: int,
    nu: int,
    rng: np.random.Generator,
    image_shape: tuple[int, int, int] | None = None,
    layout: Layout | None = None,
) -> GlobalPolicy:
    """`network.initial_policy` for the sizes of an agent; see `Network` and `Sizes`."""
    sizes = Sizes(no, nu, image_shape, Layout(()) if layout is None else layout)
    return network.initial_policy(sizes, rng)


def fit(
    policy: P, data: TrainingData, config: TrainingConfig, rng: np.random.Generator
) -> TrainingResult[P]:
    """`policy.fit`; see `GlobalPolicy`."""
    return policy.fit(data, config, rng)


def predicted(
    mean: Array, chol: Array, deterministic: bool, rng: np.random.Generator | None
) -> Array:
    """A mean action (..., nu), with the policy's noise from `rng` unless `deterministic`.

    chol: lower Cholesky factor of the action covariance, (nu, nu). Raises ConfigError without rng,
    NonFiniteError for a mean that would stop or damage a motor: NaN and infinity.
    """
    if not np.isfinite(mean).all():
        raise NonFiniteError(
            "the policy's action is not finite; there is NaN or infinity in the observation, or a "
            "value far beyond those it was trained on"
        )
    if deterministic:
        return mean
    if rng is None:
        raise ConfigError("predict(deterministic=False) needs rng, the generator of noise")
    noisy: Array = mean + rng.normal(size=mean.shape) @ chol.T
    return noisy
