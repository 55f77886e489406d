"""Known dynamics for `gps.control.ilqr`: a step function and its Jacobians.

`NumpyModel`, `NumbaModel` and `TorchModel` take a step function x[t+1] = step(x[t], u[t], t) of the
user; `MujocoModel` takes a MuJoCo model. Anything with the methods of `Model` will do.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from gps.control import _ilqr_kernels as kernels
from gps.errors import ConfigError, GPSError, NonFiniteError, ShapeError, one_line
from gps.extras import needed_by
from gps.fields import Count, checked
from gps.types import Array

if TYPE_CHECKING:
    import mujoco

__all__ = [
    "Limited",
    "Model",
    "MujocoModel",
    "NumbaModel",
    "NumpyModel",
    "TorchModel",
    "UserDefined",
]

_WIDTH = 6e-6  # of a central difference, relative: about the cube root of the rounding error


@runtime_checkable
class Model(Protocol):
    """Deterministic dynamics that are known."""

    @property
    def nx(self) -> int:
        """State size."""
        ...

    @property
    def nu(self) -> int:
        """Action size."""
        ...

    def rollout(
        self, X: Array, U: Array, k: Array, K: Array, sizes: Array, low: Array, high: Array
    ) -> tuple[Array, Array]:
        """Closed-loop trajectories from X[0], one for each of the step sizes.

        The action is U + size * k + K (x - X), clipped to low and high. X (T, nx), U, k, low and
        high (T, nu), K (T, nu, nx), sizes (B,); returns states (B, T, nx) and actions (B, T, nu).
        A trajectory that becomes non-finite holds NaN or infinity from there on.
        """
        ...

    def jacobians(self, X: Array, U: Array) -> Array:
        """d x[t+1] / d [x[t]; u[t]] along a trajectory (T, nx), (T, nu): (T-1, nx, nx+nu)."""
        ...


@runtime_checkable
class UserDefined(Protocol):
    """A model or cost made of a user's function, for errors that concern it."""

    @property
    def user_function(self) -> str:
        """Where it was given, and its name, such as `NumpyModel.step cart_pole`."""
        ...


@runtime_checkable
class Limited(Protocol):
    """A model that clips the actions that it is given."""

    @property
    def control_range(self) -> tuple[Array, Array]:
        """Lowest and highest action, (nu,) each; infinite where there is no limit."""
        ...


def require_model(model: object) -> None:
    """ShapeError where an argument is no `Model`."""
    if not isinstance(model, Model):
        raise ShapeError(
            "model must be a NumbaModel, NumpyModel, TorchModel, MujocoModel or other Model of "
            f"gps.control.models, got {model!r}"
        )


def _sizes(nx: int, nu: int) -> tuple[int, int]:
    return checked(nx, Count, "a model's nx"), checked(nu, Count, "a model's nu")


def rollout_steps(
    step: Callable[[Array, Array, int], Array],
    X: Array,
    U: Array,
    k: Array,
    K: Array,
    sizes: Array,
    low: Array,
    high: Array,
) -> tuple[Array, Array]:
    """`Model.rollout` with a step function on batches, (B, nx), (B, nu), t -> (B, nx)."""
    B, (T, nx) = len(sizes), X.shape
    states, actions = np.empty((B, T, nx)), np.empty((B, T, U.shape[1]))
    states[:, 0] = X[0]
    ahead = U + sizes[:, None, None] * k
    # what becomes non-finite is for the caller to see, not for numpy to warn of
    with np.errstate(all="ignore"):
        for t in range(T):
            x = states[:, t].copy()  # a step that works in place must not change the trajectory
            u = np.clip(ahead[:, t] + (x - X[t]) @ K[t].T, low[t], high[t])
            actions[:, t] = u
            if t + 1 < T:
                states[:, t + 1] = step(x, u, t)
    return states, actions


def _guarded(what: str, function: Callable[..., Any], called: Callable[..., Any]) -> Any:
    """`called`, which calls a user's function, with an error of ours that names the function.

    what: such as NumpyModel.step.
    """

    def call(*args: Any) -> Any:
        try:
            return called(*args)
        except GPSError:
            raise
        except Exception as error:
            raise _failure(what, function, error) from error

    return call


