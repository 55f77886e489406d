"""Pictures that are remembered stay beside the states that they show."""

import numpy as np

from gps.algorithms.stages import targets
from gps.algorithms.state import ConditionState, ReplayBuffer
from gps.policies.linearise import LineariseConfig, linearise
from gps.rng import stream
from gps.types import Layout, LinearGaussianController, Rollouts

T = 4


def rollouts(first, N=3):
    """Sample n of step t: state and the brightness of its picture are both 10 n + t."""
    number = 10.0 * np.arange(first, first + N)[:, None] + np.arange(T)
    X = number[..., None] + np.array([0.0, 0.1]) * stream(first, "x").normal(size=(N, T, 2))
    images = np.broadcast_to(number[..., None, None, None], (N, T, 2, 2, 3)).astype(np.uint8)
    U = np.zeros((N, T, 1))
    layout = Layout((("x", 2),))
    return Rollouts(X=X, U=U, obs=X[..., 1:], noise=U, layout=layout, images=images)


def brightness(images):
    return images.mean(axis=(-3, -2, -1))


def test_replay_and_its_targets():
    replay = ReplayBuffer.extended(None, rollouts(0), 5)
    replay = ReplayBuffer.extended(replay, rollouts(3), 5)
    assert replay.images.shape == (5, T, 2, 2, 3)
    np.testing.assert_array_equal(brightness(replay.images), replay.X[:, :, 0])
    controller = LinearGaussianController(
        K=np.zeros((T, 1, 2)), k=np.zeros((T, 1)), chol=np.ones((T, 1, 1))
    )
    condition = ConditionState(
        controller=controller, previous=controller, step_mult=1.0, replay=replay
    )
    data = targets(rollouts(3), condition)
    np.testing.assert_array_equal(brightness(data.images), data.state[:, 0])
    np.testing.assert_array_equal(data.obs[:, 0], data.state[:, 1])
    part = targets(rollouts(3), condition, True, 0.5)
    first = -(-T // 2)
    assert first == part.T
    for name in ("obs", "target", "precision", "weight", "images", "state"):
        whole = getattr(data, name)
        want = whole.reshape(5, T, *whole.shape[1:])[:, :first].reshape(-1, *whole.shape[1:])
        np.testing.assert_array_equal(getattr(part, name), want)


class Sees:
    """Acts on the picture alone."""

    needs_images, Sigma = True, np.eye(1)

    def __init__(self, gain):
        self.gain = gain

    def mean(self, obs, images):
        return self.gain * brightness(images)[..., None]


def test_the_policys_prior_is_asked_again_with_its_own_pictures():
    config, prior = LineariseConfig(), None
    for first, gain in ((0, 1.0), (3, -2.0)):
        prior = linearise(Sees(gain), rollouts(first), prior, config, stream(0, "prior")).prior
    assert prior.history.shape[0] == 6
    np.testing.assert_array_equal(brightness(prior.images), prior.history[:, :, 0])
    np.testing.assert_array_equal(prior.history[:, :, 2], -2.0 * prior.history[:, :, 0])
