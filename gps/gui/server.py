"""The web server of the GUI: viser behind the access control of `gps.gui.access`.

viser 1.1 answers every request, accepts web sockets from pages of any site, takes another port
silently, prints, and can open a tunnel to a public relay. It has no options for these, so its
two functions that start a server run here in copies, whose global names `websockets`, `infra` and
`rich` are ours. Nothing of viser itself is changed, and other servers in the process stay as they
are. A viser with other internals is refused, and one that bypasses our `serve` finds no address to
listen on.
"""

from __future__ import annotations

import builtins
import errno
import http
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from types import CodeType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

import viser
import websockets.asyncio.server
from viser import _messages, _viser, infra
from viser.infra import _infra
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from gps.errors import ConfigError, GPSError
from gps.gui.access import WILDCARDS, Access, Reply, bracketed, is_loopback, split_host

log = logging.getLogger(__name__)

_NOWHERE = "192.0.2.1"
"""An address for documentation, which no machine has: what viser would listen on by itself."""
_TRIES = 100
_SHARE = (_messages.ShareUrlRequest, _messages.ShareUrlDisconnect)


class SecureServer(viser.ViserServer):
    """A viser server whose requests are all checked by `Access`.

    host: address to listen on; others than the loopback's need a token, and `names` are then the
    names of this machine that requests may use, besides the host itself. port: 0 takes a free one;
    if it is taken, the next free one is used, with a `note`. Raises ConfigError for a host
    without a token, and GPSError where nothing can listen there or this version of viser cannot be
    guarded.
    """

    note: str = ""
    """One line if the port is not the requested one, else empty."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8080,
        *,
        token: str | None = None,
        names: Sequence[str] = (),
        label: str | None = None,
    ) -> None:
        if not is_loopback(host) and token is None:
            raise ConfigError(
                f"host {host!r} admits other machines, which needs a token; or stay with "
                "127.0.0.1 and use ssh -L PORT:localhost:PORT"
            )
        wild = host in WILDCARDS
        own = (socket.gethostname() if wild else host,)
        known = own if split_host(bracketed(own[0])) else ()
        self.access = Access(token, (*names, *known), any_address=wild)
        check_viser()
        listening = listen(host, port)
        bound = int(listening.getsockname()[1])
        gate = _Gate(self.access, listening)
        start = _with_globals(
            viser.ViserServer.__init__, infra=_like(infra, WebsockServer=gate.server)
        )
        try:
            start(self, host=_NOWHERE, port=1, label=label, verbose=False)
        except BaseException:
            listening.close()
            raise
        if not gate.passed:
            self.stop()
            raise GPSError(f"viser {viser.__version__} did not start through the guarded server")
        self._websock_server._host = host
        self._shown = socket.gethostname() if wild else host
        if port and bound != port:
            self.note = f"port {port} is taken; using port {bound}"
        self.gui.configure_theme(show_share_button=False)  # it would do nothing

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return self.get_port()

    @property
    def url(self) -> str:
        """The address to open, with the token where there is one."""
        query = "" if self.access.token is None else f"?token={self.access.token}"
        return f"http://{bracketed(self._shown)}:{self.port}/{query}"

    def request_share_url(self, verbose: bool = True) -> str | None:
        """Refused: the tunnel of viser would let the public in."""
        raise GPSError("the GUI is not shared through a public relay; use ssh -L instead")


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound to `host`, at `port` or the first free one after it.

    Raises GPSError if there is no such host or no free port.
    """
    if not 0 <= port < 65536:
        raise ConfigError(f"a port must be 0 to 65535, got {port}")
    name = "127.0.0.1" if host.lower() == "localhost" else host.strip("[]") or "0.0.0.0"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise GPSError(f"the GUI cannot listen on {host!r}: {error}") from None
    ports = [0] if port == 0 else range(port, min(port + _TRIES, 65536))
    for attempt in ports:
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address[0], attempt, *address[2:]))
            sock.listen(100)  # two sockets bound to one port conflict only now
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE:
                continue
            raise GPSError(f"the GUI cannot listen on {host}:{attempt}: {error.strerror}") from None
        return sock
    raise GPSError(f"the ports {port} to {ports[-1]} of {host} are all taken; try --port 0")


# --- in place of what viser does by itself --------------------------------------------------------


class _Gate:
    """Builds viser's web socket server so that it serves through the guard, on one socket."""

    def __init__(self, access: Access, listening: socket.socket) -> None:
        self._access, self._socket = access, listening
        self.passed = False

    def server(self, **options: Any) -> _GuardedServer:
        """What viser calls for its `WebsockServer`."""
        return _GuardedServer(self, **options)

    def serve(self, handler: Any, _host: str, _port: int, **options: Any) -> Any:
        """What viser calls for `websockets.asyncio.server.serve`."""
        inner = options.pop("process_request", None)
        if not callable(inner):
            raise GPSError(f"viser {viser.__version__} has no request handler to guard")
        guarded = partial(_respond, self._access, inner)
        options |= {"process_request": guarded, "server_header": None, "logger": _quiet_log()}
        self.passed = True
        return websockets.asyncio.server.serve(handler, sock=self._socket, **options)


