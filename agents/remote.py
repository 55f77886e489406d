"""A robot, or a simulator that stands in for it, in another process: rollouts over TCP.

`RemoteConfig` is the learner's side, an agent like any other. `serve` is the robot's side for any
agent of the toolkit; docs/remote.md has the message format for other languages. Every rollout has a
connection of its own, so nothing is left over from one to the next, and the robot serves its
clients in the order in which they came.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import re
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from gps.agents._protocol import (
    MAX_BYTES,
    VERSION,
    Channel,
    Message,
    ProtocolError,
    RemoteError,
    check_secret,
    clean,
    is_loopback,
    proof,
    proves,
)
from gps.agents.base import (
    Failures,
    Seconds,
    check_actions,
    check_condition,
    check_noise,
    check_start_noise,
    require,
)
from gps.errors import ConfigError, GPSError, SampleFailure, ShapeError, SimulationError
from gps.fields import Config, Count, Range, Whole, checked, readonly
from gps.protocols import Agent, Policy, Stoppable, acting, control_range_of, image_shape_of
from gps.types import Array, Layout, LinearGaussianController, Rollouts

log = logging.getLogger(__name__)

_NONCE = re.compile("[0-9a-f]{64}")
_CONNECTIONS = 64  # at once; more get the answer that the robot is busy
_HANDSHAKE = 10.0  # seconds until a client has said what it wants


# the learner's side


@dataclass(frozen=True, kw_only=True)
class RemoteConfig(Config):
    """An agent in another process. What it looks like is asked from there.

    A `LinearGaussianController` is sent as arrays and runs beside the robot. Any other policy stays
    here and sends one action per step, so the network's delay counts in every step.
    """

    port: Annotated[int, Range(at_least=1, at_most=65535)]
    """TCP port of the robot's side."""
    host: str = "127.0.0.1"
    """Its address. Any but this machine's own needs a secret."""
    secret_file: str | None = None
    """File with the shared secret of at least 16 characters, which must be there on every machine
    that opens connections; None for no secret. The secret itself is never part of a configuration,
    as these are stored with every run."""
    connect_timeout: Seconds = 5.0
    """Seconds to connect and to agree on version and secret."""
    step_timeout: Seconds = 5.0
    """Maximum silence of the robot's side in seconds. It sends heartbeats while it works, so this
    may be shorter than a rollout."""
    rollout_timeout: Seconds = 600.0
    """Maximum duration in seconds of all samples of one rollout together."""
    queue_timeout: Seconds = 600.0
    """Seconds to wait in the queue while the robot serves others."""
    max_bytes: Count = MAX_BYTES
    """Longest message in bytes, either way."""
    layout: tuple[tuple[str, Whole], ...] | None = None
    """Expected state entries and their sizes; None for whatever the robot has."""
    obs_layout: tuple[tuple[str, Whole], ...] | None = None
    """Expected observation entries and their sizes; None for whatever the robot has."""
    T: Count | None = None
    """Expected steps of a rollout; None for whatever the robot has."""
    dt: Seconds | None = None
    """Expected duration of a step in seconds; None for whatever the robot has."""
    nu: Count | None = None
    """Expected action size; None for whatever the robot has."""
    n_conditions: Count | None = None
    """Expected number of training conditions; None for whatever the robot has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.host), self, "host", "an address", self.host)
        if self.secret_file is None:
            check_secret(None, self.host, "RemoteConfig.host")

    def build(self, threads: int = 1) -> RemoteAgent:
        """The agent. It connects when something is asked of it; `threads` has no meaning here."""
        return RemoteAgent(self)

    def read_secret(self) -> str | None:
        """The secret of `secret_file`; ConfigError where it cannot be read or is too short."""
        if self.secret_file is None:
            return None
        try:
            secret = Path(self.secret_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"RemoteConfig.secret_file cannot be read: {error}") from error
        check_secret(secret, self.host, f"RemoteConfig.secret_file {self.secret_file}")
        return secret


@dataclass(frozen=True, eq=False)
class _Description:
    """What the robot's side reports of its agent."""

    layout: Layout
    obs_layout: Layout
    T: int
    dt: float
    nu: int
    n_start: int
    starts: dict[bool, Array]  # test or not -> (M, nx)
    control_range: tuple[Array, Array] | None

    @classmethod
    def of(cls, welcome: Message) -> _Description:
        """What the message reports; ProtocolError if it cannot be right."""
        layout, nu = welcome.layout("layout"), welcome.integer("nu", 1)
        starts = {
            False: readonly(welcome.array("starts", None, layout.size)),
            True: readonly(welcome.array("test_starts", None, layout.size)),
        }
        if len(starts[False]) < 1:
            raise ProtocolError("a robot needs one condition or more")
        limits = None
        if "control_range" in welcome.arrays:
            low, high = welcome.array("control_range", 2, nu)
            limits = readonly(low), readonly(high)
        return cls(
            layout=layout,
            obs_layout=welcome.layout("obs_layout"),
            T=welcome.integer("T", 2),
            dt=welcome.positive("dt"),
            nu=nu,
            n_start=welcome.integer("n_start", 0),
            starts=starts,
            control_range=limits,
        )

    def key(self) -> tuple[object, ...]:
        """Equal for equal agents."""
        limits = self.control_range or ()
        arrays = tuple(a.tobytes() for a in (*self.starts.values(), *limits))
        sizes = (self.T, self.dt, self.nu, self.n_start)
        return (self.layout, self.obs_layout, *sizes, arrays)