def _failure(what: str, function: Callable[..., Any], error: Exception) -> ConfigError:
    """The error that says in one line which function of the user's has failed, and how."""
    text = one_line(error)
    text = text if len(text) <= 200 else text[:197] + "..."
    return ConfigError(f"{what} {_name(function)} failed: {type(error).__name__}: {text}")


def _check_arguments(what: str, function: Any, names: str) -> None:
    """ConfigError unless a function of the user's can be called with these arguments."""
    try:
        inspect.signature(function).bind(*names.split(", "))
    except ValueError:  # one that is not written in Python, and has no signature
        return
    except TypeError as error:
        raise ConfigError(f"{what} {_name(function)} must take ({names}): {error}") from None


def _name(function: Any) -> str:
    """Of a function, or of the class of an object that is called like one."""
    return str(getattr(function, "__qualname__", None) or type(function).__name__)


class NumpyModel:
    """A step function on batches: step(x (B, nx), u (B, nu), t) -> (B, nx).

    jacobian: jacobian(X (B, nx), U (B, nu), t) -> (B, nx, nx+nu); None takes central differences of
    `step`, good to about 1e-9.
    """

    def __init__(
        self,
        step: Callable[[Array, Array, int], Array],
        nx: int,
        nu: int,
        jacobian: Callable[[Array, Array, int], Array] | None = None,
    ) -> None:
        self.nx, self.nu = _sizes(nx, nu)
        _check_arguments("NumpyModel.step", step, "x, u, t")
        self._step = _guarded("NumpyModel.step", step, step)
        self.user_function = f"NumpyModel.step {_name(step)}"
        self._jacobian = None
        x, u = np.zeros((3, nx)), np.zeros((3, nu))
        shape = np.shape(self._step(x, u, 0))
        if shape != (3, nx):
            raise ShapeError(
                f"NumpyModel.step must map (B, {nx}) and (B, {nu}) to (B, {nx}); for B=3 it gave "
                f"{shape}"
            )
        if jacobian is not None:
            _check_arguments("NumpyModel.jacobian", jacobian, "x, u, t")
            self._jacobian = _guarded("NumpyModel.jacobian", jacobian, jacobian)
            shape = np.shape(self._jacobian(x, u, 0))
            if shape != (3, nx, nx + nu):
                raise ShapeError(
                    f"NumpyModel.jacobian must give (B, {nx}, {nx + nu}); for B=3 it gave {shape}"
                )

    def rollout(
        self, X: Array, U: Array, k: Array, K: Array, sizes: Array, low: Array, high: Array
    ) -> tuple[Array, Array]:
        """See `Model`."""
        return rollout_steps(self._step, X, U, k, K, sizes, low, high)

    def jacobians(self, X: Array, U: Array) -> Array:
        """See `Model`."""
        S, nx, nz = X.shape[0] - 1, self.nx, self.nx + self.nu
        F = np.empty((S, nx, nz))
        if self._jacobian is not None:
            for t in range(S):
                F[t] = self._jacobian(X[t : t + 1], U[t : t + 1], t)[0]
            return F
        for t in range(S):
            z = np.concatenate((X[t], U[t]))
            h = _WIDTH * np.maximum(1.0, np.abs(z))
            above, below = z + np.diag(h), z - np.diag(h)
            both = np.concatenate((above, below))
            out = self._step(both[:, :nx], both[:, nx:], t)
            span = above.diagonal() - below.diagonal()
            F[t] = ((out[:nz] - out[nz:]) / span[:, None]).T
        return F


def _probe(name: str, fn: Any, nx: int, nu: int, shape: tuple[int, ...]) -> None:
    """Run a compiled function once in Python, where an index out of range does not corrupt memory.

    It must write all of `out` and nothing else. Whatever else goes wrong at zeros is left to the
    trajectories to show.
    """
    written = np.zeros(shape, dtype=bool)
    for fill in (0.7512345, -3.1298765):
        x, u, out = np.zeros(nx), np.zeros(nu), np.full(shape, fill)
        try:
            with np.errstate(all="ignore"):
                fn.py_func(x, u, 0, out)
        except IndexError as error:
            raise ShapeError(
                f"NumbaModel.{name} reads or writes beyond x ({nx},), u ({nu},) or out {shape}: "
                f"{error}"
            ) from None
        except Exception:
            return
        if x.any() or u.any():
            raise ConfigError(f"NumbaModel.{name} changes its arguments x or u; write to out only")
        written |= out != fill
    if not written.all():
        where = ", ".join(map(str, np.argwhere(~written)[0]))
        raise ConfigError(
            f"NumbaModel.{name} does not write out[{where}]; out must be filled whole"
        )


