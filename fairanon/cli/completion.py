"""Words that a shell completes: verbs, options, experiments."""

from __future__ import annotations

import argparse

from fairanon.cli.command import Command
from fairanon.config import experiments
from fairanon.run.train_request import LOGGERS

_SHELLS = ("bash", "zsh", "tcsh")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=_SHELLS, help="which shell's script to print")


def _completion(arguments: argparse.Namespace) -> None:
    import shtab

    from fairanon.cli.main import COMMANDS, parser_of_all

    parser = parser_of_all()
    verbs = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    verbs.help = "what to do"  # `--help` lists the verbs itself; what is suppressed, shtab leaves out
    for name, verb in verbs.choices.items():
        verb.description = COMMANDS[name].help  # zsh shows one line
        verbs._choices_actions.append(verbs._ChoicesPseudoAction(name, (), verb.description))
        for action in verb._actions:
            if action.choices is not None or action.nargs == 0:
                continue
            if words := _known(name, action):
                action.choices = words
            elif not action.option_strings or action.metavar in _PATHS:
                action.complete = shtab.FILE  # shtab reads it
    print(shtab.complete(parser, arguments.shell))


_PATHS = ("FOLDER", "FILE", "CSV", "JSON", "IMAGE", "IMAGES", "FOLDER|FILE")
"""What the help calls a value that is a path."""


def _known(verb: str, action: argparse.Action) -> list[str]:
    """Names that an argument takes; of several, one after the other, the first is completed."""
    if action.dest in ("name", "names") and not action.option_strings:
        return experiments.names("prepare" if verb == "prepare" else "")
    if action.dest == "log":
        return list(LOGGERS)
    kind = "overlays" if action.dest == "overlay" else {"J": "judges", "J,J": "judges"}.get(str(action.metavar))
    return experiments.names(kind) if kind else []


COMMANDS = [
    Command(
        "completion", "print a script that completes verbs, options and experiments", _arguments, _completion,
        epilog='For example: eval "$(fairanon completion bash)" in your ~/.bashrc.', light=True,
    ),
]  # fmt: skip
