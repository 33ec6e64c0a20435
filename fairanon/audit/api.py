"""An audit from beginning to end: images are drawn or read, judged once, counted, and written down."""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fairanon import __version__
from fairanon.anonymizer.judges import devices_of
from fairanon.anonymizer.judges import judge as build_judge
from fairanon.audit import findings
from fairanon.audit.answer import sentences
from fairanon.audit.findings import Neutral, Question
from fairanon.audit.models import Model, open_model, prompts_of
from fairanon.audit.page import write_page
from fairanon.audit.request import AuditRequest
from fairanon.audit.sides import read_errors, read_labels, read_targets
from fairanon.batches import PromptRow
from fairanon.config.experiments import UserError
from fairanon.config.runs import code_version, runs_root, working_on
from fairanon.evaluation.engine import Engine, Samples
from fairanon.evaluation.folders import ImageFolder
from fairanon.evaluation.observed import Judged
from fairanon.evaluation.portrayal import Portrayal, Portrayed
from fairanon.files import atomic_write, write_json, write_text
from fairanon.metrics.functional.confusion import corrected_shares, prediction_powered
from fairanon.metrics.functional.estimates import Estimate
from fairanon.protocols import AttributeClassifier

_log = logging.getLogger(__name__)
_PEOPLE = ("gender", "tone", "race", "age", "couple")
"""What is counted where nobody says what, as far as the judge judges it."""
_THUMBNAIL = 128


@dataclass(frozen=True)
class AuditResult:
    """What an audit found.

    Attributes:
        out: Folder with audit.json, shares.csv, images.csv and report.html.
        result: What audit.json says.
        sentences: What it comes to, for people.
        over: Attributes whose distance is above a limit of ``fail_above``.
    """

    out: Path
    result: dict[str, Any]
    sentences: list[str]
    over: list[str]


@dataclass(frozen=True)
class _Seen:
    """A model and what was judged of it."""

    model: Model
    rows: list[PromptRow]
    samples: Samples

    @property
    def judged(self) -> Judged[Portrayed]:
        (found,) = self.samples.judged
        assert found is not None
        return found


def audit(request: AuditRequest) -> AuditResult:
    """See `fairanon.audit`; errors are not put into sentences here."""
    device = devices_of(request.device, on_the_cpu=False)[0]
    names = [request.model, *([request.compare] if request.compare else [])]
    models = [open_model(name, request, device) for name in names]
    which = request.judge or ("tiny_attributes" if all(model.drawn for model in models) else "race_popalign")
    judge: AttributeClassifier = build_judge(which, "--judge")
    if not hasattr(judge, "classify"):
        raise UserError(f"--judge: {which} says nothing of people's appearance; take another one.")
    attributes = _attributes(request, judge)
    classes = {name: judge.classes[name] for name in attributes}
    targets = read_targets(request.target, classes)
    errors = read_errors(request.confusion, which, judge.name, classes)
    for name in request.limits:
        if name not in classes:
            raise UserError(f"--fail-above: {name} is not counted; {', '.join(classes)} are.")
    rows = [prompts_of(request, model, attributes) for model in models]
    if request.labels is not None and not isinstance(models[0].sampler, ImageFolder):
        raise UserError("--labels needs a folder of images as MODEL: images that a model draws are not kept.")
    files = _files(models[0], rows[0])
    labels = read_labels(request.labels, classes, files)
    out = request.out or runs_root() / "audits" / re.sub(r"[^\w.=-]+", "_", " beside ".join(m.name for m in models))
    _say_what_it_can_tell(rows[0], request, classes)
    out.mkdir(parents=True, exist_ok=True)
    with working_on(out):
        seen = [_judged(model, table, judge, request, out) for model, table in zip(models, rows, strict=True)]
        result = _found(request, seen, judge, classes, targets, errors, labels)
        told = sentences(result)
        write_json(out / "audit.json", result)
        _write_shares(out / "shares.csv", result)
        _write_images(out / "images.csv", seen[0], classes, files)
        write_page(out, result, told, seen[0].samples, seen[0].rows)
        if request.card:
            from fairanon.audit.card import as_card

            write_text(out / "card.md", as_card(result, told))
    over = [
        name
        for name, limit in request.limits.items()
        if (found := result["attributes"][name]["numbers"]["distance"]) is not None and found["value"] > limit
    ]
    return AuditResult(out, result, told, over)


