"""The command line: words become requests. Nothing heavy is imported before a verb needs it."""

from fairanon.cli.main import entry, main

__all__ = ["entry", "main"]
