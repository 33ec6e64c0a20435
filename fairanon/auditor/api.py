"""An audit from beginning to end: images are drawn or read, judged once, counted, and written down."""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fairanon import __version__
from fairanon.anonymizer.judges import devices_of
from fairanon.anonymizer.judges import judge as build_judge
from fairanon.auditor import findings
from fairanon.auditor.answer import sentences
from fairanon.auditor.findings import Neutral, Question
from fairanon.auditor.label import write_labelling
from fairanon.auditor.models import Model, open_model, prompts_of
from fairanon.auditor.page import write_page
from fairanon.auditor.request import AuditRequest
from fairanon.auditor.sides import Errors, Targets, read_errors, read_labels, read_targets
from fairanon.batches import PromptRow
from fairanon.config.experiments import UserError
from fairanon.config.runs import runs_root, working_on
from fairanon.evaluation.engine import Engine, Samples
from fairanon.evaluation.folders import ImageFolder
from fairanon.evaluation.observed import Judged
from fairanon.evaluation.portrayal import Portrayal, Portrayed
from fairanon.files import atomic_write, content_key, write_json, write_text
from fairanon.metrics.functional.confusion import corrected_shares, prediction_powered
from fairanon.metrics.functional.estimates import Estimate, plain
from fairanon.protocols import AttributeClassifier

_log = logging.getLogger(__name__)
_PEOPLE = ("gender", "tone", "race", "age", "couple", "monk", "ita")
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
    models = [open_model(request.model, request, device)]
    if request.compare:
        models.append(open_model(request.compare, request, device, steers=False))
    _tell_apart(models)
    which = request.judge or ("tiny_attributes" if all(model.drawn for model in models) else "race_popalign")
    judge: AttributeClassifier = build_judge(which, "--judge")
    if not hasattr(judge, "classify"):
        raise UserError(f"--judge: {which} says nothing of people's appearance; take another one.")
    attributes = _attributes(request, judge)
    classes = {name: judge.classes[name] for name in attributes}
    for name in request.limits:
        if name not in classes:
            raise UserError(f"--fail-above: {name} is not counted; {', '.join(classes)} are.")
    rows = prompts_of(request, models, judge.classes, attributes)
    neutral = [row.prompt for table in rows for row in table if row.set in ("neutral", "heldout")]
    targets = read_targets(request.target, classes, neutral)
    errors = read_errors(request.confusion, which, judge.name, classes)
    for option, given in (("--labels", request.labels), ("--label", request.label)):
        if given is not None and not isinstance(models[0].sampler, ImageFolder):
            raise UserError(f"{option} needs a folder of images as MODEL: images that a model draws are not kept.")
    files = _files(models[0], rows[0])
    labels = read_labels(request.labels, classes, files)
    out = request.out or runs_root() / "audits" / _called(models)
    _check_place(out, models)
    _say_what_it_can_tell(rows[0], request, classes, errors)
    out.mkdir(parents=True, exist_ok=True)
    with working_on(out):
        seen = [_judged(model, table, judge, request, out) for model, table in zip(models, rows, strict=True)]
        result = _found(request, seen, judge, classes, targets, errors, labels)
        told = sentences(result)
        write_json(out / "audit.json", result)
        _write_shares(out / "shares.csv", result)
        _write_images(out / "images.csv", seen[0], classes, files)
        write_page(out, result, told, seen[0].samples, seen[0].rows)
        if request.label is not None and isinstance(models[0].sampler, ImageFolder):
            write_labelling(out, models[0].sampler, files, classes, request.label, request.seed)
        if request.card:
            from fairanon.auditor.card import as_card

            write_text(out / "card.md", as_card(result, told))
    over = [name for name, limit in request.limits.items() if not _within(result["attributes"][name], limit)]
    return AuditResult(out, result, told, over)


def _within(found: Mapping[str, Any], limit: float) -> bool:
    """Whether a distance keeps a limit; one that nobody could measure does not."""
    distance = found["numbers"]["distance"]
    return distance is not None and distance["value"] <= limit


def _tell_apart(models: Sequence[Model]) -> None:
    """Give two models of one name the names of the folders that they lie in, too."""
    if len(models) > 1 and models[0].name == models[1].name:
        for model in models:
            place = Path(model.place)
            model.name = f"{place.parent.name}/{place.name}" if model.place else model.name
        if models[0].name == models[1].name and models[0].place != models[1].place:
            for model in models:
                model.name = model.place