class _Progress:
    """Where a rollout is, for the text of an error."""

    def __init__(self, N: int) -> None:
        self.N, self.first, self.n, self.t = N, 0, N, -1

    def note(self, message: Message) -> None:
        """Read sample and step of a message that has them."""
        if "t" in message.fields:
            self.first = message.integer("sample", 0, self.N - 1)
            self.n = message.integer("samples", 1, self.N - self.first)
            self.t = message.integer("t", 0)

    def __str__(self) -> str:
        last = self.first + self.n - 1
        who = f"sample {last}" if self.n == 1 else f"samples {self.first} to {last}"
        return f"{who}, {f't={self.t}' if self.t >= 0 else 'before the first step'}"


class RemoteAgent:
    """See `gps.protocols.Agent`. Thread-safe: threads wait in the queue like other clients.

    Whatever goes wrong between the two sides is a RemoteError, after which the next rollout
    connects anew. It is not a SimulationError: drawing the samples again would not help.
    """

    def __init__(self, config: RemoteConfig) -> None:
        self.config = config
        self._known: _Description | None = None

    @property
    def layout(self) -> Layout:
        """Named entries of the state."""
        return self._description().layout

    @property
    def obs_layout(self) -> Layout:
        """Named entries of the observation."""
        return self._description().obs_layout

    @property
    def T(self) -> int:
        """Steps of one rollout."""
        return self._description().T

    @property
    def dt(self) -> float:
        """Duration of one step in seconds."""
        return self._description().dt

    @property
    def nu(self) -> int:
        """Action size."""
        return self._description().nu

    @property
    def n_start(self) -> int:
        """Size of the unit-variance vector that disturbs a start state."""
        return self._description().n_start

    @property
    def n_conditions(self) -> int:
        """Training conditions."""
        return len(self._description().starts[False])

    @property
    def n_test_conditions(self) -> int:
        """Conditions kept for evaluation."""
        return len(self._description().starts[True])

    @property
    def control_range(self) -> tuple[Array, Array] | None:
        """Lowest and highest action, (nu,) each; None where the robot's side reports none."""
        return self._description().control_range

    def start_state(self, condition: int, *, test: bool = False) -> Array:
        """The undisturbed state (nx,) at which rollouts of `condition` start."""
        starts = self._description().starts[test]
        return readonly(starts[check_condition(condition, len(starts), test=test)])

    def rollout(
        self,
        policy: Policy,
        condition: int,
        noise: Array,
        start_noise: Array | None = None,
        *,
        test: bool = False,
    ) -> Rollouts:
        """See `gps.protocols.Agent`. Raises RemoteError as well, with how far it came.

        When it ends early, for whatever reason, the connection closes, and the robot's side stops.
        """
        described, cfg = self._description(), self.config
        check_condition(condition, len(described.starts[test]), test=test)
        noise = check_noise(noise, described.T, described.nu)
        arrays = {"noise": noise}
        if start_noise is not None:
            arrays["start_noise"] = check_start_noise(start_noise, len(noise), described.n_start)
        # exactly this class: another one may act in another way
        if type(policy) is LinearGaussianController:
            arrays |= {"K": policy.K, "k": policy.k, "chol": policy.chol}
        mode = "gains" if "K" in arrays else "steps"
        fields = {"condition": int(condition), "test": bool(test), "mode": mode}
        at = _Progress(len(noise))
        kind = "test condition" if test else "condition"
        with self._talk(lambda: f", {kind} {condition}, {at}") as channel:
            channel.send("rollout", fields, arrays, silence=cfg.step_timeout)
            answer = self._follow(channel, policy, described, at)
            return self._rollouts(answer, described, condition, at.N)

    def _follow(
        self, channel: Channel, policy: Policy, described: _Description, at: _Progress
    ) -> Message:
        """Answer the robot's side until it has a result."""
        cfg, policy = self.config, acting(policy)
        deadline = time.monotonic() + cfg.queue_timeout
        late = f"busy: still in the queue after {cfg.queue_timeout:g} s (queue_timeout)"
        begun = False
        while True:
            message = channel.receive(cfg.step_timeout, deadline, late)
            if message.type == "wait":
                if begun:
                    raise ProtocolError("message 'wait' in the middle of a rollout")
                continue
            if not begun:
                begun = True
                deadline = time.monotonic() + cfg.rollout_timeout
                late = f"no result after {cfg.rollout_timeout:g} s (rollout_timeout)"
            if message.type == "alive":
                at.note(message)
            elif message.type == "act":
                at.note(message)
                if at.t >= described.T:
                    raise ProtocolError(f"step {at.t} of {described.T} is asked for")
                x = message.array("x", at.n, described.layout.size)
                obs = message.array("obs", at.n, described.obs_layout.size)
                noise = message.array("noise", at.n, described.nu)
                u = check_actions(policy.act(x, obs, at.t, noise), at.n, described.nu)
                try:
                    channel.send("action", {"t": at.t}, {"u": u}, silence=cfg.step_timeout)
                except RemoteError as error:
                    raise self._last_word(channel, at.N) or error from None
            elif message.type == "result":
                return message
            else:
                raise _error_in(message, at.N)

    @staticmethod
    def _last_word(channel: Channel, N: int) -> GPSError | None:
        """The error that the robot's side reported before it hung up, if it did."""
        with contextlib.suppress(RemoteError):
            while channel.readable(0.0):
                message = channel.receive(0.1)
                if message.type == "error":
                    return _error_in(message, N)
        return None

    @staticmethod
    def _rollouts(answer: Message, described: _Description, condition: int, N: int) -> Rollouts:
        """The record in a result, checked: what is no number must not reach a fit."""
        T, nx, nu = described.T, described.layout.size, described.nu
        parts: dict[str, Any] = {
            "X": answer.array("X", N, T, nx),
            "U": answer.array("U", N, T, nu),
            "obs": answer.array("obs", N, T, described.obs_layout.size),
            "noise": answer.array("noise", N, T, nu),
        }
        jacobians = {}
        for name in answer.arrays:
            entry = name.removeprefix("jacobian:")
            if entry != name:
                if entry not in described.layout.names:
                    raise ProtocolError(f"array {clean(name)!r} belongs to no state entry")
                size = described.layout.length(entry)
                jacobians[entry] = answer.array(name, N, T, size, nx)
        failures = Failures(condition)
        for name, value in (*parts.items(), *jacobians.items()):
            for i, t in np.argwhere(~np.isfinite(value.reshape(N, T, -1)).all(axis=2)):
                failures.add(i, int(t), f"{name} is NaN or infinite")
        failures.raise_if_any()
        return Rollouts(**parts, layout=described.layout, condition=condition, jacobians=jacobians)

    def _description(self) -> _Description:
        """The description, asked for once."""
        if self._known is None:
            with self._talk(lambda: ""):
                pass
        assert self._known is not None
        return self._known

    @contextlib.contextmanager
    def _talk(self, where: Callable[[], str]) -> Iterator[Channel]:
        """A connection after the handshake; errors name the robot and the place."""
        cfg = self.config
        try:
            with self._connect() as channel:
                self._meet(channel)
                yield channel
        except RemoteError as error:
            name = f"[{cfg.host}]" if ":" in cfg.host else cfg.host
            raise type(error)(f"robot at {name}:{cfg.port}{where()}: {error}") from error

    def _connect(self) -> Channel:
        cfg = self.config
        try:
            sock = socket.create_connection((cfg.host, cfg.port), cfg.connect_timeout)
        except OSError as error:
            raise RemoteError(
                f"no connection within {cfg.connect_timeout:g} s ({error}); is its side running, "
                "and are host and port right?"
            ) from error
        if cfg.secret_file is None and not is_loopback(sock.getpeername()[0]):
            sock.close()
            check_secret(None, sock.getpeername()[0], "RemoteConfig.host")
        return Channel(sock, cfg.max_bytes)

    def _meet(self, channel: Channel) -> None:
        """Versions, secrets, and what the robot is; raises unless all of it fits."""
        cfg, mine = self.config, secrets.token_hex(32)
        secret = cfg.read_secret()
        deadline = time.monotonic() + cfg.connect_timeout

        def answer(want: str) -> Message:
            late = f"no answer within {cfg.connect_timeout:g} s (connect_timeout)"
            message = channel.receive(cfg.connect_timeout, deadline, late)
            if message.type != want:
                raise _error_in(message, 0)
            return message

        hello = {"version": VERSION, "nonce": mine, "silence": cfg.step_timeout}
        channel.send("hello", hello, silence=cfg.connect_timeout)
        challenge = answer("challenge")
        theirs = challenge.text("nonce")
        if challenge.integer("version", 0) != VERSION or not _NONCE.fullmatch(theirs):
            version = challenge.integer("version", 0)
            raise RemoteError(f"it speaks version {version} of the protocol, this is {VERSION}")
        if challenge.boolean("secret") != (secret is not None):
            which = "the robot's side has a secret, this side has none"
            if secret is not None:
                which = "this side has a secret, the robot's side has none"
            raise RemoteError(f"{which}; see RemoteConfig.secret_file and serve")
        mac = "" if secret is None else proof(secret, "client", theirs, mine)
        channel.send("proof", {"mac": mac}, silence=cfg.connect_timeout)
        channel.trusted = True  # an impostor may send a long welcome, and nothing beyond it
        welcome = answer("welcome")
        if secret is not None and not proves(welcome.text("mac"), secret, "server", theirs, mine):
            raise RemoteError("it does not know the secret, though it asks for one")
        channel.max_bytes = min(cfg.max_bytes, welcome.integer("max_bytes", 1, 2**62))
        self._accept(_Description.of(welcome))

    def _accept(self, described: _Description) -> None:
        """Compare what the robot is with what is expected and with what it was before."""
        cfg = self.config
        wrong = [
            f"{name} is {is_!r}, expected {want!r}"
            for name, is_, want in (
                ("layout", described.layout.entries, cfg.layout),
                ("obs_layout", described.obs_layout.entries, cfg.obs_layout),
                ("T", described.T, cfg.T),
                ("dt", described.dt, cfg.dt),
                ("nu", described.nu, cfg.nu),
                ("n_conditions", len(described.starts[False]), cfg.n_conditions),
            )
            if want is not None and is_ != want
        ]
        if wrong:
            raise ConfigError(
                f"RemoteConfig: the robot at {cfg.host}:{cfg.port} is not the one that is "
                f"expected: {'; '.join(wrong)}"
            )
        if self._known is None:
            self._known = described
        elif self._known.key() != described.key():
            raise RemoteError(
                "its agent has changed since the last connection; serve the same one again, or "
                "start a new run"
            )


