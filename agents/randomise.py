"""Domain randomisation: properties of the model that each sample of a rollout gets at random."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mujoco
import numpy as np
from scipy.special import ndtr

from gps.agents._model import ids, refuse_free
from gps.agents.base import require
from gps.errors import ConfigError, choices
from gps.types import Array


class _Kind(NamedTuple):
    objects: str  # what the names are names of
    field: str  # of the model
    above: float = -math.inf  # values are above this ...
    reach: bool = True  # ... or equal to it
    const: bool = False  # whether mj_setConst has to follow


_KINDS = {
    "body_mass": _Kind("body", "body_mass", above=0.0, reach=False, const=True),
    "body_pos": _Kind("body", "body_pos", const=True),
    "geom_friction": _Kind("geom", "geom_friction", above=0.0),
    "dof_damping": _Kind("joint", "dof_damping", above=0.0),
    "dof_frictionloss": _Kind("joint", "dof_frictionloss", above=0.0),
    "dof_armature": _Kind("joint", "dof_armature", above=0.0, const=True),
    "jnt_stiffness": _Kind("joint", "jnt_stiffness", above=0.0),
    "actuator_gain": _Kind("actuator", "actuator_gainprm", above=0.0, reach=False),
}
_COUNTS = {"body": "nbody", "geom": "ngeom", "joint": "njnt", "actuator": "nactuator"}


@dataclass(frozen=True, kw_only=True)
class Randomise:
    """A property of the model that every sample of a rollout draws for itself.

    Each name uses one unit-variance number z of the rollout's start noise (body_pos one for each of
    its axes). With `std`, a relative property is multiplied by exp(std z), which is log-normal
    and stays above zero, and an absolute one gets std z added. With `between`, the factor or the
    addend is uniform, low + (high - low) Phi(z) with the normal distribution function Phi. So
    z = 0, which a rollout without start noise has, is the median.
    """

    what: str
    """body_mass (with its inertia), body_pos (m), geom_friction (all three coefficients; absolute:
    the sliding one), dof_damping, dof_frictionloss, dof_armature, jnt_stiffness, or actuator_gain
    (the actuator's force: gain and bias alike)."""
    names: tuple[str, ...]
    """Bodies, geoms, joints or actuators of the model, each with numbers of its own."""
    std: float | None = None
    """Standard deviation: of the factor's logarithm, or of the addend in the property's unit."""
    between: tuple[float, float] | None = None
    """Lowest and highest factor or addend, in place of std."""
    relative: bool | None = None
    """Whether the property is multiplied; None: yes, but for body_pos, which has to be added to."""
    axes: str = "xyz"
    """body_pos: the axes along which bodies are moved, one number each."""

    def __post_init__(self) -> None:
        if self.what not in _KINDS:
            raise ConfigError(f"Randomise.what: {choices('property', self.what, tuple(_KINDS))}")
        kind, names = _KINDS[self.what], self.names
        ok = not isinstance(names, str) and len(names) > 0 and len(set(names)) == len(names)
        require(ok, self, "names", "a tuple of different names", names)
        object.__setattr__(self, "names", tuple(map(str, names)))
        if self.relative is None:
            object.__setattr__(self, "relative", self.what != "body_pos")
        if self.what in ("body_pos", "actuator_gain"):
            must = self.what == "actuator_gain"
            require(self.relative is must, self, "relative", f"{must} for {self.what}", not must)
        ok = self.axes in ("x", "y", "z", "xy", "xz", "yz", "xyz")
        require(ok, self, "axes", "some of xyz in this order", self.axes)
        ok = self.axes == "xyz" or self.what == "body_pos"
        require(ok, self, "axes", f"xyz for {self.what}, which has none", self.axes)
        one = (self.std is None) != (self.between is None)
        require(one, self, "std", "given, or between, and not both", (self.std, self.between))
        if self.std is not None:
            require(0 <= self.std < math.inf, self, "std", "0 or more", self.std)
            bounded = not self.relative and kind.above == 0.0
            require(
                not bounded or self.std == 0,
                self,
                "std",
                f"relative for {self.what}, which cannot go below 0; or use between",
                self.std,
            )
        if self.between is not None:
            low, high = (float(v) for v in self.between)
            object.__setattr__(self, "between", (low, high))
            ok = -math.inf < low <= high < math.inf
            require(ok, self, "between", "(low, high), finite and in order", self.between)
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
        kind = _KINDS[self.what]
        count = getattr(model, _COUNTS[kind.objects])
        found = ids(model, kind.objects, count, self.names, "Randomise.names")
        if self.what.startswith("dof_"):
            return [np.flatnonzero(model.dof_jntid == j) for j in found]
        return [np.array([i]) for i in found]

    def check(self, model: mujoco.MjModel) -> None:
        """ConfigError where a name is unknown, or a property would be or stay meaningless."""
        kind = _KINDS[self.what]
        for name, rows in zip(self.names, self.where(model), strict=True):
            if self.what == "body_pos":
                refuse_free(model, int(rows[0]), "Randomise.names")
            value = float(getattr(model, kind.field)[rows].reshape(len(rows), -1)[:, 0].min())
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
        kind = _KINDS[self.what]
        array = getattr(model, kind.field)
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
            mujoco.mj_setConst(own, data)
        models.append(own)
    return models
