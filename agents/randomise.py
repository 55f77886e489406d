"""Domain randomisation: properties of the model that each sample of a rollout gets at random."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import mujoco
import numpy as np
from scipy.special import ndtr

from gps.agents._model import ids, refuse_free, set_const
from gps.agents.base import Names, require
from gps.errors import ConfigError
from gps.fields import Config, Finite, NonNegative
from gps.types import Array


class _Kind(NamedTuple):
    objects: str  # what the names are names of
    array: Callable[[mujoco.MjModel], Any]  # the model's field
    above: float = -math.inf  # values are above this ...
    reach: bool = True  # ... or equal to it
    const: bool = False  # whether mj_setConst has to follow


What = Literal[
    "body_mass",
    "body_pos",
    "geom_friction",
    "dof_damping",
    "dof_frictionloss",
    "dof_armature",
    "jnt_stiffness",
    "actuator_gain",
]
_KINDS: dict[What, _Kind] = {
    "body_mass": _Kind("body", lambda m: m.body_mass, above=0.0, reach=False, const=True),
    "body_pos": _Kind("body", lambda m: m.body_pos, const=True),
    "geom_friction": _Kind("geom", lambda m: m.geom_friction, above=0.0),
    "dof_damping": _Kind("joint", lambda m: m.dof_damping, above=0.0),
    "dof_frictionloss": _Kind("joint", lambda m: m.dof_frictionloss, above=0.0),
    "dof_armature": _Kind("joint", lambda m: m.dof_armature, above=0.0, const=True),
    "jnt_stiffness": _Kind("joint", lambda m: m.jnt_stiffness, above=0.0),
    "actuator_gain": _Kind("actuator", lambda m: m.actuator_gainprm, above=0.0, reach=False),
}


@dataclass(frozen=True, kw_only=True)
class Randomise(Config):
    """A property of the model that every sample of a rollout draws for itself.

    Each name uses one unit-variance number z of the rollout's start noise (body_pos one for each of
    its axes). With `std`, a relative property is multiplied by exp(std z), which is log-normal
    and stays above zero, and an absolute one gets std z added. With `between`, the factor or the
    addend is uniform, low + (high - low) Phi(z) with the normal distribution function Phi. So
    z = 0, which a rollout without start noise has, is the median.
    """

    what: What
    """body_mass (with its inertia), body_pos (m), geom_friction (all three coefficients; absolute:
    the sliding one), dof_damping, dof_frictionloss, dof_armature, jnt_stiffness, or actuator_gain
    (the actuator's force: gain and bias alike)."""
    names: Names
    """Bodies, geoms, joints or actuators of the model, each with numbers of its own."""
    std: NonNegative | None = None
    """Standard deviation: of the factor's logarithm, or of the addend in the property's unit."""
    between: tuple[Finite, Finite] | None = None
    """Lowest and highest factor or addend, in place of std."""
    relative: bool | None = None
    """Whether the property is multiplied; None: yes, but for body_pos, which has to be added to."""
    axes: Literal["x", "y", "z", "xy", "xz", "yz", "xyz"] = "xyz"
    """body_pos: the axes along which bodies are moved, one number each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = _KINDS[self.what]
        if self.relative is None:
            object.__setattr__(self, "relative", self.what != "body_pos")
        if self.what in ("body_pos", "actuator_gain"):
            must = self.what == "actuator_gain"
            require(self.relative is must, self, "relative", f"{must} for {self.what}", not must)
        ok = self.axes == "xyz" or self.what == "body_pos"
        require(ok, self, "axes", f"xyz for {self.what}, which has none", self.axes)
        one = (self.std is None) != (self.between is None)
        require(one, self, "std", "given, or between, and not both", (self.std, self.between))
        bounded = not self.relative and kind.above == 0.0
        rule = f"relative for {self.what}, which cannot go below 0; or use between"
        require(not (bounded and self.std), self, "std", rule, self.std)
        if self.between is not None:
            low, high = self.between
            require(low <= high, self, "between", "(low, high), in order", self.between)
            if self.relative:
                self._check_sign(low, "between")

    def _check_sign(self, value: float, where: str) -> None:
        kind = _KINDS[self.what]
        if value < kind.above or (value == kind.above and not kind.reach):
            rule = "at or above" if kind.reach else "above"
            raise ConfigError(f"Randomise.{where}: {self.what} must stay {rule} 0, got {value:g}")

    @property
    def size(self) -> int:
        """Numbers that one sample uses."""
        return len(self.names) * (len(self.axes) if self.what == "body_pos" else 1)

    def where(self, model: mujoco.MjModel) -> list[np.ndarray]:
        """Rows of the model's field that each name stands for; ConfigError for unknown names."""
        found = ids(model, _KINDS[self.what].objects, self.names, "Randomise.names")
        if self.what.startswith("dof_"):
            return [np.flatnonzero(model.dof_jntid == j) for j in found]
        return [np.array([i]) for i in found]

    def check(self, model: mujoco.MjModel) -> None:
        """ConfigError where a name is unknown, or a property would be or stay meaningless."""
        kind = _KINDS[self.what]
        for name, rows in zip(self.names, self.where(model), strict=True):
            if self.what == "body_pos":
                refuse_free(model, int(rows[0]), "Randomise.names")
            value = float(kind.array(model)[rows].reshape(len(rows), -1)[:, 0].min())
            if self.what == "body_mass" and not value > 0:
                raise ConfigError(f"Randomise.names: the body {name} has no mass")
            if self.relative and value == 0:
                raise ConfigError(
                    f"Randomise.names: {self.what} of {name} is 0 in the model, which a factor "
                    "does not change; use relative=False"
                )
            if not self.relative and self.between is not None and kind.above == 0.0:
                self._check_sign(value + self.between[0], f"between ({name})")

    def values(self, z: Array) -> Array:
        """Factors or addends for unit-variance numbers."""
        if self.between is not None:
            low, high = self.between
            spread: Array = low + (high - low) * ndtr(z)
            return spread
        assert self.std is not None
        scaled: Array = self.std * z
        return np.exp(scaled) if self.relative else scaled

    def apply(self, model: mujoco.MjModel, z: Array) -> None:
        """Write one sample's numbers (size,) into its model."""
        array = _KINDS[self.what].array(model)
        values = self.values(z).reshape(len(self.names), -1)
        for rows, value in zip(self.where(model), values, strict=True):
            if self.what == "body_pos":
                array[rows, ["xyz".index(axis) for axis in self.axes]] += value
            elif self.what == "body_mass":
                factor = value if self.relative else 1.0 + value / array[rows]
                array[rows] *= factor
                model.body_inertia[rows] *= factor
            elif self.what == "actuator_gain":
                array[rows] *= value
                model.actuator_biasprm[rows] *= value
            elif self.relative:
                array[rows] *= value
            elif self.what == "geom_friction":
                array[rows, 0] += value
            else:
                array[rows] += value


def randomised(
    model: mujoco.MjModel, specs: Sequence[Randomise], numbers: Array
) -> list[mujoco.MjModel]:
    """A model for every row of `numbers` (N, sum of the specs' sizes); the given one stays."""
    bounds = np.cumsum([0, *(s.size for s in specs)])
    const = any(_KINDS[s.what].const for s in specs)
    data = mujoco.MjData(model) if const else None
    models = []
    for row in numbers:
        own = copy.copy(model)
        for spec, a, b in zip(specs, bounds[:-1], bounds[1:], strict=True):
            spec.apply(own, row[a:b])
        if data is not None:
            set_const(own, data)
        models.append(own)
    return models