@contextmanager
def _compiled(what: str, function: Any) -> Iterator[None]:
    """What goes wrong in a compiled function, or in compiling it, as an error of ours.

    what: such as NumbaModel.step.
    """
    try:
        yield
    except ZeroDivisionError:
        raise NonFiniteError(
            f"{what} {_name(function)} divides by zero; decorate it with "
            "numba.njit(error_model='numpy'), and the line search passes such a trajectory by"
        ) from None
    except Exception as error:
        raise _failure(what, function, error) from error


class NumbaModel:
    """A compiled step function: step(x (nx,), u (nu,), t, out (nx,)), decorated with numba.njit.

    jacobian: jacobian(x, u, t, out (nx, nx+nu)), compiled as well; None takes central differences.
    Both are called from compiled loops, so that a trajectory costs no call from Python.
    """

    def __init__(self, step: Any, nx: int, nu: int, jacobian: Any = None) -> None:
        self.nx, self.nu = _sizes(nx, nu)
        for name, fn in (("step", step), ("jacobian", jacobian)):
            if fn is not None and not hasattr(fn, "py_func"):
                raise ConfigError(f"NumbaModel.{name} must be decorated with numba.njit")
            if fn is not None:
                _check_arguments(f"NumbaModel.{name}", fn.py_func, "x, u, t, out")
        self._step, self._jacobian = step, jacobian
        self.user_function = f"NumbaModel.step {_name(step.py_func)}"
        _probe("step", step, nx, nu, (nx,))
        if jacobian is not None:
            _probe("jacobian", jacobian, nx, nu, (nx, nx + nu))

    def rollout(
        self, X: Array, U: Array, k: Array, K: Array, sizes: Array, low: Array, high: Array
    ) -> tuple[Array, Array]:
        """See `Model`."""
        B, (T, nx) = len(sizes), X.shape
        states, actions = np.empty((B, T, nx)), np.empty((B, T, self.nu))
        with _compiled("NumbaModel.step", self._step.py_func):
            kernels.rollout(self._step, X, U, k, K, sizes, low, high, states, actions)
        return states, actions

    def jacobians(self, X: Array, U: Array) -> Array:
        """See `Model`."""
        F = np.empty((X.shape[0] - 1, self.nx, self.nx + self.nu))
        if self._jacobian is None:
            with _compiled("NumbaModel.step", self._step.py_func):
                kernels.differences(self._step, X, U, F, _WIDTH)
        else:
            with _compiled("NumbaModel.jacobian", self._jacobian.py_func):
                kernels.along(self._jacobian, X, U, F)
        return F


