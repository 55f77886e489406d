"""Numba kernels of plain multi-layer perceptrons: forward pass, gradient and the whole Adam loop.

All parameters lie in one vector `theta`: for each layer the weight (n_out, n_in), row by row, then
the bias (n_out,), which is the order of `torch.nn.Module.parameters()`. `sizes` holds the widths of
all layers, input and output included. Arrays are contiguous float64; nothing is checked in here.
"""

from __future__ import annotations

from math import factorial

import numpy as np
from numba import njit

RELU, TANH, SOFTPLUS = 0, 1, 2
ACTIVATIONS = {"relu": RELU, "tanh": TANH, "softplus": SOFTPLUS}

# Of `tanh`: exp(y) = 2^k exp(r), r = y - k log 2, with log 2 in two parts so that k times the first
# is exact, and exp(r) as a Taylor sum, whose rest is under 2e-17 r for |r| <= log(2) / 2.
LOG2_E = float.fromhex("0x1.71547652b82fep+0")
LOG_2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
LOG_2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
ROUND = 1.5 * 2.0**52  # a number of this size has no fraction, and its last bits are an integer
C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13 = (1.0 / factorial(i) for i in range(2, 14))


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def tanh(z):  # type: ignore[no-untyped-def]
    """Overwrite the vector z with its tanh, to 4e-16 relative. NaN stays NaN.

    tanh |x| = -e / (2 + e) with e = exp(-2|x|) - 1, which loses no digits near 0. There is no
    branch and no call in the loop, so that the compiler makes vector instructions of it; the C
    library's function takes one number at a time and several times as long.
    """
    for i in range(z.size):
        x = z[i]
        y = -2.0 * abs(x)
        y = -60.0 if y < -60.0 else y  # where tanh is 1 to the last bit
        shifted = y * LOG2_E + ROUND
        k = shifted - ROUND
        r = (y - k * LOG_2_HIGH) - k * LOG_2_LOW
        q = C13
        q = q * r + C12
        q = q * r + C11
        q = q * r + C10
        q = q * r + C9
        q = q * r + C8
        q = q * r + C7
        q = q * r + C6
        q = q * r + C5
        q = q * r + C4
        q = q * r + C3
        q = q * r + C2
        q = q * r * r + r  # exp(r) - 1
        bits = np.float64(shifted).view(np.int64)
        power = np.int64((bits << 52) + (1023 << 52)).view(np.float64)  # 2^k
        e = power * q + (power - 1.0)
        t = -e / (2.0 + e)
        z[i] = -t if x < 0.0 else t


@njit(cache=True, nogil=True, error_model="numpy")
def activate(z, activation):  # type: ignore[no-untyped-def]
    """Overwrite the vector z with its activation. NaN stays NaN."""
    if activation == RELU:
        for i in range(z.size):
            if z[i] < 0.0:
                z[i] = 0.0
    elif activation == TANH:
        tanh(z)
    else:
        for i in range(z.size):
            if not z[i] > 20.0:  # torch's threshold: above it softplus is taken for the identity
                z[i] = np.log1p(np.exp(z[i]))


@njit(cache=True, nogil=True, error_model="numpy")
def through_activation(delta, a, activation):  # type: ignore[no-untyped-def]
    """Multiply delta by the activation's derivative, written in terms of its output a."""
    if activation == RELU:
        for i in range(delta.size):
            if not a[i] > 0.0:
                delta[i] = 0.0
    elif activation == TANH:
        for i in range(delta.size):
            delta[i] *= 1.0 - a[i] * a[i]
    else:
        for i in range(delta.size):
            if not a[i] > 20.0:
                delta[i] *= -np.expm1(-a[i])


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def forward_rows(layers, sizes, activation, mean, std, obs, out):  # type: ignore[no-untyped-def]
    """Network of the whitened observations (B, no) into out (B, nu), one row at a time.

    `layers` holds for each layer the transposed weight (n_in, n_out), then the bias. Sums run along
    the outputs in a fixed order, without BLAS, so that the bytes of a row depend neither on the
    rows beside it nor on a number of threads.
    """
    last = sizes.size - 2
    buffer = np.empty((2, sizes.max()))
    for r in range(obs.shape[0]):
        a = buffer[0]
        z = buffer[1]
        for i in range(sizes[0]):
            a[i] = (obs[r, i] - mean[i]) / std[i]
        p = 0
        for layer in range(last + 1):
            n = sizes[layer]
            m = sizes[layer + 1]
            W = layers[p : p + n * m].reshape(n, m)
            bias = layers[p + n * m : p + n * m + m]
            p += n * m + m
            for j in range(m):
                z[j] = bias[j]
            i = 0
            while i + 4 <= n:
                a0 = a[i]
                a1 = a[i + 1]
                a2 = a[i + 2]
                a3 = a[i + 3]
                for j in range(m):
                    z[j] += a0 * W[i, j] + a1 * W[i + 1, j] + a2 * W[i + 2, j] + a3 * W[i + 3, j]
                i += 4
            while i < n:
                a0 = a[i]
                for j in range(m):
                    z[j] += a0 * W[i, j]
                i += 1
            if layer < last:
                activate(z[:m], activation)
            a, z = z, a
        for j in range(sizes[last + 1]):
            out[r, j] = a[j]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def jacobian_rows(layers, sizes, activation, mean, std, obs, out):  # type: ignore[no-untyped-def]
    """d network / d observation at the observations (B, no) into out (B, nu, no).

    The derivative by every entry of the observation goes forward through the layers beside the
    values. `layers` as in `forward_rows`, and like there no row depends on another.
    """
    last = sizes.size - 2
    no = sizes[0]
    width = sizes.max()
    values = np.empty((2, width))
    slopes = np.empty((2, width, no))
    factor = np.empty(width)
    for r in range(obs.shape[0]):
        a = values[0]
        z = values[1]
        D = slopes[0]
        E = slopes[1]
        for i in range(no):
            a[i] = (obs[r, i] - mean[i]) / std[i]
        p = 0
        for layer in range(last + 1):
            n = sizes[layer]
            m = sizes[layer + 1]
            W = layers[p : p + n * m].reshape(n, m)
            bias = layers[p + n * m : p + n * m + m]
            p += n * m + m
            for j in range(m):
                z[j] = bias[j]
                for c in range(no):
                    E[j, c] = 0.0
            for i in range(n):
                for j in range(m):
                    w = W[i, j]
                    z[j] += w * a[i]
                    if layer == 0:  # the input's own derivative is diagonal
                        E[j, i] = w / std[i]
                    else:
                        for c in range(no):
                            E[j, c] += w * D[i, c]
            if layer < last:
                activate(z[:m], activation)
                for j in range(m):
                    factor[j] = 1.0
                through_activation(factor[:m], z[:m], activation)
                for j in range(m):
                    for c in range(no):
                        E[j, c] *= factor[j]
            a, z = z, a
            D, E = E, D
        for j in range(sizes[last + 1]):
            for c in range(no):
                out[r, j, c] = D[j, c]


