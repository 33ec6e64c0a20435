"""An audit from beginning to end: images are drawn or read, judged once, counted, and written down."""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairanon import __version__
from fairanon.auditor import findings
from fairanon.auditor.audit_page import SHOWN_PROMPTS, write_page
from fairanon.auditor.audit_request import AuditRequest
from fairanon.auditor.drawing import Opened, draw_all, open_all, shares
from fairanon.auditor.findings import Neutral, Question
from fairanon.auditor.kinds import apart, kinds, of_kind
from fairanon.auditor.label import write_labelling
from fairanon.auditor.models import Model
from fairanon.auditor.sentences import sentences
from fairanon.auditor.sides import Targets, read_labels, read_targets
from fairanon.auditor.tally import NEUTRAL, Tally
from fairanon.batches import PromptRow
from fairanon.config.experiments import UserError
from fairanon.config.runs import runs_root, working_on
from fairanon.engines import Start, devices_of, in_shares
from fairanon.evaluation.confusions import Errors, read_errors
from fairanon.evaluation.engine import Drawn, Engine, Ranks, Samples
from fairanon.evaluation.image_folder import ImageFolder
from fairanon.evaluation.observed import Judged
from fairanon.evaluation.portrayal import Portrayal, Portrayed
from fairanon.files import atomic_write, content_key, write_json, write_text
from fairanon.metrics.functional.confusion import corrected_shares, prediction_powered
from fairanon.metrics.functional.estimates import Estimate, plain
from fairanon.mirror import in_store, kept
from fairanon.progress import progress_bar
from fairanon.protocols import AttributeClassifier

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuditResult:
    """What an audit found.

    Attributes:
        out: Folder with audit.json, shares.csv, images.csv and report.html.
        result: What audit.json says; {} after a part.
        sentences: What it comes to, for people.
        over: Attributes whose distance is above a limit of ``fail_above``.
    """

    out: Path
    result: dict[str, Any]
    sentences: list[str]
    over: list[str]


@dataclass(frozen=True)
class _Seen:
    """A model, what was judged of it, and its first images."""

    model: Model
    rows: list[PromptRow]
    tally: Tally
    shown: Samples


def audit(request: AuditRequest) -> AuditResult:
    """See `fairanon.audit`; errors are not put into sentences here."""
    in_store(Path())  # a store that is none is said before anything is loaded
    devices = devices_of(request.device)
    alone = request.engine == "here" and len(devices) == 1
    opened = open_all(request, devices[0])
    if not alone:
        opened.put_aside()  # others draw, one of them on the same device
    models, judge, rows = opened.models, opened.judge, opened.rows
    classes = {name: judge.classes[name] for name in opened.attributes}
    for name in request.limits:
        if name not in classes:
            raise UserError(f"--fail-above: {name} is not counted; {', '.join(classes)} are.")
    neutral = [row.prompt for table in rows for row in table if row.set in NEUTRAL]
    targets = read_targets(request.target, classes, neutral)
    errors = read_errors(request.confusion, judge.name, classes)
    for option, argument in (("--labels", request.labels), ("--label", request.label)):
        if argument is not None and not isinstance(models[0].sampler, ImageFolder):
            raise UserError(f"{option} needs a folder of images as MODEL: images that a model draws are not kept.")
    files = _files(models[0], rows[0])
    labels = read_labels(request.labels, classes, files)
    out = request.out or runs_root() / "audits" / _called(models)
    _check_place(out, models)
    _say_what_it_can_tell(rows[0], request, classes, errors)
    begun = out.exists()
    if alone and not begun and request.share is None:
        _say_how_long(opened, request)
    out.mkdir(parents=True, exist_ok=True)
    if request.share is not None:
        with kept(out):
            return AuditResult(out, {}, [_part(opened, request, out, devices if not alone else [])], [])
    with kept(out), working_on(out):
        if request.finish and not begun and not (out / "judged").exists():
            raise UserError(f"--finish: nothing was begun in {out}; begin with --part, or leave --finish out.")
        if not alone:
            in_shares(Start(shares, (request, out)), request.engine, devices, request.device, None, "audited")
        labelled = {name: list(numbers) for name, numbers in labels.items()}
        drawn = draw_all(opened, request, out, Ranks())
        with _images(out / "images.csv", rows[0], classes, files) as tell:
            seen = [
                _counted(model, *pair, judge, list(classes), labelled, tell if model is models[0] else None)
                for model, pair in zip(models, drawn, strict=True)
            ]
        result = _found(request, seen, judge, classes, targets, errors, labels)
        conclusions = sentences(result)
        write_json(out / "audit.json", result)
        _write_shares(out / "shares.csv", result, seen[0].rows)
        write_page(out, result, conclusions, seen[0].shown, seen[0].rows)
        if request.label is not None and isinstance(models[0].sampler, ImageFolder):
            write_labelling(out, models[0].sampler, files, classes, request.label, request.seed)
        if request.card:
            from fairanon.auditor.card import as_card

            write_text(out / "card.md", as_card(result, conclusions))
    over = [name for name, limit in request.limits.items() if not _within(result["attributes"][name], limit)]
    return AuditResult(out, result, conclusions, over)


