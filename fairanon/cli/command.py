"""What every verb is to the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from fairanon.config.experiments import Experiment


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
        experiment: Finds the experiment that the arguments name; what it refuses is a mistake in the command.
    """

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]
    settings: str = ""
    epilog: str = ""
    experiment: Callable[[argparse.Namespace], Experiment] | None = None