@njit(cache=True, nogil=True, error_model="numpy")
def gradient(theta, sizes, activation, obs, target, precision, batch, acts, delta, grad):  # type: ignore[no-untyped-def]
    """Loss of one minibatch, its gradient into grad.

    obs (n, no), target (n, nu), precision (n, nu, nu) symmetric, batch (B,) row numbers; acts
    (B sum(sizes),) and delta (2, B max(sizes)) are working space.
    """
    B = batch.size
    n_layers = sizes.size - 1
    no = sizes[0]
    nu = sizes[n_layers]

    a = acts[: B * no].reshape(B, no)
    for r in range(B):
        for i in range(no):
            a[r, i] = obs[batch[r], i]
    p = 0
    q = B * no
    for layer in range(n_layers):
        n = sizes[layer]
        m = sizes[layer + 1]
        W = theta[p : p + n * m].reshape(m, n)
        bias = theta[p + n * m : p + n * m + m]
        z = acts[q : q + B * m].reshape(B, m)
        np.dot(a, W.T, z)
        for r in range(B):
            for j in range(m):
                z[r, j] += bias[j]
        if layer < n_layers - 1:
            activate(acts[q : q + B * m], activation)
        a = z
        p += n * m + m
        q += B * m

    loss = 0.0
    d = delta[0, : B * nu].reshape(B, nu)
    for r in range(B):
        s = batch[r]
        for j in range(nu):
            a[r, j] -= target[s, j]
        for j in range(nu):
            g = 0.0
            for i in range(nu):
                g += precision[s, j, i] * a[r, i]
            loss += 0.5 * a[r, j] * g / B
            d[r, j] = g / B

    here = 0
    q -= B * nu
    for layer in range(n_layers - 1, -1, -1):
        n = sizes[layer]
        m = sizes[layer + 1]
        p -= n * m + m
        q -= B * n
        a = acts[q : q + B * n].reshape(B, n)
        d = delta[here, : B * m].reshape(B, m)
        np.dot(d.T, a, grad[p : p + n * m].reshape(m, n))
        g_bias = grad[p + n * m : p + n * m + m]
        for j in range(m):
            g_bias[j] = 0.0
        for r in range(B):
            for j in range(m):
                g_bias[j] += d[r, j]
        if layer > 0:
            here = 1 - here
            below = delta[here, : B * n].reshape(B, n)
            np.dot(d, theta[p : p + n * m].reshape(m, n), below)
            through_activation(delta[here, : B * n], acts[q : q + B * n], activation)
    return loss


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def adam(theta, m, v, grad, rate, bias1, bias2, beta1, beta2, eps, weight_decay):  # type: ignore[no-untyped-def]
    """One step of Adam in place, as in torch.optim.Adam; bias2 is the root of 1 - beta2^step.

    Both sides of torch's fraction are multiplied by bias2, which saves a division per weight.
    """
    step = rate / bias1 * bias2
    least = eps * bias2
    rest1 = 1.0 - beta1
    rest2 = 1.0 - beta2
    for i in range(theta.size):
        g = grad[i] + weight_decay * theta[i]
        first = m[i] + rest1 * (g - m[i])
        second = beta2 * v[i] + rest2 * g * g
        m[i] = first
        v[i] = second
        theta[i] -= step * first / (np.sqrt(second) + least)


@njit(cache=True, nogil=True, error_model="numpy")
def train(  # type: ignore[no-untyped-def]
    theta, m, v, sizes, activation, obs, target, precision, batches, schedule, beta1, beta2, eps,
    weight_decay, acts, delta, grad, losses,
):  # fmt: skip
    """One Adam step for each row of batches (steps, B); theta, m and v are changed in place.

    schedule is (steps, 3): learning rate, 1 - beta1^step, root of 1 - beta2^step. The loss of every
    minibatch goes into losses. Returns -1, or the first step whose loss is not finite.
    """
    for s in range(batches.shape[0]):
        losses[s] = gradient(
            theta, sizes, activation, obs, target, precision, batches[s], acts, delta, grad
        )
        if not np.isfinite(losses[s]):
            return s
        adam(
            theta, m, v, grad, schedule[s, 0], schedule[s, 1], schedule[s, 2], beta1, beta2, eps,
            weight_decay,
        )  # fmt: skip
    return -1
