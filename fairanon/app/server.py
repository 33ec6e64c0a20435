"""Serves the page: on this machine alone, or with a password, and without a byte that stays."""

from __future__ import annotations

import os
import signal
import socket
import webbrowser
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fairanon.app.app_request import AppRequest
from fairanon.app.private import private_folder
from fairanon.config.experiments import UserError

_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-src 'self' data: blob:; form-action 'self'; frame-ancestors 'none'",
}
"""Browsers keep nothing, ask no other host, and no other page can hold this one."""
_LARGEST = "200mb"
_STYLE = """
.gradio-container {max-width: 76rem !important; margin: 0 auto}
.answer b {font-family: system-ui, sans-serif; font-size: 1.3rem; margin-right: .4rem} .answer .better {color: #0a6b3d} .answer .worse {color: #a3321f}
.dark .answer .better {color: #5cc793} .dark .answer .worse {color: #f08a75}
"""


def serve(request: AppRequest) -> None:
    """Serve until somebody stops it.

    Args:
        request: Where, and with which judges.

    Raises:
        UserError: The port is taken, or gradio is not installed.
    """
    password = request.password()
    try:
        import uvicorn
    except ModuleNotFoundError:
        raise UserError('the page needs gradio: pip install "fairanon[app]".') from None
    with private_folder() as folder, _listening(request) as listener:
        address = (
            f"http://{'[' + request.host + ']' if ':' in request.host else request.host}:{listener.getsockname()[1]}"
        )
        # an open tab is cut off after three seconds; uvicorn would call that an error
        settings: dict[str, Any] = {"log_level": "critical", "access_log": False, "timeout_graceful_shutdown": 3}
        server = uvicorn.Server(uvicorn.Config(web_app(request, folder, password), **settings))
        print(
            f"{address} · {_who_sees_it(request)} · nothing is kept · Ctrl-C ends it and forgets everything", flush=True
        )
        if hasattr(signal, "SIGHUP"):  # the terminal is closed
            signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        if not request.no_browser:
            webbrowser.open(address)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            raise KeyboardInterrupt("stopped; everything is forgotten") from None


def _listening(request: AppRequest) -> socket.socket:
    kind = socket.AF_INET6 if ":" in request.host else socket.AF_INET
    listener = socket.socket(kind, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((request.host, request.port))
        listener.listen()  # who comes before the page is ready waits
    except OSError as error:
        listener.close()
        raise UserError(
            f"--host {request.host} --port {request.port}: {error.strerror}; take another port; 0 finds a free one."
        ) from None
    return listener


def _who_sees_it(request: AppRequest) -> str:
    return "this machine alone" if request.password_file is None else "whoever knows the password of the user fairanon"


def web_app(request: AppRequest, folder: Path, password: str | None) -> Any:
    """The page as an ASGI application.

    Args:
        request: Whose judges it asks.
        folder: A private one, see `private_folder`.
        password: Of the user fairanon; None asks nobody.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
        from fastapi import FastAPI, Request, Response
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ModuleNotFoundError:
        raise UserError('the page needs gradio: pip install "fairanon[app]".') from None
    from fairanon.app import bias, finished_runs, new_faces, photographs

    with gr.Blocks(title="fairanon", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# fairanon\n{_who_sees_it(request)} · nothing is kept · nothing is sent anywhere else")
        photographs.tab(folder, request)
        new_faces.tab()
        finished_runs.tab()
        bias.tab()
    web = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @web.middleware("http")
    async def _with_headers(asked: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        origin = asked.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != asked.headers.get("host"):
            return Response("another page asks", 403)
        response = await answer(asked)
        response.headers.update(_HEADERS)
        return response

    names = ["127.0.0.1", "localhost", "[::1]", request.host]  # no other page can call itself us by a name of its own
    web.add_middleware(TrustedHostMiddleware, allowed_hosts=["*"] if request.host in ("0.0.0.0", "::") else names)
    # gradio takes any file of this machine for an upload until it is told that others can see the page
    page.has_launched = True
    return gr.mount_gradio_app(
        web, page, "/", auth=None if password is None else ("fairanon", password), show_error=False, max_file_size=_LARGEST,
        footer_links=[], app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None}, run_history=False, ssr_mode=False, enable_monitoring=False, css=_STYLE,
    )  # fmt: skip
