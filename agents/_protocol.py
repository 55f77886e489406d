"""The wire between a learner and a robot: frames of JSON and float64 arrays over TCP.

docs/remote.md describes the format for a robot's side in another language.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import json
import math
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gps.errors import ConfigError, GPSError, ShapeError
from gps.types import Array, Layout

VERSION = 1
MAGIC = b"GPSR"
MAX_HEADER = 1 << 20  # bytes of JSON
FIRST_HEADER = 1 << 12  # before the other side has proved that it has the secret
MAX_BYTES = 1 << 28
SECRET_LENGTH = 16  # characters at least: an eavesdropper may try secrets offline
_LENGTHS = struct.Struct("<IQ")
_CHUNK = 1 << 20


class RemoteError(GPSError):
    """The other side of a connection is gone, silent, busy, refuses or cannot be understood."""


class ProtocolError(RemoteError):
    """What the other side sent is not a message, or not one that may come here."""


@dataclass(frozen=True, eq=False)
class Message:
    """A type, fields that fit JSON, and named arrays; the getters check what they give."""

    type: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)

    def _bad(self, name: str, rule: str) -> ProtocolError:
        got = clean(repr(self.fields.get(name)), 60)
        return ProtocolError(f"message {self.type!r}: {name!r} must be {rule}, got {got}")

    def integer(self, name: str, low: int, high: int = 2**31) -> int:
        """The whole number `name` of low .. high."""
        value = self.fields.get(name)
        if type(value) is not int or not low <= value <= high:
            raise self._bad(name, f"a whole number from {low} to {high}")
        return value

    def positive(self, name: str) -> float:
        """The finite number `name`, above 0."""
        value = self.fields.get(name)
        if type(value) not in (int, float) or not 0 < value <= 1e12:  # type: ignore[operator]
            raise self._bad(name, "a number above 0")
        return float(value)  # type: ignore[arg-type]

    def text(self, name: str) -> str:
        """The text `name`."""
        value = self.fields.get(name)
        if type(value) is not str:
            raise self._bad(name, "a text")
        return value

    def boolean(self, name: str) -> bool:
        """The field `name`, true or false."""
        value = self.fields.get(name)
        if type(value) is not bool:
            raise self._bad(name, "true or false")
        return value

    def layout(self, name: str) -> Layout:
        """The layout `name`, written as [[name, size], ...]."""
        value = self.fields.get(name)
        good = type(value) is list and all(
            type(e) is list
            and (len(e) == 2 and type(e[0]) is str and e[0].isprintable())
            and (type(e[1]) is int and 0 < e[1] < 2**31)
            for e in value
        )
        if not good:
            raise self._bad(name, "a list of [name, size]")
        try:
            return Layout(tuple((n, size) for n, size in value))  # type: ignore[union-attr]
        except ShapeError as error:
            raise ProtocolError(f"message {self.type!r}: {name!r}: {error}") from error

    def array(self, name: str, *shape: int | None) -> Array:
        """The array `name` of this shape, None standing for any length."""
        value = self.arrays.get(name)
        got = None if value is None else value.shape
        if got is None or len(got) != len(shape):
            raise ProtocolError(f"message {self.type!r}: no array {name!r} of {len(shape)} axes")
        if any(want is not None and n != want for n, want in zip(got, shape, strict=True)):
            promised = ", ".join("any" if want is None else str(want) for want in shape)
            raise ProtocolError(
                f"message {self.type!r}: array {name!r} has shape {got}, not ({promised})"
            )
        assert value is not None
        return value


def clean(text: str, limit: int = 500) -> str:
    """Foreign text for a log line: printable, and no longer than `limit` characters."""
    text = "".join(c if c.isprintable() else "?" for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def encode(message: Message) -> list[bytes]:
    """The frame, in parts to be sent one after the other."""
    arrays = {name: np.ascontiguousarray(a, dtype="<f8") for name, a in message.arrays.items()}
    header = {
        **message.fields,
        "type": message.type,
        "arrays": [[name, list(a.shape)] for name, a in arrays.items()],
    }
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    size = sum(a.nbytes for a in arrays.values())
    head = MAGIC + _LENGTHS.pack(len(text), size) + text
    return [head, *(a.tobytes() for a in arrays.values())]


def decode(header: bytes, body: bytes | bytearray) -> Message:
    """The message of a frame's two parts; ProtocolError where they are not one."""
    try:
        fields = json.loads(header.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the header is not JSON ({clean(str(error), 80)})") from error
    if type(fields) is not dict or type(fields.get("type")) is not str:
        raise ProtocolError("the header must be a JSON object with a text 'type'")
    kind, listed = fields.pop("type"), fields.pop("arrays", [])
    arrays: dict[str, Array] = {}
    begin = 0
    if type(listed) is not list:
        raise ProtocolError("'arrays' must be a list of [name, shape]")
    for entry in listed:
        good = type(entry) is list and len(entry) == 2
        name, shape = entry if good else (None, [])
        good = type(name) is str and type(shape) is list and len(shape) <= 8 and name not in arrays
        if not good or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
            raise ProtocolError("'arrays' must be a list of [name, shape], every name once")
        end = begin + 8 * math.prod(shape)
        if end > len(body):
            raise ProtocolError(f"array {clean(name, 40)!r} is longer than the message")
        # a copy: aligned, writable, of this machine's byte order
        flat = np.array(np.frombuffer(body[begin:end], dtype="<f8"), dtype=np.float64)
        try:
            arrays[name] = flat.reshape(shape)
        except ValueError as error:  # a zero beside lengths that no array can have
            raise ProtocolError(f"array {clean(name, 40)!r} has an impossible shape") from error
        begin = end
    if begin != len(body):
        raise ProtocolError(f"{len(body) - begin} bytes belong to no array")
    return Message(kind, fields, arrays)


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


class Channel:
    """One connection. One thread may receive while others send; after an error it is dead.

    Whatever goes wrong (end of connection, silence, time, nonsense) is a RemoteError.
    """

    def __init__(self, sock: socket.socket, max_bytes: int = MAX_BYTES) -> None:
        self._sock, self._sending = sock, threading.Lock()
        self.max_bytes = max_bytes
        self.trusted = False  # until then messages are small and carry no arrays
        sock.setblocking(False)
        _tune(sock)

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; the other side notices at once."""
        self.abort()
        self._sock.close()

    def abort(self) -> None:
        """End the connection from another thread than the one that receives and closes."""
        with contextlib.suppress(OSError):  # gone already
            self._sock.shutdown(socket.SHUT_RDWR)

    def readable(self, seconds: float) -> bool:
        """Whether bytes, or the end, arrive within this time."""
        try:
            return _wait(self._sock, seconds, write=False)
        except (OSError, ValueError) as error:
            raise RemoteError(f"the connection broke ({error})") from error

    def send(
        self,
        type: str,
        fields: Mapping[str, Any] | None = None,
        arrays: Mapping[str, Array] | None = None,
        *,
        silence: float,
    ) -> None:
        """Send a message; the other side has to take some of it every `silence` seconds."""
        parts = encode(Message(type, fields or {}, arrays or {}))
        size = sum(map(len, parts[1:]))
        if size > self.max_bytes or len(parts[0]) > MAX_HEADER:
            raise ProtocolError(
                f"message {type!r} of {size} bytes is above the limit of {self.max_bytes}; ask for "
                "fewer samples at once, or raise max_bytes on both sides"
            )
        with self._sending:
            try:
                for part in parts:
                    view = memoryview(part)
                    while view:
                        try:
                            view = view[self._sock.send(view[:_CHUNK]) :]
                        except BlockingIOError:
                            if not _wait(self._sock, silence, write=True):
                                raise RemoteError(f"nothing was taken for {silence:g} s") from None
            except (OSError, ValueError) as error:
                raise RemoteError(f"the connection broke ({error})") from error

    def receive(self, silence: float, deadline: float | None = None, late: str = "") -> Message:
        """The next message.

        silence: longest time in seconds without a byte. deadline: of the whole message, by the
        monotonic clock; `late` names what was waited for.
        """
        magic = self._read(4, silence, deadline, late)
        if magic != MAGIC:
            raise ProtocolError(f"this is another protocol (first bytes {bytes(magic)!r})")
        n_header, n_body = _LENGTHS.unpack(self._read(12, silence, deadline, late))
        if n_header > (MAX_HEADER if self.trusted else FIRST_HEADER):
            raise ProtocolError(f"a header of {n_header} bytes is too long")
        if n_body > (self.max_bytes if self.trusted else 0):
            raise ProtocolError(
                f"a message of {n_body} bytes is above the limit of "
                f"{self.max_bytes if self.trusted else 0}; see max_bytes"
            )
        header = bytes(self._read(n_header, silence, deadline, late))
        return decode(header, self._read(n_body, silence, deadline, late))

    def _read(self, n: int, silence: float, deadline: float | None, late: str) -> bytearray:
        """Exactly n bytes; memory grows with what arrives, not with what was promised."""
        data = bytearray()
        try:
            while len(data) < n:
                wait = silence
                if deadline is not None:
                    wait = min(silence, deadline - time.monotonic())
                if wait <= 0 or not _wait(self._sock, wait, write=False):
                    if deadline is not None and time.monotonic() >= deadline:
                        raise RemoteError(late or "the time is over")
                    raise RemoteError(f"silent for {silence:g} s")
                try:
                    got = self._sock.recv(min(n - len(data), _CHUNK))
                except BlockingIOError:
                    continue
                if not got:
                    raise RemoteError("the connection was closed by the other side")
                data += got
        except (OSError, ValueError) as error:
            raise RemoteError(f"the connection broke ({error})") from error
        return data


def _wait(sock: socket.socket, seconds: float, *, write: bool) -> bool:
    seconds = min(max(seconds, 0.0), 1e6)  # the milliseconds have to fit 32 bits
    if hasattr(select, "poll"):  # select itself fails with a thousand open files
        poll = select.poll()
        poll.register(sock, select.POLLOUT if write else select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    lists = ([], [sock]) if write else ([sock], [])
    return any(select.select(*lists, [], seconds))


def _tune(sock: socket.socket) -> None:
    """Small messages at once; and a dead connection is noticed without traffic."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 2), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def proof(secret: str, side: str, server_nonce: str, client_nonce: str) -> str:
    """The proof that `side` ("client" or "server") has the secret, hexadecimal.

    HMAC-SHA256 with the secret as key, of "gps-remote-1 SIDE SERVER_NONCE CLIENT_NONCE".
    """
    text = f"gps-remote-{VERSION} {side} {server_nonce} {client_nonce}"
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def proves(given: str, secret: str, side: str, server_nonce: str, client_nonce: str) -> bool:
    """Whether a proof is right, in constant time."""
    want = proof(secret, side, server_nonce, client_nonce)
    return hmac.compare_digest(want.encode(), given.encode("utf-8", "replace"))


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from its own machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, which may lead anywhere


def check_secret(secret: str | None, host: str, where: str) -> None:
    """ConfigError for a short secret, and for none where others than this machine can connect."""
    if secret is None:
        if not is_loopback(host):
            raise ConfigError(
                f"{where}: {host!r} is not this machine alone, so a shared secret is needed on "
                "both sides; or stay with 127.0.0.1 and tunnel with ssh -L"
            )
    elif len(secret) < SECRET_LENGTH:
        raise ConfigError(
            f"{where}: the secret must have at least {SECRET_LENGTH} characters, got "
            f"{len(secret)}; for one: python -c 'import secrets; print(secrets.token_hex())'"
        )
