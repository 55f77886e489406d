"""Hyperparams files for a robot that no one has described yet: what `gps new` writes.

The values come from the model or the environment itself, and the file says from what
(`draft_of_model.py`, `draft_of_environment.py`); of several initial controllers the first one is
taken with which `gps.check` finds nothing wrong.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gps.errors import ConfigError, GPSError
from gps.pipeline import loader
from gps.pipeline.checking import EXPLORES, POSITIONS, Check, check
from gps.pipeline.draft import Draft
from gps.pipeline.draft_of_environment import of_dm, of_env
from gps.pipeline.draft_of_model import of_model
from gps.pipeline.source_text import Argument


@dataclass(frozen=True)
class Made:
    """What `new` wrote. `str(...)` says so."""

    path: Path
    check: Check
    """Of the experiment as written."""
    passed: tuple[str, ...] = ()
    """Initial controllers that are not in it, and why."""

    def __str__(self) -> str:
        holds = {True: "hold", False: "do not hold", None: "have no feedback to hold"}
        causes = self.check.causes if self.check.holds is not True else ()
        reasons = filter(None, (*self.passed, *causes, self.check.unrewarded))
        return "\n".join(
            [
                f"wrote {self.path}: {self.check.n_conditions} conditions, {self.check.T} steps of "
                f"{self.check.dt:g} s; its initial controllers {holds[self.check.holds]} the start",
                *(f"- {reason}" for reason in reasons),
                f"next: gps check {self.path}; edit it; gps run {self.path}",
            ]
        )


def new(
    name: str,
    *,
    model: str | None = None,
    env: str | None = None,
    dm: str | None = None,
    folder: str | Path = ".",
    force: bool = False,
) -> Made:
    """Write a hyperparams file for a MuJoCo model, a Gymnasium or a dm_control environment.

    model: a file or the name of a model in `gps.data`; env: `Reacher-v5`; dm: `domain:task`; one of
    them is given. force: write over a file that exists. Raises ExperimentError, and ConfigError
    where the robot cannot be an agent; then no file is left.
    """
    given = [v for v in (model, env, dm) if v is not None]
    if len(given) != 1:
        raise ConfigError(f"new needs one of model, env and dm, got {len(given)} of them")
    target = loader.new_path(name, folder)
    before = target.read_text(encoding="utf-8") if target.is_file() else None
    if before is not None and not force:
        loader.write_new(target, "")  # raises
    if model is not None:
        draft = of_model(model, target.parent)
    elif env is not None:
        draft = of_env(env)
    else:
        draft = of_dm(str(dm))
    try:
        return _written(draft, target)
    except BaseException:
        if before is None:
            target.unlink(missing_ok=True)
        else:
            target.write_text(before, encoding="utf-8")
        raise


def _written(draft: Draft, target: Path) -> Made:
    """Write the draft with the first initial controllers that do, or those that do best."""
    tried: list[tuple[tuple[float, ...], Argument, Check]] = []
    errors: list[GPSError] = []
    passed: dict[str, str] = {}
    for initial in draft.initial:
        loader.write_new(target, draft.text(target.stem, initial), force=True)
        kind = initial.value.name
        try:
            with _unheard():
                found = check(loader.load(target).experiment, conditions=2)
        except GPSError as error:
            errors.append(error)
            passed.setdefault(kind, f"{kind} fails: {error}")
            continue
        tried.append((_faults(found), initial, found))
        passed.setdefault(kind, f"{kind} is not what it starts with: {_objection(found)}")
        if found.good and not any(_faults(found)):
            break
    if not tried:
        raise errors[0]
    _, initial, found = min(tried, key=lambda t: t[0])
    passed.pop(initial.value.name, None)
    loader.write_new(target, draft.text(target.stem, initial), force=True)
    if draft.shorter is not None:
        with _unheard():
            other = draft.shorter(loader.load(target).experiment)
        if other is not None:  # what falls within the longer horizon may be held in the shorter one
            return _written(other, target)
    before = [i.value.name for i in draft.initial].index(initial.value.name)
    reasons = tuple(passed.get(i.value.name, "") for i in draft.initial[:before])
    return Made(target, found, tuple(dict.fromkeys(filter(None, reasons))))


@contextmanager
def _unheard() -> Iterator[None]:
    """Without the warnings of what is only tried; what is written is checked by the user."""
    log = logging.getLogger("gps")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _objection(found: Check) -> str:
    """What speaks most against initial controllers that were tried."""
    if found.failures:
        return f"{len(found.failures)} of its rollouts cannot be simulated"
    positions = [e for e in found.entries if e.name in POSITIONS]
    drifts = [e for e in positions if not e.drift <= e.tolerance]
    if drifts and found.holds is False:
        e = max(drifts, key=lambda e: e.drift / e.tolerance)
        return f"{e.worst} moves by {e.drift:.2g} {e.unit}".rstrip() + " without noise"
    if much := found.often_clipped:
        worst = max(much, key=lambda a: a.clipped)
        return f"{worst.name} is clipped in {worst.clipped:.0%} of the steps"
    far = max((e.explored for e in positions), default=math.nan)
    return f"exploration moves positions by up to {far:.2g}"


def _faults(found: Check) -> tuple[float, ...]:
    """What speaks against initial controllers, the worst first; zeros for nothing."""
    away = max((e.explored for e in found.entries if e.name in POSITIONS), default=0.0)
    # in powers of ten: what falls anyhow falls about as far with other gains and less noise
    far = max(0, round(math.log10(away / EXPLORES))) if 0 < away < math.inf else 0
    return bool(found.failures), far, (found.holds is False) + bool(found.often_clipped)
