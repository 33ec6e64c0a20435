"""How what goes wrong becomes one sentence and an exit code."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
import tempfile
import traceback
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import jsonargparse
import torch

from fairanon.config.experiments import UserError
from fairanon.config.runs import runs_root
from fairanon.files import write_text
from fairanon.places import StoreError, is_of_a_store
from fairanon.progress import end_bars


def expected() -> tuple[type[Exception], ...]:
    """Errors whose message is written for the user; anything else is a bug and keeps its traceback."""
    ours = (ValueError, FileNotFoundError, ModuleNotFoundError, UserError, OSError)
    if "lightning" not in sys.modules:
        return ours
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    return (*ours, MisconfigurationException)


_TREE = re.compile(
    r"[\s-]*(Problem with|Parser key|Does not validate|Subtypes|Errors:|Given value|Expected a <class .NoneType)"
)


_EXPECTED = re.compile(r"Expected a (?:<class '(\w+)'>|typing\.Literal\[([^\]]*)\])")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "tuple": "a list, for example [a,b]",
    "dict": "keys and values",
}
_LONGEST = 480  # characters of a line; nobody reads more of an error


def sentence(message: str) -> str:
    """What is wrong, without the parser's tree of everything else it tried."""
    if match := re.fullmatch(r"argument (--\w+): expected one argument", message):
        return f"{match[1]}: a setting at or below it has no value; write --KEY VALUE."
    if (wrong := _misspelt_class(message) or _wrong_value(message)) is not None:
        return wrong
    lines = [line for line in message.splitlines() if line.strip()]
    complaint = re.sub(r"^Problem with given class_path '[^']+':\s*", "", "\n".join(lines))
    if "Does not validate" in message:
        key = ".".join(re.findall(r'[Pp]arser key "([^"]+)"', message))
        leaves = dict.fromkeys(line.strip(" -") for line in lines if not _TREE.match(line))
        complaint = f"{key}: {'; '.join(leaves)}".removeprefix(": ")
    return "\n".join(
        line if len(line) <= _LONGEST else f"{line[: _LONGEST - 4]} ..." for line in complaint.splitlines()[:20]
    )


def _misspelt_class(message: str) -> str | None:
    """The classes that a module does have, where the parser says that it lacks one; None if it is about something else."""
    match = re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message)
    key = _key(message)
    if not key or match is None or match[1] not in sys.modules:
        return None
    classes = [name for name, value in vars(sys.modules[match[1]]).items() if isinstance(value, type)]
    near = difflib.get_close_matches(match[2], classes, 3)
    guess = f"; did you mean {' or '.join(near)}?" if near else "."
    return f"{key}: {match[1]} has no {match[2]}{guess}"


def _key(message: str) -> str:
    """The setting that the parser's words are about; "" if they name none."""
    key = re.match(r"([\w.]+): ", message)
    return key[1] if key else ".".join(re.findall(r'[Pp]arser key "([^"]+)"', message))


def _wrong_value(message: str) -> str | None:
    """What a setting may be, of the parser's words about a value that it may not be; None if they are about something else."""
    key = _key(message)
    values = re.findall(r"(?:Got value|Given value): ?(.+)", message)
    kinds: dict[str, None] = {}
    for kind, choices in _EXPECTED.findall(message):
        kinds |= dict.fromkeys([_KINDS.get(kind, "")] if kind else choices.replace("'", "").split(", "))
    kinds.pop("", None)
    if not kinds and "Expected a dot import path string" in message:
        kinds = {"a class (MODULE.CLASS)": None, "its settings": None}
        values = values or [message.rpartition(": ")[2]]
    if not key or not values or not kinds:
        return None
    *others, last = kinds
    value = re.sub(r"^NestedArg\(key='[^']*', val='?(.*?)'?\)$", r"\1", values[-1].strip())
    return f"{key} must be {' or '.join([', '.join(others), last] if others else [last])}, got {value}."


def in_a_sentence(action: Callable[[], int | None]) -> int:
    """Do something and turn a user's mistake into one sentence on the error stream.

    Args:
        action: What is done; returns an exit code, None for 0.

    Returns:
        The exit code.
    """
    try:
        return action() or 0
    except (ArgumentError, jsonargparse.ArgumentError) as error:
        print(f"fairanon: {sentence(str(error))}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        end_bars()
        reason = str(error).partition(". ")[0]
        print(
            f"fairanon: the GPU's memory is too small ({reason}); docs/performance.md says what takes less.",
            file=sys.stderr,
        )
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get("FAIRANON_DEBUG"):
            raise
        end_bars()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"the disk is full ({error.filename or runs_root()}); make room, the same command goes on."
        elif isinstance(error, StoreError):
            reason = f"{error.filename}: {error.strerror}."
        elif is_of_a_store(error):
            reason = f"an object store failed ({sentence(str(error))}); the same command goes on."
        else:
            reason = sentence(str(error)) if isinstance(error, expected()) else _unforeseen(error)
        print(f"fairanon: {reason}", file=sys.stderr)
    return 1


@contextmanager
def as_user_error() -> Iterator[None]:
    """Inside, a user's mistake of whatever class is a `UserError` with the sentence that the command line would print."""
    try:
        yield
    except UserError:
        raise
    except SystemExit as error:
        raise UserError(
            f"settings: one of them ends the program (code {error.code}), as --help does; leave it out."
        ) from error
    except Exception as error:
        if isinstance(error, (ArgumentError, jsonargparse.ArgumentError, *expected())):
            raise UserError(sentence(str(error))) from error
        raise


def _unforeseen(error: Exception) -> str:
    """What is said of an error that nobody foresaw: its traceback goes to a file."""
    text = "".join(traceback.format_exception(error))
    for folder in (runs_root() / "errors", Path(tempfile.gettempdir())):
        with suppress(OSError):
            path = folder / f"fairanon-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.txt"
            write_text(path, text)
            return f"{type(error).__name__}: {sentence(str(error))} (a bug of fairanon's; {path} has the traceback)"
    return (
        f"{type(error).__name__}: {sentence(str(error))} (a bug of fairanon's; FAIRANON_DEBUG=1 prints the traceback)"
    )
