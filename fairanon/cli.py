"""The only door in for settings: ``fairanon VERB ...``. Imports nothing heavy before a verb needs it."""

from __future__ import annotations

import difflib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from fairanon.files import TextError, read_text

EXPERIMENTS = Path("experiments")
HELP = """usage: fairanon VERB ...

Fair and private face generation: train, measure, compare.

  train NAME [--overlay O] [--fresh] [--KEY VALUE ...]
                      prepare the data, train experiments/NAME.yaml, measure before and after, write the report
  rehearse NAME [--overlay O] [--KEY VALUE ...]
                      all of it with every count cut to the least: what is missing, what works, what it will take
  fit -c FILE [-c FILE ...] [--KEY VALUE ...]
                      the same for your own configuration files
  evaluate RUN [--KEY VALUE ...]
                      measure a finished run again, for example with more images
  export RUN FOLDER [--weight W]
                      a diffusers pipeline with the trained adapters fused in
  prepare NAME|FILE [IMAGES] [--KEY VALUE ...]
                      make the data that a training needs (experiments/prepare/*.yaml)
  table NAME ... --seeds 11,12,13 [--cells FOLDER] [--KEY VALUE ...]
                      train each experiment with each seed unless that run is finished, then compare them
  report RUN          write a run's report.html again and print its table
  config NAME [--KEY VALUE ...]
                      print the resolved configuration
  experiments         list the experiments

  -h, --help          this text
  --version           the version
"""


class UserError(Exception):
    """A mistake that the user can mend; the message is one sentence that says how."""


def main(args: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        args: What follows ``fairanon``; None takes the command line.

    Returns:
        0, 1 after a failure, 2 for arguments that make no sense.

    Raises:
        KeyboardInterrupt: Somebody stopped it; `entry` makes the exit code 130 of it, or 143 of a SIGTERM.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if words else 2
    if words[0] == "--version":
        from fairanon import __version__

        print(f"fairanon {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb == "experiments":
        if not EXPERIMENTS.is_dir():
            print(no_experiment(""), file=sys.stderr)
            return 2
        print(_list_experiments())
        return 0
    if verb not in ("train", "rehearse", "fit", "evaluate", "prepare", "table", "report", "export", "config"):
        print(f"fairanon: there is no verb {verb!r}; `fairanon --help` lists them.", file=sys.stderr)
        return 2
    try:
        files: list[Path] = []
        if verb in ("train", "rehearse", "config"):
            files, rest = experiment_files(rest, verb)
        elif verb == "fit":
            files, rest = own_files(rest)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2

    from fairanon import runner

    return runner.run_verb(verb, files, rest)


class Stopped(KeyboardInterrupt):
    """Somebody or something asked the program to stop; the message says how far it came."""


def entry() -> None:
    """Console script; whoever stops it gets the exit codes of shells, 130 and 143."""
    code = 130

    def terminate(number: int, _: FrameType | None) -> None:
        nonlocal code
        code = 143
        raise Stopped

    signal.signal(signal.SIGTERM, terminate)
    try:
        code = main()
    except KeyboardInterrupt as stopped:
        print(f"\nfairanon: {stopped if str(stopped) else 'stopped; the same command goes on'}.", file=sys.stderr)
    sys.exit(code)


def no_experiment(name: str) -> str:
    """What is said of a name that is no experiment's."""
    if not EXPERIMENTS.is_dir():
        return f"there is no folder {EXPERIMENTS} here ({Path.cwd()}); start fairanon in the root of its checkout."
    if Path(name).is_file():
        return f"{name} is a file of your own, not the name of an experiment; `fairanon fit -c {name}` trains it."
    known = [path.stem for path in EXPERIMENTS.glob("[!_]*.yaml")]
    alike = " or ".join(difflib.get_close_matches(name, known, 2))
    return f"there is no experiment {name!r}{f' (did you mean {alike}?)' if alike else ''}; `fairanon experiments` lists them."


def _list_experiments() -> str:
    """Every experiment with the first comment line of its file."""
    lines = ["experiments (make train EXP=NAME):"]
    for path in sorted(EXPERIMENTS.glob("[!_]*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        lines.append(f"  {path.stem:<32} {first.lstrip('# ')}")
    return "\n".join(lines)


def lineage(path: Path) -> list[Path]:
    """A configuration file after those that it extends (its key ``extends``), the oldest first.

    Raises:
        UserError: One of them cannot be read, extends an experiment that does not exist, or itself.
    """
    files = [path]
    while (name := read_yaml(files[0]).get("extends")) is not None:
        parent = EXPERIMENTS / f"{name}.yaml"
        if not parent.exists() or parent in files:
            raise UserError(f"{files[0]}: extends names {name!r}, which is no other experiment.")
        files.insert(0, parent)
    return files


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a configuration file.

    Raises:
        UserError: It is missing, no text, no YAML or no mapping.
    """
    import yaml

    try:
        found = yaml.safe_load(read_text(path, "-c"))
    except (FileNotFoundError, TextError) as error:
        raise UserError(str(error)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
        raise UserError(f"{where} is no YAML ({getattr(error, 'problem', None) or 'unreadable'}).") from None
    if not isinstance(found or {}, dict):
        raise UserError(f"{path} is no configuration: it holds no keys.")
    return found or {}


def own_files(words: list[str]) -> tuple[list[Path], list[str]]:
    """Split ``-c FILE ... rest`` into what every experiment shares, the files, each after those that it extends, and the rest."""
    files, rest = [], []
    queue = iter(words)
    for word in queue:
        flag, equals, value = word.partition("=")
        if flag in ("-c", "--config"):
            files += lineage(Path(value if equals else next(queue, "")))
        else:
            rest.append(word)
    if not files or (rest and not rest[0].startswith("-")):
        raise UserError("`fairanon fit` needs a configuration file: `fairanon fit -c FILE [--KEY VALUE ...]`.")
    base = EXPERIMENTS / "_base.yaml"
    if not base.exists():
        raise UserError(no_experiment("_base"))
    return list(dict.fromkeys([base, *files])), rest


def experiment_files(words: list[str], verb: str) -> tuple[list[Path], list[str]]:
    """Split ``NAME [--overlay O] rest`` into configuration files and the rest."""
    name = words[0] if words and not words[0].startswith("-") else ""
    path = EXPERIMENTS / f"{name}.yaml"
    if not name:
        raise UserError(f"`fairanon {verb}` needs the name of an experiment; `fairanon experiments` lists them.")
    if name.startswith("_") or not path.exists():
        raise UserError(no_experiment(name))
    files, rest = [EXPERIMENTS / "_base.yaml", *lineage(path)], []
    queue = iter(words[1:])
    for word in queue:
        if word == "--overlay" or word.startswith("--overlay="):
            overlay = word.partition("=")[2] or next(queue, "")
            file = EXPERIMENTS / "overlays" / f"{overlay}.yaml"
            if not file.exists():
                known = ", ".join(sorted(p.stem for p in (EXPERIMENTS / "overlays").glob("*.yaml")))
                raise UserError(f"--overlay: there is no overlay {overlay!r}; choose one of {known}.")
            files.append(file)
        else:
            rest.append(word)
    return files, rest
