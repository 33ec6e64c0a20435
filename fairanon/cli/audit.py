"""The verb for text-to-image models: audit."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from fairanon.auditor.audit_request import AuditRequest, BenchmarkRequest, WorldRequest
from fairanon.cli.command import Command
from fairanon.config.experiments import UserError, locate, names
from fairanon.config.options import add_options, request_of
from fairanon.embedded import BACKBONES

ABOVE = 3
"""Exit code: a distance is above its limit."""


def _audit(arguments: argparse.Namespace) -> int:
    """``fairanon audit MODEL``: 3 if a distance is above what ``--fail-above`` allows."""
    request = request_of(AuditRequest, arguments)
    from fairanon.auditor.auditing import audit

    result = audit(request)
    for sentence in result.sentences:
        print(sentence)
    if request.part is not None:
        return 0
    beside = ["audit.json", "shares.csv", "images.csv", *(["card.md"] if request.card else [])]
    print(f"{result.out / 'report.html'}, {', '.join(beside[:-1])} and {beside[-1]} beside it")
    if request.label is not None:
        print(f"to be answered in a browser: {result.out / 'label' / 'index.html'}; then --labels labels.csv")
    for name in result.over:
        distance = result.result["attributes"][name]["numbers"]["distance"]
        verdict = (
            "could not be measured"
            if distance is None
            else f"is {distance['value']:.3f}, above {request.limits[name]:g}"
        )
        print(f"--fail-above: {name} {verdict}", file=sys.stderr)
    return ABOVE if result.over else 0


def _look(arguments: argparse.Namespace) -> None:
    """Refuse what is not there before anything heavy is imported."""
    request = request_of(AuditRequest, arguments)
    for option, path in (("--target", request.target), ("--labels", request.labels)):
        if path is not None and not locate(path).exists():
            raise UserError(f"{option}: {path} is missing; name a CSV that is there.")
    asked = [("--judge", request.judge), *(("--scorers", name.strip()) for name in request.scorers.split(","))]
    for option, name in asked:
        if name and not Path(name).exists() and name not in names("judges"):
            known = ", ".join(names("judges"))
            raise UserError(f"{option}: there is no judge {name!r}; there are {known}, or a YAML file of your own.")
    if request.confusion not in ("auto", "none") and not Path(request.confusion).exists():
        raise UserError(f"--confusion: {request.confusion} is missing; name a JSON file that is there, or none.")
    for word, model in (("MODEL", request.model), ("--compare", request.compare)):
        if model and _must_be_there(model) and not Path(model).exists():
            raise UserError(
                f"{word}: {model} is missing; name tiny, a run's or pipeline's folder, a hub id, or a folder of images."
            )


def _world(arguments: argparse.Namespace) -> None:
    request = request_of(WorldRequest, arguments)
    from fairanon.assets.fair_world import write_worlds

    write_worlds(**vars(request))
    out = shlex.quote(str(request.out))
    judged = '--judge "$w/judge.yaml" --confusion "$w/confusion.json"'
    print(f'for w in {out}/[0-9]*; do fairanon audit "$w/images" {judged} --out "results/$(basename "$w")"; done')
    print(f"fairanon benchmark audit {out} results")


def _benchmark(arguments: argparse.Namespace) -> None:
    request = request_of(BenchmarkRequest, arguments)
    from fairanon.auditor.benchmark import benchmark, said_of

    print(said_of(benchmark(request)))


def _must_be_there(name: str) -> bool:
    """Whether it can be a path alone: a hub id has one slash, and the latest or shipped run may come along."""
    is_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    return is_path and name not in BACKBONES and Path(name).name not in ("latest", "shipped")


_EXAMPLES = """examples:
  fairanon audit tiny                                       the embedded model, in minutes
  fairanon audit runs/popalign_tiny/latest --compare tiny   is the trained model nearer to even shares?
  fairanon audit stabilityai/stable-diffusion-xl-base-1.0   a hub id
  fairanon audit images --judge race_popalign               images of any program: images/PROMPT/*.png, or prompts.csv
  fairanon audit tiny --fail-above gender=0.3               for CI: exit code 3 where the distance is larger"""
COMMANDS = [
    Command(
        "audit", "count how a text-to-image model, or a folder of its images, portrays people",
        lambda parser: add_options(parser, AuditRequest), _audit, epilog=_EXAMPLES, look=_look,
    ),
    Command(
        "world", "write folders of drawn people whose truth is known, for audits to be tried on",
        lambda parser: add_options(parser, WorldRequest), _world,
    ),
    Command(
        "benchmark", "say how far off somebody's audits of such worlds are", lambda parser: add_options(parser, BenchmarkRequest), _benchmark,
    ),
]  # fmt: skip
