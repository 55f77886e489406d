"""The register tiles of the Riccati recursion: against numpy, with NaN and infinity."""

import numpy as np
import pytest
from numba.core.errors import TypingError

from gps.control import _kernels


def padded(A: np.ndarray, fill: float) -> np.ndarray:
    """A with columns up to whole tiles, which hold `fill`."""
    out = np.full((len(A), _kernels._padded(A.shape[1])), fill)
    out[:, : A.shape[1]] = A
    return out


@pytest.mark.parametrize("bad", [None, np.nan, np.inf])
@pytest.mark.parametrize(
    ("n", "m", "depth"), [(1, 1, 1), (4, 12, 0), (5, 9, 7), (13, 26, 3), (34, 29, 26)]
)
def test_products_in_tiles_are_numpys(n, m, depth, bad):
    rng = np.random.default_rng(n)
    A, B = rng.normal(size=(depth, n)), rng.normal(size=(depth, m))
    if bad is not None and depth:
        A[rng.integers(depth), rng.integers(n)] = bad
    # padding that is not finite must stay where it is
    A_pad, B_pad = padded(A, np.nan), padded(B, np.nan)
    out = np.full((_kernels._padded(n), _kernels._padded(m)), 7.0)
    _kernels._set_product(A_pad, B_pad, depth, out, n, m)
    np.testing.assert_allclose(out[:n, :m], A.T @ B, rtol=1e-13, atol=1e-13)

    start = rng.normal(size=(_kernels._padded(n),) * 2)
    out = start.copy()
    _kernels._add_lower(A_pad, -A_pad, depth, out, n)
    low = np.tril_indices(n)
    np.testing.assert_allclose(
        out[low], start[:n, :n][low] - (A.T @ A)[low], rtol=1e-13, atol=1e-13
    )


def test_a_tile_takes_no_strided_array():
    A = np.zeros((4, 8))
    with pytest.raises(TypingError):
        _kernels._set_product(A[:, ::2], A, 4, A, 4, 4)
