"""Requests: dataclasses whose attributes are a command's options, typed and described once. Imports nothing heavy."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from fairanon.config.experiments import UserError
from fairanon.places import PlaceError, is_stored, place

_Request = TypeVar("_Request")


@dataclass(frozen=True)
class _About:
    """What is known of an option beside its type and default."""

    help: str
    metavar: str | None
    group: str
    least: float | None
    most: float | None
    positional: bool
    short: str
    tags: frozenset[str]
    stored: bool
    used_by: tuple[str, ...]


def option(
    default: Any = MISSING,
    help: str = "",
    metavar: str | None = None,
    group: str = "",
    least: float | None = None,
    most: float | None = None,
    positional: bool = False,
    short: str = "",
    tags: Sequence[str] = (),
    stored: bool = False,
    used_by: Sequence[str] = (),
) -> Any:
    """An attribute of a request.

    Args:
        default: Its default; none for what must be given.
        help: One line.
        metavar: Stands for its value.
        group: Heading under which ``--help`` shows it.
        least: The smallest value that makes sense.
        most: The largest.
        positional: It stands without a name on the command line.
        short: A second name of one letter, for example "-c".
        tags: What else is to be known of it, see `tagged`.
        stored: A path that may lie in an object store.
        used_by: Methods that use it, where others do not; see `refuse_what_is_not_used`.
    """
    about = _About(help, metavar, group, least, most, positional, short, frozenset(tags), stored, tuple(used_by))
    return dataclasses.field(default=default, metadata={"option": about})


def options(kind: type) -> Iterator[tuple[Field[Any], Any, _About]]:
    """Each attribute of a request that is an option: its field, its type, what is known of it."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if "option" in field.metadata:
            yield field, hints[field.name], field.metadata["option"]


def tagged(kind: type, tag: str) -> list[str]:
    """Names of the options with a tag."""
    return [field.name for field, _, about in options(kind) if tag in about.tags]


def refuse_what_is_not_used(request: Any, method: str) -> None:
    """Refuse an option that a method does not use: whoever gives it expects what does not happen.

    Raises:
        UserError: Names it.
    """
    for field, _, about in options(type(request)):
        if about.used_by and method not in about.used_by and getattr(request, field.name) != field.default:
            words, methods = f"--{field.name.replace('_', '-')}", ", ".join(about.used_by)
            raise UserError(f"{words}: --method {method} does not use it, only {methods}; leave it out.")


def add_options(parser: argparse.ArgumentParser, kind: type, leave_out: Sequence[str] = ()) -> None:
    """Give a parser a request's options, but for some."""
    groups: dict[str, Any] = {"": parser}
    for field, hint, about in options(kind):
        if field.name in leave_out:
            continue
        if about.group not in groups:
            groups[about.group] = parser.add_argument_group(about.group)
        add = groups[about.group].add_argument
        default = None if field.default is MISSING else field.default
        words: dict[str, Any] = {"help": about.help, "metavar": about.metavar}
        inner = _inner(hint)
        if about.positional:
            many = get_origin(hint) is tuple
            optional = {} if field.default is MISSING else {"nargs": "?", "default": default}
            value: dict[str, Any] = (
                {"choices": get_args(inner)} if get_origin(inner) is Literal else {"type": _typed(inner)}
            )
            add(field.name, **value, **words, **({"nargs": "+"} if many else optional))
            continue
        names = [*([about.short] if about.short else []), f"--{field.name.replace('_', '-')}"]
        if inner is bool:
            add(*names, dest=field.name, action="store_true", help=about.help)
        elif get_origin(inner) is Literal:
            add(*names, dest=field.name, choices=get_args(inner), default=default, help=about.help)
        elif get_origin(hint) is tuple:
            add(*names, dest=field.name, type=_typed(inner), action="append", default=[], **words)
        else:
            add(*names, dest=field.name, type=_typed(inner), default=default, **words)


def _typed(inner: Any) -> Any:
    """What the parser makes of a word; `tidy` makes places of paths."""
    return str if inner is Path else inner


def _inner(hint: Any) -> Any:
    """What one value is: without None, and of a tuple its items."""
    if get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    return get_args(hint)[0] if get_origin(hint) is tuple else hint


