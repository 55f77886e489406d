"""Policies with images: what the convolutions learn, pickling, export, and refusals."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from policy_networks import in_other_units

from gps.errors import ConfigError, GPSError, ShapeError
from gps.policies import (
    MLPConfig,
    PolicyMetadata,
    Sizes,
    TrainingConfig,
    TrainingData,
    VisionConfig,
    export_onnx,
    export_program,
    fit,
    initial_policy,
    load,
)
from gps.protocols import needs_images
from gps.rng import stream
from gps.types import Layout

SHAPE = (32, 32, 3)
LAYOUT = Layout((("own", 2), ("disc", 2)))
SMALL = VisionConfig(
    head=MLPConfig(hidden=(20,), activation="tanh"),
    channels=(8, 8),
    kernels=(5, 5),
    strides=(2, 1),
    pose=("disc",),
    first_steps=300,
    steps=20,
    learning_rate=1e-2,
    device="cpu",
)
# what is trained here is trained on a GPU as well, where there is one
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def images_of(centres, radius=0.2):
    """A red disc on grey at centres (n, 2) in [-1, 1]: x to the right, y down."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    images = np.full((len(centres), *SHAPE), 90, dtype=np.uint8)
    for image, (a, b) in zip(images, centres, strict=True):
        image[(x - a) ** 2 + (y - b) ** 2 < radius**2] = (220, 40, 30)
    return images


def some_data(n=400, seed=0):
    """Two numbers of the robot's own; the action is where the disc is, from there."""
    rng = np.random.default_rng(seed)
    disc, own = rng.uniform(-0.7, 0.7, (n, 2)), rng.uniform(-0.5, 0.5, (n, 2))
    return TrainingData(
        obs=own,
        target=disc - own,
        precision=np.tile(np.eye(2) * 4.0, (n, 1, 1)),
        weight=np.ones(n),
        images=images_of(disc),
        state=np.concatenate([own, disc], axis=1),
        layout=LAYOUT,
    )


@pytest.fixture(scope="module", params=DEVICES)
def trained(request):
    data = some_data()
    config = replace(SMALL, device=request.param)
    start = initial_policy(config, 2, 2, stream(0, "policy"), SHAPE, LAYOUT)
    return fit(start, data, TrainingConfig(steps=1500), stream(0, "train"))


def test_convolutions_regress_where_the_disc_is(trained):
    fresh = some_data(n=100, seed=1)
    found = trained.policy.encoder.pose(fresh.images)
    error = np.sqrt(((found - fresh.state[:, 2:]) ** 2).mean())
    assert error < 1.0 * 2 / 32  # within a pixel, against 0.4 for the mean of the data


def test_policy_acts_on_unseen_images(trained):
    fresh = some_data(n=100, seed=2)
    action = trained.policy.mean(fresh.obs, fresh.images)
    assert np.sqrt(((action - fresh.target) ** 2).mean()) < 0.1
    blind = trained.policy.mean(fresh.obs, np.full_like(fresh.images, 90))
    assert np.sqrt(((blind - fresh.target) ** 2).mean()) > 0.3


def test_feature_point_is_the_mean_of_the_softmax():
    policy = initial_policy(SMALL, 2, 2, stream(0, "policy"), SHAPE, LAYOUT)
    module, images = policy.encoder.module(), images_of(np.array([[0.3, -0.2]]))
    with torch.no_grad():
        x = torch.tensor(images).permute(0, 3, 1, 2).float() / 255 - 0.5
        response = module.layers(x)[0].numpy().astype(np.float64)
    want_x, want_y = [], []
    for channel in response:
        p = np.exp(channel - channel.max())
        p /= p.sum()
        rows, columns = (np.linspace(-1, 1, n) for n in p.shape)
        want_x.append((p * columns[None, :]).sum())
        want_y.append((p * rows[:, None]).sum())
    points = policy.encoder.points(images)[0]
    np.testing.assert_allclose(points, np.array(want_x + want_y), atol=1e-5)


@pytest.mark.parametrize(("unit", "offset"), [(1.0, 0.0), (1e-3, 0.7)])
def test_finetuning_lowers_the_policys_loss(trained, unit, offset):
    """Whatever unit and offset the actions have: losses are in nats."""
    data = in_other_units(some_data(), np.full(2, unit), np.full(2, offset))
    config = replace(trained.policy.network, finetune_steps=300, finetune_rate=2e-3)
    start = initial_policy(config, 2, 2, stream(0, "policy"), SHAPE, LAYOUT)
    tuned = fit(start, data, TrainingConfig(steps=1500), stream(0, "train"))
    assert tuned.loss < 0.8 * trained.loss
    before = len(trained.trace)
    np.testing.assert_allclose(tuned.trace[:before], trained.trace, rtol=1e-3)
    assert len(tuned.trace) > before
    assert tuned.trace[before] < 2.0 * trained.loss  # it goes on from where the head was
    fresh = some_data(n=100, seed=2)
    action = (tuned.policy.mean(fresh.obs, fresh.images) - offset) / unit
    assert np.sqrt(((action - fresh.target) ** 2).mean()) < 0.1


