"""Options that were changed during a run, and from which iteration.

RUN/changes.json holds them, so that the run can be repeated and resumed to the same bytes:

    {"schema": "gps changes", "schema_version": 1,
     "changes": [{"iteration": 4, "options": {"algorithm.step.kl-max": "0.5"}, "seed": null}]}

An entry holds from its iteration on, until a later entry says otherwise: iteration N is made with
all entries up to N. `options` are those of the command line, without the dashes in front; `seed`
is that of the random streams.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gps.errors import ConfigError, StoreError
from gps.fields import checked
from gps.pipeline import loader
from gps.pipeline.experiment import Experiment, Seed
from gps.types import iter_fields

SCHEMA, SCHEMA_VERSION = "gps changes", 1
_ALWAYS = ("samples", "iterations", "max-resamples", "max-without-update")
# what has been made with them is in the state already
_FIXED = ("algorithm.network.", "algorithm.kinematics")
_WHY = {
    "algorithm.network": "the weights that have been learned are those of this network",
    "algorithm.kinematics": "the states that are planned in are those of this agent",
    "agent": "states, controllers and policy are those of this agent",
    "cost": "the iterations of a run are compared by it",
    "measure": "the iterations of a run are compared by it",
    "evaluation-steps": "the iterations of a run are compared by it",
    "initial": "only the first iteration begins with it",
    "name": "it names the run's folder",
    "description": "it says what the run is",
    "seed": "gps resume --seed and the page's Repeat give the following iterations another one",
}


@dataclass(frozen=True)
class Change:
    """What is different from one iteration on."""

    options: Mapping[str, str] = field(default_factory=dict)
    """Option, without dashes in front, to its value as text."""
    seed: int | None = None
    """Seed of the random streams; None leaves it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def __str__(self) -> str:
        parts = [f"{name} {value}" for name, value in self.options.items()]
        return ", ".join(parts + ([] if self.seed is None else [f"seed {self.seed}"]))


@dataclass(frozen=True)
class Changes:
    """The changes of a run by iteration, in their order."""

    at: tuple[tuple[int, Change], ...] = ()

    def with_change(self, iteration: int, change: Change) -> Changes:
        """These and one more; of what is changed twice in one iteration the later holds."""
        found = dict(self.at)
        old = found.get(iteration, Change())
        seed = old.seed if change.seed is None else change.seed
        found[iteration] = Change({**old.options, **change.options}, seed)
        return Changes(tuple(sorted(found.items())))

    def from_now(self, iteration: int, change: Change) -> Changes:
        """These and one more, which holds for good: later changes of the same options are gone."""
        kept = []
        for n, old in self.at:
            if n > iteration:
                options = {k: v for k, v in old.options.items() if k not in change.options}
                old = Change(options, old.seed if change.seed is None else None)
            if n <= iteration or old != Change():
                kept.append((n, old))
        return Changes(tuple(kept)).with_change(iteration, change)

    def apply(self, experiment: Experiment, iteration: int) -> Experiment:
        """The experiment of an iteration; raises ConfigError, ExperimentError."""
        return changed(experiment, self.options(iteration))

    def options(self, iteration: int) -> dict[str, str]:
        """All options that hold in an iteration, with their values."""
        held: dict[str, str] = {}
        for start, change in self.at:
            if start <= iteration:
                held.update(change.options)
        return held

    def rollouts(self, experiment: Experiment, iterations: int) -> int:
        """Rollouts per condition in the first so many iterations together."""
        held = (self.options(n).get("samples") for n in range(1, iterations + 1))
        return sum(experiment.samples if text is None else int(text) for text in held)

    def seed(self, iteration: int) -> int | None:
        """The seed that is new in this very iteration; None if it stays what it was."""
        return dict(self.at).get(iteration, Change()).seed


def live_options(experiment: Experiment) -> dict[str, loader.Setting]:
    """What can be changed between iterations: samples, iterations and the algorithm's settings."""
    return {
        option.name: option
        for option in loader.settings(experiment)
        if option.name in _ALWAYS
        or (option.name.startswith("algorithm.") and not option.name.startswith(_FIXED))
    }