def request_of(kind: type[_Request], arguments: argparse.Namespace, **more: Any) -> _Request:
    """A request as a command line says it; what a verb does not take has its default."""
    values = {
        field.name: getattr(arguments, field.name) for field, _, _ in options(kind) if hasattr(arguments, field.name)
    }
    return kind(**values, **more)


def tidy(request: Any) -> None:
    """Make of a request's values what their types say, and refuse what is out of range. For ``__post_init__``.

    Raises:
        UserError: Names the option.
    """
    for field, hint, about in options(type(request)):
        value, inner = getattr(request, field.name), _inner(hint)
        name = about.metavar or field.name if about.positional else f"--{field.name.replace('_', '-')}"
        if value is None and type(None) in get_args(hint):
            continue
        if get_origin(hint) is tuple:
            entries = (value,) if isinstance(value, (str, Path)) or is_stored(value) else value
            if not isinstance(entries, (list, tuple)) or not all(_is(entry, inner) for entry in entries):
                raise UserError(f"{name} must be {_WORDS[inner]}, or several in a list, got {value!r}.")
            object.__setattr__(request, field.name, tuple(_made(entry, inner, name, about.stored) for entry in entries))
        elif get_origin(inner) is Literal:
            if value not in get_args(inner):
                raise UserError(f"{name}: there is no {value!r}; choose one of {', '.join(map(str, get_args(inner)))}.")
        elif not _is(value, inner):
            raise UserError(f"{name} must be {_WORDS[inner]}, got {value!r}.")
        elif inner is Path:
            object.__setattr__(request, field.name, _made(value, inner, name, about.stored))
        least = -math.inf if about.least is None else about.least
        most = math.inf if about.most is None else about.most
        if (about.least, about.most) != (None, None) and not least <= value <= most:
            bounds = f"from {least:g} to {most:g}" if about.most is not None else f"at least {least:g}"
            raise UserError(f"{name} must be {bounds}, got {value}.")


def share_of(part: str | None) -> tuple[int, int] | None:
    """What ``--part`` says: which part, from 1 on, of how many; None: all of them.

    Raises:
        UserError: It is none.

    Examples:
        >>> share_of("3/100")
        (3, 100)
    """
    if part is None:
        return None
    match = re.fullmatch("([1-9][0-9]*)/([1-9][0-9]*)", part)
    if match is None or int(match[1]) > int(match[2]):
        raise UserError(f"--part must be K/N with K from 1 to N, for example 3/100, got {part!r}.")
    return int(match[1]), int(match[2])


ENGINE = "who works: here (default), ray (a cluster on this machine), ray:HOST:PORT"
"""Help of ``--engine``."""


class InParts:
    """A request whose work can be divided; it has an option ``part``."""

    part: str | None

    @property
    def share(self) -> tuple[int, int] | None:
        """Which part of how many; None: all of them."""
        return share_of(self.part)


def check_who_works(engine: str, device: str, part: str | None, finish: bool = False) -> None:
    """Refuse what ``--engine``, ``--device``, ``--part`` and ``--finish`` do not say together.

    Raises:
        UserError: Names the option.
    """
    if not re.fullmatch("here|ray|ray:.+", engine):
        raise UserError(f"--engine must be here, ray or ray:HOST:PORT, got {engine!r}.")
    if engine != "here" and device not in ("auto", "cpu"):
        raise UserError("--device: Ray deals out the devices; leave it out, or take --device cpu.")
    if share_of(part) is not None and finish:
        raise UserError("--part and --finish cannot be given together; give the parts first, then --finish alone.")


def _made(value: Any, kind: type, name: str, stored: bool) -> Any:
    """A value as its type has it."""
    if kind is not Path:
        return kind(value)
    try:
        location = place(value)
    except PlaceError as error:
        raise UserError(f"{name}: {error}") from None
    if is_stored(location) and not stored:
        raise UserError(f"{name}: {value} lies in an object store, and this has to lie on a disk; name a path.")
    return location


_WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


def _is(value: Any, kind: type) -> bool:
    if kind is Path:
        return isinstance(value, (str, Path)) or is_stored(value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
