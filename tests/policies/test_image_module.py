"""Networks of the user's with images: trained end to end and on a pose, export, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from policy_networks import in_other_units
from torch import nn

from gps.errors import ConfigError, GPSError, ShapeError
from gps.policies import (
    ImageModuleConfig,
    PolicyMetadata,
    TrainingConfig,
    TrainingData,
    export_program,
    fit,
    initial_policy,
    load,
)
from gps.rng import stream
from gps.types import Layout

SHAPE = (16, 16, 3)
LAYOUT = Layout((("own", 2), ("disc", 2)))


class Vision(nn.Module):
    """Where the image is bright, after one convolution, and the robot's own state."""

    def __init__(self, no, nu, image_shape, channels=4):
        super().__init__()
        self.conv = nn.Conv2d(image_shape[2], channels, 3, stride=2)
        self.head = nn.Sequential(nn.LazyLinear(16), nn.Tanh(), nn.Linear(16, nu))
        side = torch.linspace(-1, 1, (image_shape[0] - 3) // 2 + 1)
        self.register_buffer("side", side)

    def features(self, images):
        x = images.permute(0, 3, 1, 2).to(self.conv.weight.dtype) / 255.0
        p = torch.softmax(5.0 * self.conv(x).flatten(2), dim=2)
        p = p.reshape(*p.shape[:2], len(self.side), len(self.side))
        return torch.cat([(p.sum(2) * self.side).sum(2), (p.sum(3) * self.side).sum(2)], dim=1)

    def forward(self, obs, images):
        return self.head(torch.cat([obs, self.features(images)], dim=1))


PLAIN = ImageModuleConfig(module=Vision)
POSE = ImageModuleConfig(module=Vision, pose=("disc",), pose_first_steps=200, pose_rate=2e-2)


def some_data(n=200, seed=0):
    """A disc somewhere in the image; the action is where it is from the robot's own place."""
    rng = np.random.default_rng(seed)
    disc, own = rng.uniform(-0.7, 0.7, (n, 2)), rng.uniform(-0.5, 0.5, (n, 2))
    y, x = np.mgrid[-1:1:16j, -1:1:16j]
    inside = (x - disc[:, :1, None]) ** 2 + (y - disc[:, 1:, None]) ** 2 < 0.09
    images = np.where(inside[..., None], (220, 40, 30), (90, 90, 90)).astype(np.uint8)
    return TrainingData(
        obs=own,
        target=disc - own,
        precision=np.tile(np.eye(2) * 4.0, (n, 1, 1)),
        weight=np.ones(n),
        images=images,
        state=np.concatenate([own, disc], axis=1),
        layout=LAYOUT,
    )


def fresh(network):
    return initial_policy(network, 2, 2, stream(0, "net"), SHAPE, LAYOUT)


def trained(network, steps):
    config = TrainingConfig(steps=steps, learning_rate=1e-2)
    return fit(fresh(network), some_data(), config, stream(0, "fit"))


def test_the_whole_network_is_trained_on_the_policys_loss():
    result, other = trained(PLAIN, 250), some_data(n=80, seed=1)
    start, policy = fresh(PLAIN), result.policy
    error = np.abs(policy.mean(other.obs, other.images) - other.target).mean()
    assert error < 0.12  # the targets are 0.45 off zero; the disc has a radius of 0.3
    moved = [np.abs(a - b).max() for a, b in zip(start.weights, policy.weights, strict=True)]
    assert moved[0] > 1e-2  # the convolution too
    assert result.trace[-1] < 0.1 * result.trace[0]


def test_neither_unit_nor_offset_of_the_actions_matters():
    data, config = some_data(), TrainingConfig(steps=20, weight_decay=0.01)
    unit, offset = np.array([1e-3, 1e3]), np.array([51.1, -2e5 / 3])
    other = in_other_units(data, unit, offset)
    a, b = (fit(fresh(PLAIN), d, config, stream(0, "fit")) for d in (data, other))
    have, want = (r.policy.mean(data.obs, data.images) for r in (b, a))
    np.testing.assert_allclose((have - offset) / unit, want, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(b.loss, a.loss, rtol=1e-6)
    again = fit(b.policy, data, config, stream(1, "fit")).policy
    for kept, before in zip(again.normaliser, b.policy.normaliser, strict=True):
        np.testing.assert_array_equal(kept, before)


def test_the_gradient_is_that_of_the_loss():
    from gps.policies import flatten, prepare

    data = some_data(n=12)
    policy, problem = prepare(fresh(PLAIN), data, TrainingConfig())
    gradient = policy.gradient(problem, data)
    theta, batch = flatten(policy.weights), np.array([3, 7, 1])
    grad, scratch = np.empty(theta.size), np.empty(theta.size)
    gradient(theta, batch, grad)
    for i in range(0, theta.size, 37):
        e = np.zeros(theta.size)
        e[i] = 1e-5
        up, down = gradient(theta + e, batch, scratch), gradient(theta - e, batch, scratch)
        assert grad[i] == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-9)


def test_training_on_a_pose_comes_first_and_stays():
    result, other = trained(POSE, 5), some_data(n=80, seed=1)
    policy = result.policy
    pose = policy.predicted_pose(other.images)
    assert np.abs(pose - other.state[:, 2:]).mean() < 0.1  # 0.35 for the mean of the data
    again = policy.restarted(stream(1, "net"))
    kept = [np.array_equal(a, b) for a, b in zip(policy.weights, again.weights, strict=True)]
    assert kept == [True, True, False, False, False, False]  # the convolution; the head is fresh
    assert not again.trained
    np.testing.assert_array_equal(again.predicted_pose(other.images), pose)
    assert not any(map(np.array_equal, trained(PLAIN, 5).policy.restarted(stream(1, "n")).weights,
                       policy.weights))  # fmt: skip
    with pytest.raises(GPSError, match="has not been trained on a pose"):
        fresh(POSE).predicted_pose(other.images)


def test_inputs_have_to_fit():
    policy, data = fresh(PLAIN), some_data(n=4)
    assert policy.mean(data.obs[:0], data.images[:0]).shape == (0, 2)
    many = policy.mean(data.obs[:, None], data.images[:, None])
    np.testing.assert_allclose(many[:, 0], policy.mean(data.obs, data.images), rtol=1e-12)
    with pytest.raises(ShapeError, match=r"they must be uint8 \(4, 16, 16, 3\), got none"):
        policy.mean(data.obs)
    with pytest.raises(ShapeError, match=r"got float64"):
        policy.mean(data.obs, data.images / 1.0)
    with pytest.raises(ShapeError, match=r"TrainingData\.images must be given"):
        fit(policy, replace(data, images=None), TrainingConfig(steps=1), stream(0, "f"))


def test_export_and_back(tmp_path):
    policy, data = fresh(PLAIN), some_data(n=6)
    path = tmp_path / "policy.pt2"
    path.write_bytes(
        export_program(
            policy, PolicyMetadata(obs_layout=Layout((("own", 2),)), dt=0.1, image_shape=SHAPE)
        )
    )
    want = policy.mean(data.obs, data.images)
    np.testing.assert_allclose(load(path).mean(data.obs, data.images), want, rtol=1e-9, atol=1e-12)


class TwoSizes(nn.Linear):
    def __init__(self, no, nu):
        super().__init__(no, nu)


class Blind(Vision):
    def forward(self, obs, images):
        return super().forward(obs, torch.zeros_like(images))


class Wide(Vision):
    def __init__(self, no, nu, image_shape):
        super().__init__(no, nu + 1, image_shape)


class OneArgument(Vision):
    def forward(self, obs):
        return obs


class Raises(Vision):
    def forward(self, obs, images):
        raise RuntimeError("no\neyes")


class NotFinite(Vision):
    def forward(self, obs, images):
        return super().forward(obs, images) * float("nan")


class Coupled(Vision):
    def forward(self, obs, images):
        return super().forward(obs, images - images.min(dim=0).values)


class NoFeatures(nn.Module):
    def __init__(self, no, nu, image_shape):
        super().__init__()
        self.last = nn.Linear(no + image_shape[0], nu)

    def forward(self, obs, images):
        rows = images[:, :, 0, 0].to(obs.dtype) / 255.0
        return self.last(torch.cat([obs, rows], dim=1))


class ImageFeatures(NoFeatures):
    def features(self, images):
        return images.to(self.last.weight.dtype)


REFUSED = [
    (TwoSizes, (), r"the call with \(2, 2, \(16, 16, 3\)\) raised TypeError"),
    (Blind, (), "do not depend on the images; .* named by ModuleConfig"),
    (Wide, (), r"actions of shape \(3, 2\) .* got \(3, 3\)"),
    (OneArgument, (), r"raised TypeError: .*forward\(\) takes 2 positional"),
    (Raises, (), "raised RuntimeError: no eyes"),
    (NotFinite, (), "NaN or infinity"),
    (Coupled, (), "depends on the other rows"),
    (NoFeatures, ("disc",), r"must have a method features\(images\)"),
    (ImageFeatures, ("disc",), r"features must return \(B, n\) .* got shape \(3, 16, 16, 3\)"),
]


@pytest.mark.parametrize(("module", "pose", "message"), REFUSED, ids=lambda v: str(v)[:30])
def test_modules_that_cannot_be_trained_are_refused(module, pose, message):
    with pytest.raises(ConfigError, match=message) as caught:
        fresh(ImageModuleConfig(module=module, pose=pose))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"ImageModuleConfig.module {module.__name__}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageModuleConfig(module=Vision, pose="disc"), "pose must be a tuple, each text"),
        (
            lambda: ImageModuleConfig(module=Vision, pose_steps=-1),
            "pose_steps must .* got -1",
        ),
        (lambda: ImageModuleConfig(module=Vision, pose_rate=0.0), "pose_rate must be .* above 0"),
        (
            lambda: ImageModuleConfig(module=Vision, pose_steps=10**7, pose_batch_size=1000),
            "pose_steps times pose_batch_size must be at most",
        ),
        (lambda: initial_policy(PLAIN, 2, 2, stream(0, "n")), "needs images.* cameras"),
        (
            lambda: fresh(ImageModuleConfig(module=Vision, pose=("dics",))),
            r"ImageModuleConfig\.pose: .*'dics'.*disc",
        ),
    ],
)
def test_configurations_that_cannot_be_right(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