class TorchModel:
    """A step function in torch: step(x (nx,), u (nu,), t) -> (nx,), of float64 tensors, or of
    float32 ones where it takes no others, as a network with float32 weights does.

    It is batched with torch.func.vmap, and its Jacobians come from torch.func.jacfwd: good to
    rounding in the precision of the function. Weights that require gradients, as after a training,
    may stay so.
    """

    def __init__(self, step: Callable[[Any, Any, int], Any], nx: int, nu: int) -> None:
        with needed_by("TorchModel"):
            import torch

        self.nx, self.nu = _sizes(nx, nu)
        self._torch = torch
        self.user_function = f"TorchModel.step {_name(step)}"
        _check_arguments("TorchModel.step", step, "x, u, t")
        x, u = torch.zeros(nx).double(), torch.zeros(nu).double()

        def single(x: Any, u: Any, t: int) -> Any:
            return step(x.float(), u.float(), t).double()

        def double(x: Any, u: Any, t: int) -> Any:
            return step(x, u, t).double()

        with torch.no_grad():
            try:
                taken, out = double, step(x, u, 0)
            except RuntimeError as error:  # of the wrong precision, or the function's own
                try:
                    taken, out = single, step(x.float(), u.float(), 0)
                except Exception as other:
                    # what is wrong besides shows in the precision that the function is made for
                    cause = other if _of_precision(error) else error
                    raise _failure("TorchModel.step", step, cause) from cause
            except Exception as error:
                raise _failure("TorchModel.step", step, error) from error
        if not isinstance(out, torch.Tensor):
            raise ConfigError(
                f"TorchModel.step {_name(step)} must return a torch tensor, got "
                f"{type(out).__name__}"
            )
        if out.shape != (nx,):
            raise ShapeError(
                f"TorchModel.step must map ({nx},) and ({nu},) to ({nx},), got {tuple(out.shape)}"
            )
        both = torch.func.jacfwd(taken, argnums=(0, 1))
        self._batched = _guarded(
            "TorchModel.step", step, torch.func.vmap(taken, in_dims=(0, 0, None))
        )
        self._derivatives = _guarded(
            "TorchModel.step", step, torch.func.vmap(both, in_dims=(0, 0, None))
        )
        self._along = torch.func.vmap(both, in_dims=(0, 0, 0))

    def rollout(
        self, X: Array, U: Array, k: Array, K: Array, sizes: Array, low: Array, high: Array
    ) -> tuple[Array, Array]:
        """See `Model`."""
        torch = self._torch

        def step(x: Array, u: Array, t: int) -> Array:
            out: Array = self._batched(torch.from_numpy(x), torch.from_numpy(u), t).numpy()
            return out

        with torch.no_grad():
            return rollout_steps(step, X, U, k, K, sizes, low, high)

    def jacobians(self, X: Array, U: Array) -> Array:
        """See `Model`."""
        torch = self._torch
        x, u = torch.tensor(X[:-1]), torch.tensor(U[:-1])
        try:  # all steps at once, where the function takes t as a tensor
            A, B = self._along(x, u, torch.arange(len(x)))
        except (RuntimeError, TypeError, IndexError):
            rows = [self._derivatives(x[t : t + 1], u[t : t + 1], t) for t in range(len(x))]
            A, B = (torch.cat(parts) for parts in zip(*rows, strict=True))
        F: Array = torch.cat((A, B), dim=2).detach().numpy()
        return F


def _of_precision(error: Exception) -> bool:
    """Whether torch complains of a mixture of float32 and float64."""
    return any(words in str(error) for words in ("dtype", "scalar type"))