def _called(models: Sequence[Model]) -> str:
    """A folder's name for an audit: what is audited, and of a folder or run a digest of its path."""
    parts = [model.name + (f"-{content_key(model.place)[:6]}" if model.place else "") for model in models]
    return re.sub(r"[^\w.=-]+", "_", " beside ".join(parts))


def _check_place(out: Path, models: Sequence[Model]) -> None:
    """Refuse to write over somebody's own files, or among the images."""
    for model in models:
        if isinstance(model.sampler, ImageFolder) and out.resolve().is_relative_to(model.sampler.folder.resolve()):
            raise UserError(f"--out: {out} lies in {model.sampler.folder}; name a folder apart from the images.")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file; name a folder.")
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if there - {".lock"} and "judged" not in there:
        raise UserError(f"--out: {out} holds something else; name a new folder, or one of an audit.")


def _attributes(request: AuditRequest, judge: AttributeClassifier) -> tuple[str, ...]:
    asked = tuple(name.strip() for name in request.attributes.split(",") if name.strip())
    for name in asked:
        if name not in judge.classes:
            raise UserError(f"--attributes: {judge.name} does not judge {name!r}, only {', '.join(judge.classes)}.")
    found = asked or tuple(name for name in _PEOPLE if name in judge.classes) or tuple(judge.classes)
    for name in found:
        if len(judge.classes[name]) < 2:
            raise UserError(f"--judge: {judge.name} knows one class of {name}; there is nothing to count.")
    if not found:
        raise UserError(f"--judge: {judge.name} has no classes; take another one.")
    return tuple(dict.fromkeys(found))


def _say_what_it_can_tell(
    rows: Sequence[PromptRow], request: AuditRequest, classes: Mapping[str, Sequence[str]], errors: Errors
) -> None:
    """Below which distance so many images say nothing."""
    neutral = [row for row in rows if row.set in ("neutral", "heldout")]
    if not neutral:
        raise UserError(
            "--prompts: every prompt names a group, so that nothing is left to count; add some that name none."
        )
    images = sum(row.images or request.images for row in neutral) // len(neutral)
    if images < 2:
        _log.warning("with one image a prompt no distance can be told; take more (--images)")
        return
    least = {
        name: findings.tells_apart(len(neutral), images, len(values), errors.confusions.get(name))
        for name, values in classes.items()
    }
    told = ", ".join(f"{value:.2f} ({name})" for name, value in least.items())
    _log.info("%d prompts of %d images: distances below %s cannot be told from even shares", len(neutral), images, told)


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
    targets: Targets, errors: Errors, labels: Mapping[str, Mapping[int, int]],
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
        "seed": request.seed if seen[0].model.told else None, "prompts": len(first.prompts), "images": seen[0].samples.count,
        "fairanon": __version__,
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
    rows, theirs = torch.tensor(list(known)), torch.tensor(list(known.values()))
    found = prediction_powered(said[seen], rows, theirs, len(asked.classes))
    total = torch.bincount(said[seen], minlength=len(asked.classes)).double()
    corrected = corrected_shares(total, asked.confusion)
    wider = float(torch.special.ndtri(torch.tensor(1 - 0.025 / len(asked.classes)))) / 1.96
    apart = [
        name
        for name, one, other in zip(asked.classes, found, corrected, strict=True)
        if abs(other.value - one.value) > wider * math.hypot(_half(one), _half(other))
    ]
    return {"images": len(known), "shares": dict(zip(asked.classes, found, strict=True)), "apart": apart}


def _half(found: Estimate) -> float:
    """Half of an interval's width, the wider one."""
    return max((found.high or found.value) - found.value, found.value - (found.low or 0.0))


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
    """A row for each prompt, attribute and class."""
    columns = (
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
    )
    nothing = {"value": None, "low": None, "high": None}
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        for name, found in result["attributes"].items():
            for row in found["prompts"]:
                for k, one in enumerate(found["classes"]):
                    share = row["shares"][k] if row["shares"] else nothing
                    cells = {
                        "share_as_judged": row["counts"][k] / row["judged"] if row["judged"] else None, "share": share["value"],
                        "low": share["low"], "high": share["high"], "target": row["target"][k],
                    }  # fmt: skip
                    told = {key: None if cell is None else round(cell, 6) for key, cell in cells.items()}
                    told |= {"prompt": row["prompt"], "attribute": name, "class": one, "count": row["counts"][k]}
                    table.writerow({**told, "judged": row["judged"], "named": int(row["named"])})


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
