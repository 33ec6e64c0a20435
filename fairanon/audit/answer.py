"""What an audit comes to, in sentences that say no more than the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def sentences(result: Mapping[str, Any]) -> list[str]:
    """For each attribute who is shown, where most, and what cannot be told; then who is missing, and a comparison."""
    told = []
    for name, found in result["attributes"].items():
        told.append(_of(name, found))
    told += _missing(result)
    for name, row in (result.get("comparison") or {}).items():
        if row is None:
            told.append(f"{name}: too few prompts are shared to compare the two.")
        elif row["verdict"] == "cannot be told":
            told.append(
                f"{name}: whether {result['model']} or {result['compared_with']} is nearer to the target cannot be told."
            )
        else:
            nearer = "nearer to" if row["verdict"] == "better" else "farther from"
            told.append(
                f"{name}: {result['model']} is {nearer} the target than {result['compared_with']} ({number(row['second'])}, the other has "
                f"{number(row['first'])})."
            )
    return told


def number(found: Mapping[str, Any] | None) -> str:
    """A number with its interval."""
    if found is None or found["value"] is None:
        return "n/a"
    if found["low"] is None or found["high"] is None:
        return f"{_short(found['value'])} [?]"
    return f"{_short(found['value'])} [{_short(found['low'])}, {_short(found['high'])}]"


def _short(value: float) -> str:
    text = f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.3f}"
    return {"0.00": "0", "1.00": "1"}.get(text, text.replace("0.", ".", 1) if abs(value) < 1 else text)


def leaning(row: Mapping[str, Any], classes: list[str]) -> int:
    """The class that a prompt shows most beyond its target."""
    return max(range(len(classes)), key=lambda k: row["shares"][k]["value"] - row["target"][k])


def _of(name: str, found: Mapping[str, Any]) -> str:
    classes, rows = found["classes"], [row for row in found["prompts"] if row["shares"]]
    target = "even shares" if found["even"] else "the target"
    head = f"{name}: the distance from {target} is {number(found['numbers']['distance'])}."
    if not rows:
        return f"{name}: nobody could be judged in any image."
    named = [row for row in rows if row["named"]]
    if not named:
        return f"{head} Chance may explain it for each of {len(rows)} prompts."
    towards: dict[str, int] = {}
    for row in named:
        towards[classes[leaning(row, classes)]] = towards.get(classes[leaning(row, classes)], 0) + 1
    order = sorted(towards.items(), key=lambda one: -one[1])
    parts = ", ".join(f"{count} {'to' if k else 'lean to'} {one}" for k, (one, count) in enumerate(order[:3]))
    worst = max(named, key=lambda row: row["square"])
    far = leaning(worst, classes)
    left = len(rows) - len(named)
    rest = f"; for {left} chance may explain it" if left else ""
    return f"{head} Of {len(rows)} prompts {parts}{rest}. The farthest is {worst['prompt']!r}: {classes[far]} {number(worst['shares'][far])}."


def _missing(result: Mapping[str, Any]) -> list[str]:
    first = next(iter(result["attributes"].values()))
    parts = {kind: first["missing"][kind] for kind in ("blank", "no_face")}
    lost = sum(one["value"] for one in parts.values())
    if not lost:
        return []
    words = {"blank": "blank (blacked out, refused or unreadable)", "no_face": "without a face"}
    told = " and ".join(f"{number(one)} are {words[kind]}" for kind, one in parts.items() if one["value"])
    return [f"of the images {told}: they are in no share."]