def _attributes(request: AuditRequest, judge: AttributeClassifier) -> tuple[str, ...]:
    asked = tuple(name.strip() for name in request.attributes.split(",") if name.strip())
    for name in asked:
        if name not in judge.classes:
            raise UserError(f"--attributes: {judge.name} does not judge {name!r}, only {', '.join(judge.classes)}.")
    found = asked or tuple(name for name in _PEOPLE if name in judge.classes) or tuple(judge.classes)
    if not found:
        raise UserError(f"--judge: {judge.name} has no classes; take another one.")
    return found


def _say_what_it_can_tell(
    rows: Sequence[PromptRow], request: AuditRequest, classes: Mapping[str, Sequence[str]]
) -> None:
    """How far from even a model must be before so many images can tell."""
    neutral = [row for row in rows if row.set in ("neutral", "heldout")]
    if not neutral:
        raise UserError(
            "--prompts: every prompt names a group, so that nothing is left to count; add prompts that name none."
        )
    images = sum(row.images or request.images for row in neutral) // len(neutral)
    told = ", ".join(
        f"{name} {findings.tells_apart(len(neutral), max(1, images), len(values)):.2f}"
        for name, values in classes.items()
    )
    _log.info("%d prompts of %d images can tell these distances from even shares: %s", len(neutral), images, told)


def _judged(model: Model, rows: list[PromptRow], judge: AttributeClassifier, request: AuditRequest, out: Path) -> _Seen:
    """Draw or read, and judge; what was judged before is read from its files."""
    sampler, size, side = model.sampler, request.batch_size, None
    if isinstance(sampler, ImageFolder) and len(sampler.sizes()) > 1:
        size, side = 1, _THUMBNAIL
    engine = Engine(
        rows, [Portrayal(judge)], request.images, request.specific_images, size, request.seed, thumbnail_side=side
    )
    if not engine.plan(engine.sets()):
        raise UserError("--prompts: there is no image to judge.")
    return _Seen(model, rows, engine.judge(sampler, out / "judged", engine.sets(), f"images of {model.name}"))


def _found(
    request: AuditRequest, seen: Sequence[_Seen], judge: AttributeClassifier, classes: Mapping[str, Sequence[str]],
    targets: Any, errors: Any, labels: Mapping[str, Mapping[int, int]],
) -> dict[str, Any]:  # fmt: skip
    """All of audit.json; nothing in it depends on when or where it was made."""
    sides = [Neutral(one.judged) for one in seen]

    def question(name: str, neutral: Neutral) -> Question:
        ideal, even = targets.of(name, classes[name], neutral.prompts)
        return Question(name, tuple(classes[name]), ideal, even, errors.confusions.get(name))

    first = sides[0]
    asked = {name: question(name, first) for name in classes}
    attributes = {}
    for name, one in asked.items():
        attributes[name] = findings.of_attribute(first, one) | {
            "classes": list(one.classes), "even": one.even, "confusion": errors.told[name], "corrected": one.confusion is not None,
            "said": None if one.confusion is None else one.confusion.said.tolist(),
            "variety": findings.variety(first, name), "labels": _by_people(first, one, labels.get(name, {})),
        }  # fmt: skip
    names = list(classes)
    others = [name for name in judge.classes if name not in classes]
    result: dict[str, Any] = {
        "model": seen[0].model.name, "compared_with": None, "how": seen[0].model.told, "judge": judge.name,
        "seed": request.seed, "prompts": len(first.prompts), "images": seen[0].samples.count,
        "versions": {"fairanon": __version__, "code": code_version()},
        "attributes": attributes,
        "together": {
            f"{a} and {b}": findings.together(first, asked[a], asked[b])
            for k, a in enumerate(names) for b in names[k + 1 :]
        },
        "obeyed": findings.obeyed(seen[0].judged, judge.classes, names),
        "shown": findings.aligned(seen[0].judged, judge.classes, others),
    }  # fmt: skip
    if len(seen) > 1:
        result["compared_with"] = seen[1].model.name
        result["comparison"] = _compared(seen, sides, asked, {name: question(name, sides[1]) for name in classes})
        result["other"] = {
            "how": seen[1].model.told,
            "obeyed": findings.obeyed(seen[1].judged, judge.classes, names),
            "shown": findings.aligned(seen[1].judged, judge.classes, others),
        }
    return plain(result)


