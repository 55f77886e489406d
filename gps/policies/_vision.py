"""The torch side of policies with images: convolutions, feature points and their trainings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from gps.errors import ConfigError, FitError
from gps.policies import _modules
from gps.policies.optimisation import Indices
from gps.policies.training import Problem
from gps.types import Array, Images

_CHUNK = 256  # images at once where no gradient is needed: bounds the memory


class FeaturePoints(nn.Module):
    """Images (B, H, W, C) uint8 to feature points (B, 2 n) in [-1, 1]: n times x, n times y.

    Every channel of the last convolution becomes a probability over the image by a softmax, and the
    point is its mean: where that channel responds.
    Source: S. Levine, C. Finn, T. Darrell, P. Abbeel, End-to-End Training of Deep Visuomotor
    Policies, JMLR 17(39), 2016, section 5.1.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
    ) -> None:
        super().__init__()
        height, width, colours = shape
        layers: list[nn.Module] = []
        for (n, m), kernel, stride in zip(
            pairwise((colours, *channels)), kernels, strides, strict=True
        ):
            if layers:
                layers.append(nn.ReLU())
            # torch would draw start values from its global generator
            layers.append(nn.utils.skip_init(nn.Conv2d, n, m, kernel, stride, dtype=torch.float32))
            height, width = ((size - kernel) // stride + 1 for size in (height, width))
        self.layers = nn.Sequential(*layers)
        rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    rows: torch.Tensor
    columns: torch.Tensor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The points."""
        x = images.permute(0, 3, 1, 2).to(self.rows.dtype) / 255.0 - 0.5
        x = self.layers(x)
        p = torch.softmax(x.flatten(2), dim=2).reshape(x.shape)
        across, down = (p.sum(2) * self.columns).sum(2), (p.sum(3) * self.rows).sum(2)
        return torch.cat([across, down], dim=1)


class PoseNetwork(nn.Module):
    """Feature points, and the whitened pose (B, k) as a linear function of them."""

    def __init__(self, points: FeaturePoints, n_points: int, k: int) -> None:
        super().__init__()
        self.points = points
        self.pose = nn.utils.skip_init(nn.Linear, 2 * n_points, k, dtype=torch.float32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The whitened pose."""
        pose: torch.Tensor = self.pose(self.points(images))
        return pose


class VisionNetwork(nn.Module):
    """Vector observation (B, no) and images (B, H, W, C) to mean actions (B, nu), float64."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, obs: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """The mean actions."""
        features = self.encoder(images).to(torch.float64)
        action: torch.Tensor = self.head(torch.cat([obs.to(torch.float64), features], dim=1))
        return action


def device_of(name: str) -> torch.device:
    """Where a policy acts: on the CPU if that is configured or torch finds no GPU.

    So a run that was trained on a GPU can be looked at on a laptop.
    """
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def training_device_of(name: str) -> torch.device:
    """Where a policy is trained; ConfigError where a GPU is wanted and torch finds none."""
    device = device_of(name)
    if name == "cuda" and device.type != name:
        raise ConfigError("VisionConfig.device is cuda, and torch finds no GPU; use auto")
    return device


@contextmanager
def computing() -> Iterator[None]:
    """One thread; on a GPU algorithms that give the same bits every time, in whole float32.

    By default a GPU keeps 10 of the 23 bits of what a convolution multiplies (TF32).
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = True, False, False
    try:
        with _modules.one_thread():
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = before


def points_of(module: FeaturePoints, images: Images) -> Array:
    """Feature points (n, 2 points) of images (n, H, W, C), computed on the module's device."""
    parts, device = [], module.rows.device
    with computing(), torch.no_grad():
        for start in range(0, len(images), _CHUNK):
            part = torch.tensor(images[start : start + _CHUNK]).to(device)
            parts.append(module(part).cpu().numpy().astype(np.float64))
    return np.concatenate(parts) if parts else np.zeros((0, 0))


def train_pose(
    network: nn.Module, images: Images, pose: Array, batches: Indices, rate: float,
    device: torch.device,
) -> Array:  # fmt: skip
    """Adam on the mean squared error of the whitened pose; returns the losses (steps,)."""
    network.to(device)
    want = torch.tensor(pose, dtype=torch.float32).to(device)

    def loss(rows: Indices) -> torch.Tensor:
        predicted = network(torch.tensor(images[rows]).to(device))
        return ((predicted - want[torch.from_numpy(rows).to(device)]) ** 2).mean()

    return _descend(network, loss, batches, rate, device)


def train_whole(
    network: VisionNetwork, obs: Array, images: Images, problem: Problem, batches: Indices,
    rate: float, device: torch.device,
) -> Array:  # fmt: skip
    """Adam on the policy's loss through head and convolutions; the losses lack the scale."""
    network.to(device)
    given, target, precision = (
        torch.tensor(a).to(device) for a in (obs, problem.target, problem.precision)
    )

    def loss(rows: Indices) -> torch.Tensor:
        at = torch.from_numpy(rows).to(device)
        d = network(given[at], torch.tensor(images[rows]).to(device)) - target[at]
        return 0.5 * torch.einsum("ni,nij,nj->", d, precision[at], d) / len(rows)

    return _descend(network, loss, batches, rate, device)


def _descend(
    network: nn.Module, loss_of: Callable[[Indices], torch.Tensor], batches: Indices, rate: float,
    device: torch.device,
) -> Array:  # fmt: skip
    losses = np.zeros(len(batches))
    with computing():
        optimiser = torch.optim.Adam(network.parameters(), lr=rate)
        plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(batches))
        for s, rows in enumerate(batches):
            optimiser.zero_grad(set_to_none=True)
            loss = loss_of(rows)
            losses[s] = float(loss.detach())
            if not np.isfinite(losses[s]):
                raise FitError(
                    f"the loss of the convolutions is not finite after {s} of {len(batches)} "
                    f"steps; lower the learning rate (now {rate:g})"
                )
            loss.backward()
            optimiser.step()
            plan.step()
    return losses


def parameters_of(module: nn.Module) -> tuple[Array, ...]:
    """The parameters as float64 arrays, in the order of `module.parameters()`."""
    return tuple(p.detach().cpu().numpy().astype(np.float64) for p in module.parameters())
