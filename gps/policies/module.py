"""Any torch module as the network of a global policy: `ModuleConfig`.

    class MyNetwork(torch.nn.Module):
        def __init__(self, no, nu, hidden):
            super().__init__()
            self.first, self.last = torch.nn.Linear(no, hidden), torch.nn.Linear(hidden, nu)

        def forward(self, obs):  # whitened observations (B, no) to mean actions (B, nu)
            return self.last(torch.tanh(self.first(obs)))

    network = ModuleConfig(module=MyNetwork, arguments=(("hidden", 64),))

Such a policy has no memory. `gps.policies.window.WindowConfig` gives such a network a window of the
last observations; one that carries a hidden state is named by
`gps.policies.recurrent.RecurrentConfig`, one that takes images by
`gps.policies.image_module.ImageModuleConfig`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gps.errors import ConfigError
from gps.policies.neural import TorchNetwork, described
from gps.policies.policy import Sizes
from gps.types import Array

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class UserModule(TorchNetwork):
    """Base of the networks that are a torch module of the user's, `module` with `arguments`."""

    module: Callable[..., Any]
    """A subclass of torch.nn.Module or a function that returns one; called as
    module(no, nu, **arguments) with the sizes of observation and action, or as the class says."""
    arguments: tuple[tuple[str, Any], ...] = ()
    """Further arguments by name, (("hidden", 64), ...): numbers, text, or tuples of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if _is_module(self.module) or not callable(self.module):
            raise ConfigError(
                f"{self._kind}.module must be a class or function that returns a torch module when "
                "it is called with (no, nu), not a module itself or anything else; got a "
                f"{type(self.module).__name__}"
            )
        names = [name for name, _ in self.arguments]
        if len(set(names)) < len(names):
            raise ConfigError(f"{self._kind}.arguments names one argument twice: {names}")
        for name, value in self.arguments:
            try:
                hash(value)
            except TypeError:
                raise ConfigError(
                    f"{self._kind}.arguments: {name} must be a number, text, or a tuple of them, "
                    f"got a {type(value).__name__}"
                ) from None

    def build(self, sizes: Sizes) -> torch.nn.Module:
        """The network in float64; always the same, with parameters that are to be replaced."""
        return self._made(sizes, seed=0)

    def initial_weights(self, sizes: Sizes, rng: np.random.Generator) -> tuple[Array, ...]:
        """Parameters as the module's constructor draws them, from a seed that `rng` draws.

        Raises ConfigError where the module does not do what its configuration says.
        """
        seed = int(rng.integers(2**63))
        network = self._made(sizes, seed)
        self._check(network, sizes)
        weights = _weights(network)
        for a, b in zip(weights, _weights(self._made(sizes, seed)), strict=True):
            if not np.array_equal(a, b):
                raise ConfigError(
                    f"{self._shown}: two calls with the same seed of torch gave different weights; "
                    "draw them from torch's generator only"
                )
        return weights

    def _try(self, sizes: Sizes, weights: tuple[Array, ...]) -> None:
        """`initial_weights` has done so."""

    @property
    def _kind(self) -> str:
        return type(self).__name__

    @property
    def _shown(self) -> str:
        name = getattr(self.module, "__qualname__", repr(self.module))
        return f"{self._kind}.module {name}"

    def _made(self, sizes: Sizes, seed: int) -> torch.nn.Module:
        import torch

        given = (sizes.no, sizes.nu, *((sizes.image_shape,) if self.needs_images else ()))
        call = ", ".join([*map(str, given), *(f"{k}={v!r}" for k, v in self.arguments)])
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                network = self.module(*given, **dict(self.arguments))
                if isinstance(network, torch.nn.Module):
                    if any(torch.nn.parameter.is_lazy(p) for p in network.parameters()):
                        # a call sets the sizes of lazy layers
                        network(*self._inputs(network, sizes, torch.zeros(2, sizes.no)))
                    network = network.double()
        except ConfigError:
            raise
        except Exception as error:  # the user's code
            raise ConfigError(
                f"{self._shown}: the call with ({call}) {described(error)}"
            ) from error
        if not isinstance(network, torch.nn.Module):
            raise ConfigError(
                f"{self._shown} must return a torch.nn.Module when it is called with ({call}), got "
                f"a {type(network).__name__}"
            )
        return network

    # what the kinds of networks differ in

    def _checked(
        self, network: torch.nn.Module, sizes: Sizes, inputs: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """Actions that depend on every parameter, after the checks of this kind of network."""
        return self._outputs(network, sizes, inputs)[0]

    def _check(self, network: torch.nn.Module, sizes: Sizes) -> None:
        """Raise ConfigError unless the module is a function of its parameters and each row."""
        import torch

        shown, no = self._shown, sizes.no
        named = dict(network.named_parameters())
        if not named:
            raise ConfigError(f"{shown} has no parameters that could be trained")
        for name, parameter in named.items():
            if not parameter.requires_grad:
                raise ConfigError(
                    f"{shown}: every parameter is trained, but {name} has requires_grad=False; "
                    "register constants as buffers"
                )
            if not torch.isfinite(parameter).all():
                raise ConfigError(f"{shown}: the initial values of {name} are not finite")
        rows = torch.tensor(np.linspace(-2.0, 2.0, 3 * no).reshape(no, 3).T.copy())
        inputs = self._inputs(network, sizes, rows)
        buffers = {name: value.clone() for name, value in network.named_buffers()}
        with torch.random.fork_rng(devices=[]):
            outputs = []
            for seed, training in ((1, True), (2, True), (3, False)):
                torch.default_generator.manual_seed(seed)
                outputs.append(self._outputs(network.train(training), sizes, inputs))
            for name, value in network.named_buffers():
                if not torch.equal(value, buffers[name]):
                    raise ConfigError(
                        f"{shown}: forward changes the buffer {name}, which is neither trained nor "
                        "stored (batch normalisation?); layer normalisation keeps none"
                    )
            first = outputs[0]
            pairs = [p for other in outputs[1:] for p in zip(first, other, strict=True)]
            if not all(torch.equal(a, b) for a, b in pairs):
                raise ConfigError(
                    f"{shown}: the same observations give different actions from one call to the "
                    "next (dropout?); the noise of a policy is its covariance"
                )
            for i in range(len(rows)):
                alone = self._outputs(network, sizes, tuple(a[i : i + 1] for a in inputs))
                for a, b in zip(alone, first, strict=True):
                    if not torch.allclose(a, b[i : i + 1], rtol=1e-9, atol=1e-9):
                        raise ConfigError(
                            f"{shown}: the action of a row depends on the other rows of the batch"
                        )
            total = self._checked(network, sizes, inputs).sum()
        gradients: tuple[Any, ...] = (None,) * len(named)
        if total.requires_grad:
            gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        unused = [name for name, g in zip(named, gradients, strict=True) if g is None]
        if unused:
            raise ConfigError(f"{shown}: the actions do not depend on {', '.join(unused)}")
        network.train()

    def _tensor(
        self, out: Any, what: str, shape: tuple[int, int], inputs: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """A tensor that forward returned, checked; the whole module was cast to float64."""
        import torch

        if (
            isinstance(out, torch.Tensor)
            and tuple(out.shape) == shape
            and out.dtype != torch.float64
        ):
            raise ConfigError(
                f"{self._shown}: forward must return float64 for float64, got {out.dtype}"
            )
        return super()._tensor(out, what, shape, inputs)


@dataclass(frozen=True, kw_only=True)
class ModuleConfig(UserModule):
    """A network that is a torch module of the user's; module(no, nu, **arguments) makes it.

    A run stores the module by its name: it must be defined in the hyperparams file itself, at its
    top level, or in gps. A class of a package is used through a function of that file.

    The module's parameters, cast to float64, are what is trained and stored. So it must not draw
    random numbers in `forward` (dropout) nor change buffers there (batch normalisation): layer
    normalisation works. Every row must be computed for itself. The initial values are drawn by the
    module's own constructor from torch's generator, which is seeded from the run's and put back.
    """


def _is_module(thing: object) -> bool:
    """Whether it is a torch module, without importing torch."""
    return any(c.__module__ == "torch.nn.modules.module" for c in type(thing).__mro__)


def _weights(network: torch.nn.Module) -> tuple[Array, ...]:
    return tuple(p.detach().numpy().copy() for p in network.parameters())