class MujocoModel:
    """A MuJoCo model; the state is (positions, velocities, activations), 2 nv + na values, and the
    action is ctrl.

    Positions are given in the directions of the velocities, nv of them: hinges, slides and the
    centres of free bodies as they are, and the rotation of a ball or a free body as the rotation
    vector, in its own frame, from its orientation in qpos0; it jumps at half a turn from there.

    substeps: simulator steps that one action is held for. Jacobians are MuJoCo's centred
    differences (`mjd_transitionFD`), or central differences of whole steps where there are none or
    not all (RK4, rotations, activations with an implicit integrator); contacts are included. Step
    sizes, and the states of differences, are rolled out as one batch on `threads` threads. Every
    step starts without the warm start of the constraint solver, so that a state and an action
    always lead to the same next state; a state that MuJoCo finds unstable stays so, where MuJoCo
    would put the model back to its start. Raises ConfigError for models with states besides these:
    actuators or sensors with delays, plugins.
    """

    def __init__(self, model: mujoco.MjModel, *, substeps: int = 1, threads: int = 1) -> None:
        with needed_by("MujocoModel"):
            import mujoco

        if not isinstance(model, mujoco.MjModel):
            raise ConfigError(
                "MujocoModel needs a mujoco.MjModel (mujoco.MjModel.from_xml_path reads a file), "
                f"got {model!r}"
            )
        if not model.nu:
            raise ConfigError(f"MujocoModel needs at least one actuator (nu {model.nu})")
        if model.nhistory or model.npluginstate:
            raise ConfigError(
                "MujocoModel needs a model whose state is positions, velocities and activations: "
                f"this one has delays (nhistory {model.nhistory}) or plugins (npluginstate "
                f"{model.npluginstate})"
            )
        substeps = checked(substeps, Count, "MujocoModel.substeps")
        threads = checked(threads, Count, "MujocoModel.threads")
        self.model = copy.copy(model)
        off = mujoco.mjtDisableBit.mjDSBL_WARMSTART | mujoco.mjtDisableBit.mjDSBL_AUTORESET
        self.model.opt.disableflags |= off
        self.nx, self.nu = 2 * model.nv + model.na, model.nu
        self.substeps, self._threads = substeps, threads
        self._mujoco = mujoco
        self._data = mujoco.MjData(self.model)
        self._batches: dict[int, Any] = {}
        self._turns: list[tuple[int, int]] = []
        plain: list[int] = []
        at: list[int] = []
        free, ball = int(mujoco.mjtJoint.mjJNT_FREE), int(mujoco.mjtJoint.mjJNT_BALL)
        for kind, v, q in zip(model.jnt_type, model.jnt_dofadr, model.jnt_qposadr, strict=True):
            count = {free: 3, ball: 0}.get(int(kind), 1)
            plain += range(v, v + count)
            at += range(q, q + count)
            if int(kind) in (free, ball):
                self._turns.append((int(v + count), int(q + count)))
        self._plain, self._plain_at = np.array(plain, np.int64), np.array(at, np.int64)
        # MuJoCo has no derivatives of some integrators, and about rotations those of small turns
        self._exact = not self._turns and self._has_transition()

    def _has_transition(self) -> bool:
        """Whether MuJoCo differentiates the step of this model's integrator, and does it right."""
        kinds, m = self._mujoco.mjtIntegrator, self.model
        implicit = int(m.opt.integrator) in (
            int(kinds.mjINT_IMPLICIT),
            int(kinds.mjINT_IMPLICITFAST),
        )
        # the velocity derivatives of the step are not made anew where a control or activation moves
        if implicit and (m.na or m.actuator_gaintype.any()):
            return False
        A = np.empty((self.nx, self.nx))
        try:
            self._mujoco.mjd_transitionFD(
                self.model, self._data, _WIDTH / 6, True, A, None, None, None
            )
        except self._mujoco.FatalError:
            return False
        return True

    @property
    def dt(self) -> float:
        """Duration of one step in seconds."""
        return float(self.model.opt.timestep * self.substeps)

    @property
    def control_range(self) -> tuple[Array, Array]:
        """Lowest and highest control of each motor, (nu,) each; infinite where unlimited."""
        m = self.model
        limited = m.actuator_ctrllimited.astype(bool)
        low = np.where(limited, m.actuator_ctrlrange[:, 0], -np.inf)
        return low, np.where(limited, m.actuator_ctrlrange[:, 1], np.inf)

    def state(self, qpos: Array, qvel: Array, act: Array | None = None) -> Array:
        """States (..., nx) of MuJoCo's qpos (..., nq), qvel (..., nv) and act (..., na), such as
        those of one `mujoco.MjData`. Without act all activations are zero. Raises ShapeError."""
        qpos, qvel = np.asarray(qpos, dtype=np.float64), np.asarray(qvel, dtype=np.float64)
        first, na = qvel.shape[:-1], self.model.na
        act = np.zeros((*first, na)) if act is None else np.asarray(act, dtype=np.float64)
        sizes = (("qpos", qpos, self.model.nq), ("qvel", qvel, self.model.nv), ("act", act, na))
        for name, value, n in sizes:
            if value.shape != (*first, n):
                raise ShapeError(f"{name} must have shape {(*first, n)}, got {value.shape}")
        positions = np.empty(qvel.shape)
        positions[..., self._plain] = qpos[..., self._plain_at]
        for v, q in self._turns:
            ref = self.model.qpos0[q : q + 4] * (1.0, -1.0, -1.0, -1.0)
            turn = _product(ref, qpos[..., q : q + 4])
            turn = np.where(turn[..., :1] < 0, -turn, turn)
            sine = np.linalg.norm(turn[..., 1:], axis=-1, keepdims=True)
            angle = 2.0 * np.arctan2(sine, turn[..., :1])
            positions[..., v : v + 3] = turn[..., 1:] * (angle / np.where(sine > 1e-300, sine, 1.0))
        return np.concatenate((positions, qvel, act), axis=-1)

    def qpos(self, X: Array) -> Array:
        """MuJoCo's qpos (..., nq) of states (..., nx). Raises ShapeError."""
        X = np.asarray(X, dtype=np.float64)
        if X.shape[-1:] != (self.nx,):
            raise ShapeError(f"states must have shape (..., {self.nx}), got {X.shape}")
        out = np.empty((*X.shape[:-1], self.model.nq))
        out[..., self._plain_at] = X[..., self._plain]
        for v, q in self._turns:
            half = 0.5 * X[..., v : v + 3]
            angle = np.linalg.norm(half, axis=-1, keepdims=True)
            turn = np.concatenate((np.cos(angle), half * np.sinc(angle / np.pi)), axis=-1)
            out[..., q : q + 4] = _product(self.model.qpos0[q : q + 4], turn)
        return out

    def _stepper(self, B: int) -> tuple[Callable[[Array], None], Callable[[Array], Array]]:
        """Functions that put B simulations into states (B, nx), and that step them by actions."""
        from mujoco.batch import Batch, SimulationError

        nv, na = self.model.nv, self.model.na
        batch = self._batches.get(B)
        if batch is None:
            batch = self._batches[B] = Batch(self.model, B, self._threads)
        qpos, qvel, act, ctrl = (batch.bind(name) for name in ("qpos", "qvel", "act", "ctrl"))
        dead = np.zeros(B, dtype=np.bool_)

        def put(X: Array) -> None:
            batch.reset()
            dead[:] = False
            qpos[:], qvel[:] = self.qpos(X), X[:, nv : 2 * nv]
            if na:
                act[:] = X[:, 2 * nv :]

        def step(u: Array) -> Array:
            ctrl[:] = u
            try:
                batch.step(nstep=self.substeps)
            except SimulationError as error:
                dead[error.ids] = True
            out = self.state(qpos, qvel, act)
            out[dead] = np.nan
            return out

        return put, step

    def rollout(
        self, X: Array, U: Array, k: Array, K: Array, sizes: Array, low: Array, high: Array
    ) -> tuple[Array, Array]:
        """See `Model`."""
        put, step = self._stepper(len(sizes))
        put(np.broadcast_to(X[0], (len(sizes), self.nx)))
        return rollout_steps(lambda x, u, t: step(u), X, U, k, K, sizes, low, high)

    def jacobians(self, X: Array, U: Array) -> Array:
        """See `Model`."""
        F = np.empty((X.shape[0] - 1, self.nx, self.nx + self.nu))
        if not self._exact:
            self._differences(X, U, F)
            return F
        mujoco, m, d, nv, nx = self._mujoco, self.model, self._data, self.model.nv, self.nx
        A, B = np.empty((nx, nx)), np.empty((nx, self.nu))
        for t in range(len(F)):
            mujoco.mj_resetData(m, d)
            d.qpos[:], d.qvel[:], d.act[:] = X[t, :nv], X[t, nv : 2 * nv], X[t, 2 * nv :]
            d.ctrl[:] = U[t]
            total = np.concatenate((np.eye(nx), np.zeros((nx, self.nu))), axis=1)
            for _ in range(self.substeps):
                mujoco.mjd_transitionFD(m, d, _WIDTH / 6, True, A, B, None, None)
                total = A @ total
                total[:, nx:] += B
                mujoco.mj_step(m, d)
            F[t] = total
        return F

    def _differences(self, X: Array, U: Array, F: Array) -> None:
        """Central differences of whole steps into F, as many states at once as `_AT_ONCE` says."""
        nx, nz = self.nx, self.nx + self.nu
        some = max(1, min(len(F), _AT_ONCE // (2 * nz)))
        put, step = self._stepper(some * 2 * nz)
        Z = np.concatenate((X[:-1], U[:-1]), axis=1)
        H = _WIDTH * np.maximum(1.0, np.abs(Z))
        for first in range(0, len(F), some):
            last = min(first, len(F) - some)  # the last batch overlaps the one before
            z, h = Z[last : last + some, None], H[last : last + some, None] * np.eye(nz)
            near = np.concatenate((z + h, z - h), axis=1)
            span = (near[:, :nz] - near[:, nz:]).diagonal(axis1=1, axis2=2)
            near = near.reshape(-1, nz)
            put(near[:, :nx])
            out = step(near[:, nx:]).reshape(some, 2, nz, nx)
            F[last : last + some] = ((out[:, 0] - out[:, 1]) / span[:, :, None]).transpose(0, 2, 1)


_AT_ONCE = 2048  # simulations of differences


def _product(a: Array, b: Array) -> Array:
    """Of a quaternion (4,) with quaternions (..., 4)."""
    w, v = b[..., :1], b[..., 1:]
    vector = a[0] * v + a[1:] * w + np.cross(a[1:], v)
    return np.concatenate((a[0] * w - v @ a[1:, None], vector), axis=-1)
