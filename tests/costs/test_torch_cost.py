"""TorchCost: independent Hessians, Jacobians, names and storage, faults of the user's function."""

import importlib
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_functions as fn
from cost_agent import LAYOUT, NU, kinematics_jacobian, random_samples, rollouts_at
from torch.func import grad, jacrev, vmap

from gps.costs import CostOf, EndpointCost, StateCost, SumCost, TorchCost, WeightedCost, torch_cost
from gps.errors import ConfigError, NonFiniteError
from gps.pipeline import config_io, loader
from gps.types import Layout, Rollouts

PARTS = ("l", "l_x", "l_u", "l_xx", "l_ux", "l_uu")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def rollouts():
    return rollouts_at(*random_samples(3, N=5, T=6), chain=True)


def flat(rollouts):
    """z = [x; u] and t of all points, in torch."""
    z = np.concatenate([rollouts.X, rollouts.U], axis=2).reshape(-1, rollouts.nx + rollouts.nu)
    return torch.tensor(z), torch.arange(rollouts.T, dtype=torch.float64).repeat(rollouts.N)


def assert_same(a, b, names=PARTS, **tolerance):
    for name in names:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), err_msg=name, **tolerance)


# --- derivatives ---------------------------------------------------------------------------------
@pytest.mark.parametrize("function", [fn.everything, fn.bare.function])
def test_derivatives_are_those_of_torch_func_one_point_at_a_time(function, rollouts):
    terms = TorchCost(function=function).evaluate(rollouts)
    nx = rollouts.nx

    def of_z(z, t):
        return function(z[:nx], z[nx:], t)

    z, t = flat(rollouts)
    for b in range(len(z)):
        n, step = divmod(b, rollouts.T)
        g, H = grad(of_z)(z[b], t[b]).numpy(), jacrev(grad(of_z))(z[b], t[b]).numpy()
        at = {name: getattr(terms, name)[n, step] for name in PARTS}
        np.testing.assert_allclose(at["l"], float(of_z(z[b], t[b])), rtol=1e-13)
        np.testing.assert_allclose(np.r_[at["l_x"], at["l_u"]], g, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(at["l_xx"], H[:nx, :nx], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(at["l_ux"], H[nx:, :nx], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(at["l_uu"], H[nx:, nx:], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("options", [{"l2": 1.0}, {"l1": 0.5, "log_weight": 2.0, "alpha": 0.3}])
@pytest.mark.parametrize("function", [fn.bent, fn.many, fn.constants])
def test_gauss_newton_by_hand(function, options, rollouts):
    """`many` has far more residuals than its entries have values."""
    terms = TorchCost(function=function, returns="residual", **options).evaluate(rollouts)
    nx = rollouts.nx
    z, t = flat(rollouts)
    r = vmap(lambda z, t: function(z[:nx], z[nx:], t))(z, t).numpy()
    J = vmap(jacrev(lambda z, t: function(z[:nx], z[nx:], t)))(z, t).numpy()
    full = {"l1": 0.0, "l2": 1.0, "log_weight": 0.0, "alpha": 1.0, **options}
    q = full["alpha"] + (r**2).sum(axis=1)
    slope = full["l2"] + full["l1"] / np.sqrt(q) + full["log_weight"] / q
    gradient = slope[:, None] * np.einsum("bki,bk->bi", J, r)
    H = slope[:, None, None] * np.einsum("bki,bkj->bij", J, J)
    shape = (rollouts.N, rollouts.T)
    np.testing.assert_allclose(terms.l_x, gradient[:, :nx].reshape(*shape, nx), atol=1e-12)
    np.testing.assert_allclose(terms.l_u, gradient[:, nx:].reshape(*shape, NU), atol=1e-12)
    np.testing.assert_allclose(terms.l_xx, H[:, :nx, :nx].reshape(*shape, nx, nx), atol=1e-11)
    np.testing.assert_allclose(terms.l_ux, H[:, nx:, :nx].reshape(*shape, NU, nx), atol=1e-11)
    if options == {"l2": 1.0}:
        np.testing.assert_allclose(terms.l.ravel(), 0.5 * (r**2).sum(axis=1))


@pytest.mark.parametrize("through", ["jacobian", "state"])
@pytest.mark.parametrize("exact", [False, True])
def test_it_is_the_endpoint_cost_written_in_torch(through, exact, rollouts):
    target = (0.3, -0.2, 0.1, 0.4)
    hand = EndpointCost(
        target=target, l2=1.0, log_weight=1.4, alpha=0.02, through=through, exact=exact
    )
    common = {"entries": "end_points", "action": False, "through": through}
    if exact:
        ours = TorchCost(function=fn.distance, **common)
    else:
        ours = TorchCost(
            function=fn.offset, returns="residual", log_weight=1.4, alpha=0.02, **common
        )
    assert_same(ours.evaluate(rollouts), hand.evaluate(rollouts), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    ("entries", "function"),
    [(("joint_pos", "end_points"), fn.of_dict), (None, fn.everything)],
)
def test_mixed_blocks_through_the_jacobian(entries, function, rollouts):
    """Every block against the dense product with d [x; u] used / d [x; u]."""
    E = kinematics_jacobian(rollouts.X[..., :6])
    E = E + np.random.default_rng(0).normal(size=E.shape)  # dense, so nothing hides in zeros
    data = replace(rollouts, jacobians={"end_points": E})
    options = {"function": function, "entries": entries}
    own = TorchCost(**options).evaluate(data)
    got = TorchCost(**options, through="jacobian").evaluate(data)
    D = np.zeros((data.N, data.T, 12, 12))  # what the function sees moves, when z moves
    D[..., range(12), range(12)] = 1.0
    D[..., 6:10, :] = 0.0
    D[..., 6:10, :10] = E
    g = np.concatenate([own.l_x, own.l_u], axis=2)
    H = np.block([[own.l_xx, own.l_ux.swapaxes(2, 3)], [own.l_ux, own.l_uu]])
    H = D.swapaxes(2, 3) @ H @ D
    g = np.einsum("ntij,nti->ntj", D, g)
    np.testing.assert_allclose(got.l, own.l)
    np.testing.assert_allclose(got.l_x, g[..., :10], atol=1e-10)
    np.testing.assert_allclose(got.l_u, g[..., 10:], atol=1e-10)
    np.testing.assert_allclose(got.l_xx, H[..., :10, :10], atol=1e-10)
    np.testing.assert_allclose(got.l_ux, H[..., 10:, :10], atol=1e-10)
    np.testing.assert_allclose(got.l_uu, H[..., 10:, 10:], atol=1e-10)


def two_bodies(x, u, t):
    return (x["hand"] * x["foot"]).sum() + (x["hand"] ** 2).sum() * x["speed"][0]


def test_several_entries_with_jacobians_and_gaps_between_columns():
    layout = Layout((("hand", 2), ("angle", 2), ("foot", 2), ("speed", 1)))
    rng = np.random.default_rng(1)
    N, T, nx = 2, 3, 7
    jacobians = {name: rng.normal(size=(N, T, 2, nx)) for name in ("foot", "hand")}
    data = Rollouts(
        X=rng.normal(size=(N, T, nx)), U=np.zeros((N, T, 1)), obs=np.zeros((N, T, 0)),
        noise=np.zeros((N, T, 1)), layout=layout, jacobians=jacobians,
    )  # fmt: skip
    for entries in [("hand", "foot", "speed"), ("speed", "foot", "hand")]:
        cost = TorchCost(function=two_bodies, entries=entries, action=False)
        own = cost.evaluate(data)
        assert not own.l_xx[:, :, 2:4].any()
        D = np.zeros((N, T, nx, nx))
        D[..., range(nx), range(nx)] = 1.0
        D[..., 0:2, :], D[..., 4:6, :] = jacobians["hand"], jacobians["foot"]
        got = replace(cost, through="jacobian").evaluate(data)
        want = D.swapaxes(2, 3) @ own.l_xx @ D
        np.testing.assert_allclose(got.l_xx, want, atol=1e-12)
        np.testing.assert_allclose(got.l_x, np.einsum("ntij,nti->ntj", D, own.l_x), atol=1e-12)


def test_a_jacobian_that_is_missing_is_named(rollouts):
    cost = TorchCost(function=fn.smooth_norm, entries="joint_pos", action=False, through="jacobian")
    with pytest.raises(ConfigError, match=r"no Jacobian of joint_pos \(it reports: end_points\)"):
        cost.evaluate(rollouts)


def test_positive_is_the_nearest_positive_semi_definite_matrix(rollouts):
    exact = TorchCost(function=fn.saddle, action=False)
    positive = replace(exact, hessian="positive")
    a, b = exact.evaluate(rollouts), positive.evaluate(rollouts)
    assert_same(a, b, ("l", "l_x", "l_u"))
    values, vectors = np.linalg.eigh(a.l_xx[0, 0])
    want = (vectors * np.maximum(values, 0.0)) @ vectors.T
    np.testing.assert_allclose(b.l_xx[0, 0], want, atol=1e-12)
    assert values[0] < -1.0
    convex = TorchCost(function=fn.quartic)
    assert_same(
        convex.evaluate(rollouts), replace(convex, hessian="positive").evaluate(rollouts), rtol=0
    )


def test_functions_that_ignore_something(rollouts):
    steps = np.arange(6.0)
    for function, value in [(fn.only_time, 2 * steps), (fn.constant, 3.0)]:
        terms = TorchCost(function=function).evaluate(rollouts)
        np.testing.assert_array_equal(terms.l, np.broadcast_to(value, (5, 6)))
        assert not any(getattr(terms, name).any() for name in PARTS[1:])
    terms = TorchCost(function=fn.constant_residual, returns="residual").evaluate(rollouts)
    np.testing.assert_array_equal(terms.l, 12.5)
    assert not any(getattr(terms, name).any() for name in PARTS[1:])
    terms = TorchCost(function=fn.inclined).evaluate(rollouts)
    np.testing.assert_array_equal(terms.l_x[..., :3], np.broadcast_to([1.0, -2.0, 0.0], (5, 6, 3)))
    assert not terms.l_xx.any()


def test_branch_by_where_and_in_place_on_own_tensors(rollouts):
    x = rollouts.X[..., 0]
    terms = TorchCost(function=fn.stepwise).evaluate(rollouts)
    assert (x > 0).any()
    assert (x < 0).any()
    np.testing.assert_allclose(terms.l_xx[..., 0, 0], np.where(x > 0, 2.0, 0.0))
    terms = TorchCost(function=fn.in_place_on_own, action=False).evaluate(rollouts)
    np.testing.assert_allclose(terms.l_x, 4.0 * (2.0 * rollouts.X + 1.0))


def test_weight_ramp_and_the_steps_that_it_switches_off(rollouts):
    plain = TorchCost(function=fn.everything)
    want = plain.evaluate(rollouts)
    got = SumCost(terms=(WeightedCost(cost=replace(plain, ramp="linear"), weight=3.0),))
    got = got.evaluate(rollouts)
    factor = 3.0 * np.arange(1, 7) / 6
    np.testing.assert_allclose(got.l, factor * want.l)
    np.testing.assert_allclose(got.l_ux, factor[:, None, None] * want.l_ux)
    last = replace(plain, ramp="final", final_multiplier=5.0).evaluate(rollouts)
    for name in PARTS:  # the step's own number, too, not that of the first evaluated one
        np.testing.assert_allclose(getattr(last, name)[:, -1], 5.0 * getattr(want, name)[:, -1])
        assert not getattr(last, name)[:, :-1].any()
    none = replace(plain, ramp="final", final_multiplier=0.0).evaluate(rollouts)
    assert not any(getattr(none, name).any() for name in PARTS)


def test_batches_of_bounded_size_change_nothing(rollouts, monkeypatch):
    whole = {}
    for cost in (
        TorchCost(function=fn.everything),
        TorchCost(function=fn.many, returns="residual"),
    ):
        whole[cost] = cost.evaluate(rollouts)
    monkeypatch.setattr(sys.modules["gps.costs.torch_cost"], "_CHUNK", 7 * 12 * 12)
    for cost, want in whole.items():
        assert_same(cost.evaluate(rollouts), want, rtol=1e-12, atol=1e-13)


def test_only_what_is_named_is_differentiated(rollouts):
    sizes = []
    original = torch.autograd.grad

    def noting(outputs, inputs, *rest, **options):
        sizes.append(inputs.shape[1])
        return original(outputs, inputs, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "grad", noting)
        TorchCost(function=fn.smooth_norm, entries="joint_pos", action=False).evaluate(rollouts)
    assert set(sizes) == {3}


# --- determinism and global state ---------------------------------------------------------------
def test_same_bytes_and_nothing_global_is_changed(rollouts):
    costs = [TorchCost(function=fn.everything), TorchCost(function=fn.bent, returns="residual")]
    before = [c.evaluate(rollouts) for c in costs]
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    state = torch.random.get_rng_state()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            after = [c.evaluate(rollouts) for c in costs]
            assert torch.is_inference_mode_enabled()
        with torch.no_grad():
            again = [c.evaluate(rollouts) for c in costs]
            assert not torch.is_grad_enabled()
        with pytest.raises(ConfigError):
            TorchCost(function=fn.raises).evaluate(rollouts)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.get_default_dtype() == dtype
    assert torch.equal(torch.random.get_rng_state(), state)
    for first, *others in zip(before, after, again, strict=True):
        for other in others:
            for name in PARTS:
                assert getattr(first, name).tobytes() == getattr(other, name).tobytes()


def test_rollouts_are_not_touched(rollouts):
    X = np.array(rollouts.X)
    with pytest.raises(ConfigError):
        TorchCost(function=fn.writes_into_x).evaluate(rollouts)
    np.testing.assert_array_equal(rollouts.X, X)


# --- the user's faults --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fn.gives_vector, r"must return a scalar, got shape \(10,\); returns='residual' is for"),
        (fn.gives_matrix, r"must return a scalar, got shape \(10, 10\)$"),
        (fn.gives_float, r"must return a scalar, a torch tensor, got float"),
        (fn.gives_nothing, r"must return a scalar, a torch tensor, got NoneType"),
        (fn.gives_single, r"must return float64, got torch\.float32; make constants with dtype="),
        (fn.raises, r"failed: ZeroDivisionError: nothing left to divide by$"),
        (fn.branches, r"failed: RuntimeError: .*; write torch\.where"),
        (fn.takes_item, r"failed: RuntimeError: .*; write torch\.where"),
        (fn.writes_into_x, r"failed: RuntimeError: .*; write y = y \+ 1 in place of y \+= 1"),
        (fn.uses_numpy, r"failed: .*; use the functions of torch"),
        (fn.draws, r"failed: RuntimeError: .*; a cost must not draw"),
        (fn.single_constant, r"failed: RuntimeError: .*; make constants with dtype=torch\.float64"),
    ],
)
def test_fault_of_the_function_is_one_line_with_its_name(function, message, rollouts):
    cost = TorchCost(function=function)
    with pytest.raises(ConfigError, match=message) as by_check:
        cost.check(LAYOUT, NU, 4)
    with pytest.raises(ConfigError) as by_evaluate:
        cost.evaluate(rollouts)
    assert str(by_check.value) == str(by_evaluate.value)
    assert f"TorchCost.function torch_functions.{function.__name__} " in str(by_check.value)
    assert "\n" not in str(by_check.value)
    assert len(str(by_check.value)) < 400


def test_faults_that_options_make(rollouts):
    adds = TorchCost(function=fn.adds_in_place, entries="joint_pos")
    with pytest.raises(ConfigError, match=r"; write y = y \+ 1 in place of y \+= 1"):
        adds.check(LAYOUT, NU, 4)
    no_action = TorchCost(function=fn.uses_missing_action, action=False)
    with pytest.raises(ConfigError, match=r"TypeError: .*; with action=False, u is None"):
        no_action.check(LAYOUT, NU, 4)
    misspelt = TorchCost(function=fn.misspelt, entries=("joint_pos",))
    with pytest.raises(ConfigError, match=r"misspelt failed: KeyError: 'joint_poss'"):
        misspelt.check(LAYOUT, NU, 4)
    for function, shape in [(fn.constant, r"\(\)"), (fn.gives_empty, r"\(0,\)")]:
        residual = TorchCost(function=function, returns="residual")
        with pytest.raises(ConfigError, match=rf"must return a vector \(k,\), got shape {shape}"):
            residual.check(LAYOUT, NU, 4)
    for hessian_kind in ("auto", "exact"):
        weights = TorchCost(
            function=fn.bent, returns="residual", weights=(1.0, 2.0), hessian=hessian_kind
        )
        with pytest.raises(ConfigError, match=r"weights has 2 values, .*bent gives 3 residuals"):
            weights.evaluate(rollouts)
    entries = TorchCost(function=fn.of_dict, entries=("joint_pos", "end_point"))
    with pytest.raises(ConfigError, match=r"entries: unknown state entry 'end_point'; did you"):
        entries.check(LAYOUT, NU, 4)


def test_nonfinite_values_are_named_by_sample_and_step(rollouts):
    X = np.abs(rollouts.X)
    X[3, 2, 0] = -1.0
    X[4, 1, 0] = -1.0
    cost = TorchCost(function=fn.logarithm)
    message = r"torch_functions\.logarithm has value nan at sample 3, t=2 .*; 2 of 30 points"
    with pytest.raises(NonFiniteError, match=message):
        cost.evaluate(replace(rollouts, X=X))
    X[3, 2, 0] = 0.0
    with pytest.raises(NonFiniteError, match=r"has value -inf at sample 3, t=2"):
        cost.evaluate(replace(rollouts, X=X))
    X = np.array(rollouts.X)
    X[1, 5, :3] = 0.0
    cost = TorchCost(function=fn.root, entries="joint_pos", ramp="final")
    with pytest.raises(NonFiniteError, match=r"root has gradient nan at sample 1, t=5 .*small num"):
        cost.evaluate(replace(rollouts, X=X))
    rough = TorchCost(function=fn.rough_root)
    with pytest.raises(NonFiniteError, match=r"rough_root has Hessian (nan|inf) at sample 1, t=5"):
        rough.evaluate(replace(rollouts, X=np.abs(X)))


@pytest.mark.parametrize("kind", ["exact", "positive"])
def test_a_broken_state_shows_in_the_cost_of_its_own_step(kind, rollouts):
    X = np.array(rollouts.X)
    X[2, 3, 1] = np.nan
    cost = TorchCost(function=fn.quartic, hessian=kind)
    terms, good = cost.evaluate(replace(rollouts, X=X)), cost.evaluate(rollouts)
    assert np.isnan(terms.l[2, 3])
    rest = np.ones((5, 6), dtype=bool)
    rest[2, 3] = False
    for name in PARTS:
        np.testing.assert_array_equal(getattr(terms, name)[rest], getattr(good, name)[rest])


# --- configuration ------------------------------------------------------------------------------
class Callable:
    def __call__(self, x, u, t):
        return x.sum()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"function": fn.nameless}, r"top level of a .*; torch_functions\.<lambda> is a lambda"),
        ({"function": fn.local()}, r"torch_functions\.local\.<locals>\.inside is defined inside a"),
        ({"function": Callable()}, r"must be a function f\(x, u, t\).*got <.*Callable"),
        ({"function": "fn"}, r"got 'fn'"),
        ({"function": torch.sum}, r"must be a function f\(x, u, t\)"),
        ({"function": fn.two_arguments}, r"torch_functions\.two_arguments must take \(x, u, t\): "),
        ({"function": fn.wraps(fn.saddle)}, r"saddle is now the name of something"),
        ({"entries": ()}, r"entries must be text or a non-empty tuple .*got \(\)"),
        ({"entries": ("a", "a")}, r"a non-empty tuple without repetition, .* got \('a', 'a'\)"),
        ({"entries": (1,)}, r"entries must be text or .* each text or None"),
        ({"entries": 3}, r"entries must be text or .* None, got 3"),
        ({"action": 1}, r"TorchCost\.action must be True or False"),
        ({"returns": "costs"}, r"TorchCost\.returns .* got 'costs'; did you mean 'cost'"),
        ({"hessian": "gauss-newton"}, r"TorchCost\.hessian .* got 'gauss-newton'; did you mean"),
        ({"hessian": "gauss_newton"}, r"needs returns='residual'"),
        ({"through": "fd"}, r"TorchCost\.through must be 'jacobian' or 'state', got 'fd'"),
        ({"l1": 1.0}, r"TorchCost\.l1=1\.0 has no meaning with returns='cost'"),
        ({"weights": (1.0, 2.0)}, r"TorchCost\.weights=\(1\.0, 2\.0\) has no meaning"),
        ({"returns": "residual", "l2": 0.0}, r"one of l1, l2 and log_weight must be above zero"),
        ({"returns": "residual", "alpha": 0.0}, r"TorchCost\.alpha must be a number above 0"),
        ({"ramp": "lineal"}, r"TorchCost\.ramp .* 'lineal'; did you mean 'linear'"),
    ],
)  # fmt: skip
def test_impossible_configuration_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        TorchCost(**{"function": fn.everything, **fields})
    assert "\n" not in str(error.value)