def _by_people(neutral: Neutral, asked: Question, labels: Mapping[int, int]) -> dict[str, Any] | None:
    """Shares by people's labels, and whether what is known of the judge's errors holds for these images."""
    seen, said = neutral.said(asked.attribute)
    place = {image: k for k, image in enumerate(seen.nonzero().flatten().tolist())}
    known = {place[image]: label for image, label in labels.items() if image in place}
    if len(known) < 2:
        return None
    found = prediction_powered(said[seen], torch.tensor(list(known)), torch.tensor(list(known.values())))
    found += [Estimate(0.0, 0.0, 0.0, len(known))] * (len(asked.classes) - len(found))
    total = torch.bincount(said[seen], minlength=len(asked.classes)).double()
    theirs = corrected_shares(total, asked.confusion)
    wider = float(torch.special.ndtri(torch.tensor(1 - 0.025 / len(asked.classes)))) / 1.96
    apart = [
        name
        for name, one, other in zip(asked.classes, found, theirs, strict=True)
        if one.high is not None
        and abs(other.value - one.value) > wider * max(one.high - one.value, one.value - (one.low or 0.0))
    ]
    return {"images": len(known), "shares": dict(zip(asked.classes, found, strict=True)), "apart": apart}


def _compared(
    seen: Sequence[_Seen], sides: Sequence[Neutral], asked: Mapping[str, Question], other: Mapping[str, Question]
) -> dict[str, Any]:
    """Which of two models is nearer to the target, attribute by attribute; `compare`'s OTHER is the first one."""
    found = {name: findings.compared(sides[1], sides[0], other[name], one) for name, one in asked.items()}
    certain = findings.holm({name: row["chance"] for name, row in found.items() if row is not None})
    for name, row in found.items():
        if row is not None:
            nearer = row["change"].value < 0
            row["verdict"] = ("better" if nearer else "worse") if certain[name] else "cannot be told"
    return found


def plain(value: Any) -> Any:
    """Estimates as dictionaries, and what is not a number as None."""
    if isinstance(value, Estimate):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- tables ----------------------------------------------------------------------------------------------


def _files(model: Model, rows: Sequence[PromptRow]) -> list[str]:
    """The names of a folder's images that name no group, in the order in which they are judged; none of a model's."""
    if not isinstance(model.sampler, ImageFolder):
        return []
    folder, files = model.sampler.folder, model.sampler.files
    return [
        path.relative_to(folder).as_posix()
        for row in rows
        if row.set in ("neutral", "heldout")
        for path in files[row.prompt]
    ]


def _write_shares(path: Path, result: Mapping[str, Any]) -> None:
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            [
                "prompt",
                "attribute",
                "class",
                "count",
                "judged",
                "share_as_judged",
                "share",
                "low",
                "high",
                "target",
                "named",
            ]
        )
        for name, found in result["attributes"].items():
            for row in found["prompts"]:
                for k, one in enumerate(found["classes"]):
                    share = row["shares"][k] if row["shares"] else {"value": None, "low": None, "high": None}
                    said = round(row["counts"][k] / row["judged"], 6) if row["judged"] else None
                    numbers = [
                        None if (end := share[key]) is None else round(end, 6) for key in ("value", "low", "high")
                    ]
                    table.writerow(
                        [
                            row["prompt"],
                            name,
                            one,
                            row["counts"][k],
                            row["judged"],
                            said,
                            *numbers,
                            round(row["target"][k], 6),
                            int(row["named"]),
                        ]
                    )


def _write_images(path: Path, seen: _Seen, classes: Mapping[str, Sequence[str]], files: Sequence[str]) -> None:
    """What was said of each image of prompts that name no group."""
    judged = Neutral(seen.judged).judged
    values, numbers = judged.values, dict[int, int]()
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["image", "prompt", "missing", *(f"{name}{end}" for name in classes for end in ("", "_confidence"))]
        )
        for k, row in enumerate(judged.prompt.tolist()):
            number = numbers[row] = numbers.get(row, -1) + 1
            cells: list[Any] = []
            for name, words in classes.items():
                found = values.probabilities[name][k]
                lost = bool(found.isnan().any())
                cells += ["", ""] if lost else [words[int(found.argmax())], round(float(found.max()), 4)]
            why = "blank" if bool(values.blank[k]) else ("no face" if not any(cells) else "")
            table.writerow([files[k] if files else number, judged.rows[row].prompt, why, *cells])