def _error_in(message: Message, N: int) -> GPSError:
    """The error that a message reports, or that an unexpected message is."""
    if message.type != "error":
        return ProtocolError(f"unexpected message {clean(message.type, 40)!r}")
    kind, text = message.text("kind"), clean(message.text("message"))
    if kind == "simulation":
        failures = []
        listed = message.fields.get("failures")
        for entry in listed if type(listed) is list else ():
            part = Message("error", entry if type(entry) is dict else {})
            sample, t = part.integer("sample", 0, N - 1), part.integer("t", 0)
            failures.append(SampleFailure(sample, t, clean(part.text("reason"))))
        if not failures:
            return ProtocolError("an error 'simulation' without failures")
        note = message.fields.get("note")  # of servers that send one
        return SimulationError(
            message.integer("condition", 0), failures, clean(note) if type(note) is str else ""
        )
    if kind == "shape":
        return ShapeError(text)
    return RemoteError(f"{clean(kind, 40)}: {text}")


# the robot's side


class RobotServer:
    """Lets learners act with an agent, one rollout at a time; the others wait in a queue.

    Rollouts run in the thread that calls `run`. Raises ConfigError.
    """

    def __init__(
        self,
        agent: Agent,
        host: str = "127.0.0.1",
        port: int = 0,
        secret: str | None = None,
        *,
        on_stop: Callable[[str], None] | None = None,
        step_timeout: float = 5.0,
        start_timeout: float = 60.0,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Bind and listen; see `serve` for the arguments."""
        if not isinstance(agent, Agent):
            raise ConfigError(f"serve: agent must have the members of Agent, got {agent!r}")
        if image_shape_of(agent) is not None:
            raise ConfigError(
                "serve: images do not travel to a remote client; serve an agent without cameras"
            )
        self.step_timeout: float = checked(step_timeout, Seconds, "serve: step_timeout")
        self.start_timeout: float = checked(start_timeout, Seconds, "serve: start_timeout")
        self.max_bytes: int = checked(max_bytes, Count, "serve: max_bytes")
        check_secret(secret, host, "serve")
        self.agent, self.secret, self._on_stop = agent, secret, on_stop
        self._description = _describe(agent)
        self._description[0]["max_bytes"] = self.max_bytes
        self._changed = threading.Condition()
        self._queue: deque[_Session] = deque()
        self._open: set[_Session] = set()
        self._closed = False
        self._broken: BaseException | None = None
        self._acceptor: threading.Thread | None = None
        try:
            family, _, _, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._listener = socket.socket(family, socket.SOCK_STREAM)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(address)
            self._listener.listen(_CONNECTIONS)
            self._listener.settimeout(0.2)
        except (OSError, OverflowError, TypeError) as error:
            raise ConfigError(f"serve: cannot listen at {host}:{port} ({error})") from error
        where = self._listener.getsockname()
        self.host, self.port = str(where[0]), int(where[1])
        if secret is None and not is_loopback(self.host):
            self._listener.close()
            check_secret(None, self.host, "serve")

    def __enter__(self) -> RobotServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self) -> None:
        """Serve until `close` is called, from another thread or by a signal.

        Raises what a safety stop raised: a robot that cannot be stopped must not be served.
        """
        acceptor = threading.Thread(target=self._accept, daemon=True)
        acceptor.start()
        self._acceptor = acceptor
        try:
            while True:
                with self._changed:
                    # a time-out, so that signals are seen
                    while not (self._queue or self._closed):
                        self._changed.wait(0.5)
                    if self._closed:
                        break
                    session = self._queue.popleft()
                session.roll_out()
        finally:
            self.close()
        if self._broken is not None:
            raise self._broken

    def close(self) -> None:
        """End all connections; a rollout under way is stopped as if its client had vanished."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            sessions = list(self._open)
        with contextlib.suppress(OSError):  # wakes the thread that accepts, where it can
            self._listener.shutdown(socket.SHUT_RDWR)
        if self._acceptor is not None:
            self._acceptor.join(1.0)  # the port is free when nobody waits at it
        self._listener.close()
        for session in sessions:
            session.lose("the server closes")
            session.channel.abort()

    def stop_robot(self, reason: str) -> None:
        """The safety stop: `agent.stop()` if there is one, then the callback."""
        log.warning("safety stop: %s", reason)
        try:
            try:
                if isinstance(self.agent, Stoppable):
                    self.agent.stop()
            finally:
                if self._on_stop is not None:
                    self._on_stop(reason)
        except BaseException as error:
            log.exception("the safety stop failed; no client is served any more")
            with self._changed:
                self._broken, self._closed = error, True
                self._changed.notify_all()

    def _accept(self) -> None:
        while not self._closed:
            try:
                sock, address = self._listener.accept()
            except TimeoutError:
                continue
            except OSError as error:
                if not self._closed:
                    log.warning("a connection could not be taken: %s", error)
                    time.sleep(0.2)  # perhaps no files are left; others will be closed
                continue
            try:
                session = _Session(
                    self, Channel(sock, self.max_bytes), f"{address[0]}:{address[1]}"
                )
                threading.Thread(target=session.listen, daemon=True).start()
            except (OSError, RuntimeError) as error:
                sock.close()
                log.warning("a connection could not be served: %s", error)

    def enter(self, session: _Session) -> bool:
        """Count a connection in, unless there are too many."""
        with self._changed:
            if self._closed or len(self._open) >= _CONNECTIONS:
                return False
            self._open.add(session)
            return True

    def leave(self, session: _Session) -> None:
        """Forget a connection, also in the queue."""
        with self._changed:
            self._open.discard(session)
            if session in self._queue:
                self._queue.remove(session)

    def queue(self, session: _Session) -> None:
        """Enqueue a rollout."""
        with self._changed:
            self._queue.append(session)
            self._changed.notify_all()

    def ahead(self, session: _Session) -> int:
        """How many rollouts come before this one, with the one under way."""
        with self._changed:
            return self._queue.index(session) + 1 if session in self._queue else 0

    def welcome(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """The description of the agent, for a client."""
        return self._description


def _describe(agent: Agent) -> tuple[dict[str, Any], dict[str, Array]]:
    fields = {
        "layout": [list(entry) for entry in agent.layout.entries],
        "obs_layout": [list(entry) for entry in agent.obs_layout.entries],
        "T": int(agent.T),
        "dt": float(agent.dt),
        "nu": int(agent.nu),
        "n_start": int(agent.n_start),
    }
    nx = agent.layout.size
    arrays = {
        name: np.array([agent.start_state(m, test=test) for m in range(count)]).reshape(count, nx)
        for name, test, count in (
            ("starts", False, agent.n_conditions),
            ("test_starts", True, agent.n_test_conditions),
        )
    }
    limits = control_range_of(agent)
    if limits is not None:
        arrays["control_range"] = np.stack(limits)
    return fields, arrays


class _Session:
    """One connection. Its own thread listens, the server's thread runs the rollout."""

    def __init__(self, server: RobotServer, channel: Channel, name: str) -> None:
        self.server, self.channel, self.name = server, channel, name
        self._request: Message | None = None
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of the four below, and held during a safety stop
        self._moving = self._done = self._asked = False
        self._lost: str | None = None
        self._silence = server.step_timeout  # of ours, that the client puts up with
        self._notified, self._until = threading.Event(), math.inf  # a client may linger that long
        self._ended = threading.Event()
        self._progress: dict[str, int] = {}
        self._rows = 0

    # in the connection's own thread

    def listen(self) -> None:
        """The whole life of the connection."""
        server = self.server
        try:
            with self.channel:
                if not server.enter(self):
                    self._fail("busy", "too many connections wait already")
                    return
                try:
                    self._meet()
                    self._read_request()
                    server.queue(self)
                    self._attend()
                except RemoteError as error:
                    self._refuse(error)
                finally:
                    server.leave(self)
        except RemoteError as error:
            log.info("client %s: %s", self.name, error)
        except Exception:
            log.exception("client %s: a fault of this side", self.name)
            self.lose("a fault in the connection's thread")

    def _refuse(self, error: RemoteError) -> None:
        """Stop the robot if it moves; report to the client, if it erred and may still listen."""
        with self._lock:
            over = self._done
        if over:
            return
        if self.channel.trusted and self._request is None and not isinstance(error, ProtocolError):
            log.debug("client %s left: %s", self.name, error)  # it asked what the robot is
            return
        self.lose(str(error))
        log.warning("client %s refused or lost: %s", self.name, error)
        if isinstance(error, ProtocolError | _Refused):
            self._fail("refused" if isinstance(error, _Refused) else "protocol", str(error))

    def _meet(self) -> None:
        """Versions, secrets, and the description."""
        server, channel, mine = self.server, self.channel, secrets.token_hex(32)
        deadline = time.monotonic() + _HANDSHAKE
        hello = self._next("hello", deadline)
        version = hello.integer("version", 0)
        if version != VERSION:
            raise _Refused(f"version {version} of the protocol; this side speaks {VERSION}")
        theirs = hello.text("nonce")
        if not _NONCE.fullmatch(theirs):
            raise ProtocolError("'nonce' must be 64 hexadecimal digits")
        self._silence = hello.positive("silence")
        secret = server.secret
        fields = {"version": VERSION, "nonce": mine, "secret": secret is not None}
        channel.send("challenge", fields, silence=_HANDSHAKE)
        mac = self._next("proof", deadline).text("mac")
        if secret is not None and not proves(mac, secret, "client", mine, theirs):
            raise _Refused("the secret is wrong")
        channel.trusted = True
        fields, arrays = server.welcome()
        answer = "" if secret is None else proof(secret, "server", mine, theirs)
        channel.send("welcome", {**fields, "mac": answer}, arrays, silence=_HANDSHAKE)

    def _next(self, want: str, deadline: float) -> Message:
        message = self.channel.receive(_HANDSHAKE, deadline, f"no {want!r} in {_HANDSHAKE:g} s")
        if message.type != want:
            raise ProtocolError(f"message {want!r} must come here, got {clean(message.type, 40)!r}")
        return message

    def _read_request(self) -> None:
        """A rollout of acceptable shapes; whatever a local call would refuse is refused later."""
        request = self.channel.receive(_HANDSHAKE)
        agent, T, nx, nu = self.server.agent, *self._sizes()
        if request.type != "rollout":
            raise ProtocolError(
                f"message 'rollout' must come here, got {clean(request.type, 40)!r}"
            )
        request.integer("condition", 0)
        request.boolean("test")
        N = len(request.array("noise", None, T, nu))
        if "start_noise" in request.arrays:
            request.array("start_noise", N, agent.n_start)
        mode = request.text("mode")
        if mode == "gains":
            request.array("K", T, nu, nx)
            request.array("k", T, nu)
            request.array("chol", T, nu, nu)
        elif mode != "steps":
            raise ProtocolError("'mode' must be 'gains' or 'steps'")
        self._rows = N
        self._request = request

    def _sizes(self) -> tuple[int, int, int]:
        fields = self.server.welcome()[0]
        return fields["T"], sum(n for _, n in fields["layout"]), fields["nu"]

    def _attend(self) -> None:
        """Give signs of life, take actions, notice the end."""
        beat = max(0.02, min(1.0, self._silence / 4, self.server.step_timeout / 4))
        while not (self._notified.is_set() and time.monotonic() > self._until):
            if self.channel.readable(beat):
                message = self.channel.receive(self.server.step_timeout)
                with self._lock:
                    wanted, self._asked = self._asked, False
                if message.type != "action" or not wanted:
                    raise ProtocolError(f"message {clean(message.type, 40)!r} must not come here")
                self._inbox.put(message)
                continue
            with self._lock:
                moving, done, lost = self._moving, self._done, self._lost
            if lost is not None:
                if moving:  # the other thread may still report why
                    self._ended.wait(self.server.step_timeout)
                return
            if done:
                continue  # the client takes its time to read the result, and then closes
            if moving:
                self.channel.send("alive", self._progress, silence=self.server.step_timeout)
            else:
                ahead = self.server.ahead(self)
                self.channel.send("wait", {"ahead": ahead}, silence=self.server.step_timeout)

    def lose(self, reason: str) -> None:
        """The client is gone, or as good as that: stop the robot if it moves for this one."""
        with self._lock:
            if self._lost is not None or self._done:
                return
            self._lost = reason
            if self._moving:
                self.server.stop_robot(f"client {self.name}: {reason}")
        self._inbox.put(None)

    # in the server's thread

    def roll_out(self) -> None:
        """Run the rollout and send what came of it; only the safety stop can raise."""
        request, agent = self._request, self.server.agent
        assert request is not None
        with self._lock:
            if self._lost is not None:
                return
            self._moving = True
        outcome: Callable[[], None]
        try:
            self.channel.send("alive", silence=self.server.step_timeout)
            gains = request.text("mode") == "gains"
            rollouts = agent.rollout(
                _Gains(self, request) if gains else _Asking(self),
                request.integer("condition", 0),
                request.arrays["noise"],
                request.arrays.get("start_noise"),
                test=request.boolean("test"),
            )
            outcome = lambda: self._result(rollouts)  # noqa: E731
        except SimulationError as error:
            failures = [
                {"sample": int(f.sample), "t": int(f.t), "reason": clean(f.reason)}
                for f in error.failures
            ]
            extra = {
                "condition": int(error.condition),
                "failures": failures,
                "note": clean(error.note),
            }
            text = clean(str(error))
            outcome = lambda: self._fail("simulation", text, extra)  # noqa: E731
        except RemoteError as error:
            self.lose(str(error))
            if isinstance(error, ProtocolError):
                self._fail("protocol", str(error))
            self._end()
            return
        except GPSError as error:
            kind, text = ("shape" if isinstance(error, ShapeError) else "robot"), str(error)
            outcome = lambda: self._fail(kind, text)  # noqa: E731
        except BaseException as error:
            # where a rollout broke off it is unknown what the robot does
            text = f"{type(error).__name__}: {error}"
            notified = self._end()
            if notified:  # else it has been stopped, and this may be what that led to
                self.server.stop_robot(text)
            if not isinstance(error, Exception):
                raise
            log.exception("client %s: the agent's rollout failed", self.name)
            if notified:
                self._quietly(lambda: self._fail("robot", text))
            return
        if self._end():
            self._quietly(outcome)

    def _end(self) -> bool:
        """The robot does not move any more; whether there is still someone to tell."""
        with self._lock:  # waits for a safety stop under way, which must not meet the next rollout
            self._moving = False
            self._done = self._lost is None
            self._ended.set()
            return self._done

    def _quietly(self, send: Callable[[], None]) -> None:
        try:
            send()
            self._until = time.monotonic() + self.server.step_timeout
            self._notified.set()
        except ProtocolError as error:  # a result beyond max_bytes
            text = str(error)
            log.warning("client %s: %s", self.name, text)
            self._quietly(lambda: self._fail("robot", text))
        except RemoteError as error:
            log.warning("client %s did not take its result: %s", self.name, error)
            self.channel.abort()

    def _result(self, rollouts: Rollouts) -> None:
        arrays = {name: vars(rollouts)[name] for name in ("X", "U", "obs", "noise")}
        arrays |= {f"jacobian:{name}": J for name, J in rollouts.jacobians.items()}
        self.channel.send("result", None, arrays, silence=self.server.step_timeout)

    def _fail(self, kind: str, text: str, extra: dict[str, Any] | None = None) -> None:
        fields = {"kind": kind, "message": clean(text), **(extra or {})}
        try:
            self.channel.send("error", fields, silence=self.server.step_timeout)
        except ProtocolError:
            raise
        except RemoteError as error:
            log.debug("client %s was not notified: %s", self.name, error)

    def note(self, t: int, rows: int) -> dict[str, int]:
        """Keep where the rollout is. An agent that runs its samples one by one shows it by t."""
        first, before = self._progress.get("sample", 0), self._progress.get("t", -1)
        if rows < self._rows and t <= before:
            first = min(first + self._progress["samples"], self._rows - rows)
        self._progress = {"t": int(t), "sample": first, "samples": rows}
        return self._progress

    def check(self) -> None:
        """RemoteError if the client is gone, which ends a rollout under way."""
        if self._lost is not None:
            raise RemoteError(self._lost)

    def ask(self, x: Array, obs: Array, t: int, noise: Array) -> Array:
        """The client's actions; it has longer for the first ones, when nothing moves yet."""
        self.check()
        at, server = self.note(t, len(x)), self.server
        with self._lock:
            self._asked = True
        self.channel.send(
            "act", at, {"x": x, "obs": obs, "noise": noise}, silence=self.server.step_timeout
        )
        seconds = server.start_timeout if t == 0 else server.step_timeout
        try:
            message = self._inbox.get(timeout=seconds)
        except queue.Empty:
            self.lose(f"no action for step {t} within {seconds:g} s")
            self._fail("silent", f"no action for step {t} within {seconds:g} s")
            message = None
        self.check()
        assert message is not None
        try:
            if message.integer("t", 0) != t:
                raise ProtocolError(f"the action for step {t} is of another step")
            return message.array("u", len(x), noise.shape[1])
        except ProtocolError as error:
            self.lose(str(error))
            raise


class _Refused(RemoteError):
    """This client is refused, whatever it sends."""


class _Gains:
    """The client's controller, run here; stops when the client is gone."""

    def __init__(self, session: _Session, request: Message) -> None:
        K, k, chol = (request.arrays[name] for name in ("K", "k", "chol"))
        self._session = session
        self._controller = LinearGaussianController(K=K, k=k, chol=chol)

    def act(self, x: Array, obs: Array, t: int, noise: Array) -> Array:
        """See `gps.protocols.Policy`."""
        self._session.check()
        self._session.note(t, len(x))
        return self._controller.act(x, obs, t, noise)


class _Asking:
    """The client's policy, asked over the wire in every step."""

    def __init__(self, session: _Session) -> None:
        self._session = session

    def act(self, x: Array, obs: Array, t: int, noise: Array) -> Array:
        """See `gps.protocols.Policy`."""
        return self._session.ask(x, obs, int(t), noise)


def serve(
    agent: Agent,
    host: str = "127.0.0.1",
    port: int = 0,
    secret: str | None = None,
    *,
    on_stop: Callable[[str], None] | None = None,
    step_timeout: float = 5.0,
    start_timeout: float = 60.0,
    max_bytes: int = MAX_BYTES,
    ready: Callable[[RobotServer], None] | None = None,
) -> None:
    """The robot's side: let learners act with `agent` until interrupted.

    port: 0 takes a free one; `ready` is called with the listening server, which has the number.
    secret: at least 16 characters; needed for every host but this machine.
    step_timeout: longest time in seconds for a client's action, and of its silence in the middle of
    a message; start_timeout: the same for the actions of step 0, when the robot stands at its start
    and a policy may still be loading. max_bytes: of one message.

    When the client of a rollout vanishes, breaks the rules or is silent for too long, and when the
    rollout itself breaks off, the robot stops: `agent.stop()` is called if there is one, then
    `on_stop` with the reason. Both are called from another thread than the rollout's, and must
    return; `agent.rollout` must then end too, by an error or by itself. What they raise ends
    `serve`. A process that is killed cannot stop anything: the robot's own controller needs a
    watchdog as well. Raises ConfigError.
    """
    with RobotServer(
        agent,
        host,
        port,
        secret,
        on_stop=on_stop,
        step_timeout=step_timeout,
        start_timeout=start_timeout,
        max_bytes=max_bytes,
    ) as server:
        if ready is not None:
            ready(server)
        server.run()