def changed(experiment: Experiment, options: Mapping[str, str]) -> Experiment:
    """The experiment with live options set; ConfigError or ExperimentError in one line."""
    if not options:
        return experiment
    known = live_options(experiment)
    argv: list[str] = []
    for name, value in options.items():
        plain = name.replace("_", "-")
        if plain not in known:
            raise ConfigError(_refusal(experiment, name, plain, known))
        # with "=", so that a negative number is not taken for another option
        argv += [f"--{plain}={value}"] if " " not in value else [f"--{plain}", *value.split()]
    return loader.override(experiment, argv, prog="gps run NAME")


def _refusal(experiment: Experiment, name: str, plain: str, known: Mapping[str, Any]) -> str:
    """Why an option cannot be set."""
    parts = plain.split(".")
    begins = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    why = next((_WHY[part] for part in begins if part in _WHY), "")
    if why:
        names = [option.name for option in loader.settings(experiment)]
        known_name = plain in (*names, *_WHY) or _is_field(experiment, parts)
        meant = [] if known_name else _meant(plain, names)
        of = f" (there is {', '.join(meant)})" if meant else ""
        return f"{name!r}{of} cannot change between iterations: {why}"
    close = get_close_matches(plain, known, n=1)
    close = [k for k in known if k.rpartition(".")[2] == plain][:3] or close
    hint = f"; did you mean {' or '.join(close)}?" if close else ";"
    return (
        f"{name!r} cannot change between iterations{hint} what can: {', '.join(_ALWAYS)} and what "
        "begins with algorithm. in gps run NAME --help, the network left out"
    )


def _is_field(config: Any, parts: Sequence[str]) -> bool:
    """Whether a field has that name, be it one that is no option."""
    for part in parts:
        inside = dict(iter_fields(config)) if is_dataclass(config) else {}
        if part.replace("-", "_") not in inside:
            return False
        config = inside[part.replace("-", "_")]
    return True


def _meant(given: str, names: Sequence[str]) -> list[str]:
    """The options that begin and end as a name that does not exist, parts left out; or a close
    one: `cost.terms.0.l2` for `cost.terms.0.cost.l2`."""

    def within(name: str) -> bool:
        parts = iter(name.split("."))
        return all(part in parts for part in given.split("."))

    return [n for n in names if within(n)][:3] or get_close_matches(given, names, 1, 0.9)


def change_of(experiment: Experiment, values: Mapping[str, Any]) -> Change:
    """A change from values by option, `{"algorithm.step.kl_max": 0.5}`; `seed` is that of the
    random streams. Raises ConfigError, ExperimentError for what cannot be set."""
    options = {name.replace("_", "-"): text(value) for name, value in values.items()}
    seed = options.pop("seed", None)
    changed(experiment, options)
    if seed is None:
        return Change(options)
    found = checked(values["seed"] if not seed.isdecimal() else int(seed), Seed, "seed")
    return Change(options, found)


def text(value: Any) -> str:
    """The value of an option as one writes it on the command line."""
    if isinstance(value, tuple | list):
        return " ".join(map(str, value))
    return str(value)


def encode(changes: Changes) -> bytes:
    """The text of changes.json."""
    entries = [
        {"iteration": n, "options": dict(change.options), "seed": change.seed}
        for n, change in changes.at
    ]
    whole = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "changes": entries}
    return (json.dumps(whole, indent=2) + "\n").encode()


def read(path: Path) -> Changes:
    """The changes in a file; none where there is no file. Raises StoreError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Changes()
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}") from error
    try:
        return _decoded(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} holds no changes of a run: {error}") from error


def _decoded(whole: Any) -> Changes:
    if whole["schema"] != SCHEMA or whole["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"schema {whole['schema']!r}, version {whole['schema_version']!r}")
    changes = Changes()
    for entry in whole["changes"]:
        iteration, seed = entry["iteration"], entry.get("seed")
        if type(iteration) is not int or iteration < 1:
            raise ValueError(f"iteration must be a whole number of at least 1, got {iteration!r}")
        if seed is not None and (type(seed) is not int or seed < 0):
            raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
        options = {str(k): str(v) for k, v in entry.get("options", {}).items()}
        changes = changes.with_change(iteration, Change(options, seed))
    return changes


__all__ = ["Change", "Changes", "change_of", "changed", "encode", "live_options", "read"]
