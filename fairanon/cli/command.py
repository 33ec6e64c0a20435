"""What every verb is to the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A verb.

    Attributes:
        name: How it is called.
        help: One line.
        arguments: Adds its arguments to a parser; imports nothing heavy.
        run: Does it; returns the exit code, None for 0.
        settings: What ``--help`` says of further ``--KEY VALUE``; "" if it takes none.
        epilog: The last lines of its help.
        look: Looks whether there is what the arguments name, before anything heavy is imported; what it refuses is a mistake in
            the command. It may leave what it found in the arguments.
        light: It needs nothing heavy.
    """

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]
    settings: str = ""
    epilog: str = ""
    look: Callable[[argparse.Namespace], None] = lambda given: None
    light: bool = False
