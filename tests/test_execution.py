import re
import shutil
import sys
import time
from collections import namedtuple
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from mypy import api

from gps.errors import GPSError
from gps.execution import Serial, each, map_tree, over, stage, stage_of
from gps.threads import THREAD_VARIABLES, one_thread, single_thread_environment
from gps.types import Record

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, eq=False)
class Leaf(Record):
    value: Any
    other: Any = None


Pair = namedtuple("Pair", "a b")


def add_ten(item):
    return item + 10 if isinstance(item, int) else item


def test_a_tree_is_mapped_to_its_leaves():
    tree = {"a": (1, [2, "x"]), "b": Leaf(3, {"c": (4, None)}), "d": MappingProxyType({"e": 5})}
    new = map_tree(add_ten, tree)
    assert new["a"] == (11, [12, "x"])
    assert (type(new["a"]), type(new["a"][1])) == (tuple, list)
    assert (new["b"].value, new["b"].other) == (13, {"c": (14, None)})
    assert new["d"] == {"e": 15}
    assert (tree["b"].value, tree["a"]) == (3, (1, [2, "x"]))  # the tree itself stays as it was


def test_a_record_without_handles_stays_the_same_object():
    inner = Leaf(np.arange(3.0), {"x": (1.5, None)})
    outer = Leaf(inner, [inner, "text"])
    assert map_tree(lambda item: item, outer) is outer
    changed = map_tree(add_ten, Leaf(inner, 1))
    assert changed.value is inner
    assert changed.other == 11


def test_a_named_tuple_is_a_value():
    pair = Pair(1, 2)
    assert map_tree(lambda item: item, (pair,)) == (pair,)
    assert map_tree(lambda item: item, (pair,))[0] is pair


@stage("wait")
def pause(seconds, value):
    time.sleep(seconds)
    return value


def test_serial_runs_at_once_and_counts_seconds_per_stage():
    ex = Serial()
    first = ex.call(pause, 0.02, 1, condition=0)
    second = ex.call(pause, 0.03, first, condition=1)
    record = ex.call(Leaf, [first, second], {"k": second})
    got = ex.gather({"all": (first, record)})
    assert got["all"][0] == 1
    assert got["all"][1].value == [1, 1]
    seconds = ex.seconds()
    assert set(seconds) == {"wait", "Leaf"}
    assert 0.05 <= seconds["wait"] < 1.0
    assert seconds["Leaf"] < 0.05
    assert ex.seconds() == {}  # the count begins anew
    ex.close()


def test_serial_lets_errors_through():
    with pytest.raises(ZeroDivisionError):
        Serial().call(lambda: 1 / 0)


def test_one_thread_and_back():
    import torch
    from threadpoolctl import threadpool_info

    def blas():
        return {i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}

    was, before = torch.get_num_threads(), blas()
    torch.set_num_threads(3)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
            assert blas() == {1}
        assert torch.get_num_threads() == 3
        assert blas() == before
        with pytest.raises(ZeroDivisionError), one_thread():
            1 / 0  # noqa: B018
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(was)


def test_the_environment_of_a_worker(monkeypatch):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    assert single_thread_environment() == dict.fromkeys(THREAD_VARIABLES, "1")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/somewhere")
    assert single_thread_environment()["NUMBA_CACHE_DIR"] == "/somewhere"


def test_code_that_wants_to_end_the_process():
    """It is named, as on a cluster; the run's process goes on."""
    with pytest.raises(GPSError, match=r"called sys\.exit\(4\)") as caught:
        Serial().call(sys.exit, 4, condition=2)
    assert caught.value.__notes__ == ["in exit of condition 2"]


# --- stages


def _scaled(value, factor):
    return value * factor


def test_a_stage_has_the_name_of_its_function_or_the_one_given():
    assert stage_of(_scaled) == "scaled"
    assert stage_of(pause) == "wait"
    assert stage_of(partial(pause, 0.1)) == "wait"
    assert stage_of(stage("named")(partial(pause, 0.1))) == "named"
    assert stage_of(Leaf) == "Leaf"
    assert stage_of(abs) == "abs"


def test_each_calls_with_what_differs_and_what_does_not():
    class Noted(Serial):
        def call(self, fn, *args, condition=-1):
            calls.append((stage_of(fn), args, condition))
            return super().call(fn, *args, condition=condition)

    calls = []
    assert each(Noted(), _scaled, over([1, 2, 3]), 10) == [10, 20, 30]
    assert calls == [("scaled", (m + 1, 10), m) for m in range(3)]
    assert each(Serial(), _scaled, over((1, 2)), over([10, 100])) == [10, 200]
    assert each(Serial(), _scaled, 3, over([10, 100])) == [30, 300]


@pytest.mark.parametrize("args", [(over([1, 2]), over([1])), (1, 2)], ids=["unequal", "none"])
def test_each_needs_one_value_per_condition(args):
    with pytest.raises(ValueError, match=r"scaled: needs one value per condition, got (2, 1|none)"):
        each(Serial(), _scaled, *args)


TYPED = """
from gps.execution import Executor, each, over

def stage(cost: float, name: str, m: int = 0) -> bytes:
    raise NotImplementedError

def joined(parts: list[bytes]) -> None:
    raise NotImplementedError

def recipe(ex: Executor, costs: list[float], name: str) -> None:
    parts = each(ex, stage, over(costs), name)
    ex.call(joined, parts)
    ex.gather(ex.call(stage, 1.0, name, 3, condition=0)).hex()
"""
WRONG = {
    "ex.call(stage, name, name)": "arg-type",
    "ex.call(stage, 1.0)": "arg-type",
    "ex.call(stage, 1.0, name, 3, 4)": "arg-type",
    "ex.call(joined, costs)": "arg-type",
    "each(ex, stage, over(costs), over(costs))": "arg-type",
    "each(ex, joined, over(parts))": "arg-type",
    "ex.gather(parts)[0].real": "attr-defined",
    "ex.share(stage, name)": "arg-type",
    "ex.gang(stage, 2, 1.0, name)": "arg-type",
}


def test_the_arguments_of_stages_are_checked_by_mypy(tmp_path):
    """What the annotations are for: a wrong argument of a stage is found before any run."""
    recipe = TYPED + "".join(f"    {line}\n" for line in WRONG)
    (tmp_path / "recipe.py").write_text(recipe)
    (tmp_path / "gps").mkdir()  # what the snippet needs of it: all of it takes mypy half a minute
    for name in ("execution", "types", "fields", "errors"):
        shutil.copy(ROOT / "gps" / f"{name}.py", tmp_path / "gps")
    (tmp_path / "gps" / "__init__.py").touch()
    cache = ROOT / ".mypy_cache" / "stages"
    out, _, _ = api.run(["--config-file=", "--strict", f"--cache-dir={cache}", str(tmp_path)])
    found = re.findall(r"recipe\.py:(\d+): error: .* \[([a-z-]+)\]", out)
    first = 1 + TYPED.count("\n")
    expected = [(str(first + i), error) for i, error in enumerate(WRONG.values())]
    assert sorted(set(found), key=lambda e: int(e[0])) == expected, out
