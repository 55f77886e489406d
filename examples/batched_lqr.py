"""Many control problems at once: one call for hundreds of them, in threads if wanted.

You learn: how problems are stacked, that one problem with many bounds on the KL needs no copies,
that a problem which cannot be solved leaves the others alone, and what calls from Python cost.
"""

import time

import numpy as np

from gps.control import batch, lqr
from gps.types import Gaussian, LinearDynamics, LinearGaussianController, QuadraticCost

T, dt, B = 50, 0.1, 200


def dynamics(mass: float, friction: float) -> LinearDynamics:
    F = np.array([[1.0, dt, 0.0], [0.0, 1.0 - dt * friction / mass, dt / mass]])
    W = np.tile(1e-4 * np.eye(2), (T - 1, 1, 1))
    return LinearDynamics(np.tile(F, (T - 1, 1, 1)), np.zeros((T - 1, 2)), W)


# carts of many masses, all to be brought from 0 to 1 m
masses = np.random.default_rng(0).uniform(0.5, 5.0, size=B)
carts = batch.DynamicsBatch.stack(dynamics(m, 0.3) for m in masses)
weights, target = np.array([1.0, 0.1, 0.01]), np.array([1.0, 0.0, 0.0])
cost = QuadraticCost(
    C=np.tile(np.diag(weights), (T, 1, 1)),
    c=np.tile(-weights * target, (T, 1)),
    c0=np.full(T, 0.5 * weights @ target**2),
)
start = Gaussian(np.zeros(2), 1e-3 * np.eye(2))

temperature = 1e-6  # hardly any exploration
controllers = batch.backward(carts, cost, temperature)
along = batch.forward(carts, controllers, start)
total = batch.expected_cost(cost, along).values.sum(axis=1)
for b in (total.argmin(), total.argmax()):
    print(f"a cart of {masses[b]:.2f} kg costs {total[b]:.2f}")

begin = time.perf_counter()
singles = [lqr.backward(cart, cost, temperature) for cart in carts]
between = time.perf_counter()
batch.backward(carts, cost, temperature)
ratio = (between - begin) / (time.perf_counter() - between)
same = all((a.K == b.K).all() for a, b in zip(singles, controllers, strict=True))
print(f"{B} carts one by one take {ratio:.1f} times as long; same bytes: {same}")

previous = LinearGaussianController(np.zeros((T, 1, 2)), np.zeros((T, 1)), np.ones((T, 1, 1)))
bounds = np.geomspace(1e-3, 1.0, 7)
found = batch.minimise(carts[0], cost, start, previous, bounds)
saved = batch.expected_cost(cost, found.marginals).values.sum(axis=1)
print("KL bound  " + " ".join(f"{bound:7.3f}" for bound in bounds))
print("cost      " + " ".join(f"{value:7.2f}" for value in saved))

F = carts.F.copy()
F[7, 20] = np.nan
some = batch.backward(batch.DynamicsBatch(F, carts.f, carts.W), cost, on_error="mask")
print(f"one cart without a model: {some.ok.sum()} of {B} solved; {some.errors[7]}")