class _GuardedServer(infra.WebsockServer):
    """viser's web socket server with our `serve`, and without the messages that share."""

    def __init__(self, gate: _Gate, **options: Any) -> None:
        self._gate = gate
        super().__init__(**options)

    def register_handler(self, message_cls: Any, callback: Any) -> None:
        """Register a handler, but none for requests of a public tunnel."""
        if message_cls not in _SHARE:
            super().register_handler(message_cls, callback)

    def _background_worker(self, ready_sem: threading.Semaphore) -> None:
        """Run the event loop; whatever happens, the thread that waits for the start is released."""
        server = _like(websockets.asyncio.server, serve=self._gate.serve)
        ours = _like(websockets, asyncio=_like(websockets.asyncio, server=server))
        work = _with_globals(infra.WebsockServer._background_worker, websockets=ours)
        try:
            work(self, ready_sem)
        finally:
            ready_sem.release()


def _respond(access: Access, inner: Callable[..., Any], connection: Any, request: Request) -> Any:
    """The guard: a refusal, or what viser answers with our headers; None opens a web socket."""
    headers = list(request.headers.raw_items())
    reply = access.answer(request.path, headers)
    if reply is not None:
        log.debug("answered %d to %s", reply.status, request.path.partition("?")[0])
        return _response(reply)
    answer = inner(connection, request)
    if answer is not None:
        for name, value in access.page_headers(headers):
            answer.headers[name] = value
    return answer


def _response(reply: Reply) -> Response:
    status, body = http.HTTPStatus(reply.status), reply.body.encode()
    headers = Headers([*reply.headers, ("Content-Length", str(len(body))), ("Connection", "close")])
    return Response(status.value, status.phrase, headers, body)


def _quiet_log() -> logging.Logger:
    """The log of websockets: ours, without a traceback for every connection that is closed."""
    quiet = log.getChild("websockets")
    if not quiet.filters:
        quiet.addFilter(lambda record: not record.getMessage().startswith(_USUAL))
    return quiet


_USUAL = ("opening handshake failed", "connection rejected")


# --- copies of viser's functions ------------------------------------------------------------------


def check_viser() -> None:
    """Raise GPSError if viser's internals are not those that the guard was written for."""
    missing = [
        f"{what} of {function.__qualname__}"
        for function, names in (
            (infra.WebsockServer._background_worker, ("websockets", "asyncio", "server", "serve")),
            (viser.ViserServer.__init__, ("infra", "WebsockServer", "register_handler")),
        )
        for what in names
        if what not in _names_of(function.__code__)
    ]
    if "websockets" not in vars(_infra) or "infra" not in vars(_viser):
        missing.append("imports")
    if "process_request" not in _keywords_of(infra.WebsockServer._background_worker.__code__):
        missing.append("process_request")
    if missing:
        raise GPSError(
            f"viser {viser.__version__} cannot be guarded: {', '.join(missing)} not found; "
            "install viser 1.1"
        )


def _with_globals(function: Any, **names: Any) -> Callable[..., Any]:
    """A copy of a function with other values for some of its globals, and no printing."""
    scope = {**function.__globals__, **names, "__builtins__": _no_printing()}
    code, defaults = function.__code__, function.__defaults__
    copy = FunctionType(code, scope, function.__name__, defaults, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _like(module: ModuleType, **names: Any) -> ModuleType:
    """A copy of a module with other values for some of its names."""
    copy = ModuleType(module.__name__)
    vars(copy).update({**vars(module), **names})
    return copy


def _no_printing() -> dict[str, Any]:
    """Builtins where `import rich` gives something that logs instead of printing."""

    def find(name: str, *rest: Any, **named: Any) -> Any:
        fromlist = named.get("fromlist", rest[2] if len(rest) > 2 else ())
        if name == "rich" and not fromlist:
            return SimpleNamespace(print=lambda *said, **_: log.debug("viser: %s", said))
        return builtins.__import__(name, *rest, **named)

    return {**vars(builtins), "__import__": find}


def _codes(code: CodeType) -> list[CodeType]:
    inner = [c for c in code.co_consts if isinstance(c, CodeType)]
    return [code, *(each for c in inner for each in _codes(c))]


def _names_of(code: CodeType) -> set[str]:
    return {name for each in _codes(code) for name in each.co_names}


def _keywords_of(code: CodeType) -> set[str]:
    tuples = [c for each in _codes(code) for c in each.co_consts if isinstance(c, tuple)]
    return {name for names in tuples for name in names if isinstance(name, str)}