@pytest.mark.parametrize("finetune_steps", [0, 30])
def test_a_head_on_the_predicted_pose_alone(finetune_steps):
    config = replace(SMALL, through_pose=True, finetune_steps=finetune_steps)
    start = initial_policy(config, 2, 2, stream(0, "policy"), SHAPE, LAYOUT)
    assert (start.no, start.head.no, start.encoder.n_features) == (2, 4, 2)
    policy = fit(start, some_data(), TrainingConfig(steps=1500), stream(0, "train")).policy
    fresh = some_data(n=100, seed=2)
    action = policy.mean(fresh.obs, fresh.images)
    assert np.sqrt(((action - fresh.target) ** 2).mean()) < 0.1
    seen = (policy.encoder.pose(fresh.images) - policy.encoder.pose_mean) / policy.encoder.pose_std
    joined = np.concatenate([fresh.obs, seen], axis=1)
    np.testing.assert_allclose(policy.head.mean(joined), action, atol=1e-9)
    with torch.no_grad():
        out = policy.module()(torch.tensor(fresh.obs), torch.tensor(fresh.images)).numpy()
    np.testing.assert_allclose(out, action, atol=1e-5)


def test_finetuning_alone_trains_the_convolutions():
    data = some_data(n=200)
    config = replace(SMALL, pose=(), finetune_steps=400, finetune_rate=3e-3)
    start = initial_policy(config, 2, 2, stream(0, "policy"), SHAPE, LAYOUT)
    found = fit(start, data, TrainingConfig(steps=500), stream(0, "train"))
    assert found.loss < 0.5 * found.trace[-len(found.trace) // 2]
    with pytest.raises(GPSError, match="not been trained on a pose"):
        found.policy.encoder.pose(data.images)


def test_same_seed_same_bytes_and_no_global_generator(trained):
    state = torch.random.get_rng_state()
    again = fit(
        initial_policy(trained.policy.network, 2, 2, stream(0, "policy"), SHAPE, LAYOUT),
        some_data(),
        TrainingConfig(steps=1500),
        stream(0, "train"),
    )
    assert torch.equal(state, torch.random.get_rng_state())
    for a, b in zip(again.policy.encoder.weights, trained.policy.encoder.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(again.policy.head.weights[0], trained.policy.head.weights[0])


def test_a_restart_keeps_what_the_convolutions_have_learned(trained):
    fresh = trained.policy.restarted(stream(0, "again"))
    assert not fresh.trained
    for a, b in zip(fresh.encoder.weights, trained.policy.encoder.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_later_trainings_continue_from_the_last_weights(trained):
    data = some_data(seed=3)
    again = fit(
        trained.policy.restarted(stream(0, "again")),
        data,
        TrainingConfig(steps=500),
        stream(0, "more"),
    )
    encoder, before = again.policy.encoder, trained.policy.encoder
    np.testing.assert_array_equal(encoder.pose_mean, before.pose_mean)
    assert not np.array_equal(encoder.weights[0], before.weights[0])
    assert encoder.pose_loss < 2 * before.pose_loss  # 20 steps from scratch leave ten times as much


def test_module_predict_and_act_agree_with_mean(trained):
    policy, data = trained.policy, some_data(n=7, seed=4)
    mean = policy.mean(data.obs, data.images)
    with torch.no_grad():
        out = policy.module()(torch.tensor(data.obs), torch.tensor(data.images)).numpy()
    np.testing.assert_allclose(out, mean, atol=1e-6)
    np.testing.assert_array_equal(policy.predict(data.obs, images=data.images)[0], mean)
    noise = np.random.default_rng(0).normal(size=(7, 2))
    acted = policy.act(np.zeros((7, 4)), data.obs, 0, noise, images=data.images)
    np.testing.assert_array_equal(acted, mean + noise @ policy.chol.T)
    one = policy.mean(data.obs[0], data.images[0])
    np.testing.assert_allclose(one, mean[0], atol=1e-6)


def test_it_is_pickled(trained):
    data = some_data(n=5)
    policy = pickle.loads(pickle.dumps(trained.policy))
    want = trained.policy.mean(data.obs, data.images)
    np.testing.assert_array_equal(policy.mean(data.obs, data.images), want)
    assert needs_images(policy)
    assert not needs_images(policy.head)


METADATA = PolicyMetadata(
    obs_layout=Layout((("own", 2),)), dt=0.1, image_shape=SHAPE, cameras=("top",)
)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("through_pose", [False, True])
def test_export_computes_the_same(suffix, through_pose, trained, tmp_path):
    policy = trained.policy
    if through_pose:
        config = replace(policy.network, through_pose=True, first_steps=20)
        start = initial_policy(config, 2, 2, stream(0, "policy"), SHAPE, LAYOUT)
        policy = fit(start, some_data(50), TrainingConfig(steps=50), stream(0, "train")).policy
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    make = export_program if suffix == ".pt2" else export_onnx
    path = tmp_path / f"policy{suffix}"
    path.write_bytes(make(policy, METADATA))
    again, data = load(path), some_data(n=7, seed=4)
    assert needs_images(again)
    assert again.metadata.image_shape == SHAPE
    assert again.metadata.cameras == ("top",)
    want = policy.mean(data.obs, data.images)
    np.testing.assert_allclose(again.mean(data.obs, data.images), want, atol=1e-5)
    one = again.predict(data.obs[0], images=data.images[0])[0]
    np.testing.assert_allclose(one, want[0], atol=1e-5)
    with pytest.raises(ShapeError, match="this policy needs images"):
        again.mean(data.obs)
    with pytest.raises(ShapeError, match="image_shape"):
        make(policy, replace(METADATA, image_shape=None, cameras=()))
    for wrong in ({"image_shape": None}, {"cameras": ("top", "side")}):
        with pytest.raises(ConfigError, match="a name for each 3 channels"):
            replace(METADATA, **wrong)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"channels": (8,)}, "one value for each convolution"),
        ({"channels": (8, 0)}, "VisionConfig.channels"),
        ({"kernels": (5.5, 5)}, "VisionConfig.kernels"),
        ({"pose": "disc"}, "pose must be a tuple"),
        ({"pose": (), "through_pose": True}, "needs state entries"),
        ({"batch_size": 0}, "VisionConfig.batch_size"),
        ({"finetune_rate": 0.0}, "VisionConfig.finetune_rate"),
        ({"device": "tpu"}, "cpu"),
    ],
)
def test_bad_configurations(change, said):
    with pytest.raises(ConfigError, match=said):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    ("layout", "shape", "said"),
    [
        (Layout((("disc", 2),)), None, "no cameras"),
        (Layout((("own", 2),)), SHAPE, "disc"),
        (Layout((("disc", 2),)), (10, 10, 3), "2 x 2"),
    ],
)
def test_agents_that_do_not_fit(layout, shape, said):
    with pytest.raises(ConfigError, match="never be trained"):
        replace(SMALL, pose=()).check(Sizes(2, 2, SHAPE, layout))
    with pytest.raises(ConfigError, match=said):
        SMALL.check(Sizes(2, 2, shape, layout))


