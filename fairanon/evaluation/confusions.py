"""What is known of a judge's errors: tables of how many images of each true class it called what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from fairanon.config.experiments import UserError, experiments_folder
from fairanon.files import TextError, read_json
from fairanon.metrics.functional.confusion import WEAKEST, Confusion


@dataclass(frozen=True)
class Errors:
    """What is known of a judge's errors.

    Attributes:
        confusions: By attribute.
        told: For each attribute why its judge's errors are taken out, or are not.
    """

    confusions: Mapping[str, Confusion]
    told: Mapping[str, str]


def read_errors(source: str, name: str, classes: Mapping[str, Sequence[str]]) -> Errors:
    """Read what a judge gets wrong.

    Args:
        source: A JSON file; "none"; "auto" takes the file of this judge among ``experiments/judges/*.confusion.json``.
        name: What the judge calls itself.
        classes: Of the attributes that are asked about.

    Raises:
        UserError: The file is of another judge.
        TextError: It is no such file.
    """
    if source == "none":
        return Errors({}, dict.fromkeys(classes, "nobody asked for it (--confusion none)"))
    path = _that_comes_along(name) if source == "auto" else Path(source)
    if path is None:
        return Errors({}, dict.fromkeys(classes, f"nobody has measured how often {name} is wrong (--confusion)"))
    measurement = read_json(path, "--confusion")
    if not isinstance(measurement, dict) or not isinstance(measurement.get("attributes"), dict):
        raise TextError(
            f"--confusion: {path} has no key `attributes`; see experiments/judges/tiny_attributes.confusion.json."
        )
    if measurement.get("judge") != name:
        raise UserError(
            f"--confusion: {path} was measured on the judge {measurement.get('judge')}, and this is {name}; give its own file, or none."
        )
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


def _that_comes_along(judge: str) -> Path | None:
    """The file in which somebody has measured what a judge gets wrong; one that nobody can read is of no judge."""
    for path in sorted((experiments_folder() / "judges").glob("*.confusion.json")):
        with suppress(TextError):
            measurement = read_json(path, "--confusion")
            if isinstance(measurement, dict) and measurement.get("judge") == judge:
                return path
    return None


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
