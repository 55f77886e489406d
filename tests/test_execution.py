import sys
import time
from collections import namedtuple
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from gps.errors import GPSError
from gps.execution import Serial, map_tree
from gps.threads import THREAD_VARIABLES, one_thread, single_thread_environment
from gps.types import Record


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


def pause(seconds, value):
    time.sleep(seconds)
    return value


def test_serial_runs_at_once_and_counts_seconds_per_stage():
    ex = Serial()
    first = ex.call("wait", pause, 0.02, 1, condition=0)
    second = ex.call("wait", pause, 0.03, first, condition=1)
    record = ex.call("make", Leaf, [first, second], {"k": second})
    got = ex.gather({"all": (first, record)})
    assert got["all"][0] == 1
    assert got["all"][1].value == [1, 1]
    seconds = ex.seconds()
    assert set(seconds) == {"wait", "make"}
    assert 0.05 <= seconds["wait"] < 1.0
    assert seconds["make"] < 0.05
    assert ex.seconds() == {}  # the count begins anew
    ex.close()


def test_serial_lets_errors_through():
    with pytest.raises(ZeroDivisionError):
        Serial().call("x", lambda: 1 / 0)


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
        Serial().call("expand_cost", sys.exit, 4, condition=2)
    assert caught.value.__notes__ == ["in expand_cost of condition 2"]
