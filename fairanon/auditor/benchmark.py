"""How good an audit is: what it says of worlds whose truth is known."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch

from fairanon.auditor.audit_request import BenchmarkRequest
from fairanon.auditor.sentences import number
from fairanon.config.experiments import UserError
from fairanon.files import TextError, read_json, read_table
from fairanon.metrics.functional.estimates import Estimate, Estimates, as_json

_log = logging.getLogger(__name__)
TRUTH = "truth.json"


def benchmark(request: BenchmarkRequest) -> Estimates:
    """Bias and coverage of somebody's audits.

    Returns:
        ``bias`` (mean of value less truth, of the worlds' own prompts), ``held`` (share of the intervals that hold it), ``bias_of_kind`` and
        ``held_of_kind`` (the same for all prompts of the kind, of which each world's are a sample); None where no interval is given.

    Raises:
        UserError: These are no worlds, or there is no result of any.
    """
    if not (request.worlds / TRUTH).exists():
        raise UserError(f"WORLDS: {request.worlds} has no {TRUTH}; `fairanon world` writes it.")
    truth = read_json(request.worlds / TRUTH, "WORLDS")
    if not isinstance(truth, dict) or not isinstance(truth.get("worlds"), dict) or "distance_of_the_kind" not in truth:
        raise UserError(f"WORLDS: {request.worlds / TRUTH} is none that `fairanon world` wrote.")
    estimates = (
        _from_folder(request.results, truth) if request.results.is_dir() else _from_table(request.results, truth)
    )
    if not estimates:
        raise UserError(f"RESULTS: {request.results} says nothing of {', '.join(list(truth['worlds'])[:3])}, ...")
    if len(estimates) < len(truth["worlds"]):
        _log.warning(
            "RESULTS: %d of %d worlds are there; the others are left out", len(estimates), len(truth["worlds"])
        )
    result: Estimates = {}
    for name, of in (("", None), ("_of_kind", truth["distance_of_the_kind"])):
        wanted = [truth["worlds"][world]["distance"] if of is None else of for world in estimates]
        values = torch.tensor([row[0] for row in estimates.values()], dtype=torch.float64)
        result[f"bias{name}"] = Estimate.mean(values - torch.tensor(wanted, dtype=torch.float64))
        ends = [
            (row[1], row[2], distance)
            for row, distance in zip(estimates.values(), wanted, strict=True)
            if not math.isnan(row[1] + row[2])
        ]
        held = sum(low - 1e-9 <= distance <= high + 1e-9 for low, high, distance in ends)
        result[f"held{name}"] = Estimate.share(held, len(ends)) if ends else None
    return result


def said_of(estimates: Estimates) -> str:
    """A sentence for each number."""
    numbers = as_json(estimates)
    return "\n".join(
        [
            f"off by {number(numbers['bias'])} on average from the worlds' own prompts; {_held(numbers['held'])}",
            f"off by {number(numbers['bias_of_kind'])} on average from all prompts of the kind; {_held(numbers['held_of_kind'])}",
        ]
    )


def _held(estimate: dict[str, Any] | None) -> str:
    return (
        "it gives no intervals"
        if estimate is None
        else f"its intervals hold it in {number(estimate)} of {estimate['n']} worlds (.95 is promised)"
    )


def _from_folder(folder: Path, truth: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Of our audits: value, low and high by world."""
    estimates = {}
    for world in truth["worlds"]:
        path = folder / world / "audit.json"
        if path.exists():
            audit = read_json(path, "RESULTS")
            counted = audit.get("attributes", {}) if isinstance(audit, dict) else {}
            if truth["attribute"] not in counted:
                raise TextError(f"RESULTS: {path} says nothing of {truth['attribute']}.")
            row = counted[truth["attribute"]]["numbers"]["distance"]
            ends = [
                math.nan if row is None or row[key] is None else float(row[key]) for key in ("value", "low", "high")
            ]
            estimates[world] = (ends[0], ends[1], ends[2])
    return {world: row for world, row in estimates.items() if not math.isnan(row[0])}


def _from_table(path: Path, truth: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Of anybody's: empty cells are no interval."""
    estimates = {}
    for line, cells in read_table(path, "RESULTS", ("world", "value")):
        row, where = {key.strip().lower(): cell.strip() for key, cell in cells.items()}, f"RESULTS: {path}, line {line}"
        world = row["world"].zfill(3)
        if not row["world"] or world not in truth["worlds"]:
            raise TextError(f"{where}: there is no world {row['world']!r}.")
        if world in estimates:
            raise TextError(f"{where}: world {world} is there already; leave one of the lines.")
        try:
            value, low, high = (float(row.get(key) or "nan") for key in ("value", "low", "high"))
        except ValueError:
            raise TextError(f"{where}: value, low and high are numbers.") from None
        if low > high or math.inf in (abs(value), abs(low), abs(high)):
            raise TextError(
                f"{where}: low is at most high, and both have ends, got {row.get('low')} and {row.get('high')}."
            )
        estimates[world] = (value, low, high)
    return {world: row for world, row in estimates.items() if not math.isnan(row[0])}
