"""The verbs for photographs: anonymize, calibrate, evaluate."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from fairanon.anonymizer.request import AnonymizeRequest, CalibrateRequest, EvaluateRequest
from fairanon.cli.command import Command
from fairanon.config.experiments import UserError
from fairanon.config.options import add_options, request_of
from fairanon.places import exists, reach

if TYPE_CHECKING:
    from fairanon.anonymizer.anonymizing import AnonymizeResult

NEEDS_EYES = 3
"""Exit code: something lies in review, or was left out."""


def _anonymize(arguments: argparse.Namespace) -> int:
    """``fairanon anonymize IN OUT``: 0 if everything may be published, 3 if somebody has to look at something."""
    request = request_of(AnonymizeRequest, arguments)
    from fairanon.anonymizer.anonymizing import anonymize

    result = anonymize(request)
    if request.shows:
        print(_shown(request, result))
        return 0
    if request.part is not None:
        print(_said_of_part(request.part, result.files))
        return 0
    for line in _said(result):
        print(line)
    return 0 if result.complete else NEEDS_EYES


def _said_of_part(part: str, files: dict[str, int]) -> str:
    from fairanon.anonymizer.manifest import counted

    if "published already" in files:
        return "everything is published already"
    total, good = sum(files.values()), files.get("finished", 0)
    if not total:
        return f"part {part}: no file falls to it"
    return (
        f"part {part}: {counted(total, 'file')} done, {total - good} of them to be looked at; nothing is published before the same command "
        "with --finish in place of --part"
    )


def _shown(request: AnonymizeRequest, result: AnonymizeResult) -> str:
    from fairanon.anonymizer.manifest import counted

    if result.shown is None:
        return "there is no picture with a face"
    if request.dry_run:
        faces, pictures = result.verdicts["found"], result.files["shown"]
        summary = f"{counted(faces, 'face')} would be hidden in {counted(pictures, 'picture')}"
        return f"{summary}: {result.shown} (it shows the originals; a real run removes it)"
    return f"before and after, side by side: {result.shown} (it shows originals; a real run removes it)"


def _said(result: AnonymizeResult) -> list[str]:
    """The last lines."""
    from fairanon.anonymizer.collection_page import NOT_TESTABLE, OBSCURED, told_of_faces, told_of_kept
    from fairanon.anonymizer.manifest import PAGE, REVIEWED, counted, printable

    counts, out = result.files, result.out
    rest = [
        f"{counts[kind]} {where}"
        for kind, where in (
            ("review", f"to be looked at in {out / 'review'}"), ("unreadable", "could not be read or handled"),
            ("left", "passed over"),
            ("no-face", f"without a face in {out / 'no-face'}"), ("skipped", "without a face skipped"),
        )
        if counts.get(kind)
    ]  # fmt: skip
    if result.foreign:
        rest.append(
            f"{counted(len(result.foreign), 'file')} there not written by fairanon ({printable(result.foreign[0])}): move away "
            "what is not for publishing"
        )
    why = f" ({out / REVIEWED} says why)" if result.tally.waiting else ""
    lines = [
        f"{counts.get('finished', 0)} of {sum(counts.values())} files may be published"
        + (f": {result.published}" if counts.get("finished") else "") + "".join(f"; {part}" for part in rest) + why
    ]  # fmt: skip
    tally = result.tally
    if tally.hidden:
        lines.append(told_of_faces(tally, result.judges))
    if tally.kept or tally.kept_waiting:
        lines.append(told_of_kept(tally))
    if tally.verdicts["obscured"]:
        lines.append(OBSCURED)
    if tally.hidden and "not testable" in tally.collections:
        lines.append(NOT_TESTABLE)
    if tally.files:
        lines.append(f"to pass on, with what was looked at and how: {out / PAGE}")
    return lines


def _calibrate(arguments: argparse.Namespace) -> None:
    """``fairanon calibrate FOLDER``: a table of thresholds for ``--thresholds``."""
    request = request_of(CalibrateRequest, arguments)
    from fairanon.anonymizer.calibrate import calibrate

    result = calibrate(request)
    for name, row in result.table.items():
        by_group = "".join(f"; {group} {threshold['value']}" for group, threshold in row["groups"].items())
        rate = f"{row['false_match_rate']:g} [{row['low']:g}, {row['high']:g}]"
        print(
            f"{name}: {row['value']} at a false-match rate of {rate} ({row['people']} people, {row['pairs']} pairs{by_group})"
        )
    print(f"{result.out}; `fairanon anonymize ... --thresholds {result.out}` goes by it")


def _evaluate(arguments: argparse.Namespace) -> int:
    """``fairanon evaluate ORIGINALS ANONYMIZED``: who is found, who is protected less, what is kept; 3 if something is missing."""
    request = request_of(EvaluateRequest, arguments)
    from fairanon.anonymizer.compare import evaluate
    from fairanon.anonymizer.manifest import counted
    from fairanon.report.evaluated import answered, as_text

    result = evaluate(request)
    if request.part is not None:
        if not result.pairs:
            print(
                f"part {request.part}: no pair falls to it; take at most one part for each 64 pairs",
                file=sys.stderr if arguments.json else sys.stdout,
            )
            return 0
        print(
            f"part {request.part}: {counted(result.pairs, 'pair')} looked at; nothing is counted before the same command with "
            "--finish in place of --part",
            file=sys.stderr if arguments.json else sys.stdout,
        )
        return 0
    to, lacking = sys.stderr if arguments.json else sys.stdout, result.left_out
    if lacking:
        print(f"{counted(len(lacking), 'file')} left out: the numbers say nothing about them", file=to)
        for omission in lacking[:5]:
            print(f"  {omission}", file=to)
        if len(lacking) > 5:
            print(f"  and {len(lacking) - 5} more: left_out in metrics.json", file=to)
    if not arguments.json:
        print(answered(result.metrics))
    for sentence in result.doubts:
        print(sentence, file=to)
    if arguments.json:
        print(json.dumps(result.metrics, indent=2))
    else:
        print(f"\n{as_text(result.metrics)}")
        also = "metrics.json, faces.csv," if (result.out / "faces.csv").exists() else "metrics.json,"
        print(f"\n{result.out / 'report.html'}, {also} table.csv and table.tex beside it")
    return 0 if result.complete else NEEDS_EYES


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, EvaluateRequest)
    parser.add_argument("--json", action="store_true", help="print metrics.json instead of the tables")


def _look_for_pictures(arguments: argparse.Namespace) -> None:
    for path in request_of(AnonymizeRequest, arguments).inputs:
        reach(path, "IN")
        if not exists(path):
            raise UserError(f"IN: {path} is missing; name files, a folder, a zip, a CSV or a .jsonl.")


def _look_for_both(arguments: argparse.Namespace) -> None:
    request = request_of(EvaluateRequest, arguments)
    for name, path in (("ORIGINALS", request.originals), ("ANONYMIZED", request.anonymized)):
        reach(path, name)
        if not exists(path):
            raise UserError(f"{name}: {path} is missing; name a folder of pictures, or stored embeddings.")


def _look_for_folder(arguments: argparse.Namespace) -> None:
    folder = request_of(CalibrateRequest, arguments).folder
    reach(folder, "FOLDER")
    if not exists(folder):
        raise UserError(f"FOLDER: {folder} is missing; name a folder of photographs.")


_A_JUDGE = "J is a judge: a file's name in experiments/judges, or a YAML file of your own."
_EXAMPLES = f"""examples:
  fairanon anonymize photos result                              solid masks; result/published may be published
  fairanon anonymize photos result --preview 6                  first see six pictures before and after
  fairanon anonymize photos result --method pixelate            softer, and called obscured, not anonymized
  fairanon anonymize photos.zip result --colour 000000 --shape ellipse
  fairanon anonymize photos result --replace-with smiley.png    an image of yours in place of each face
  fairanon anonymize photos result --keep-person me             everybody but those who are in the folder `me`
  fairanon anonymize boxes.csv result                           boxes of your own, beside what is found
  fairanon anonymize faces.jsonl result                         lines {{"file": ..., "boxes": [...], "keep": [faces that may stay]}}

{_A_JUDGE}
Exit code 3: somebody has to look at something, OUT/review.csv says at what."""
COMMANDS = [
    Command(
        "anonymize", "hide the faces of photographs, test each with a recognizer, and say which may be published",
        lambda parser: add_options(parser, AnonymizeRequest), _anonymize, epilog=_EXAMPLES,
        look=_look_for_pictures,
    ),
    Command(
        "evaluate", "compare originals with what anybody's anonymizer made of them", _evaluate_arguments, _evaluate,
        epilog=f"{_A_JUDGE} Exit code 3: files were left out.", look=_look_for_both,
    ),
    Command(
        "calibrate", "find the distance above which a recognizer takes two faces for two people",
        lambda parser: add_options(parser, CalibrateRequest), _calibrate, epilog=_A_JUDGE, look=_look_for_folder,
    ),
]  # fmt: skip
