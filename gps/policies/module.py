"""Any torch module as the network of a global policy: `ModuleConfig`.

    class MyNetwork(torch.nn.Module):
        def __init__(self, no, nu, hidden):
            super().__init__()
            self.first, self.last = torch.nn.Linear(no, hidden), torch.nn.Linear(hidden, nu)

        def forward(self, obs):  # whitened observations (B, no) to mean actions (B, nu)
            return self.last(torch.tanh(self.first(obs)))

    network = ModuleConfig(module=MyNetwork, arguments=(("hidden", 64),))

The policy is asked step by step and keeps nothing in between, so a recurrent network can not be
used. A network over the last few observations can: let the world put such a window into its
observation, and reshape (B, no) to (B, steps, values) in `forward`, where a recurrent or
convolutional layer may run over the window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gps.errors import ConfigError
from gps.policies.neural import PlainLayout
from gps.types import Array

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class ModuleConfig:
    """A network that is a torch module of the user's; module(no, nu, **arguments) makes it.

    A run stores the module by its name: it must be defined in the hyperparams file itself, at its
    top level, or in gps. A class of a package is used through a function of that file.

    The module's parameters, cast to float64, are what is trained and stored. So it must not draw
    random numbers in `forward` (dropout) nor change buffers there (batch normalisation): layer
    normalisation works. Every row must be computed for itself. The start values are drawn by the
    module's own constructor from torch's generator, which is seeded from the run's and put back.
    """

    module: Callable[..., Any]
    """A subclass of torch.nn.Module or a function that gives one; called as
    module(no, nu, **arguments) with the sizes of observation and action."""
    arguments: tuple[tuple[str, Any], ...] = ()
    """Further arguments by name, (("hidden", 64), ...): numbers, text, or tuples of them."""

    def __post_init__(self) -> None:
        made = not isinstance(self.module, type) and hasattr(self.module, "state_dict")
        if made or not callable(self.module):
            raise ConfigError(
                "ModuleConfig.module must be a class or function that gives a torch module when it "
                "is called with (no, nu), not a module itself or anything else; got a "
                f"{type(self.module).__name__}"
            )
        pairs = self.arguments
        if not isinstance(pairs, tuple) or not all(
            isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) for p in pairs
        ):
            raise ConfigError(
                'ModuleConfig.arguments must be a tuple of pairs, (("hidden", 64), ...), got '
                f"{pairs!r}"
            )
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ConfigError(f"ModuleConfig.arguments names one argument twice: {names}")
        for name, value in pairs:
            try:
                hash(value)
            except TypeError:
                raise ConfigError(
                    f"ModuleConfig.arguments: {name} must be a number, text, or a tuple of them, "
                    f"got a {type(value).__name__}"
                ) from None

    def build(self, no: int, nu: int) -> torch.nn.Module:
        """The network in float64; always the same, with parameters that are to be replaced."""
        return self._made(no, nu, seed=0)

    def initial_weights(self, no: int, nu: int, rng: np.random.Generator) -> tuple[Array, ...]:
        """Parameters as the module's constructor draws them, from a seed that `rng` gives.

        Raises ConfigError where the module does not do what `ModuleConfig` says.
        """
        seed = int(rng.integers(2**63))
        network = self._made(no, nu, seed)
        _check(self._shown, network, no, nu)
        weights = _weights(network)
        for a, b in zip(weights, _weights(self._made(no, nu, seed)), strict=True):
            if not np.array_equal(a, b):
                raise ConfigError(
                    f"{self._shown}: two calls with the same seed of torch gave different weights; "
                    "draw them from torch's generator only"
                )
        return weights

    def plain_layout(self, no: int, nu: int) -> PlainLayout | None:
        """None: torch is the only one that knows the network."""
        return None

    @property
    def _shown(self) -> str:
        name = getattr(self.module, "__qualname__", repr(self.module))
        return f"ModuleConfig.module {name}"

    def _made(self, no: int, nu: int, seed: int) -> torch.nn.Module:
        import torch

        call = ", ".join([f"{no}, {nu}", *(f"{k}={v!r}" for k, v in self.arguments)])
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                network = self.module(no, nu, **dict(self.arguments))
                if isinstance(network, torch.nn.Module):
                    if any(torch.nn.parameter.is_lazy(p) for p in network.parameters()):
                        network(torch.zeros(2, no))  # the sizes of lazy layers come of a call
                    network = network.double()
        except Exception as error:  # the user's code
            raise ConfigError(f"{self._shown}: the call with ({call}) {_said(error)}") from error
        if not isinstance(network, torch.nn.Module):
            raise ConfigError(
                f"{self._shown} must give a torch.nn.Module when it is called with ({call}), got a "
                f"{type(network).__name__}"
            )
        return network


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"raised {type(error).__name__}: {text}".rstrip(": ")


def _weights(network: torch.nn.Module) -> tuple[Array, ...]:
    return tuple(p.detach().numpy().copy() for p in network.parameters())


def _check(shown: str, network: torch.nn.Module, no: int, nu: int) -> None:
    """Raise ConfigError unless the module is a function of its parameters and each row alone."""
    import torch

    named = dict(network.named_parameters())
    if not named:
        raise ConfigError(f"{shown} has no parameters that could be trained")
    for name, parameter in named.items():
        if not parameter.requires_grad:
            raise ConfigError(
                f"{shown}: every parameter is trained, but {name} has requires_grad=False; "
                "register what is to stay as a buffer"
            )
        if not torch.isfinite(parameter).all():
            raise ConfigError(f"{shown}: the start values of {name} are not finite")
    rows = torch.tensor(np.linspace(-2.0, 2.0, 3 * no).reshape(no, 3).T.copy())
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        outputs = []
        for seed, training in ((1, True), (2, True), (3, False)):
            torch.default_generator.manual_seed(seed)
            outputs.append(_actions(shown, network.train(training), rows, nu))
        for name, value in network.named_buffers():
            if not torch.equal(value, buffers[name]):
                raise ConfigError(
                    f"{shown}: forward changes the buffer {name}, which is neither trained nor "
                    "stored (batch normalisation?); layer normalisation keeps none"
                )
        if not all(torch.equal(outputs[0], other) for other in outputs[1:]):
            raise ConfigError(
                f"{shown}: the same observations give different actions from one call to the next "
                "(dropout?); the noise of a policy is its covariance"
            )
        for i in range(len(rows)):
            alone = _actions(shown, network, rows[i : i + 1], nu)
            if not torch.allclose(alone, outputs[0][i : i + 1], rtol=1e-9, atol=1e-9):
                raise ConfigError(
                    f"{shown}: the action of a row depends on the other rows of the batch"
                )
        total = _actions(shown, network, rows, nu).sum()
    gradients: tuple[Any, ...] = (None,) * len(named)
    if total.requires_grad:
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    unused = [name for name, g in zip(named, gradients, strict=True) if g is None]
    if unused:
        raise ConfigError(f"{shown}: the actions do not depend on {', '.join(unused)}")
    network.train()


def _actions(shown: str, network: torch.nn.Module, rows: torch.Tensor, nu: int) -> torch.Tensor:
    """What the module says, after it has been looked at."""
    import torch

    try:
        out: Any = network(rows)
    except Exception as error:  # the user's code
        hint = "; it is given float64" if "dtype" in str(error) else ""
        raise ConfigError(
            f"{shown}: forward of observations {tuple(rows.shape)} {_said(error)}{hint}"
        ) from error
    if isinstance(out, tuple | list):
        raise ConfigError(
            f"{shown}: forward gives a {type(out).__name__} and must give actions only; a policy "
            "keeps no memory from step to step, so a recurrent network has to run over a window "
            "of observations within one call"
        )
    if not isinstance(out, torch.Tensor):
        raise ConfigError(f"{shown}: forward must give a tensor, got a {type(out).__name__}")
    if tuple(out.shape) != (len(rows), nu):
        raise ConfigError(
            f"{shown}: forward must give actions of shape {(len(rows), nu)} for observations "
            f"{tuple(rows.shape)}, got {tuple(out.shape)}"
        )
    if out.dtype != torch.float64:
        raise ConfigError(f"{shown}: forward must give float64 for float64, got {out.dtype}")
    if not torch.isfinite(out).all():
        raise ConfigError(f"{shown}: forward gives NaN or infinity for finite observations")
    return out