def test_wrong_images_are_refused(trained):
    data = some_data(n=3)
    with pytest.raises(ShapeError, match="needs images"):
        trained.policy.mean(data.obs)
    with pytest.raises(ShapeError, match="uint8"):
        trained.policy.mean(data.obs, data.images.astype(np.float64))
    with pytest.raises(ShapeError, match=r"uint8 \(3, 32, 32, 3\), got uint8 \(2, "):
        trained.policy.mean(data.obs, data.images[:2])
    with pytest.raises(ShapeError, match="images must be given"):
        fit(trained.policy, replace(data, images=None), TrainingConfig(), stream(0, "x"))
    with pytest.raises(ShapeError, match="uint8"):
        replace(data, images=data.images / 255.0)


@pytest.mark.skipif("cuda" not in DEVICES, reason="torch finds no GPU")
@pytest.mark.parametrize("precision", [None, "float64"])
def test_a_gpu_computes_what_a_cpu_does(precision):
    """To the precision of the numbers; with TF32, the default of torch, to 1e-3 only."""
    config = VisionConfig(pose=("disc",), first_steps=5, device="cuda", precision=precision)
    data = some_data(50)
    start = initial_policy(config, 2, 2, stream(0, "policy"), SHAPE, LAYOUT)
    there = fit(start, data, TrainingConfig(steps=20), stream(0, "train")).policy
    encoder = there.encoder
    here = replace(encoder, config=replace(config, device="cpu"))
    assert [e._module.rows.device.type for e in (encoder, here)] == ["cuda", "cpu"]
    tolerance = 1e-11 if precision else 1e-5
    np.testing.assert_allclose(
        encoder.points(data.images), here.points(data.images), rtol=0, atol=tolerance
    )
    start = replace(start, encoder=replace(start.encoder, config=here.config))
    same = fit(start, data, TrainingConfig(steps=20), stream(0, "train")).policy.encoder
    # of the points and not of the weights: the bias before a softmax does nothing, its gradient is
    # rounding alone, and Adam makes steps of any gradient
    np.testing.assert_allclose(encoder.points(data.images), same.points(data.images), atol=1e-3)


def test_without_a_gpu_a_policy_acts_and_is_not_trained(trained, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = replace(trained.policy.network, device="cuda")
    policy = replace(trained.policy, encoder=replace(trained.policy.encoder, config=config))
    data = some_data(n=5)
    want = trained.policy.mean(data.obs, data.images)
    np.testing.assert_allclose(policy.mean(data.obs, data.images), want, atol=1e-5)
    with pytest.raises(ConfigError, match="finds no GPU; use auto"):
        fit(policy, data, TrainingConfig(steps=20), stream(0, "train"))
