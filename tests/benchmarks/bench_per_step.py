"""A KL bound per step on hard problems: failures, gain and time, against moving all eta at once.

    python tests/benchmarks/bench_per_step.py [--problems 300] [--trials 2000]

The peer is the search that the toolkit had before, in numpy around the same compiled passes: log
eta_t moves by a gain times log(KL_t / bound), a gain is halved where it overshoots. Its values do
not count the KL of later steps, as those of cbfinn/gps. Gain: objective of the previous controller
less that of the result, under the model; the share is that of the peer with `--trials` passes. Then
the time per search for the recorded PILQR update, T=100, nx=10, nu=2, in turns.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "control"))

from control_problems import hard_problem

from gps.control import DualConfig, _kernels, lqr
from gps.control.dual import minimise_per_step
from gps.control.kl import factors
from gps.errors import NonFiniteError
from gps.threads import one_thread
from gps.types import Gaussian, LinearDynamics, LinearGaussianController, QuadraticCost

FIXTURE = Path(__file__).parent.parent / "fixtures" / "pilqr_update.npz"


class Trial:
    """One backward pass, forward pass and KL of the peer; raises eta where there is no factor."""

    def __init__(self, dynamics, cost, start, previous, w, under):  # type: ignore[no-untyped-def]
        T, nu, nx = previous.K.shape
        inv, half = factors(previous)
        P = inv.transpose(0, 2, 1) @ inv
        pulls = P, P @ previous.K, np.einsum("tij,tj->ti", P, previous.k)
        self.values = (cost.C, cost.c, dynamics.F, dynamics.f, *pulls, previous.K, previous.k, inv)
        self.model = dynamics.F, dynamics.f, dynamics.W, start.mean, start.cov
        self.old, self.w, self.T, self.under = (previous.K, previous.k, inv, half), w, T, under
        nz = nx + nu
        self.step = np.empty((T, nu, nx)), np.empty((T, nu)), np.empty((T, nu, nu))
        self.states, self.at = (np.empty((T, nz)), np.empty((T, nz, nz))), None
        self.kl, self.Q_uu = np.empty(T), np.empty((nu, nu))
        if under:
            m = lqr.forward(dynamics, previous, start)
            self.at = m.mean, m.cov

    def __call__(self, eta, high):  # type: ignore[no-untyped-def]
        while True:
            status, t = _kernels.backward_per_step(*self.values, eta, False, *self.step, self.Q_uu)
            if status != _kernels.NOT_POSITIVE_DEFINITE or eta[t] >= high:
                break
            eta[t] = min(4.0 * eta[t], high)
        if status != _kernels.OK:
            return False
        _kernels.scale_covariance(self.step[2], eta, np.full(self.T, self.w))
        if _kernels.forward(*self.step, *self.model, *self.states)[0] != _kernels.OK:
            return False
        _kernels.divergence(*self.step, *self.old, *(self.at or self.states), self.kl)
        return bool(np.isfinite(self.kl).all())


def peer(problem, bound, w, under, most, tol=0.01):  # type: ignore[no-untyped-def]
    """(controller or None, converged, trials) of the old search."""
    trial, T = Trial(*problem, w, under), problem[0].T
    size = max(np.abs(problem[1].C).max(), np.abs(problem[1].c).max())
    high, low = 1e16 * max(1.0, size), 1e-8 * min(1.0, size)
    ask, gain, sign, reach = np.ones(T), np.full(T, 0.6), np.zeros(T), np.full(T, 3.0)
    best, kept, good, lift, push = math.inf, None, None, 1.0, 1.0
    for n in range(1, most + 1):
        used = ask.copy()
        if not trial(used, high):
            if (ask >= high).all():
                return kept, False, n
            if good is None:
                ask = np.exp(np.minimum(np.log(used) + lift, math.log(high)))
                lift *= 2.0
            else:
                ask, reach = np.sqrt(used) * np.sqrt(good), np.maximum(0.25 * reach, 0.1)
            continue
        good, kl = used, trial.kl
        ratio = np.log(np.maximum(kl, 1e-300) / bound)
        inactive = (used <= low) & (kl <= bound)
        done = (inactive | (np.abs(kl - bound) <= tol * bound)).all()
        miss = np.abs(np.where(inactive, 0.0, ratio)).max()
        if done or (miss < best and (kl <= (1 + tol) * bound).all()):
            best, kept = miss, LinearGaussianController(*(a.copy() for a in trial.step))
            if done:
                return kept, True, n
        turned = (used > ask) | (np.sign(ratio) == -sign)
        sign = np.sign(ratio)
        gain = np.where(turned, 0.5 * gain, np.minimum(1.2 * gain, 2.0))
        reach = np.where(turned, np.maximum(0.25 * reach, 1.0), np.minimum(1.5 * reach, 200.0))
        step = np.clip(gain * ratio, -reach, reach)
        if math.isinf(best) and n > most // 2:
            step = np.where(kl > bound, np.maximum(step, 0.1), 0.0)
        if math.isinf(best) and n >= most - most // 10:
            step, push = np.full(T, push), 2.0 * push
        ask = np.clip(used * np.exp(np.minimum(step, 600.0)), low, high)
    return kept, False, most


def objective(problem, controller, w):  # type: ignore[no-untyped-def]
    dynamics, cost, start, _ = problem
    total = lqr.expected_cost(cost, lqr.forward(dynamics, controller, start)).sum()
    logdet = np.log(controller.chol.diagonal(axis1=1, axis2=2)).sum()
    return total - w * (logdet + 0.5 * controller.k.size * np.log(2 * np.pi * np.e))


def compare(count, most):  # type: ignore[no-untyped-def]
    print(f"{count} hard problems, KL bound 0.05 to 3 nats a step, up to {most} trials of the peer")
    print(f"{'KL under':>10} {'entropy':>8} {'peer fails':>11} {'at 100':>7} {'ours: no':>9} "
          f"{'of these':>9} {'errors':>7} {'sweeps':>14} {'share of gain':>20}")  # fmt: skip
    for under in ("new", "previous"):
        for entropy in (False, True):
            failed = early = short = both = errors = 0
            shares, sweeps = [], []
            for seed in range(count):
                problem, bound, weight = hard_problem(seed)
                w = weight * entropy
                theirs, converged, n = peer(problem, bound, w, under == "previous", most)
                failed += not converged
                early += not converged or n > 100
                try:
                    found = minimise_per_step(
                        *problem, bound, DualConfig(kl_under=under), entropy_weight=w
                    )
                except Exception as error:  # counted, whatever it is
                    errors += 1
                    print(f"  problem {seed}: {error}")
                    continue
                sweeps.append(len(found.trace))
                short += not found.converged
                both += converged and not found.converged
                if theirs is not None and converged:
                    try:
                        before, a, b = (
                            objective(problem, c, w) for c in (problem[3], theirs, found.controller)
                        )
                    except NonFiniteError:
                        continue
                    shares.append((before - b) / (before - a))
            print(f"{under:>10} {'yes' if entropy else 'no':>8} {failed:>11} {early:>7} {short:>9} "
                  f"{both:>9} {errors:>7} {np.median(sweeps):>5.0f} (to {max(sweeps):>3}) "
                  f"{min(shares):>8.4f} to {max(shares):.4f}")  # fmt: skip


def times():  # type: ignore[no-untyped-def]
    d = dict(np.load(FIXTURE))
    chol = d["prev_chol_pol_covar"].transpose(0, 2, 1)
    problem = (
        LinearDynamics(d["Fm"][:-1], d["fv"][:-1], d["dyn_covar"][:-1]),
        QuadraticCost(d["Cm"], d["cv"], d["cc"]),
        Gaussian(d["x0mu"], d["x0sigma"]),
        LinearGaussianController(d["prev_K"], d["prev_k"], chol),
    )
    bound = float(np.mean(d["base_kl_step"] * d["step_mult"]))
    print("one search, T=100, nx=10, nu=2, cold start, in turns")
    for under in ("new", "previous"):
        config, seconds = DualConfig(kl_under=under), {"peer": [], "ours": []}
        for _ in range(21):
            begin = time.perf_counter()
            n = peer(problem, bound, 0.0, under == "previous", 100)[2]
            seconds["peer"].append(time.perf_counter() - begin)
            begin = time.perf_counter()
            found = minimise_per_step(*problem, bound, config)
            seconds["ours"].append(time.perf_counter() - begin)
        a, b = (1e3 * np.median(seconds[name][1:]) for name in ("peer", "ours"))
        print(f"  KL under {under:9s} {a:7.2f} ms in {n} trials, {b:7.2f} ms in "
              f"{len(found.trace)} sweeps ({a / b:.1f}x)")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--trials", type=int, default=2000)
    args = parser.parse_args()
    with one_thread():
        times()
        compare(args.problems, args.trials)


if __name__ == "__main__":
    main()
