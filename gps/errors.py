"""The errors that the toolkit raises on purpose; each message says what, where and what would help.

The command line turns a GPSError into one line and exit code 2. Anything else is a bug and keeps
its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


class GPSError(Exception):
    """Base of all errors that a user can do something about."""


class ConfigError(GPSError):
    """A configuration field has a value that cannot work; raised before the first rollout."""


class ShapeError(GPSError, ValueError):
    """An array does not have the shape that the other arrays imply."""


class NotPositiveDefiniteError(GPSError):
    """A matrix that must have a Cholesky factor has none."""

    def __init__(self, matrix: str, *, t: int, hint: str, smallest: float | None = None) -> None:
        self.matrix, self.t, self.hint, self.smallest = matrix, t, hint, smallest
        eig = "" if smallest is None else f" (smallest eigenvalue {smallest:.3g})"
        super().__init__(f"{matrix} is not positive definite at t={t}{eig}; {hint}")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_npd, (self.matrix, self.t, self.hint, self.smallest)


def _rebuild_npd(
    matrix: str, t: int, hint: str, smallest: float | None
) -> NotPositiveDefiniteError:
    return NotPositiveDefiniteError(matrix, t=t, hint=hint, smallest=smallest)


class DualError(GPSError):
    """The search for the dual variable of the KL bound found no acceptable controller.

    t, eta, smallest: step, dual variable and smallest eigenvalue of the last failure, None where
    they do not exist; the message holds them too.
    """

    def __init__(
        self,
        message: str,
        *,
        t: int | None = None,
        eta: float | None = None,
        smallest: float | None = None,
    ) -> None:
        self.t, self.eta, self.smallest = t, eta, smallest
        super().__init__(message)


class NonFiniteError(GPSError):
    """NaN or infinity where numbers are needed."""


class FitError(GPSError):
    """A statistical fit (dynamics, mixture, policy) cannot be done with the data given."""


@dataclass(frozen=True)
class SampleFailure:
    """One simulated sample that went wrong."""

    sample: int
    t: int
    reason: str


class SimulationError(GPSError):
    """Samples of one condition ended in a simulator warning, NaN or infinity.

    The message names those that failed for one reason together. note: what holds for all of them,
    such as the time step of the simulation.
    """

    def __init__(self, condition: int, failures: Iterable[SampleFailure], note: str = "") -> None:
        self.condition, self.failures, self.note = condition, tuple(failures), note
        alike: dict[str, list[SampleFailure]] = {}
        for f in self.failures:
            alike.setdefault(f.reason, []).append(f)
        what = "; ".join(
            f"sample{'s' if len(fs) > 1 else ''} {ranges(f.sample for f in fs)}, "
            f"t={_span([f.t for f in fs])}: {reason}"
            for reason, fs in alike.items()
        )
        end = f"; {note}" if note else ""
        super().__init__(f"condition {condition}: simulation failed ({what}){end}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.condition, self.failures, self.note)


class NotLearningError(GPSError):
    """A run was ended since no condition had been updated for some iterations; all is stored.

    iterations: how many. diagnosis: why, a line for each cause.
    """

    def __init__(self, message: str, *, iterations: int = 0, diagnosis: Iterable[str] = ()) -> None:
        self.iterations, self.diagnosis = iterations, tuple(diagnosis)
        super().__init__(message)


class ClusterError(GPSError):
    """Workers or a scheduler are gone, and waiting or repeating does not help."""


class SharedLostError(ClusterError):
    """An object that tasks share is gone together with its worker."""


class StoreError(GPSError):
    """A run folder or one of its files cannot be written or read."""


class ExperimentError(GPSError):
    """An experiment cannot be found or loaded."""


def one_line(error: BaseException) -> str:
    """The error's text on one line, with its notes in brackets."""
    notes: list[str] = vars(error).get("__notes__", [])
    return " ".join(str(error).split()) + "".join(f" ({note})" for note in notes)


def _span(numbers: Sequence[int]) -> str:
    """`3`, or `3..9`."""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}..{high}"


def ranges(numbers: Iterable[int]) -> str:
    """`0-3, 5`; `none` without any."""
    parts: list[list[int]] = []
    for n in sorted(set(numbers)):
        if parts and parts[-1][1] == n - 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts) or "none"


def choices(kind: str, given: object, known: Iterable[str]) -> str:
    """`unknown agent 'pg'; did you mean 'peg'? known: peg, reacher`."""
    known = sorted(known)
    close = get_close_matches(str(given), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"unknown {kind} {given!r}{hint} known: {', '.join(known) or 'none'}"
