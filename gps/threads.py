"""One thread per task: with more, sums are split differently and the last bits change."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


def single_thread_environment() -> dict[str, str]:
    """Environment of a worker process; also the numba cache of this process, if one is set."""
    env = dict.fromkeys(THREAD_VARIABLES, "1")
    if "NUMBA_CACHE_DIR" in os.environ:
        env["NUMBA_CACHE_DIR"] = os.environ["NUMBA_CACHE_DIR"]
    return env


@contextmanager
def one_thread() -> Iterator[None]:
    """Pin BLAS and torch to one thread inside the block, and restore what was set before."""
    from threadpoolctl import threadpool_limits

    restore = pin_torch()
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        restore()


def pin_torch() -> Callable[[], None]:
    """Pin torch to one thread, now or, where nobody has imported it yet, as soon as somebody does.

    It is not imported for this: it holds 130 MB, and few workers need it. Returns the function
    that restores what was set before.
    """
    if (torch := sys.modules.get("torch")) is not None:
        return _pinned(torch)
    pin = _PinOnImport()
    sys.meta_path.insert(0, pin)
    return pin.restore


def _pinned(torch: ModuleType) -> Callable[[], None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    return lambda: torch.set_num_threads(before)


class _PinOnImport(MetaPathFinder):
    """Pins torch when its import ends; finds no module itself."""

    _undo: Callable[[], None] | None = None

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Called by every import of a module that is not there yet."""
        if name != "torch":
            return None
        self._leave()
        spec = find_spec("torch")  # by the other finders
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self._undo = _pinned(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def restore(self) -> None:
        """Torch as it was before the pin, if it has been imported since."""
        self._leave()
        if self._undo is not None:
            self._undo()

    def _leave(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