def test_functions_in_classes_and_wrapped_ones_are_found_by_name(rollouts):
    for function in (fn.Holder.inner, fn.wrapped):
        cost = TorchCost(function=function)
        copy = pickle.loads(pickle.dumps(cost))
        assert copy == cost
        factor = 1.0 if function is fn.Holder.inner else 2.0
        np.testing.assert_allclose(copy.evaluate(rollouts).l, factor * (rollouts.X**2).sum(axis=2))


def test_decorated_function_is_the_cost_and_can_be_stored(rollouts):
    assert fn.decorated == TorchCost(
        function=fn.decorated.function, entries="joint_pos", action=False, ramp="linear"
    )
    by_hand = StateCost(entry="joint_pos", target=0.0, l2=2.0, ramp="linear")
    assert_same(fn.decorated.evaluate(rollouts), by_hand.evaluate(rollouts), atol=1e-14)
    for cost in (fn.decorated, fn.bare, replace(fn.decorated, ramp="constant")):
        copy = pickle.loads(pickle.dumps(cost))
        assert copy == cost
        assert hash(copy) == hash(cost)
    assert float(fn.bare(torch.ones(3), torch.ones(2), 0)) == 5.0
    assert "torch_functions.decorated," in repr(fn.decorated)
    # a call, not a decoration: the function keeps its own name
    cost = torch_cost(fn.quartic, action=False)
    assert cost == TorchCost(function=fn.quartic, action=False)
    assert fn.quartic.__qualname__ == "quartic"
    with pytest.raises(ConfigError, match="must be a function"):
        torch_cost(fn.bare)


