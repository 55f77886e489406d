"""The GUI's server lets in who may come in, and nobody else."""

import asyncio
import socket
import threading
import time

import pytest

pytest.importorskip("viser")

import msgspec
import viser
import websockets
from viser import _messages

from gps.errors import ConfigError, GPSError
from gps.gui import server as module
from gps.gui.access import Access, new_token, split_host
from gps.gui.server import SecureServer, check_viser, listen

TOKEN = "t" * 32
PROTOCOL = f"viser-v{viser.__version__}"


@pytest.fixture(scope="module")
def open_server():
    server = SecureServer(port=0)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def locked_server():
    server = SecureServer(port=0, token=TOKEN)
    yield server
    server.stop()


def get(server, target="/", *lines):
    """Status and text of the answer to a GET with these header lines, byte by byte as given."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
        text = "\r\n".join((f"GET {target} HTTP/1.1", *lines, "", ""))
        sock.sendall(text.encode())
        answer = b""
        while b"\r\n\r\n" not in answer and (part := sock.recv(65536)):
            answer += part
        if "Upgrade: websocket" not in lines:
            while part := sock.recv(65536):
                answer += part
    return int(answer.split()[1]), answer.decode("latin-1")


def upgrade(server, *lines):
    """Status of the answer to the opening of a web socket."""
    key = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    key += ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", f"Sec-WebSocket-Protocol: {PROTOCOL}")
    return get(server, "/", *lines, *key)[0]


def test_the_page_is_served_with_security_headers(open_server):
    status, text = get(open_server, "/", f"Host: 127.0.0.1:{open_server.port}")
    head = text.partition("\r\n\r\n")[0]
    assert status == 200
    assert "X-Frame-Options: DENY" in head
    assert "Referrer-Policy: no-referrer" in head
    assert "X-Content-Type-Options: nosniff" in head
    assert f"ws://127.0.0.1:{open_server.port} " in head
    assert "<title>Viser</title>" in text


@pytest.mark.parametrize("ask", [get, upgrade], ids=["page", "socket"])
@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("Host: evil.example:{port}",),
        ("Host: localhost.evil.example",),
        ("Host: 127.0.0.1.evil.example",),
        ("Host: 192.0.2.7:{port}",),
        ("Host: localhost:{port}", "Host: localhost:{port}"),
        ("Host: localhost:{port}\t; x",),
        ("Host: localhost:{port}", "Origin: http://evil.example"),
        ("Host: localhost:{port}", "Origin: null"),
        ("Host: localhost:{port}", "Origin: http://localhost:1"),
        ("Host: localhost:{port}", "Origin: http://127.0.0.1:{port}"),
        ("Host: localhost:{port}", "Origin: file://localhost:{port}"),
        ("Host: localhost:{port}", "Origin: http://localhost:{port}@evil.example"),
        ("Host: evil.example:{port}", "Origin: http://evil.example:{port}"),
        ("Host: localhost:{port}", "Origin: http://localhost:{port}", "Origin: http://evil"),
    ],
)
def test_foreign_hosts_and_origins_are_refused(open_server, ask, lines):
    lines = [line.format(port=open_server.port) for line in lines]
    answer = ask(open_server, *lines) if ask is upgrade else ask(open_server, "/", *lines)[0]
    assert answer == 403


@pytest.mark.parametrize(
    "lines",
    [
        ("Host: localhost:{port}", "Origin: http://localhost:{port}"),
        ("Host: LOCALHOST:9000", "Origin: http://localhost:9000"),  # ssh -L 9000:localhost:8080
        ("Host: 127.0.0.1:80", "Origin: http://127.0.0.1"),
        ("Host: localhost", "Origin: https://localhost"),
        ("Host: [::1]:{port}", "Origin: http://[::1]:{port}"),
        ("Host: localhost:{port}",),  # no browser
    ],
)
def test_this_machine_is_let_in(open_server, lines):
    lines = [line.format(port=open_server.port) for line in lines]
    assert get(open_server, "/", *lines)[0] == 200
    assert upgrade(open_server, *lines) == 101


def test_with_a_token_everything_needs_the_cookie(locked_server):
    host = f"Host: localhost:{locked_server.port}"
    status, text = get(locked_server, f"/?token={TOKEN}", host)
    assert status == 200
    assert "Viser" not in text
    (line,) = [x for x in text.split("\r\n") if x.startswith("Set-Cookie: ")]
    assert "; HttpOnly" in line
    assert "; SameSite=Strict" in line
    cookie = "Cookie: other=1; " + line.removeprefix("Set-Cookie: ").partition(";")[0]
    assert get(locked_server, "/", host, cookie)[0] == 200
    assert "Viser" in get(locked_server, "/", host, cookie)[1]
    assert upgrade(locked_server, host, cookie) == 101
    name = locked_server.access.cookie
    for wrong in ((), (f"Cookie: {name}=" + "u" * 32,), (f"Cookie: x={TOKEN}",)):
        assert get(locked_server, "/", host, *wrong)[0] == 403
        assert get(locked_server, "/?token=" + "u" * 32, host, *wrong)[0] == 403
        assert get(locked_server, f"/assets?token={TOKEN}", host, *wrong)[0] == 403
        assert upgrade(locked_server, host, *wrong) == 403
    foreign = "Origin: http://evil.example"
    assert upgrade(locked_server, host, cookie, foreign) == 403
    assert get(locked_server, f"/?token={TOKEN}", "Host: evil.example")[0] == 403
    body = get(locked_server, "/", host)[1].partition("\r\n\r\n")[2]
    assert body.count("\n") == 1
    assert TOKEN not in body


def test_the_token_is_not_sent_to_other_names():
    access = Access(TOKEN, any_address=True, names=("robot",))
    for host, let in (("192.168.0.3:8080", True), ("robot:1", True), ("rebound.example", False)):
        reply = access.answer(f"/?token={TOKEN}", [("Host", host)])
        assert (reply.status == 200) is let
    assert access.answer("/", [("Host", "robot")]).status == 403
    assert split_host("a:0") is None
    assert len({new_token() for _ in range(5)}) == 5
    with pytest.raises(ConfigError, match="token"):
        Access("short")
    with pytest.raises(ConfigError, match="host name"):
        Access(TOKEN, ("http://robot",))


def test_another_host_needs_a_token():
    with pytest.raises(ConfigError, match="needs a token"):
        SecureServer("0.0.0.0", 0)
    with pytest.raises(GPSError, match="cannot listen"):
        SecureServer("192.0.2.1", 0, token=TOKEN)


def test_a_client_of_viser_is_served_and_cannot_share(open_server, monkeypatch):
    def tunnel(*_, **__):
        raise AssertionError("a tunnel was asked for")

    monkeypatch.setattr(viser._viser, "ViserTunnel", tunnel)
    asked = threading.Event()
    monkeypatch.setattr(SecureServer, "request_share_url", lambda *_, **__: asked.set())

    async def talk():
        url = f"ws://127.0.0.1:{open_server.port}"
        async with websockets.connect(url, subprotocols=[PROTOCOL], compression=None) as ws:
            first = await asyncio.wait_for(ws.recv(), 5)
            for message in ({"type": "ShareUrlRequest"}, {"type": "ShareUrlDisconnect"}):
                await ws.send(msgspec.msgpack.encode(message))
            await asyncio.sleep(0.2)
            return first

    assert len(asyncio.run(talk())) > 16
    assert not asked.wait(0.1)
    assert not set(open_server._websock_server._incoming_handlers) & {
        _messages.ShareUrlRequest,
        _messages.ShareUrlDisconnect,
    }
    monkeypatch.undo()
    with pytest.raises(GPSError, match="relay"):
        open_server.request_share_url()


def test_a_taken_port_is_reported_and_zero_takes_any(capfd):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        server = SecureServer(port=port)
        try:
            assert server.port != port
            assert server.note == f"port {port} is taken; using port {server.port}"
            assert server.url == f"http://127.0.0.1:{server.port}/"
            assert get(server, "/", "Host: localhost")[0] == 200
        finally:
            server.stop()
    time.sleep(0.05)
    said = capfd.readouterr()
    assert said.out == ""  # neither viser's panel nor its farewell
    with pytest.raises(ConfigError, match="0 to 65535"):
        listen("127.0.0.1", 70000)


def test_another_viser_is_refused(monkeypatch):
    check_viser()

    def background_worker(self, ready_sem):
        ready_sem.release()

    monkeypatch.setattr(module.infra.WebsockServer, "_background_worker", background_worker)
    with pytest.raises(GPSError, match="cannot be guarded"):
        SecureServer(port=0)


def test_a_server_that_avoids_the_guard_does_not_listen(monkeypatch):
    monkeypatch.setattr(module._Gate, "serve", websockets.asyncio.server.serve)
    with pytest.raises(GPSError, match="did not start"):
        SecureServer(port=0)


def test_all_addresses_by_number_and_by_known_names():
    server = SecureServer("0.0.0.0", 0, token=TOKEN, names=("robot",))
    try:
        cookie = f"Cookie: {server.access.cookie}={TOKEN}"
        for host, status in (("192.0.2.9:80", 101), ("robot", 101), ("evil.example", 403)):
            assert upgrade(server, f"Host: {host}", f"Origin: http://{host}", cookie) == status
        assert server.url.endswith(f":{server.port}/?token={TOKEN}")
        assert TOKEN not in repr(server.access)
    finally:
        server.stop()
