"""The only door in for settings: ``fairanon VERB ...``. Imports nothing heavy before a verb needs it."""

from __future__ import annotations

import difflib
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

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
        print(_list_experiments())
        return 0
    if verb not in ("train", "rehearse", "fit", "evaluate", "prepare", "table", "report", "export", "config"):
        print(f"fairanon: there is no verb {verb!r}; `fairanon --help` lists them.", file=sys.stderr)
        return 2
    try:
        if verb in ("train", "rehearse", "config"):
            files, rest = experiment_files(rest, verb)
        else:
            files = []
            rest = _with_parents(rest) if verb == "fit" else rest
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
    known = [path.stem for path in EXPERIMENTS.glob("[!_]*.yaml")]
    alike = " or ".join(difflib.get_close_matches(name, known, 2))
    return f"there is no experiment {name!r}{f' (did you mean {alike}?)' if alike else ''}; `fairanon experiments` lists them."


def _list_experiments() -> str:
    """Every experiment with the first comment line of its file."""
    lines = ["experiments (make train EXP=NAME):"]
    for path in sorted(EXPERIMENTS.glob("[!_]*.yaml")):
        first = path.read_text().partition("\n")[0]
        lines.append(f"  {path.stem:<32} {first.lstrip('# ')}")
    return "\n".join(lines)


def lineage(path: Path) -> list[Path]:
    """A configuration file after those that it extends (its line ``extends: NAME``), the oldest first.

    Raises:
        UserError: It extends an experiment that does not exist, or itself.
    """
    files = [path]
    while found := re.search(r"^extends: *(\S+)", files[0].read_text(), re.MULTILINE):
        parent = EXPERIMENTS / f"{found[1]}.yaml"
        if not parent.exists() or parent in files:
            raise UserError(f"{files[0]}: extends names {found[1]!r}, which is no other experiment.")
        files.insert(0, parent)
    return files


def _with_parents(words: list[str]) -> list[str]:
    """Each ``-c FILE`` preceded by the files that it extends."""
    result: list[str] = []
    for flag, word in zip(["", *words], words, strict=False):
        if flag in ("-c", "--config") and Path(word).exists():
            result.pop()
            result += [part for file in lineage(Path(word)) for part in ("-c", str(file))]
        else:
            result.append(word)
    return result


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
