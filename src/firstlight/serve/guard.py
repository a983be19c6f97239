"""Who may ask, how often, and what every answer says to a browser; decided before a body is read."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import click

from firstlight.errors import printable

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
_MOST_CLIENTS = 1000


class Bucket:
    """A rate limit: each client may ask `burst` times at once, and `rate` times a second in the long run."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self._clock = rate, burst, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def seconds_to_wait(self, client: str) -> float:
        """Count one request of a client; return 0 if it is let through, else the seconds until one is."""
        now = self._clock()
        left, then = self._left.pop(client, (float(self.burst), now))
        left = min(self.burst, left + (now - then) * self.rate)
        wait = 0.0 if left >= 1 else (1 - left) / self.rate
        self._left[client] = (left if wait else left - 1, now)
        while len(self._left) > _MOST_CLIENTS:
            self._left.popitem(last=False)
        return wait


def is_own(name: str, host: str) -> bool:
    """Return whether a `Host` header names this server, which listens on `host`.

    A page that rebinds its own name to this machine (DNS rebinding) is known by that name. An address of
    digits cannot be rebound; on a loopback address only loopback addresses are ours.
    """
    parsed = urlsplit(f"//{name}")
    with contextlib.suppress(ValueError):
        _ = parsed.port
        plain = parsed.hostname or ""
        if parsed.path or parsed.query or parsed.username is not None or not plain:
            return False
        if plain == "localhost" or plain == host.lower():
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(plain).is_loopback or not is_loopback(host)
        return not is_loopback(host) and plain in (socket.gethostname().lower(), socket.getfqdn().lower())
    return False


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Guard:
    """Refuse strangers, limit the rate, set the headers of every answer, and write one line a request."""

    def __init__(self, app: App, host: str, bucket: Bucket) -> None:
        self.app, self.host, self.bucket = app, host, bucket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        start, status = time.monotonic(), 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self.app(scope, receive, send_guarded)
            else:
                await refusal(scope, receive, send_guarded)
        except Exception as error:  # the process stays up
            log(f"error: {type(error).__name__}: {error}")
            if not status:
                await _plain(500, "the server failed on this request")(scope, receive, send_guarded)
        finally:
            seconds = time.monotonic() - start
            log(f"{_client(scope)} {scope['method']} {scope['path'][:200]} {status} {1000 * seconds:.0f} ms")

    def _refusal(self, scope: Scope) -> App | None:
        headers: dict[bytes, list[bytes]] = {}
        for key, value in scope["headers"]:
            headers.setdefault(key.lower(), []).append(value)
        hosts = headers.get(b"host", [])
        host = hosts[0].decode("latin-1") if len(hosts) == 1 else ""
        if not is_own(host, self.host):
            return _plain(403, "this server does not answer to that Host")
        if any(origin.decode("latin-1") != f"http://{host}" for origin in headers.get(b"origin", [])):
            return _plain(403, "this server answers no page of another origin")
        if scope["method"] in ("GET", "HEAD"):
            return None
        sites = headers.get(b"sec-fetch-site", [])
        if any(site not in (b"same-origin", b"none") for site in sites):
            return _plain(403, "this server answers no page of another site")
        wait = self.bucket.seconds_to_wait(_client(scope))
        return _plain(429, "too many requests", {"Retry-After": str(int(wait) + 1)}) if wait else None


def _plain(status: int, message: str, headers: dict[str, str] | None = None) -> App:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": message, "hint": ""}, status, headers)


def _client(scope: Scope) -> str:
    return str((scope.get("client") or ("unknown",))[0])


def log(line: str) -> None:
    """Write one line for a person, which holds no raw control character."""
    click.echo(f"{time.strftime('%H:%M:%S')} {printable(line)}", err=True)
