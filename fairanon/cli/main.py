"""The only door in for settings: ``fairanon VERB ...``. Imports nothing heavy before a verb needs it."""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import NoReturn

from fairanon import __version__
from fairanon.cli import app, audit, completion, experiment_verbs, photograph_verbs
from fairanon.cli.command import Command
from fairanon.config import experiments
from fairanon.config.experiments import Stopped, UserError
from fairanon.places import PlaceError, StoreError
from fairanon.quiet import quiet

COMMANDS: dict[str, Command] = {
    one.name: one
    for one in (
        *experiment_verbs.COMMANDS,
        *photograph_verbs.COMMANDS,
        *audit.COMMANDS,
        *app.COMMANDS,
        *completion.COMMANDS,
    )
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        args: What follows ``fairanon``; None takes the command line.

    Returns:
        0, 1 after a failure, 2 for arguments that make no sense, 3 if somebody has to look at something.

    Raises:
        KeyboardInterrupt: Somebody stopped it; `entry` makes the exit code 130 of it, or 143 of a SIGTERM.
    """
    words = list(sys.argv[1:] if args is None else args)
    parser = parser_of_all()
    if not words:
        parser.print_help()
        return 2
    try:
        arguments = _parse(parser, words)
        command = COMMANDS[arguments.verb]
        command.look(arguments)
    except SystemExit as ended:  # argparse's, after --help and after a mistake
        return int(ended.code or 0)
    except (UserError, PlaceError, StoreError) as error:
        print(error, file=sys.stderr)
        return 2
    if command.light:
        return command.run(arguments) or 0
    from fairanon.config.failures import in_a_sentence

    logging.getLogger("fairanon").setLevel(logging.INFO)
    logging.basicConfig(format="%(message)s")
    with quiet():
        return in_a_sentence(lambda: command.run(arguments))


def entry() -> None:
    """Console script; whoever stops it gets the exit codes of shells, 130 and 143."""
    code = 130

    def terminate(number: int, _: FrameType | None) -> None:
        nonlocal code
        code = 143
        raise Stopped

    signal.signal(signal.SIGTERM, terminate)
    os.environ["MPLBACKEND"] = "Agg"  # a notebook's own, set for its programs too, is not there for this one
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files, in terminals that know other letters
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except KeyboardInterrupt as stopped:
        print(f"\nfairanon: {stopped if str(stopped) else 'stopped; the same command goes on'}.", file=sys.stderr)
    sys.exit(code)


# --- the words -------------------------------------------------------------------------------------------


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """The verb's own arguments, and all others as its ``settings``, ``--KEY=VALUE`` each."""
    if words[0] == "evaluate" and len(words) == 2 and not words[1].startswith("-"):
        raise UserError(
            "`fairanon evaluate ORIGINALS ANONYMIZED` takes two folders; a run is measured by `fairanon measure RUN`."
        )
    verb = _verbs(parser).get(words[0])
    known = {} if verb is None else verb._option_string_actions
    joined: list[str] = []  # a setting's value must not be taken for the verb's argument
    for word in words:
        before = joined[-1] if joined else ""
        if before.startswith("--") and "=" not in before and before not in known and not word.startswith("--"):
            joined[-1] = f"{before}={word}"
        else:
            joined.append(word)
    arguments, settings = parser.parse_known_args(joined)
    if settings and not COMMANDS[arguments.verb].settings:
        _verbs(parser)[arguments.verb].error(f"unknown: {' '.join(settings)}{_near(settings[0], known)}")
    if wrong := [word for word in settings if not word.startswith("--")]:
        message = f"what is {wrong[0]!r}? Settings are --KEY VALUE, files of your own -c FILE"
        ours = wrong[0] in experiments.names()
        _verbs(parser)[arguments.verb].error(
            f"{message}; one of ours is `fairanon train {wrong[0]}`" if ours else message
        )
    arguments.settings = settings
    return arguments


def _near(word: str, known: Iterable[str]) -> str:
    """The option that was meant, as a question."""
    near = difflib.get_close_matches(word.partition("=")[0], list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return subparsers.choices


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, not the whole usage."""
        if match := re.fullmatch(r"argument (\S+): expected one argument", message):
            message = f"{match[1]} needs a value"
        elif match := re.fullmatch(r"argument (\S+): invalid (int|float) value: '(.*)'", message):
            message = f"{match[1]} must be {'a whole number' if match[2] == 'int' else 'a number'}, got {match[3]}"
        raise UserError(f"{self.prog}: {message}; `{self.prog} --help` says what it takes.")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """A word that is no verb, or no choice of an option."""
        if action.choices is not None and value not in action.choices:
            alike = difflib.get_close_matches(str(value), [str(choice) for choice in action.choices], 1)
            if action.option_strings:
                meant = f" (did you mean {alike[0]}?)" if alike else ""
                those = ", ".join(map(str, action.choices))
                raise UserError(
                    f"{action.option_strings[0]}: there is no {str(value)!r}{meant}; choose one of {those}."
                )
            if action.dest != "verb":
                raise UserError(
                    f"{action.dest}: there is no {str(value)!r}; choose one of {', '.join(map(str, action.choices))}."
                )
            hint = f" (did you mean {alike[0]}?)" if alike else ", and the verb comes first"
            raise UserError(f"fairanon: there is no verb {str(value)!r}{hint}; `fairanon --help` lists them.")


DOORS = {
    "I have photographs of people": ("anonymize", "evaluate", "calibrate", "app"),
    "I have a model": ("audit",),
    "I wrote an audit": ("world", "benchmark"),
    "I want to see it": ("demo", "experiments"),
    "I want to train and compare": ("train", "rehearse", "table", "fit", "config", "prepare"),
    "I have a run": ("report", "measure", "export", "dashboard"),
    "I type a lot": ("completion",),
}
"""Verbs by what somebody came with."""
_EXAMPLES = """examples:
  fairanon anonymize photos result          hide the faces of a folder; result/published may be published
  fairanon evaluate photos result           who is found all the same
  fairanon audit tiny                       how a model portrays people
  fairanon demo                             a model before and after PopAlign, in minutes
  fairanon train popalign_tiny              train that, measured before and after
  fairanon table popalign_tiny sft_tiny --seeds 1,2,3
`fairanon VERB --help` says what a verb takes."""


def parser_of_all() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    lines = ["Image models draw some people and leave out others, and photographs show people who did not ask for it.",
             "fairanon measures both, mends both, and shows what it rests on.", ""]  # fmt: skip
    for door, names in DOORS.items():
        lines += [f"{door}:", *(f"  {name:<12} {COMMANDS[name].help}" for name in names), ""]
    parser = _Parser(
        "fairanon", description="\n".join(lines), epilog=_EXAMPLES, usage="fairanon VERB ...", allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"fairanon {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, prog="fairanon", help=argparse.SUPPRESS)
    for command in COMMANDS.values():
        verb_parser = verbs.add_parser(
            command.name,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=command.settings or command.epilog or None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.arguments(verb_parser)
    return parser
