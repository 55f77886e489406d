"""Functions of (x, u, t) for the tests of TorchCost: good ones, and ones that cannot work."""

import functools

import torch

from gps.costs import torch_cost

f64 = torch.float64
_target = torch.tensor([0.3, -0.2, 0.1, 0.4], dtype=f64)
_goal = torch.tensor([0.5, -1.0, 0.2], dtype=f64)


def everything(x, u, t):
    """Mixes all entries, actions and the step; neither convex nor symmetric in anything."""
    a = torch.sin(x[:3]) @ torch.cos(x[3:6]) + (x[6:] ** 2).sum() * u[0]
    return a + torch.exp(0.3 * u[1]) * (1.0 + 0.1 * t) + 0.2 * x[0] * x[7] * u[1]


def of_dict(x, u, t):
    """Entries by name, in another order than the state's."""
    points, angles = x["end_points"], x["joint_pos"]
    return (points[:2] * angles[1:]).sum() + torch.cos(points).sum() + angles[0] ** 3 + u[0] ** 4


def of_dict_without_action(x, u, t):
    return (x["end_points"][:3] * x["joint_pos"]).sum() + (x["end_points"] ** 2).sum()


def distance(x, u, t):
    s = ((x - _target) ** 2).sum()
    return 0.5 * s + 0.7 * torch.log(0.02 + s)


def offset(x, u, t):
    return x - _target


def bent(x, u, t):
    """Residuals that are not linear, and depend on the action."""
    return torch.stack([torch.sin(x[0] * u[0]), x[1] ** 2 - u[1], x[2] + 0.1 * t])


def linear(x, u, t):
    return torch.stack([x["joint_vel"][0] - 2.0 * u[1], x["joint_pos"].sum() + u[0]])


def many(x, u, t):
    """More residuals than variables."""
    return torch.sin(torch.arange(1.0, 61.0, dtype=f64) * x[0]) + x[1]


def constants(x, u, t):
    """Many residuals that have nothing to do with the state."""
    return torch.arange(1.0, 61.0, dtype=f64) * t


def smooth_norm(x, u, t):
    return torch.sqrt(0.1 + ((x - _goal) ** 2).sum())


def quartic(x, u, t):
    """Convex."""
    return (x**4).sum() + (x**2).sum() * (1.0 + t)


def saddle(x, u, t):
    return x[0] ** 2 - x[1] ** 2 + 0.5 * x[0] * x[2]


def only_time(x, u, t):
    return 2.0 * t


def constant(x, u, t):
    return torch.tensor(3.0, dtype=f64)


def constant_residual(x, u, t):
    return torch.tensor([3.0, 4.0], dtype=f64)


def inclined(x, u, t):
    """Gradient without curvature."""
    return x[0] - 2.0 * x[1]


def stepwise(x, u, t):
    """An allowed branch."""
    return torch.where(x[0] > 0.0, x[0] ** 2, torch.zeros_like(x[0]))


def in_place_on_own(x, u, t):
    y = x * 2.0
    y += 1.0
    return (y**2).sum()


class Holder:
    @staticmethod
    def inner(x, u, t):
        return (x**2).sum()


def wraps(function):
    @functools.wraps(function)
    def inner(x, u, t):
        return 2.0 * function(x, u, t)

    return inner


@wraps
def wrapped(x, u, t):
    return (x**2).sum()


@torch_cost(entries="joint_pos", action=False, ramp="linear")
def decorated(x, u, t):
    return (x**2).sum()


@torch_cost
def bare(x, u, t):
    return (x**2).sum() + (u**2).sum()


# --- what cannot work ---------------------------------------------------------------------------
def gives_vector(x, u, t):
    return x**2


def gives_matrix(x, u, t):
    return x[:, None] * x


def gives_float(x, u, t):
    return 1.0


def gives_nothing(x, u, t):
    x.sum()


def gives_single(x, u, t):
    return x.sum().to(torch.float32)


def gives_empty(x, u, t):
    return x[:0]


def raises(x, u, t):
    raise ZeroDivisionError("nothing left to divide\nby")


def misspelt(x, u, t):
    return x["joint_poss"].sum()


def uses_missing_action(x, u, t):
    return (x**2).sum() + u[0]


def branches(x, u, t):
    return x[0] if x[0] > 0 else -x[0]


def takes_item(x, u, t):
    return x.sum() * x[0].item()


def writes_into_x(x, u, t):
    x[0] = 0.0
    return x.sum()


def adds_in_place(x, u, t):
    total = torch.zeros(3, dtype=f64)
    total += x
    return total.sum()


def uses_numpy(x, u, t):
    import numpy as np

    return torch.tensor(np.sin(x.numpy()).sum())


def draws(x, u, t):
    return x.sum() + torch.randn(())


def single_constant(x, u, t):
    return x[:3] @ torch.ones(3)


def logarithm(x, u, t):
    return torch.log(x[0])


def root(x, u, t):
    return torch.sqrt((x**2).sum())


def rough_root(x, u, t):
    """Finite gradient at zero, infinite curvature."""
    return torch.where(x[0] >= 0.0, torch.abs(x[0]) ** 1.5, x[0] * 0.0)


def two_arguments(x, u):
    return x.sum()


def local():
    def inside(x, u, t):
        return x.sum()

    return inside


nameless = lambda x, u, t: x.sum()  # noqa: E731
