"""Images in iteration files: whole, compressed, and read back as they were."""

import io

import h5py
import numpy as np
import pytest

from gps.errors import ShapeError
from gps.pipeline import trees
from gps.types import Layout, Rollouts


def some_rollouts(images):
    N, T = images.shape[:2]
    zeros = np.zeros((N, T, 2))
    return Rollouts(
        X=zeros, U=zeros, obs=zeros, noise=zeros, layout=Layout((("x", 2),)), images=images
    )


def written(images):
    with h5py.File("t", "w", driver="core", backing_store=False) as file:
        trees.TreeWriter().tree(file.id, "rollouts", some_rollouts(images), "rollouts")
        file.flush()
        return file.id.get_file_image()


def test_images_come_back_and_are_small():
    rng = np.random.default_rng(0)
    images = np.full((3, 20, 64, 64, 3), 90, dtype=np.uint8)
    images[:, :, 20:30, 20:30] = rng.integers(0, 255, (3, 20, 10, 10, 3))
    data = written(images)
    assert len(data) < 0.2 * images.nbytes
    assert data == written(images.copy())
    with h5py.File(io.BytesIO(data)) as file:
        again = trees.read_tree(file["rollouts"], None)
    assert again.images.dtype == np.uint8
    assert not again.images.flags.writeable
    np.testing.assert_array_equal(again.images, images)


def test_only_images_are_compressed():
    data = written(np.zeros((1, 2, 4, 4, 3), dtype=np.uint8))
    with h5py.File(io.BytesIO(data)) as file:
        assert file["rollouts/images"].chunks is not None
        assert file["rollouts/X"].chunks is None


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 2, 4, 4, 3)),
        np.zeros((2, 2, 4, 4, 3), dtype=np.uint8),
        np.zeros((1, 2, 4, 12), dtype=np.uint8),
    ],
)
def test_other_images_are_refused(images):
    zeros = np.zeros((1, 2, 2))
    with pytest.raises(ShapeError, match=r"Rollouts\.images"):
        Rollouts(
            X=zeros, U=zeros, obs=zeros, noise=zeros, layout=Layout((("x", 2),)), images=images
        )
