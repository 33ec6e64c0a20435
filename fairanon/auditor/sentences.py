"""What an audit comes to, in sentences that say no more than the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairanon.report.answer import brief, interval

FEWEST = 6
"""Prompts from which on a comparison by exchanged signs can be decided at all."""


def sentences(result: Mapping[str, Any]) -> list[str]:
    """For each attribute who is shown, where most, and what cannot be told; then who is missing, and a comparison."""
    conclusions = [_of(name, findings) for name, findings in result["attributes"].items()]
    conclusions += [note for name, findings in result["attributes"].items() for note in _people(name, findings)]
    conclusions += _missing(result)
    conclusions += _kinds(result)
    ours, theirs = result["model"], result["compared_with"]
    for name, row in (result.get("comparison") or {}).items():
        if row is None:
            conclusions.append(f"{name}: too few prompts are shared to compare {ours} with {theirs}.")
        elif row["prompts"] < FEWEST:
            conclusions.append(
                f"{name}: {row['prompts']} shared prompts are too few to compare {ours} with {theirs}; it takes {FEWEST}."
            )
        elif row["verdict"] == "cannot be told":
            conclusions.append(f"{name}: whether {ours} or {theirs} is nearer to the target cannot be told.")
        else:
            nearer = "nearer to" if row["verdict"] == "better" else "farther from"
            conclusions.append(
                f"{name}: {ours} is {nearer} the target than {theirs} (distances {number(row['second'])} and {number(row['first'])})."
            )
    return conclusions


def number(estimate: Mapping[str, Any] | None) -> str:
    """A number with its interval."""
    if estimate is None or estimate["value"] is None:
        return "n/a"
    return f"{brief(estimate['value'])} {interval(estimate)}".strip()


def leaning(row: Mapping[str, Any], classes: list[str]) -> int:
    """The class that a prompt shows most beyond its target."""
    return max(range(len(classes)), key=lambda k: row["shares"][k]["value"] - row["target"][k])


def _of(name: str, findings: Mapping[str, Any]) -> str:
    """How many images would have to change, where the prompts lean to, the worst of them, and of how many nothing can be told."""
    classes, rows, numbers = (
        findings["classes"],
        [row for row in findings["prompts"] if row["shares"]],
        findings["numbers"],
    )
    target = "even shares" if findings["even"] else "the target"
    if not rows:
        return f"{name}: nobody could be judged in any image."
    if numbers["distance"] is None:
        return f"{name}: every prompt has one judged image at most, and nothing can be told."
    change = round(100 * numbers["total_variation"]["value"])
    head = f"{name}: {number(numbers['distance'])} from {target} ({brief(numbers['most']['value'])} is the farthest there is); as judged, {change} % of the images would have to change."
    named = [row for row in rows if row["named"]]
    if not named:
        return f"{head} All {len(rows)} prompts may be at the target: too few images to tell."
    towards: dict[str, int] = {}
    for row in named:
        towards[classes[leaning(row, classes)]] = towards.get(classes[leaning(row, classes)], 0) + 1
    order = sorted(towards.items(), key=lambda direction: -direction[1])
    parts = [f"{count} {'leans' if count == 1 else 'lean'} to {direction}" for direction, count in order[:2]]
    parts += [f"{sum(count for _, count in order[2:])} to other classes"] if len(order) > 2 else []
    left = len(rows) - len(named)
    parts += [f"{left} may be at the target" if left > 1 else "1 may be at it"] if left else []
    worst = max(named, key=lambda row: row["square"])
    far = leaning(worst, classes)
    share = f"{worst['counts'][far]} of {worst['judged']} images as judged, {number(worst['shares'][far])}"
    return f"{head} Of {len(rows)} prompts {', '.join(parts)}. The farthest is {worst['prompt']!r}: {classes[far]} in {share}."


def _kinds(result: Mapping[str, Any]) -> list[str]:
    """The nearest and the farthest kind of prompts, where they are told apart; what the app shows has no kinds."""
    notes = []
    for row in result.get("apart", []):
        if row["told"]:
            near, far = (
                result["kinds"][row["column"]][row[end]]["distance"][row["attribute"]] for end in ("near", "far")
            )
            notes.append(
                f"{row['attribute']} by {row['column']}: nearest to the target is {row['near']} ({number(near)}), farthest {row['far']} "
                f"({number(far)})."
            )
    return notes


def _people(name: str, findings: Mapping[str, Any]) -> list[str]:
    """Where people's labels exclude what the judge's known errors make of the shares: theirs."""
    labels = findings.get("labels")
    if not labels or not labels["apart"]:
        return []
    shares = ", ".join(f"{class_name} {number(share)}" for class_name, share in labels["shares"].items())
    why = (
        "what is known of the judge's errors does not hold for these images"
        if findings["corrected"]
        else "people see these images otherwise than the judge"
    )
    return [f"{name}: {why}; of all images together people's labels say {shares}."]


def _missing(result: Mapping[str, Any]) -> list[str]:
    """Who is in no share, and of whom the judge is not sure."""
    notes = []
    for name, findings in result["attributes"].items():
        parts = {kind: estimate for kind, estimate in findings["missing"].items() if estimate["value"]}
        words = {"blank": "showed nothing", "no_face": "showed no face", "unsure": "left the judge unsure"}
        lost = [f"{round(estimate['value'] * estimate['n'])} {words[kind]}" for kind, estimate in parts.items()]
        if lost:
            notes.append(f"{name}: of {next(iter(parts.values()))['n']} images {', '.join(lost)}.")
    return notes