def _part(opened: Opened, request: AuditRequest, out: Path, devices: Sequence[str]) -> str:
    """Draw and judge one part, on several devices if there are some; what is said of it."""
    assert request.share is not None
    part, parts = request.share
    if devices:
        in_shares(Start(shares, (request, out)), request.engine, devices, request.device, request.share, "audited")
    drawn = draw_all(opened, request, out, Ranks(part - 1, parts))
    batches = [len(range(part - 1, entry.chunks, parts)) for _, entry in drawn]
    if not sum(batches):
        most = max(entry.chunks for _, entry in drawn)
        return f"part {request.part}: no batch falls to it; take at most {most} parts"
    return (
        f"part {request.part}: {sum(batches)} batch{'' if sum(batches) == 1 else 'es'} drawn and judged; nothing is counted before the same "
        "command with --finish in place of --part"
    )


def _within(attribute: Mapping[str, Any], limit: float) -> bool:
    """Whether a distance keeps a limit; one that nobody could measure does not."""
    distance = attribute["numbers"]["distance"]
    return distance is not None and distance["value"] <= limit


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


def _say_what_it_can_tell(
    rows: Sequence[PromptRow], request: AuditRequest, classes: Mapping[str, Sequence[str]], errors: Errors
) -> None:
    """Below which distance so many images say nothing."""
    neutral = [row for row in rows if row.set in NEUTRAL]
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
    distances = ", ".join(f"{value:.2f} ({name})" for name, value in least.items())
    _log.info(
        "%d prompts of %d images: distances below %s cannot be told from the shares that are asked for",
        len(neutral),
        images,
        distances,
    )


_TIMED = 4
"""Images of a batch by which it is told how long all of them take."""


