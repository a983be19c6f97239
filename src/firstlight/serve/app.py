"""`serve`: a local page, and a JSON endpoint, that classify pictures and show why."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import TYPE_CHECKING, Any

import click
from jinja2 import Environment, PackageLoader, StrictUndefined

from firstlight.errors import InputError, printable
from firstlight.page.payload import heat_colours
from firstlight.record.record import Record
from firstlight.serve.guard import App, Bucket, Guard, is_loopback
from firstlight.serve.network import Network, Question
from firstlight.serve.openapi import MOST_BYTES, MOST_SIMILAR, description

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

MOST_WAITING = 16
"""Requests that hold or send a picture at once; one of them is computed."""
BODY_SECONDS = 30.0
RATE, BURST = 100.0, 300
_TYPES = {"css": "text/css", "js": "text/javascript"}


def serve(record: Record, fit: str, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve the page of a run until Ctrl-C, and return then.

    fit: how the training pictures were fitted to the network's shape.
    Raises InputError where the address cannot be taken, or Starlette or uvicorn is missing.
    """
    try:
        import uvicorn

        network = Network(record, fit)
        with ThreadPoolExecutor(1) as executor:
            app = application(network, executor, host)
            listener = bound(host, port)
            try:
                kept = network.prepare()
                config = uvicorn.Config(
                    app, log_config=None, access_log=False, server_header=False, lifespan="off", ws="none",
                    http="h11", loop="asyncio", timeout_keep_alive=5, timeout_graceful_shutdown=5,
                )  # fmt: skip
                click.echo(f"serving {network.name} at {address(listener, host)}  (Ctrl-C ends it)")
                if not kept:
                    click.echo("the run keeps no images: none similar will be shown")
                if not is_loopback(host):
                    click.echo("anybody who reaches this address can use it: there is no password")
                uvicorn.Server(config).run(sockets=[listener])
            except KeyboardInterrupt:
                pass  # uvicorn has ended its connections and passes the signal on
            finally:
                listener.close()
        click.echo("stopped")
    except ModuleNotFoundError as error:
        if error.name not in ("uvicorn", "starlette"):
            raise
        raise InputError(
            "serve needs Starlette and uvicorn, which are not installed", "pip install 'firstlight[serve]'"
        ) from None


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raises InputError where the address cannot be taken."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        reason = printable(str(getattr(error, "strerror", None) or error).partition(" (while")[0])
        raise InputError(
            f"cannot listen on port {port} of {printable(host)}: {reason}",
            "Choose another with --port, or a free one with --port 0.",
        ) from None


def address(listener: socket.socket, host: str) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}/"


def application(
    network: Network, executor: ThreadPoolExecutor, host: str = "127.0.0.1", bucket: Bucket | None = None
) -> App:
    """Return the whole server as an ASGI application.

    executor: one thread, which alone touches the network.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    busy = 0
    page = _page(network)
    files = {name: _asset(*place) for name, place in _FILES.items()}

    def refused(status: int, message: str, hint: str = "", **headers: str) -> Response:
        return JSONResponse({"error": message, "hint": hint}, status, headers)

    async def unknown(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        message = {404: "there is nothing here", 405: "this address takes another method"}
        return refused(status, message.get(status, "this request was refused"), "See /openapi.json.")

    async def predict(request: Request) -> Response:
        nonlocal busy
        try:
            question = _question(request)
        except InputError as error:
            return refused(400, error.message, error.hint)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # These types make a browser ask first when another site posts them, and it is not answered.
        if not kind.startswith("image/") and kind != "application/octet-stream":
            hint = "Send the file itself as application/octet-stream."
            return refused(415, "a picture is posted as image/… or application/octet-stream", hint)
        if int(request.headers.get("content-length", 0)) > MOST_BYTES:
            return refused(413, _TOO_LARGE)
        if busy >= MOST_WAITING:
            return refused(503, "too many pictures are waiting", "Try again.", **{"Retry-After": "1"})
        busy += 1
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = bytearray()
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > MOST_BYTES:
                        return refused(413, _TOO_LARGE)
            loop = asyncio.get_running_loop()
            answer = await loop.run_in_executor(executor, network.answer, bytes(body), question)
        except TimeoutError:
            return refused(408, f"the picture did not arrive within {BODY_SECONDS:.0f} seconds")
        except ClientDisconnect:
            return Response(status_code=400)
        except InputError as error:
            return refused(422, error.message, error.hint)
        except MemoryError:
            return refused(413, "there is not enough memory for this picture", "Make it smaller.")
        finally:
            busy -= 1
        return JSONResponse(answer)

    async def kept(request: Request) -> Response:
        png = network.kept_png(request.path_params["place"])
        return (
            refused(404, "there is no such image") if png is None else Response(png, media_type="image/png")
        )

    async def asset(request: Request) -> Response:
        name = request.url.path.removeprefix("/")
        return Response(files[name], media_type=_TYPES[name.rpartition(".")[2]])

    async def home(_: Request) -> Response:
        return Response(page, media_type="text/html")

    async def openapi(_: Request) -> Response:
        return JSONResponse(description(network.data.classes))

    routes = [
        Route("/", home),
        Route("/predict", predict, methods=["POST"]),
        Route("/openapi.json", openapi),
        Route("/kept/{place:int}.png", kept),
        *(Route(f"/{name}", asset) for name in files),
    ]
    inner = Starlette(routes=routes, exception_handlers={HTTPException: unknown})
    inner.router.redirect_slashes = False
    return Guard(inner, host, bucket or Bucket(RATE, BURST))


_TOO_LARGE = f"the picture has more than {MOST_BYTES // 2**20} MiB"
_FILES = {
    "page.css": ("firstlight.page", "page.css"),
    "serve.css": ("firstlight.serve", "serve.css"),
    "heat.js": ("firstlight.serve", "heat.js"),
    "serve.js": ("firstlight.serve", "serve.js"),
}


def _question(request: Request) -> Question:
    query = request.query_params
    similar = query.get("similar", "0")
    if not similar.isascii() or not similar.isdigit() or len(similar) > 3 or int(similar) > MOST_SIMILAR:
        raise InputError(
            f"similar is {printable(similar[:40])!r}", f"Give a number from 0 to {MOST_SIMILAR}."
        )
    name = printable(query.get("name", "")[:200]) or Question.name
    return Question(name, query.get("heat"), int(similar), query.get("preview") == "1")


def _asset(package: str, name: str) -> str:
    return (resources.files(package) / "assets" / name).read_text(encoding="utf-8")


def _page(network: Network) -> str:
    templates = Environment(
        loader=PackageLoader("firstlight.serve", "assets"), autoescape=True, undefined=StrictUndefined
    )
    data: dict[str, Any] = {
        "colours": heat_colours(),
        "most_bytes": MOST_BYTES,
        "classes": network.data.classes,
    }
    return templates.get_template("serve.html").render(network=network, data=data)
