"""Words that a shell completes: verbs, options, experiments."""

from __future__ import annotations

import argparse

from fairanon.cli.command import Command
from fairanon.config import experiments

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
            if (
                not action.option_strings
                and action.dest in ("name", "names")
                and action.choices is None
                and name != "prepare"
            ):
                action.choices = experiments.names()
            elif not action.option_strings and action.choices is None:
                action.complete = shtab.FILE  # shtab reads it
    print(shtab.complete(parser, arguments.shell))


COMMANDS = [
    Command(
        "completion", "print a script that completes verbs, options and experiments", _arguments, _completion,
        epilog='For example: eval "$(fairanon completion bash)" in your ~/.bashrc.', light=True,
    ),
]  # fmt: skip
