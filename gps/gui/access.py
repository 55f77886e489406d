"""Access control of the GUI's server: rules on a request's headers, without any network.

A page on another site can make the user's browser send requests to `localhost`; a name that its
owner points at 127.0.0.1 (DNS rebinding) makes them look as if they came from the same site. Hence
two rules for every request: `Host` names this server, and `Origin`, where there is one, agrees with
it. Programs that send no `Origin` are not browsers: they are admitted, which takes an account on
this machine, or the token where there is one.

With a token, the first page carries `?token=...`; the response sets a cookie that scripts cannot
read and other sites cannot send, and everything else needs that cookie. The name of the cookie
depends on the token, since cookies do not distinguish the ports of a host.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from gps.errors import ConfigError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
WILDCARDS = ("", "0.0.0.0", "::")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?)(?::([0-9]{1,5}))?")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,128}")
_WELCOME = (
    '<!doctype html><meta charset="utf-8"><title>gps gui</title>'
    # not a redirect: a browser that came here by a link of another site would follow it without
    # the cookie that this very answer sets
    '<meta http-equiv="refresh" content="0;url=./">'
)

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Reply:
    """A response in place of the requested one."""

    status: int
    body: str
    headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Access:
    """The rules of one server.

    Raises ConfigError for a token that is short or needs quoting, and for an impossible name.
    """

    token: str | None = field(default=None, repr=False)
    """Required of the first page; None admits everyone who reaches the server."""
    names: tuple[str, ...] = ()
    """Names or addresses of this machine that a request may name, besides the loopback's."""
    any_address: bool = False
    """Whether a request may name any numeric address: DNS cannot rebind a number."""

    def __post_init__(self) -> None:
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise ConfigError(
                "the token of the GUI must have 16 to 128 characters out of A-Z a-z 0-9 _ -"
            )
        names = tuple(bracketed(name.strip().lower()) for name in self.names)
        for name in names:
            if (split := split_host(name)) is None or split[1] is not None:
                raise ConfigError(f"{name!r} is not a host name; give it without scheme and port")
        object.__setattr__(self, "names", names)

    @property
    def cookie(self) -> str:
        """Name of the cookie."""
        return f"gps_gui_{hashlib.sha256((self.token or '').encode()).hexdigest()[:12]}"

    def answer(self, target: str, headers: Headers) -> Reply | None:
        """The response to a GET of `target`, path and query; None to pass it on.

        headers: names and values as received, in any order.
        """
        hosts, origins = _values(headers, "host"), _values(headers, "origin")
        if len(hosts) != 1 or not self._known(hosts[0]):
            return _refusal(
                "403: this server does not answer to that host name; start it with the name "
                "(gps gui --host NAME) or use localhost"
            )
        if len(origins) > 1 or any(not _agree(origin, hosts[0]) for origin in origins):
            return _refusal("403: requests from pages of other sites are refused")
        if self.token is None:
            return None
        path, _, query = target.partition("?")
        given = parse_qs(query).get("token", [])
        if path in ("/", "/index.html") and len(given) == 1 and self._matches(given[0]):
            cookie = f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"
            policy = ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
            kind = ("Content-Type", "text/html; charset=utf-8")
            return Reply(200, _WELCOME, (kind, ("Set-Cookie", cookie), policy, *_PLAIN))
        if any(self._matches(value) for value in _cookies(headers, self.cookie)):
            return None
        return _refusal(
            "403: the token is missing or wrong; open the address that gps gui printed, "
            "with its ?token=..."
        )

    def _matches(self, given: str) -> bool:
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())

    def _known(self, host: str) -> bool:
        split = split_host(host)
        if split is None:
            return False
        name = split[0]
        return name in (*LOOPBACK_NAMES, *self.names) or (self.any_address and is_address(name))

    def page_headers(self, headers: Headers) -> tuple[tuple[str, str], ...]:
        """Headers for the response to a request that was passed on.

        The viewer is one page with its scripts inside; it starts workers from blobs, and the
        heat maps' library is evaluated. What is ruled out is any other host.
        """
        (host,) = _values(headers, "host")
        policy = (
            "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
            "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
            "media-src data: blob:; worker-src 'self' blob:; "
            f"connect-src 'self' ws://{host} wss://{host} data: blob:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
        )
        return (("Content-Security-Policy", policy), *_PLAIN)


_PLAIN = (
    ("X-Frame-Options", "DENY"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)


def new_token() -> str:
    """A random token of 256 bits."""
    return secrets.token_urlsafe(32)


def bracketed(host: str) -> str:
    """A host as in a URL: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def is_address(host: str) -> bool:
    """Whether a host, as in a URL, is a numeric address."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that is bound to `host`."""
    if host.lower() == "localhost":
        return True
    return is_address(host) and ipaddress.ip_address(host.strip("[]")).is_loopback


def split_host(text: str) -> tuple[str, int | None] | None:
    """Name and port of a `Host` header, in lower case; None where it is not one."""
    match = _HOST.fullmatch(text.lower())
    if match is None:
        return None
    name, port = match.groups()
    if port is not None and not 0 < int(port) < 65536:
        return None
    return name, None if port is None else int(port)


def _agree(origin: str, host: str) -> bool:
    """Whether `Origin` is the page that `Host` serves; `null` never is."""
    scheme, separator, rest = origin.lower().partition("://")
    default = {"http": 80, "https": 443}.get(scheme)
    ours, theirs = split_host(host), split_host(rest)
    if not separator or default is None or ours is None or theirs is None:
        return False
    return ours[0] == theirs[0] and (ours[1] or default) == (theirs[1] or default)


def _values(headers: Headers, name: str) -> list[str]:
    return [value.strip() for key, value in headers if key.lower() == name]


def _cookies(headers: Headers, name: str) -> Iterable[str]:
    for line in _values(headers, "cookie"):
        for part in line.split(";"):
            key, _, value = part.strip().partition("=")
            if key == name:
                yield value


def _refusal(text: str) -> Reply:
    policy = ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
    return Reply(403, text + "\n", (("Content-Type", "text/plain; charset=utf-8"), policy, *_PLAIN))
