"""Neural policies as records of arrays: pi(o) = N(network((o - mean) / std), chol chol').

Torch defines what a network computes. A plain multi-layer perceptron is evaluated by a numba kernel
that a rollout can call thousands of times; every other network takes the slower way through torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np

from gps.errors import ConfigError, NonFiniteError, ShapeError, choices
from gps.fields import readonly
from gps.policies import _kernels
from gps.types import Array, Layout, Record, freeze, optional, shape_of

if TYPE_CHECKING:
    import torch


class PlainLayout(NamedTuple):
    """What the fast kernels need to know of a plain multi-layer perceptron."""

    sizes: tuple[int, ...]
    """Widths of all layers, observation and action included."""
    activation: int
    """A code of `gps.policies._kernels`."""

    @property
    def n_weights(self) -> int:
        """Length of the vector of all weights."""
        return sum((n + 1) * m for n, m in pairwise(self.sizes))


class Network(Protocol):
    """A network's configuration: hashable, and all that is needed to build the network."""

    def build(self, no: int, nu: int) -> torch.nn.Module:
        """The network: whitened observations (B, no) to mean actions (B, nu), float64."""
        ...

    def initial_weights(self, no: int, nu: int, rng: np.random.Generator) -> tuple[Array, ...]:
        """Start values in the order of the module's parameters, drawn from `rng` only."""
        ...

    def plain_layout(self, no: int, nu: int) -> PlainLayout | None:
        """The layout for the fast kernels, or None where `build` is the only way."""
        ...


class GlobalPolicy(Protocol):
    """What every global policy has, whatever its network.

    `mean`, `act` and `predict` take pictures besides where it has a true `needs_images`, and `act`
    takes and gives what it remembers where it has a true `has_memory`; see `gps.protocols`. A
    policy with a method `fit(data, config, rng)` is trained by that. One with `jacobian(obs)` can
    be linearised by its derivative; see `gps.policies.linearise`.
    """

    @property
    def network(self) -> Any:
        """The configuration."""
        ...

    @property
    def no(self) -> int:
        """Observation size."""
        ...

    @property
    def nu(self) -> int:
        """Action size."""
        ...

    @property
    def chol(self) -> Array:
        """Lower Cholesky factor of the action covariance, (nu, nu)."""
        ...

    @property
    def Sigma(self) -> Array:
        """Action covariance, (nu, nu)."""
        ...

    @property
    def obs_mean(self) -> Array:
        """What observations are centred at, (no,)."""
        ...

    @property
    def obs_std(self) -> Array:
        """What they are divided by then, (no,)."""
        ...

    @property
    def trained(self) -> bool:
        """Whether its weights come of a training."""
        ...

    @property
    def renormalises(self) -> bool:
        """Whether a further training takes the normaliser of its data: see
        `NetworkPolicy.renormalised`."""
        ...

    def restarted(self, rng: np.random.Generator) -> GlobalPolicy:
        """The policy that a training from scratch starts from."""
        ...

    def mean(self, *args: Any, **kwargs: Any) -> Array:
        """Mean actions (..., nu); with memory those along trajectories, (..., T, nu)."""
        ...

    def act(self, *args: Any, **kwargs: Any) -> Any:
        """Actions in a rollout."""
        ...

    def predict(self, *args: Any, **kwargs: Any) -> tuple[Array, Any]:
        """Action and what is remembered next, in the manner of Stable-Baselines3."""
        ...

    def module(self) -> torch.nn.Module:
        """A torch module of its own, normaliser inside."""
        ...


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """A multi-layer perceptron: linear layers with one kind of activation between them."""

    hidden: tuple[int, ...] = (40, 40)
    """Widths of the hidden layers; empty for a linear policy."""
    activation: str = "relu"
    """Function between the layers: relu, tanh or softplus."""
    init_scale: float = 1.0
    """Start deviation of the hidden weights, in units of sqrt(2 / n_in); above zero."""
    output_init_scale: float = 0.1
    """The same of the output layer, in units of sqrt(1 / n_in); small: first actions near 0."""

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, tuple) or not all(
            isinstance(n, int) and n > 0 for n in self.hidden
        ):
            raise ConfigError(
                f"MLPConfig.hidden must be a tuple of whole numbers above 0, got {self.hidden!r}"
            )
        if self.activation not in _kernels.ACTIVATIONS:
            text = choices("activation", self.activation, _kernels.ACTIVATIONS)
            raise ConfigError(f"MLPConfig.activation: {text}")
        for name in ("init_scale", "output_init_scale"):
            value = getattr(self, name)
            if not 0 < value < np.inf:
                raise ConfigError(f"MLPConfig.{name} must be above 0 and finite, got {value}")

    def build(self, no: int, nu: int) -> torch.nn.Module:
        """The network in torch, with all parameters zero."""
        from gps.policies import _modules

        return _modules.mlp((no, *self.hidden, nu), self.activation)

    def initial_weights(self, no: int, nu: int, rng: np.random.Generator) -> tuple[Array, ...]:
        """Normal weights with deviations after He, biases 0."""
        sizes = (no, *self.hidden, nu)
        scales = [self.init_scale * np.sqrt(2.0)] * len(self.hidden) + [self.output_init_scale]
        weights: list[Array] = []
        for (n, m), scale in zip(pairwise(sizes), scales, strict=True):
            weights += [rng.normal(size=(m, n)) * (scale / np.sqrt(n)), np.zeros(m)]
        return tuple(weights)

    def plain_layout(self, no: int, nu: int) -> PlainLayout | None:
        """Always there: this is the network that the fast kernels compute."""
        return PlainLayout((no, *self.hidden, nu), _kernels.ACTIVATIONS[self.activation])


