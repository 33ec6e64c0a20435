"""What an audit takes from files beside the images: targets, what a judge gets wrong, what people say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fairanon.config.experiments import UserError, experiments_folder
from fairanon.files import TextError, named_path, read_json, read_table
from fairanon.metrics.functional.confusion import WEAKEST, Confusion


@dataclass(frozen=True)
class Targets:
    """Which shares are asked for.

    Attributes:
        shares: By attribute and prompt in small letters ("" is any): share of each class.
    """

    shares: Mapping[tuple[str, str], Mapping[str, float]]

    def of(self, attribute: str, classes: Sequence[str], prompts: Sequence[str]) -> tuple[Tensor, bool]:
        """The target of each prompt, float64 (P, K), and whether it is the even one."""
        even = {name: 1 / len(classes) for name in classes}
        rows = [self.shares.get((attribute, p.casefold())) or self.shares.get((attribute, "")) or even for p in prompts]
        targets = torch.tensor([[row[name] for name in classes] for row in rows], dtype=torch.float64)
        return targets.view(-1, len(classes)), all(row is even for row in rows)


def read_targets(path: Path | None, classes: Mapping[str, Sequence[str]], prompts: Sequence[str]) -> Targets:
    """Read a CSV of shares; None is even shares.

    Args:
        path: Columns attribute, class, share, and prompt where they differ by prompts.
        classes: Of each attribute that is counted.
        prompts: Those that name no group.

    Raises:
        TextError: A line names what the judge does not say, or shares do not sum to 1.
    """
    targets, known = dict[tuple[str, str], dict[str, float]](), {prompt.casefold() for prompt in prompts}
    for number, row in [] if path is None else read_table(path, "--target", ("attribute", "class", "share")):
        where = f"--target: {path}, line {number}"
        named = {key.lower(): value for key, value in row.items()}
        attribute, name, prompt = (named.get(key, "").strip() for key in ("attribute", "class", "prompt"))
        if prompt and prompt.casefold() not in known:
            raise TextError(f"{where}: no prompt is called {prompt!r}.")
        prompt = prompt.casefold()
        if attribute not in classes:
            raise TextError(f"{where}: the judge says nothing of {attribute!r}, only of {', '.join(classes)}.")
        if name not in classes[attribute]:
            raise TextError(f"{where}: {attribute} has no class {name!r}; it has {', '.join(classes[attribute])}.")
        try:
            share = float(row["share"])
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise TextError(f"{where}: a share is a number from 0 to 1, got {row['share']!r}.")
        shares = targets.setdefault((attribute, prompt), {})
        if name in shares:
            raise TextError(f"{where}: the share of {name!r} stands there twice.")
        shares[name] = share
    for (attribute, prompt), shares in targets.items():
        if abs(sum(shares.values()) - 1) > 0.005:
            of = f" of {prompt!r}" if prompt else ""
            raise TextError(
                f"--target: {path}: the shares of {attribute}{of} sum to {sum(shares.values()):g}, not to 1."
            )
        for name in classes[attribute]:
            shares.setdefault(name, 0.0)
    return Targets(targets)


@dataclass(frozen=True)
class Errors:
    """What is known of a judge's errors.

    Attributes:
        confusions: By attribute.
        told: Of each attribute why it is, or is not, taken out.
    """

    confusions: Mapping[str, Confusion]
    told: Mapping[str, str]


def read_errors(source: str, judge: str, name: str, classes: Mapping[str, Sequence[str]]) -> Errors:
    """Read what a judge gets wrong.

    Args:
        source: A JSON file; "none"; "auto" takes ``experiments/judges/JUDGE.confusion.json`` where it is of this judge.
        judge: The judge's file, as `AuditRequest` names it.
        name: What the judge calls itself.
        classes: Of the attributes that are asked about.

    Raises:
        TextError: A file is of another judge, or its table is none.
    """
    if source == "none":
        return Errors({}, dict.fromkeys(classes, "nobody asked for it (--confusion none)"))
    path = experiments_folder() / "judges" / f"{Path(judge).stem}.confusion.json" if source == "auto" else Path(source)
    if source == "auto" and not path.exists():
        return Errors({}, dict.fromkeys(classes, f"nobody has measured how often {name} is wrong (--confusion)"))
    measurement = read_json(path, "--confusion")
    if not isinstance(measurement, dict) or not isinstance(measurement.get("attributes"), dict):
        raise TextError(f"--confusion: {path} has no attributes.")
    if measurement.get("judge") != name:
        if source == "auto":
            return Errors(
                {}, dict.fromkeys(classes, f"{path.name} was measured on {measurement.get('judge')}, this is {name}")
            )
        raise UserError(f"--confusion: {path} was measured on the judge {measurement.get('judge')}, this is {name}.")
    confusions, reasons = {}, {}
    for attribute, values in classes.items():
        row = measurement["attributes"].get(attribute)
        if row is None:
            reasons[attribute] = f"{path.name} says nothing of {attribute}"
            continue
        confusion = _confusion(row, values, f"--confusion: {path}, {attribute}")
        if confusion.weakest < WEAKEST:
            reasons[attribute] = (
                f"the judge confuses its classes too much (smallest singular value {confusion.weakest:.2f}, under {WEAKEST}): the "
                "numbers are as it says them"
            )
        else:
            confusions[attribute] = confusion
            reasons[attribute] = f"taken out, as measured on {measurement.get('data', 'data that nobody names')}"
    return Errors(confusions, reasons)


def _confusion(row: object, classes: Sequence[str], where: str) -> Confusion:
    if not isinstance(row, dict) or row.get("classes") != list(classes):
        raise TextError(f"{where}: its classes must be {', '.join(classes)}.")
    try:
        counts = torch.tensor(row["said"], dtype=torch.float64)
    except (KeyError, TypeError, ValueError):
        counts = torch.empty(0)
    size = (len(classes), len(classes))
    if (
        counts.shape != size
        or not bool(counts.isfinite().all())
        or not bool((counts >= 0).all())
        or not bool((counts.sum(1) > 0).all())
    ):
        raise TextError(f"{where}: `said` must be {size[0]} rows of {size[1]} counts, a row for each true class.")
    return Confusion(counts, exact=bool(row.get("exact", False)))


def read_labels(
    path: Path | None, classes: Mapping[str, Sequence[str]], files: Sequence[str]
) -> dict[str, dict[int, int]]:
    """What people say of some images: by attribute the class of each image's number.

    Raises:
        TextError: A line names no image, attribute or class that there is.
    """
    place, labels = {name: k for k, name in enumerate(files)}, dict[str, dict[int, int]]()
    for number, row in [] if path is None else read_table(path, "--labels", ("file", "attribute", "class")):
        where = f"--labels: {path}, line {number}"
        file, attribute, name = (
            named_path(row["file"], where).as_posix(),
            row["attribute"].strip(),
            row["class"].strip(),
        )
        if file not in place:
            raise TextError(f"{where}: there is no image {file}.")
        if attribute not in classes or name not in classes[attribute]:
            known = "; ".join(f"{key}: {', '.join(values)}" for key, values in classes.items())
            raise TextError(f"{where}: {attribute} {name!r} is nothing that is counted; there are {known}.")
        label = list(classes[attribute]).index(name)
        if labels.setdefault(attribute, {}).setdefault(place[file], label) != label:
            raise TextError(f"{where}: {file} has two classes of {attribute}; leave one of the lines.")
    return labels
