"""Gymnasium environments: how they are made, what they observe, what is said if it fails."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from warnings import catch_warnings, filterwarnings

import mujoco
import numpy as np

from gps.agents._run import warnings_to_log
from gps.errors import ConfigError
from gps.extras import needed_by
from gps.kept_files import KeptFiles
from gps.types import Array

GOAL = ("achieved_goal", "desired_goal")
OFFSET = "goal_offset"
"""Name of the entry with the first of these minus the second."""


def make(env: str, arguments: Sequence[tuple[str, Any]]) -> tuple[Any, Any]:
    """A new environment without a time limit, and the module gymnasium.

    Raises ConfigError in one line, whatever its constructor raises: the name, the reason, and what
    there is in its place.
    """
    with needed_by("GymnasiumConfig"):
        import gymnasium
    refused = f"GymnasiumConfig.env: Gymnasium cannot make {env!r}: "

    def made() -> Any:
        with warnings_to_log(), catch_warnings(), ExitStack() as files:
            # of names that are out of date: what there is instead is said with the error
            filterwarnings("ignore", ".*is out of date", DeprecationWarning)
            given = {
                name: str(files.enter_context(v.opened())) if isinstance(v, KeptFiles) else v
                for name, v in arguments
            }
            return gymnasium.make(env, max_episode_steps=-1, disable_env_checker=True, **given)

    try:
        try:
            return made(), gymnasium
        except AssertionError:
            if not _mended():
                raise
            return made(), gymnasium
    except gymnasium.error.DependencyNotInstalled as error:
        raise ConfigError(
            f"GymnasiumConfig.env: {env} cannot be made: {_one_line(error)}"
        ) from error
    except ModuleNotFoundError as error:
        hint = "; MuJoCo environments need the extra: pip install 'gymnasium[mujoco]'"
        name = error.name or ""
        raise ConfigError(
            f"GymnasiumConfig.env: {env} needs the module {name!r}, which is not installed"
            f"{hint if name in ('mujoco', 'imageio') else ''}"
        ) from error
    except TypeError as error:
        known = _arguments(env, gymnasium)
        takes = f"; it takes {', '.join(known)}" if known else ""
        raise ConfigError(refused + _one_line(error) + takes) from error
    except (gymnasium.error.Error, ImportError, OSError) as error:
        # ImportError: gymnasium's own for the ids of MuJoCo's environments that have moved
        own = re.sub(r"\.? Did you mean: [^?]*\?", "", _one_line(error))  # without the version
        raise ConfigError(refused + own + _instead(env, gymnasium)) from error
    except Exception as error:  # whatever the code of an environment may raise
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = "/".join(Path(at.filename).parts[-3:])
        raise ConfigError(
            f"{refused}{type(error).__name__}{f': {_one_line(error)}' if str(error) else ''} in "
            f"{where}, line {at.lineno}"
        ) from error


class _Numbers:
    """MuJoCo's module, with the kinds of joints as whole numbers."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.mjtJoint = SimpleNamespace(
            **{kind.name: int(kind.value) for kind in mujoco.mjtJoint.__members__.values()}
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _mended() -> bool:
    """Whether there was something to mend in gymnasium-robotics, whose 1.4.2 is older than MuJoCo.

    It asks `model.jnt_type[i] in (mjJNT_HINGE, mjJNT_SLIDE)`, which in MuJoCo 3.17 is False for
    numpy's integers; none of its Fetch, hand and kitchen environments can be made.
    """
    module: Any = sys.modules.get("gymnasium_robotics.utils.mujoco_utils")
    hinge = np.int32(mujoco.mjtJoint.mjJNT_HINGE.value)
    if module is None or hinge in (mujoco.mjtJoint.mjJNT_HINGE,) or module.mujoco is not mujoco:
        return False
    module.mujoco = _Numbers(mujoco)
    return True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _arguments(env: str, gymnasium: Any) -> list[str]:
    """Names of the arguments of an environment's constructor."""
    try:
        spec = gymnasium.spec(env)
        entry = spec.entry_point
        made = (
            gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
        )
        parameters = inspect.signature(made).parameters.values()
    except Exception:  # it only completes another message
        return []
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in plain and p.name != "render_mode"]


def _instead(env: str, gymnasium: Any) -> str:
    """`; there is ...`: the newest version of the same name, or names that are like it."""
    registry = gymnasium.registry
    plain = env.partition(":")[2] or env
    name = re.sub(r"-v\d+$", "", plain)
    versions = {spec.version or 0: known for known, spec in registry.items() if _name(spec) == name}
    if versions and versions[max(versions)] != plain:
        return f"; there is {versions[max(versions)]}"
    close = get_close_matches(plain, registry, n=3, cutoff=0.7)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    if ":" in env:
        return ""
    return (
        "; an environment of another package is named with the module that registers it, "
        f"'module:{plain}', such as 'gymnasium_robotics:FetchReach-v4'"
    )


def _name(spec: Any) -> str:
    return f"{spec.namespace}/{spec.name}" if spec.namespace else str(spec.name)


def observed(name: str, space: Any, spaces: Any) -> tuple[tuple[str, int], ...]:
    """Names and sizes of what an environment observes: `obs`, or the parts of a dictionary.

    spaces: the module `gymnasium.spaces`. ConfigError unless all of it is vectors of floats.
    """
    parts = _parts(space, spaces, "")
    if parts is None:
        raise ConfigError(
            f"GymnasiumConfig.env: {name} observes {space}, where a vector of floats is needed (a "
            "Box with one axis) or a dictionary of them; images and discrete observations need a "
            "wrapper that makes them one"
        )
    return parts


def _parts(space: Any, spaces: Any, name: str) -> tuple[tuple[str, int], ...] | None:
    """Names and sizes of the vectors in a space; None where something else is in it."""
    if isinstance(space, spaces.Dict):
        found = [_parts(s, spaces, f"{name}.{key}" if name else key) for key, s in space.items()]
        if not found or None in found:
            return None
        return tuple(part for parts in found for part in parts or ())
    good = isinstance(space, spaces.Box) and len(space.shape) == 1 and space.dtype.kind == "f"
    return ((name or "obs", int(space.shape[0])),) if good else None


def flat(observation: Any, names: Sequence[str]) -> Any:
    """An observation as a vector: itself, or the named parts of a dictionary in order."""
    if not isinstance(observation, Mapping):
        return observation
    parts = []
    for name in names:
        value: Any = observation
        for key in name.split("."):
            value = value[key]
        parts.append(value)
    return np.concatenate(parts)


def actions(name: str, space: Any, spaces: Any) -> tuple[Array, Array, np.dtype[Any]]:
    """Ends and dtype of the action space; ConfigError unless it is a vector of floats."""
    good = isinstance(space, spaces.Box) and len(space.shape) == 1 and space.dtype.kind == "f"
    if not good or space.shape[0] < 1:
        raise ConfigError(
            f"GymnasiumConfig.env: {name} takes actions {space}, where a vector of floats is "
            "needed (a Box with one axis): linear-Gaussian controllers have continuous actions"
        )
    return space.low.astype(np.float64), space.high.astype(np.float64), space.dtype