@dataclass(frozen=True, eq=False)
class AdamState(Record):
    """State of the Adam optimiser, continued in the next training on the same data."""

    m: tuple[Array, ...]  # running mean of the gradient, shaped like the weights
    v: tuple[Array, ...]  # running mean of its square
    step: int = 0  # updates made so far

    def __post_init__(self) -> None:
        _freeze_arrays(self, "m")
        _freeze_arrays(self, "v")
        if [a.shape for a in self.m] != [a.shape for a in self.v]:
            raise ShapeError("AdamState.m and AdamState.v must have the same shapes")

    @classmethod
    def zero(cls, weights: Sequence[Array]) -> AdamState:
        """The state before the first update."""
        zeros = tuple(np.zeros(w.shape) for w in weights)
        return cls(m=zeros, v=zeros)


class Normaliser(NamedTuple):
    """Of inputs and outputs: a network sees (obs - obs_mean) / obs_std, and its output z means the
    action action_mean + action_std z."""

    obs_mean: Array  # (no,)
    obs_std: Array  # (no,)
    action_mean: Array  # (nu,)
    action_std: Array  # (nu,)


@dataclass(frozen=True, eq=False)
class NetworkPolicy(Record):
    """Base of the policies that are one network, trained as a whole.

    It sees whitened observations, and its outputs count in units of the actions' spread, so that
    neither unit matters to the training.
    """

    network: Network
    weights: tuple[Array, ...]  # in the order of the torch module's parameters
    obs_mean: Array  # (no,) of the training data, in the units of the observation
    obs_std: Array  # (no,) above zero
    chol: Array  # (nu, nu) lower
    optimiser: AdamState
    action_mean: Array = optional()  # noqa: RUF009
    """(nu,) of the training data, in the units of the action; zero unless given."""
    action_std: Array = optional()  # noqa: RUF009
    """(nu,) above zero, what the network's outputs are multiplied by; one unless given."""

    def __post_init__(self) -> None:
        kind = type(self).__name__
        (no,), (nu, _) = shape_of(self, "obs_mean", 1), shape_of(self, "chol", 2)
        freeze(self, obs_mean=(no,), obs_std=(no,), chol=(nu, nu))
        for name, value in (("action_mean", 0.0), ("action_std", 1.0)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.full(nu, value))
        freeze(self, action_mean=(nu,), action_std=(nu,))
        _freeze_arrays(self, "weights")
        shapes = [w.shape for w in self.weights]
        layout = self.network.plain_layout(no, nu)
        if layout is not None:
            want: list[tuple[int, ...]] = []
            for n, m in pairwise(layout.sizes):
                want += [(m, n), (m,)]
            if shapes != want:
                raise ShapeError(f"{kind}.weights must have shapes {want}, got {shapes}")
        if [a.shape for a in self.optimiser.m] != shapes:
            raise ShapeError(f"{kind}.optimiser must hold arrays of shapes {shapes}")
        for name in ("obs_std", "action_std"):
            if not np.all(getattr(self, name) > 0):
                raise ShapeError(f"{kind}.{name} must be above 0 everywhere")

    @property
    def no(self) -> int:
        """Observation size."""
        return self.obs_mean.shape[0]

    @property
    def nu(self) -> int:
        """Action size."""
        return self.chol.shape[0]

    @property
    def Sigma(self) -> Array:
        """Action covariance, (nu, nu), the same at every step and observation."""
        return self.chol @ self.chol.T

    @property
    def normaliser(self) -> Normaliser:
        """Means and deviations of observations and actions."""
        return Normaliser(self.obs_mean, self.obs_std, self.action_mean, self.action_std)

    @property
    def trained(self) -> bool:
        """Whether `fit` has updated the weights, and so has set the normaliser."""
        return self.optimiser.step > 0

    @classmethod
    def initial(cls, network: Network, no: int, nu: int, rng: np.random.Generator) -> Self:
        """An untrained policy: weights drawn from `rng`, no whitening yet, unit covariance."""
        weights = network.initial_weights(no, nu, rng)
        return cls(
            network=network,
            weights=weights,
            obs_mean=np.zeros(no),
            obs_std=np.ones(no),
            chol=np.eye(nu),
            optimiser=AdamState.zero(weights),
        )

    @property
    def renormalises(self) -> bool:
        """Whether `renormalised` can rewrite the network."""
        return self.network.plain_layout(self.no, self.nu) is not None

    def renormalised(self, normaliser: Normaliser) -> Self:
        """The same function of raw observations with another normaliser.

        For a perceptron (`plain_layout`), whose weights can be rewritten: the first layer takes up
        the change of the observations, the last one that of the actions. The optimiser's state is
        reset. Any other network keeps its normaliser.
        """
        if not self.renormalises or all(map(np.array_equal, normaliser, self.normaliser)):
            return self
        old, weights = self.normaliser, [np.array(w) for w in self.weights]
        weights[1] += weights[0] @ ((normaliser.obs_mean - old.obs_mean) / old.obs_std)
        weights[0] *= normaliser.obs_std / old.obs_std
        weights[-2] *= (old.action_std / normaliser.action_std)[:, None]
        weights[-1] *= old.action_std
        weights[-1] += old.action_mean - normaliser.action_mean
        weights[-1] /= normaliser.action_std
        optimiser = AdamState.zero(weights)
        return replace(self, weights=tuple(weights), optimiser=optimiser, **normaliser._asdict())

    def restarted(self, rng: np.random.Generator) -> Self:
        """An untrained policy of the same network and sizes."""
        return type(self).initial(self.network, self.no, self.nu, rng)

    def built(self) -> torch.nn.Module:
        """The network with its weights, without the normaliser."""
        from gps.policies import _modules

        network = self.network.build(self.no, self.nu)
        _modules.set_parameters(network, self.weights)
        return network