EXPERIMENT = """
import torch
from gps.costs import ActionCost, SumCost, TorchCost, WeightedCost, torch_cost

GOAL = torch.tensor([1.0, 0.5], dtype=torch.float64)


def to_goal(x, u, t):
    return x[:2] - GOAL


@torch_cost(entries=("position", "velocity"), action=False, hessian="positive")
def wall(x, u, t):
    return torch.exp(-(x["position"] ** 2).sum()) * (1.0 + x["velocity"][0] ** 2)


cost = SumCost(terms=(
    WeightedCost(cost=TorchCost(function=to_goal, entries="position", returns="residual")),
    WeightedCost(cost=wall, weight=0.5),
    WeightedCost(cost=ActionCost(weights=0.1)),
))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("hyperparams") / "with_torch.py"
    path.write_text(EXPERIMENT)
    return path


def small_agent():
    rng = np.random.default_rng(8)
    layout = Layout((("position", 2), ("velocity", 2)))
    return Rollouts(
        X=rng.normal(size=(3, 4, 4)), U=rng.normal(size=(3, 4, 2)), obs=np.zeros((3, 4, 0)),
        noise=np.zeros((3, 4, 2)), layout=layout,
    )  # fmt: skip


def test_costs_of_a_hyperparams_file_are_stored_by_name(file):
    module = loader.execute(file)
    stored = config_io.to_json(module.cost)
    text = json.dumps(stored)
    assert '"hyperparams:to_goal"' in text
    assert '"hyperparams:wall.function"' in text
    again = loader.execute(file)  # another module, as after a restart
    cost = config_io.from_json(json.loads(text), lambda: vars(again))
    assert cost.terms[1].cost == again.wall
    assert_same(cost.evaluate(small_agent()), module.cost.evaluate(small_agent()), rtol=0)


def test_costs_travel_by_value_from_modules_that_workers_cannot_import(file, tmp_path):
    cloudpickle = pytest.importorskip("cloudpickle")
    cost = loader.execute(file).cost
    (tmp_path / "cost").write_bytes(cloudpickle.dumps((cost, small_agent())))
    code = (
        "import pickle, sys; from dataclasses import replace\n"
        "cost, rollouts = pickle.load(open('cost', 'rb'))\n"
        "cost = replace(cost, terms=[replace(t, cost=replace(t.cost)) for t in cost.terms])\n"
        "sys.stdout.buffer.write(cost.evaluate(rollouts).l_xx.tobytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert not done.stderr
    assert done.stdout == cost.evaluate(small_agent()).l_xx.tobytes()


def test_importing_the_costs_imports_no_torch():
    code = "import sys, gps.costs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=HERE, check=False).returncode == 0


def test_a_module_that_runs_again_makes_its_costs_anew(tmp_path, monkeypatch):
    (tmp_path / "runs_twice.py").write_text(EXPERIMENT)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("runs_twice")
    old_wall, old_function = module.wall, module.to_goal
    module = importlib.reload(module)
    assert module.wall.function is not old_wall.function
    assert pickle.loads(pickle.dumps(module.cost)) == module.cost
    with pytest.raises(ConfigError, match="to_goal is now the name of something else"):
        TorchCost(function=old_function)


def test_along_a_trajectory_a_cost_that_is_not_finite_is_infinite():
    """A line search passes such a trajectory by; the others keep their cost."""
    layout = Layout((("position", 1),))
    cost = CostOf(TorchCost(function=fn.logarithm, action=False), layout, 1, 2)
    X = np.array([[[1.0], [2.0]], [[1.0], [-1.0]], [[3.0], [1.0]]])
    values = cost.values(X, np.zeros((3, 2, 1)))
    np.testing.assert_allclose(values[[0, 2]], np.log(X[[0, 2], :, 0]))
    assert np.isinf(values[1]).all()