def _say_how_long(opened: Opened, request: AuditRequest) -> None:
    """How long the images take that a model draws, by a small batch."""
    seconds = 0.0
    for model, rows in zip(opened.models, opened.rows, strict=True):
        if not isinstance(model.sampler, ImageFolder):
            few = Engine(rows, [Portrayal(opened.judge)], request.images, request.specific_images, _TIMED, request.seed)
            seconds += few.timed(model.sampler).value * len(few.plan(few.sets()))
    if seconds:
        _log.info("drawing takes about %s", f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds")


_AT_ONCE = 4096
"""Images that are added up at once, about."""
Tell = Callable[[Judged[Portrayed]], None]
"""Is told what was said of some images."""


def _counted(
    model: Model, engine: Engine, drawn: Drawn, judge: AttributeClassifier, names: Sequence[str],
    labelled: Mapping[str, Sequence[int]], tell: Tell | None,
) -> _Seen:  # fmt: skip
    """Add up what was judged, chunk by chunk, and keep the first prompts' images."""
    tally = Tally(engine.rows, judge.classes, names, labelled)
    images, prompts = list[Tensor](), list[Tensor]()
    kept, waiting = set[int](), list[Judged[Portrayed]]()
    for part in progress_bar(
        engine.parts(drawn), total=drawn.chunks, desc="counted", unit="batch", disable=drawn.chunks < 500
    ):
        (judged,) = part.judged
        assert judged is not None
        waiting.append(judged)
        if sum(map(len, waiting)) >= _AT_ONCE:
            _add(tally, tell, waiting)
        if len(kept) < SHOWN_PROMPTS and len(part.thumbnails):
            kept.update(part.thumbnail_prompt.tolist())
            images.append(part.thumbnails)
            prompts.append(part.thumbnail_prompt)
    _add(tally, tell, waiting)
    if int(tally.images.sum()) != drawn.count:
        raise OSError(f"{drawn.place} lacks some of its images; delete it and run the same command again.")
    return _Seen(model, engine.rows, tally, Samples([], drawn.count, torch.cat(images), torch.cat(prompts)))


def _add(tally: Tally, tell: Tell | None, waiting: list[Judged[Portrayed]]) -> None:
    """Add up what waits, all at once."""
    if waiting:
        values = Portrayed.join([judged.values for judged in waiting])
        whole = Judged(waiting[0].rows, torch.cat([judged.prompt for judged in waiting]), values)
        tally.add(whole)
        if tell is not None:
            tell(whole)
        waiting.clear()


def _found(
    request: AuditRequest, seen: Sequence[_Seen], judge: AttributeClassifier, classes: Mapping[str, Sequence[str]],
    targets: Targets, errors: Errors, labels: Mapping[str, Mapping[int, int]],
) -> dict[str, Any]:  # fmt: skip
    """All of audit.json; nothing in it depends on when or where it was made."""
    sides = [Neutral(model.tally) for model in seen]

    def question(name: str, neutral: Neutral) -> Question:
        ideal, even = targets.of(name, classes[name], neutral.prompts)
        return Question(name, tuple(classes[name]), ideal, even, errors.confusions.get(name))

    first = sides[0]
    asked = {name: question(name, first) for name in classes}
    attributes = {}
    for name, wanted in asked.items():
        attributes[name] = findings.of_attribute(first, wanted) | {
            "classes": list(wanted.classes), "even": wanted.even, "confusion": errors.told[name], "corrected": wanted.confusion is not None,
            "said": None if wanted.confusion is None else wanted.confusion.said.tolist(),
            "variety": findings.variety(first, name), "labels": _by_people(first, wanted, labels.get(name, {})),
        }  # fmt: skip
    names = list(classes)
    columns, large = kinds(seen[0].tally)
    for column in large:
        _log.warning("the column %s has too many values and makes no rows of the result", column)

    def ask(neutral: Neutral) -> list[Question]:
        return [question(name, neutral) for name in names]

    result: dict[str, Any] = {
        "model": seen[0].model.name, "compared_with": None, "how": seen[0].model.told, "judge": judge.name,
        "seed": request.seed if seen[0].model.told else None, "prompts": len(first.prompts), "images": seen[0].shown.count,
        "fairanon": __version__,
        "attributes": attributes,
        "together": {
            f"{a} and {b}": findings.together(first, asked[a], asked[b])
            for k, a in enumerate(names) for b in names[k + 1 :]
        },
        "obeyed": findings.obeyed(seen[0].tally),
        "shown": findings.aligned(seen[0].tally),
        "scores": {name: score for name, (score,) in findings.scored(seen[0].tally).items()},
        "kinds": {
            column: {value: of_kind(neutral, ask(neutral)) for value, neutral in sides.items()}
            for column, sides in columns.items()
        },
        "apart": apart(columns, ask),
    }  # fmt: skip
    if len(seen) > 1:
        result["compared_with"] = seen[1].model.name
        result["comparison"] = _compared(seen, sides, asked, {name: question(name, sides[1]) for name in classes})
        result["other"] = {
            "how": seen[1].model.told,
            "obeyed": findings.obeyed(seen[1].tally),
            "shown": findings.aligned(seen[1].tally),
            "scores": findings.scored(seen[0].tally, seen[1].tally),
            "variety": {name: findings.variety(sides[1], name) for name in names},
        }
    return plain(result)


def _by_people(neutral: Neutral, asked: Question, labels: Mapping[int, int]) -> dict[str, Any] | None:
    """Shares by people's labels, and whether what is known of the judge's errors holds for these images."""
    judgements = neutral.tally.said[asked.attribute]
    known = [image for image in labels if image in judgements]
    if len(known) < 2:
        return None
    total = neutral.counts(asked.attribute).sum(0)
    ours, theirs = (
        torch.tensor([judgements[image] for image in known]),
        torch.tensor([labels[image] for image in known]),
    )
    estimates = prediction_powered(total, ours, theirs)
    corrected = corrected_shares(total, asked.confusion)
    wider = float(torch.special.ndtri(torch.tensor(1 - 0.025 / len(asked.classes)))) / 1.96
    apart = [
        name
        for name, estimate, other in zip(asked.classes, estimates, corrected, strict=True)
        if abs(other.value - estimate.value) > wider * math.hypot(_half(estimate), _half(other))
    ]
    return {"images": len(known), "shares": dict(zip(asked.classes, estimates, strict=True)), "apart": apart}


def _half(estimate: Estimate) -> float:
    """Half of an interval's width, the wider one."""
    return max((estimate.high or estimate.value) - estimate.value, estimate.value - (estimate.low or 0.0))


def _compared(
    seen: Sequence[_Seen], sides: Sequence[Neutral], asked: Mapping[str, Question], other: Mapping[str, Question]
) -> dict[str, Any]:
    """Which of two models is nearer to the target, attribute by attribute; `compare`'s OTHER is the first one."""
    comparisons = {
        name: findings.compared(sides[1], sides[0], other[name], question) for name, question in asked.items()
    }
    certain = findings.holm({name: row["chance"] for name, row in comparisons.items() if row is not None})
    for name, row in comparisons.items():
        if row is not None:
            nearer = row["change"].value < 0
            row["verdict"] = ("better" if nearer else "worse") if certain[name] else "cannot be told"
    return comparisons


# --- tables ----------------------------------------------------------------------------------------------


def _files(model: Model, rows: Sequence[PromptRow]) -> list[str]:
    """The names of a folder's images that name no group, in the order in which they are judged; none of a model's."""
    if not isinstance(model.sampler, ImageFolder):
        return []
    folder, files = model.sampler.folder, model.sampler.files
    return [path.relative_to(folder).as_posix() for row in rows if row.set in NEUTRAL for path in files[row.prompt]]


def _write_shares(path: Path, result: Mapping[str, Any], rows: Sequence[PromptRow]) -> None:
    """A row for each prompt, attribute and class; further columns say of which kinds the prompt is."""
    of_prompts = {row.prompt: {f"by_{column}": row.asked.get(column, "") for column in result["kinds"]} for row in rows}
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
        *(f"by_{column}" for column in result["kinds"]),
    )
    nothing = {"value": None, "low": None, "high": None}
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        for name, attribute in result["attributes"].items():
            for row in attribute["prompts"]:
                for k, class_name in enumerate(attribute["classes"]):
                    share = row["shares"][k] if row["shares"] else nothing
                    cells = {
                        "share_as_judged": row["counts"][k] / row["judged"] if row["judged"] else None, "share": share["value"],
                        "low": share["low"], "high": share["high"], "target": row["target"][k],
                    }  # fmt: skip
                    record = {key: None if cell is None else round(cell, 6) for key, cell in cells.items()}
                    record |= {
                        "prompt": row["prompt"],
                        "attribute": name,
                        "class": class_name,
                        "count": row["counts"][k],
                    }
                    table.writerow(
                        {
                            **record,
                            "judged": row["judged"],
                            "named": int(row["named"]),
                            **of_prompts[row["prompt"]],
                        }
                    )


@contextmanager
def _images(
    path: Path, rows: Sequence[PromptRow], classes: Mapping[str, Sequence[str]], files: Sequence[str]
) -> Iterator[Tell]:
    """Write what is said of each image of prompts that name no group, as it is told."""
    numbers, line = dict[int, int](), count()
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["image", "prompt", "missing", *(f"{name}{end}" for name in classes for end in ("", "_confidence"))]
        )

        def tell(judged: Judged[Portrayed]) -> None:
            values = judged.values
            sure = {name: values.probabilities[name].max(1) for name in classes}
            for k, row in enumerate(judged.prompt.tolist()):
                if rows[row].set not in NEUTRAL:
                    continue
                number = numbers[row] = numbers.get(row, -1) + 1
                cells: list[Any] = []
                for name, words in classes.items():
                    most, which = float(sure[name].values[k]), int(sure[name].indices[k])
                    cells += ["", ""] if math.isnan(most) else [words[which], round(most, 4)]
                why = "blank" if bool(values.blank[k]) else ("no face" if not any(cells) else "")
                place = next(line)
                table.writerow([files[place] if files else number, rows[row].prompt, why, *cells])

        yield tell