@dataclass(frozen=True, eq=False)
class NeuralPolicy(NetworkPolicy):
    """u ~ N(action_mean + action_std network((obs - obs_mean) / obs_std), chol chol').

    Made by `initial_policy`.
    """

    @cached_property
    def _fast(self) -> tuple[Array, np.ndarray, int] | None:
        """Layers with transposed weights in one vector, sizes, activation; for the kernel."""
        layout = self.network.plain_layout(self.no, self.nu)
        if layout is None:
            return None
        flat = np.concatenate([w.T.ravel() for w in self.weights])
        return readonly(flat), np.array(layout.sizes, dtype=np.int64), layout.activation

    @cached_property
    def _slow(self) -> torch.nn.Module:
        """The module behind `mean` where there is no fast kernel."""
        return self.module()

    def mean(self, obs: Array) -> Array:
        """Mean actions (..., nu) for observations (..., no), NaN where the observation has NaN."""
        obs, rows = self._rows(obs)
        fast = self._fast
        if fast is None:
            out = self._mean_torch(rows)
        else:
            layers, sizes, activation = fast
            out = np.empty((rows.shape[0], self.nu))
            _kernels.forward_rows(layers, sizes, activation, self.obs_mean, self.obs_std, rows, out)
            out = self.action_mean + self.action_std * out
        return out.reshape(*obs.shape[:-1], self.nu)

    def jacobian(self, obs: Array) -> Array:
        """Derivatives of the mean actions by the observation, (..., nu, no), at (..., no).

        Exact; where an activation has a kink, that of one side.
        """
        obs, rows = self._rows(obs)
        fast = self._fast
        if fast is None:
            out = self._jacobian_torch(rows)
        else:
            layers, sizes, activation = fast
            out = np.empty((rows.shape[0], self.nu, self.no))
            _kernels.jacobian_rows(
                layers, sizes, activation, self.obs_mean, self.obs_std, rows, out
            )
            out *= self.action_std[:, None]
        return out.reshape(*obs.shape[:-1], self.nu, self.no)

    def _rows(self, obs: Array) -> tuple[Array, Array]:
        """The observations (..., no) as an array, and as rows (B, no)."""
        obs = np.asarray(obs, dtype=np.float64)
        if obs.ndim == 0 or obs.shape[-1] != self.no:
            raise ShapeError(f"observations must have {self.no} values, got shape {obs.shape}")
        return obs, readonly(obs.reshape(-1, self.no))

    def _jacobian_torch(self, rows: Array) -> Array:
        """One pass back for each action; no row depends on another, so their sum will do."""
        import torch

        from gps.policies import _modules

        out = np.empty((rows.shape[0], self.nu, self.no))
        with _modules.one_thread():
            inputs = torch.tensor(rows, requires_grad=True)
            actions = self._slow(inputs)
            for j in range(self.nu):
                (slope,) = torch.autograd.grad(
                    actions[:, j].sum(), inputs, retain_graph=True, materialize_grads=True
                )
                out[:, j] = slope.numpy()
        return out

    def _mean_torch(self, rows: Array) -> Array:
        import torch

        from gps.policies import _modules

        with _modules.one_thread(), torch.no_grad():
            out: Array = self._slow(torch.tensor(rows)).numpy()
        return out

    def act(self, x: Array, obs: Array, t: int, noise: Array) -> Array:
        """Actions (N, nu) for observations (N, no) and unit-variance noise (N, nu)."""
        return self.mean(obs) + noise @ self.chol.T

    def predict(
        self,
        obs: Array,
        state: object = None,
        episode_start: object = None,
        deterministic: bool = True,
        *,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, None]:
        """Action (..., nu) and None, in the manner of Stable-Baselines3; two arguments unused.

        With `deterministic=False` the policy's noise is drawn from `rng`, which must be given.
        Raises NonFiniteError where the mean action is not finite.
        """
        return predicted(self.mean(obs), self.chol, deterministic, rng), None

    def module(self) -> torch.nn.Module:
        """A torch module of its own, normaliser inside: raw observation to mean action."""
        from gps.policies import _modules

        return _modules.WhitenedNetwork(self.built(), self.normaliser).eval()


def initial_policy(
    network: Network,
    no: int,
    nu: int,
    rng: np.random.Generator,
    image_shape: tuple[int, int, int] | None = None,
    layout: Layout | None = None,
) -> GlobalPolicy:
    """An untrained policy: weights drawn from `rng`, no whitening yet, unit covariance.

    A NeuralPolicy; a network with an `initial_policy` of its own (`VisionConfig`, `WindowConfig`),
    which is given the shape of the world's pictures and the layout of its states too, makes another
    one.
    """
    make = getattr(network, "initial_policy", None)
    if make is None:
        return NeuralPolicy.initial(network, no, nu, rng)
    policy: GlobalPolicy = make(no, nu, image_shape, layout, rng)
    return policy


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


def _freeze_arrays(record: object, name: str) -> None:
    """Cast a field that is a sequence of arrays to a tuple of read-only arrays."""
    object.__setattr__(record, name, tuple(readonly(a) for a in getattr(record, name)))
