"""The verb for the page: app."""

from __future__ import annotations

import argparse

from fairanon.app.app_request import AppRequest
from fairanon.cli.command import Command
from fairanon.config.options import add_options, request_of


def _app(arguments: argparse.Namespace) -> None:
    """``fairanon app``: serve the page until somebody stops it."""
    request = request_of(AppRequest, arguments)
    from fairanon.app.server import serve

    serve(request)


COMMANDS = [
    Command(
        "app", "hide faces by clicking, draw new ones, put runs side by side: a page on this machine",
        lambda parser: add_options(parser, AppRequest), _app,
        epilog="Nothing that the page is shown is kept: Ctrl-C, or the page's own button, forgets it.",
    )
]  # fmt: skip
