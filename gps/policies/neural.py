"""Policies that are one network, trained as a whole: u ~ N(network((o - mean) / std), chol chol').

Torch defines what a network computes. A multi-layer perceptron is evaluated by a compiled kernel
that a rollout can call thousands of times; every other network is evaluated by torch, which takes
longer.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar, TypeVarTuple

import numpy as np

from gps.errors import ConfigError, GPSError, ShapeError
from gps.fields import Shape, readonly
from gps.policies import _kernels
from gps.policies.optimisation import (
    AdamState,
    Gradient,
    Indices,
    MLPGradient,
    MLPLayout,
    TorchGradient,
    diverged,
    flatten,
    freeze_tuples,
    minibatches,
    schedule,
    unflatten,
)
from gps.policies.policy import NO_MEMORY, GlobalPolicy, Network, Sizes, means_at
from gps.policies.training import (
    Normaliser,
    Problem,
    TrainingConfig,
    TrainingData,
    TrainingResult,
    policy_variance,
    problem_of,
    whitening_std,
)
from gps.rng import stream
from gps.types import Array, Images, optional

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_CHUNK = 256  # images at once where no gradient is needed: bounds the memory


class TorchNetwork(Network):
    """Base of the configurations of networks that torch defines, and that are trained as a whole.

    A configuration of your own has `build` and `initial_weights`; the rest is for networks of other
    inputs than a whitened observation. It is tried once when a policy is made.
    """

    @abstractmethod
    def build(self, sizes: Sizes) -> torch.nn.Module:
        """The network: whitened observations (B, no), then images and memory where it takes them,
        to actions (B, nu) in units of their spread, and memory (B, size); all in float64 but the
        images, uint8 (B, height, width, channels)."""

    @abstractmethod
    def initial_weights(self, sizes: Sizes, rng: np.random.Generator) -> tuple[Array, ...]:
        """Initial values in the order of the module's parameters, drawn from `rng` only."""

    def mlp_layout(self, sizes: Sizes) -> MLPLayout | None:
        """The layout for the compiled kernels, or None where `build` is the only way."""
        return None

    def initial_memory(self, network: torch.nn.Module) -> torch.Tensor:
        """Memory before the first observation, (size,), of a network that has one."""
        raise NotImplementedError

    def outputs(
        self, network: torch.nn.Module, obs: torch.Tensor, images: torch.Tensor | None
    ) -> torch.Tensor:
        """The network's actions for whitened observations (B, no); with memory along trajectories,
        (B, T, nu) for (B, T, no), step after step."""
        import torch

        if not self.has_memory:
            action: torch.Tensor = network(obs) if images is None else network(obs, images)
            return action
        memory, actions = self.initial_memory(network).expand(len(obs), -1), []
        for t in range(obs.shape[1]):
            frame = () if images is None else (images[:, t],)
            action, memory = network(obs[:, t], *frame, memory)
            actions.append(action)
        return torch.stack(actions, dim=1)

    def batches(self, data: TrainingData, config: TrainingConfig) -> tuple[int, int]:
        """What minibatches are drawn of, samples or trajectories: how many there are, and how many
        of them are in a batch."""
        if not self.has_memory:
            return data.n, config.batch_size
        n, T, _ = data.trajectories.shape
        return n, min(max(config.batch_size // T, 1), n)

    def initial_policy(self, sizes: Sizes, rng: np.random.Generator) -> NetworkPolicy:
        """See `Network.initial_policy`."""
        self.check(sizes)
        return NetworkPolicy.initial(self, sizes, rng)

    def checked_weights(self, sizes: Sizes, rng: np.random.Generator) -> tuple[Array, ...]:
        """`initial_weights`; ConfigError that names the configuration where they are not those of
        the module, or a step of the module does not take or return what `build` says."""
        given = self._call("initial_weights", self.initial_weights, sizes, rng)
        if not isinstance(given, tuple | list):
            raise ConfigError(
                f"{self._shown}: initial_weights must return a tuple of arrays in the order of the "
                f"module's parameters, got a {type(given).__name__}"
            )
        weights = tuple(self._call("an array of initial_weights", readonly, w) for w in given)
        if self.mlp_layout(sizes) is None:
            self._try(sizes, weights)
        return weights

    def _try(self, sizes: Sizes, weights: tuple[Array, ...]) -> None:
        """Raise ConfigError unless one step of the module with these weights fits the sizes."""
        import torch

        from gps.policies import _modules

        shown, shapes = self._shown, [w.shape for w in weights]
        obs = torch.tensor(np.linspace(-2.0, 2.0, 2 * sizes.no).reshape(2, sizes.no))
        with _modules.one_thread(), torch.random.fork_rng(devices=[]), torch.no_grad():
            network = self._call("build", self.build, sizes)
            if not isinstance(network, torch.nn.Module):
                kind = type(network).__name__
                raise ConfigError(f"{shown}: build must return a torch.nn.Module, got a {kind}")
            if (wanted := [tuple(p.shape) for p in network.parameters()]) != shapes:
                raise ConfigError(
                    f"{shown}: initial_weights must return arrays of the shapes of the module's "
                    f"parameters, {wanted}, got {shapes}"
                )
            _modules.set_parameters(network, weights)
            self._outputs(network, sizes, self._inputs(network, sizes, obs))

    def _call(self, what: str, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        """`fn(*args)`; what the user's code raises is a ConfigError of one line."""
        try:
            return fn(*args)
        except GPSError:
            raise
        except Exception as error:
            raise ConfigError(f"{self._shown}: {what} {described(error)}") from error

    @property
    def _shown(self) -> str:
        """The network in errors."""
        return type(self).__name__

    @property
    def _given(self) -> tuple[str, ...]:
        """What forward is given, in errors."""
        return "observations", *("images",) * self.needs_images, *("memory",) * self.has_memory

    _memory0_needed: ClassVar[str] = (
        ": initial_memory must return a tensor (size,), the memory before the first observation"
    )

    def _inputs(
        self, network: torch.nn.Module, sizes: Sizes, obs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """What forward is given to try it with observations (B, no)."""
        import torch

        inputs = [obs]
        if self.needs_images:
            assert sizes.image_shape is not None
            shape = (len(obs), *sizes.image_shape)
            images = stream(0, "images").integers(0, 256, size=shape, dtype=np.uint8)
            inputs.append(torch.tensor(images))
        if self.has_memory:
            inputs.append(self._memory0(network).expand(len(obs), -1))
        return tuple(inputs)

    def _memory0(self, network: torch.nn.Module) -> torch.Tensor:
        """`initial_memory`, checked."""
        import torch

        memory = self._call("initial_memory", self.initial_memory, network)
        if not isinstance(memory, torch.Tensor) or memory.dim() != 1 or not len(memory):
            got = "none" if memory is None else f"a {type(memory).__name__}"
            if isinstance(memory, torch.Tensor):
                got = f"shape {tuple(memory.shape)}"
            raise ConfigError(f"{self._shown}{self._memory0_needed}; got {got}")
        if not torch.isfinite(memory).all():
            raise ConfigError(f"{self._shown}: the first memory is not finite")
        return memory

    def _outputs(
        self, network: torch.nn.Module, sizes: Sizes, inputs: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        """What forward returns, checked."""
        out, rows = self._called(network, inputs), len(inputs[0])
        several = isinstance(out, tuple | list)
        if not self.has_memory:
            if several:
                raise ConfigError(
                    f"{self._shown}: forward returns a {type(out).__name__} and must return "
                    "actions only; a network that carries a hidden state is named by "
                    "RecurrentConfig"
                )
            return (self._tensor(out, "actions", (rows, sizes.nu), inputs),)
        memory = self._given[-1]
        if not several or len(out) != 2:
            got = f"{len(out)} values" if several else type(out).__name__
            raise ConfigError(
                f"{self._shown}: forward must return two tensors, actions and {memory}, got {got}"
            )
        return (
            self._tensor(out[0], "actions", (rows, sizes.nu), inputs),
            self._tensor(out[1], memory, (rows, inputs[-1].shape[1]), inputs),
        )

    def _called(self, network: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
        try:
            return network(*inputs)
        except Exception as error:
            hint = "; its inputs are float64" if "dtype" in str(error) else ""
            what = " and ".join(
                f"{name} {tuple(a.shape)}" for name, a in zip(self._given, inputs, strict=True)
            )
            raise ConfigError(
                f"{self._shown}: forward of {what} {described(error)}{hint}"
            ) from error

    def _tensor(
        self, out: Any, what: str, shape: tuple[int, int], inputs: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """A tensor that forward returned, checked."""
        import torch

        shown = self._shown
        if not isinstance(out, torch.Tensor):
            kind = type(out).__name__
            raise ConfigError(f"{shown}: forward must return {what} as a tensor, got a {kind}")
        if tuple(out.shape) != shape:
            raise ConfigError(
                f"{shown}: forward must return {what} of shape {shape} for observations "
                f"{tuple(inputs[0].shape)}, got {tuple(out.shape)}"
            )
        if not torch.isfinite(out).all():
            raise ConfigError(f"{shown}: forward returns NaN or infinity for finite observations")
        return out


def described(error: Exception) -> str:
    """What an exception of the user's code was, in one line."""
    text = " ".join(str(error).split())
    return f"raised {type(error).__name__}: {text}".rstrip(": ")


@dataclass(frozen=True, eq=False)
class NetworkPolicy(GlobalPolicy):
    """u ~ N(action_mean + action_std network((obs - obs_mean) / obs_std), chol chol').

    Inputs are whitened and outputs count in units of the actions' spread, so that neither unit
    matters to the training. Made by `initial_policy`.
    """

    network: TorchNetwork
    weights: tuple[Array, ...]
    """In the order of the torch module's parameters."""
    obs_mean: Annotated[Array, Shape("no")]
    """Of the training data, in the units of the observation."""
    obs_std: Annotated[Array, Shape("no")]
    """Above zero."""
    chol: Annotated[Array, Shape("nu nu")]
    """Lower Cholesky factor of the action covariance."""
    optimiser: AdamState
    action_mean: Annotated[Array, Shape("nu")]
    """Of the training data, in the units of the action."""
    action_std: Annotated[Array, Shape("nu")]
    """Above zero."""
    image_shape: tuple[int, int, int] | None = optional()
    """Height, width and channels of the images that the network takes; None if it takes none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        freeze_tuples(self, "weights")
        kind, shapes = type(self).__name__, [w.shape for w in self.weights]
        layout = self.network.mlp_layout(self.sizes)
        if layout is not None and shapes != layout.shapes:
            raise ShapeError(f"{kind}.weights must have shapes {layout.shapes}, got {shapes}")
        if [a.shape for a in self.optimiser.m] != shapes:
            raise ShapeError(f"{kind}.optimiser must hold arrays of shapes {shapes}")
        for name, std in (("obs_std", self.obs_std), ("action_std", self.action_std)):
            if not np.all(std > 0):
                raise ShapeError(f"{kind}.{name} must be above 0 everywhere")

    @classmethod
    def initial(cls, network: TorchNetwork, sizes: Sizes, rng: np.random.Generator) -> Self:
        """An untrained policy: weights drawn from `rng`, no whitening yet, unit covariance."""
        weights = network.checked_weights(sizes, rng)
        return cls(
            network=network,
            weights=weights,
            obs_mean=np.zeros(sizes.no),
            obs_std=np.ones(sizes.no),
            chol=np.eye(sizes.nu),
            optimiser=AdamState.zero(weights),
            action_mean=np.zeros(sizes.nu),
            action_std=np.ones(sizes.nu),
            image_shape=sizes.image_shape if network.needs_images else None,
        )

    @property
    def no(self) -> int:
        """Observation size."""
        return self.obs_mean.shape[0]

    @property
    def nu(self) -> int:
        """Action size."""
        return self.chol.shape[0]

    @property
    def sizes(self) -> Sizes:
        """What the network is built for."""
        return Sizes(self.no, self.nu, self.image_shape)

    @property
    def normaliser(self) -> Normaliser:
        """Means and standard deviations of observations and actions."""
        return Normaliser(self.obs_mean, self.obs_std, self.action_mean, self.action_std)

    @cached_property
    def memory0(self) -> Array:
        """Memory before the first observation, (size,)."""
        if not self.network.has_memory:
            return NO_MEMORY
        return readonly(self.network.initial_memory(self._module.network).detach().numpy())

    @property
    def trained(self) -> bool:
        """Whether it has been trained, and so has a normaliser."""
        return self.optimiser.step > 0

    @property
    def renormalises(self) -> bool:
        """Whether `renormalised` can rewrite the network."""
        return self.network.mlp_layout(self.sizes) is not None

    def renormalised(self, normaliser: Normaliser) -> Self:
        """The same function of raw observations with another normaliser.

        For a perceptron (`mlp_layout`), whose weights can be rewritten: the first layer takes up
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
        return type(self).initial(self.network, self.sizes, rng)

    def built(self) -> torch.nn.Module:
        """The network with its weights, without the normaliser."""
        from gps.policies import _modules

        network = self.network.build(self.sizes)
        _modules.set_parameters(network, self.weights)
        return network

    def module(self) -> torch.nn.Module:
        """See `GlobalPolicy.module`."""
        from gps.policies import _modules

        return _modules.WhitenedNetwork(self.built(), self.normaliser).eval()

    @cached_property
    def _module(self) -> Any:
        """The module that evaluates the policy where the kernels do not."""
        return self.module()

    @cached_property
    def _kernel(self) -> tuple[Array, np.ndarray, int] | None:
        """Layers with transposed weights in one vector, widths, activation; for the kernel."""
        layout = self.network.mlp_layout(self.sizes)
        if layout is None:
            return None
        flat = np.concatenate([w.T.ravel() for w in self.weights])
        return readonly(flat), np.array(layout.widths, dtype=np.int64), layout.activation

    def _rows(self, obs: Array, images: Images | None, memory: Array) -> tuple[Array, Array]:
        if self._kernel is None:
            return self._rows_by_torch(obs, images, memory)
        out = np.empty((len(obs), self.nu))
        rows = np.ascontiguousarray(obs).view()
        rows.setflags(write=False)  # the kernel is compiled for read-only inputs only
        _kernels.forward_rows(*self._kernel, self.obs_mean, self.obs_std, rows, out)
        return self.action_mean + self.action_std * out, memory

    def _rows_by_torch(
        self, obs: Array, images: Images | None, memory: Array
    ) -> tuple[Array, Array]:
        import torch

        from gps.policies import _modules

        inputs: list[np.ndarray] = [obs] if images is None else [obs, images]
        if self.has_memory:
            inputs.append(memory)
        mean, size = np.empty((len(obs), self.nu)), len(obs) if images is None else _CHUNK
        after = np.empty_like(memory)
        with _modules.one_thread(), torch.no_grad():
            for i in range(0, len(obs), size):
                out = self._module(*(torch.tensor(a[i : i + size]) for a in inputs))
                if self.has_memory:
                    out, after[i : i + size] = out[0], out[1].numpy()
                mean[i : i + size] = out.numpy()
        return mean, after

    def _along(self, obs: Array, images: Images | None) -> Array:
        import torch

        from gps.policies import _modules

        module = self._module
        with _modules.one_thread(), torch.no_grad():
            frames = None if images is None else torch.tensor(images)
            white = module.whitened(torch.tensor(obs))
            mean: Array = module.action(self.network.outputs(module.network, white, frames)).numpy()
        return mean

    def jacobian(self, obs: Array) -> Array:
        """Derivatives of the mean actions by the observation, (..., nu, no), at (..., no).

        Exact; where an activation has a kink, that of one side. Raises ConfigError for a network
        that takes more than the observation.
        """
        if self.needs_images or self.has_memory:
            kind = type(self.network).__name__
            raise ConfigError(f"a {kind} is a function of more than one observation")
        obs = self._observations(obs)
        rows = readonly(obs.reshape(-1, self.no))
        out = np.empty((len(rows), self.nu, self.no))
        if self._kernel is None:
            self._jacobian_by_torch(rows, out)
        else:
            _kernels.jacobian_rows(*self._kernel, self.obs_mean, self.obs_std, rows, out)
            out *= self.action_std[:, None]
        return out.reshape(*obs.shape[:-1], self.nu, self.no)

    def _jacobian_by_torch(self, rows: Array, out: Array) -> None:
        """One pass back for each action; no row depends on another, so their sum will do."""
        import torch

        from gps.policies import _modules

        with _modules.one_thread():
            inputs = torch.tensor(rows, requires_grad=True)
            actions = self._module(inputs)
            for j in range(self.nu):
                (slope,) = torch.autograd.grad(
                    actions[:, j].sum(), inputs, retain_graph=True, materialize_grads=True
                )
                out[:, j] = slope.numpy()

    def gradient(self, problem: Problem, data: TrainingData | None = None) -> Gradient:
        """Of minibatches of `problem`, by the kernels where the network has an `mlp_layout`.

        data: those of the problem, needed by a network that takes more than the observation; with
        memory a row of a minibatch is a trajectory.
        """
        layout = self.network.mlp_layout(self.sizes)
        if layout is not None:
            return MLPGradient(layout, problem)
        network, images, T = self.network, None, None
        if data is not None and network.needs_images:
            images = self._needed(data)
        if data is not None and network.has_memory:
            T = data.trajectories.shape[1]
        return TorchGradient(network.build(self.sizes), network.outputs, problem, images, T)

    def fit(
        self, data: TrainingData, config: TrainingConfig, rng: np.random.Generator
    ) -> TrainingResult[Self]:
        """See `GlobalPolicy.fit`.

        The training sets the normaliser (see `prepare`) and the covariance (`policy_variance`). The
        optimiser's state continues where the normaliser stays the same, and is reset where it
        changes.
        """
        if self.network.needs_images:
            self._needed(data)
        n, size = self.network.batches(data, config)
        policy, problem = prepare(self, data, config)
        batches = minibatches(n, config.steps, size, rng)
        theta, m, v = policy.vectors()
        plan = schedule(config, policy.optimiser.step)
        losses = policy.gradient(problem, data).train(theta, m, v, batches, plan, config)
        return finished(policy, problem, data, theta, m, v, losses, config)

    def vectors(self) -> tuple[Array, Array, Array]:
        """Weights and Adam's two running means, each in one new vector (`flatten`)."""
        return flatten(self.weights), flatten(self.optimiser.m), flatten(self.optimiser.v)


P = TypeVar("P", bound=NetworkPolicy)


def prepare(policy: P, data: TrainingData, config: TrainingConfig) -> tuple[P, Problem]:
    """The policy with normaliser and covariance for `data`, and the problem for the optimiser.

    The normaliser is that of the data; a policy that was trained before is rewritten for it
    (`NetworkPolicy.renormalised`), and stays the same function. The spread of the actions is that
    of the targets and of the noise around them, so it is above zero where all targets are one.
    """
    if data.obs.shape[1] != policy.no or data.target.shape[1] != policy.nu:
        raise ShapeError(
            f"the policy maps {policy.no} observations to {policy.nu} actions, the data have "
            f"{data.obs.shape[1]} and {data.target.shape[1]}"
        )
    data.check_finite()
    variance = policy_variance(data, config)
    normaliser = Normaliser(
        obs_mean=data.obs.mean(axis=0),
        obs_std=whitening_std(data.obs, config.std_floor),
        action_mean=data.target.mean(axis=0),
        action_std=np.sqrt(data.target.var(axis=0) + variance),
    )
    given = normaliser._asdict()
    policy = policy.renormalised(normaliser) if policy.trained else replace(policy, **given)
    policy = replace(policy, chol=np.diag(np.sqrt(variance)))
    return policy, problem_of(data, policy.normaliser, config)


def updated(policy: P, theta: Array, m: Array, v: Array, step: int) -> P:
    """The policy with weights and optimiser state from vectors (`flatten`)."""
    m_parts, v_parts = unflatten(m, policy.weights), unflatten(v, policy.weights)
    state = AdamState(m=m_parts, v=v_parts, step=step)
    return replace(policy, weights=unflatten(theta, policy.weights), optimiser=state)


def finished(
    policy: P,
    problem: Problem,
    data: TrainingData,
    theta: Array,
    m: Array,
    v: Array,
    losses: Array,
    config: TrainingConfig,
    staleness: Array | None = None,
    dropped: int = 0,
) -> TrainingResult[P]:
    """The result of a training of `config.steps` updates; losses (steps,) lack the problem's scale.

    policy, problem: as from `prepare`; theta, m, v: the vectors after the last update. Raises
    FitError when the loss over all samples is not finite.
    """
    policy = updated(policy, theta, m, v, policy.optimiser.step + config.steps)
    loss = problem.loss(means_at(policy, data))
    if not np.isfinite(loss):
        raise diverged(config.steps, config)
    trace = trace_of(losses * problem.scale, config)
    log.debug("policy: loss %.4g -> %.4g nats in %d steps", trace[0], loss, config.steps)
    return TrainingResult(policy, trace, loss, staleness, dropped)


def trace_of(losses: Array, config: TrainingConfig) -> Array:
    """Means of the losses over `config.trace_points` equal intervals."""
    parts = np.array_split(losses, min(config.trace_points, len(losses)))
    return np.array([part.mean() for part in parts])


def batch_gradient(
    policy: NetworkPolicy, theta: Array, problem: Problem, batch: Indices
) -> tuple[float, Array]:
    """Mean loss of the samples in `batch` and its gradient, both without the problem's scale.

    theta: all weights in one vector (`flatten`); the gradient has its order. The gradient of a
    joined batch is the mean of the gradients of its equal parts.
    """
    theta, batch = np.array(theta, dtype=np.float64), np.array(batch, dtype=np.int64)
    if batch.ndim != 1 or not batch.size or batch.min() < 0 or batch.max() >= len(problem.obs):
        raise ShapeError(f"batch must hold rows of the {len(problem.obs)} samples, got {batch}")
    layout = policy.network.mlp_layout(policy.sizes)
    if layout is not None and theta.shape != (layout.n_weights,):
        raise ShapeError(f"theta must hold {layout.n_weights} weights, got shape {theta.shape}")
    grad = np.empty(theta.size)
    return policy.gradient(problem)(theta, batch, grad), grad
