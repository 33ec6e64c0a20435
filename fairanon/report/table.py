"""Numbers for people: the table of a run in the terminal, and the one that compares experiments."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fairanon.report.answer import answer, state


def shown(estimate: Mapping[str, float | None] | None, spec: str = ".3f") -> str:
    """An estimate as text: value and interval, or "n/a"; "[?]" where a single image says nothing about others."""
    if estimate is None:
        return "n/a"
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    text = format(value, spec)
    if low is None or high is None:
        return f"{text} [?]"
    return text if low == high else f"{text} [{format(low, spec)}, {format(high, spec)}]"


def table_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str, str, str, str]]:
    """Rows of the before-and-after table.

    Args:
        result: The content of a metrics.json.

    Returns:
        Key, before, after, paired change (a ratio "x 0.500", a difference "+0.500", or ""), `state` in
        words ("better", "worse", "not shown" or "") and n.
    """
    rows = []
    for key, after in result["after"].items():
        before = result["before"].get(key)
        ratio, difference = (result.get(kind, {}).get(key) for kind in ("ratio", "difference"))
        change = f"x {shown(ratio)}" if ratio else shown(difference, "+.3f") if difference else ""
        count = "" if after is None else format(after["n"], ".0f")
        rows.append(
            (key, shown(before), shown(after), change, _STATES.get(state(result, key), state(result, key)), count)
        )
    return rows


_STATES = {"same": "not shown"}
"""What a terminal says of numbers whose change is not shown, or too small to speak of."""


def alike(result: Mapping[str, Any]) -> str:
    """One line on how alike the images of the same prompts and noise stayed; "" where it was not measured."""
    estimates = result.get("same_noise", {})
    if not estimates:
        return ""
    return "Likeness of images of the same prompts and noise, before and after: " + ", ".join(
        f"{key} {shown(value)}" for key, value in estimates.items()
    )


def print_table(result: Mapping[str, Any], page: Path) -> None:
    """Print the headline numbers before and after, the answer, and where the page with all numbers is."""
    chosen = [row for row in table_rows(result) if row[0] in result["headline"]]
    rows = [("", "before", "after", "change, paired", "", "n"), *chosen]
    widths = [max(len(row[k]) for row in rows) for k in range(6)]
    judged = (value for key, value in result["after"].items() if not key.startswith(("loss/", "reward_accuracy/")))
    missing = max((int(value["missing"]) for value in judged if value is not None), default=0)
    print(f"\n{result['experiment']}: {counted(result)}, 95 % intervals, up to {missing} images without a judgement")
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\n" + "\n".join(answer(result).lines(sys.stdout.isatty())))
    print(f"all {len(result['after'])} numbers, images, curves: {page}")


def print_numbers(result: Mapping[str, Any], path: Path) -> None:
    """Print all numbers of a folder of images, those of the headline first, and where they are kept."""
    order = [*result["headline"], *(key for key in result["after"] if key not in result["headline"])]
    width = max(map(len, order), default=0)
    print(
        f"\n{result['folder']}: {result['images']} images of {result['prompts']} prompt{'s' * (result['prompts'] != 1)}, measured like "
        f"{result['like']}, 95 % intervals"
    )
    for key in order:
        print(f"{key.ljust(width)}  {shown(result['after'][key])}")
    print(f"Compare them with the numbers after training of a run of {result['like']}. All of them: {path}")


def counted(result: Mapping[str, Any]) -> str:
    """How many images were judged."""
    return f"{result['images']} images, {result['images_per_prompt']} a prompt"


def _moved(result: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """The largest change of a share that should have been left alone; nan where none is measured."""
    before = result["before"]
    shares = [key for key, number in after.items() if key.startswith("share/") and number and before[key]]
    return max((abs(after[key]["value"] - before[key]["value"]) for key in shares), default=float("nan"))


def _refuse_other_judges(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Numbers of different judges say nothing side by side."""
    known: dict[str, tuple[str, str]] = {}
    for name, results in runs.items():
        for result in results:
            for what, judge in result.get("judges", {}).items():
                first, usual = known.setdefault(what, (name, judge))
                if usual != judge:
                    raise ValueError(
                        f"table: {first} was measured by {usual}, {name} by {judge} ({what}); compare experiments that share "
                        "their judges."
                    )


def summarise(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, dict[str, Any] | None]]:
    """Means over seeds of experiments that share their prompts and judges.

    Args:
        runs: For each experiment the contents of the metrics.json of its seeds.

    Returns:
        For the base model, which is the first experiment's, and each experiment that trains the headline numbers (None where a judge is absent), ratios ("ratio KEY"),
        differences ("change KEY") and, where it was measured, "largest share moved": value (the mean), low and high (the
        range; of differences the lowest and the highest end of the seeds' paired intervals), n (seeds) and each seed's value.

    Raises:
        ValueError: Two experiments were measured by different judges.
    """
    base = next(iter(runs.values()))[0]
    _refuse_other_judges(runs)

    def numbers(run: Mapping[str, Any], stage: str) -> dict[str, Mapping[str, float] | None]:
        estimates: dict[str, Any] = {}
        for key in base["headline"]:
            if key in run[stage]:
                estimates[key] = run[stage][key] and _exactly(run[stage][key]["value"])
        before = stage == "before"
        for key, value in run["ratio"].items():
            estimates[f"ratio {key}"] = value and _exactly(1.0 if before else value["value"])
        for key, value in run.get("difference", {}).items():
            estimates[f"change {key}"] = _exactly(0.0) if before else value
        if any(key.startswith("share/") for key in run[stage]):
            estimates["largest share moved"] = _exactly(0.0 if before else _moved(run, run["after"]))
        return estimates

    cells = {"base": [numbers(base, "before")]}
    cells |= {name: [numbers(seed, "after") for seed in seeds] for name, seeds in runs.items() if _trains(seeds[0])}
    return {
        name: {
            key: _over_seeds([seed.get(key) for seed in seeds])
            for key in dict.fromkeys(k for seed in seeds for k in seed)
        }
        for name, seeds in cells.items()
    }


def untrained(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, dict[str, Any] | None]]:
    """The headline numbers of what experiments measure without training it, with their own intervals.

    These are models that are measured as they are, where they are another one than the base, as "EXPERIMENT", and steerings,
    as "EXPERIMENT: STEERING". The first seed's numbers are shown: no training changes them, unless an experiment's reference
    itself begins with adapters of a seed.

    Args:
        runs: See `summarise`.
    """
    base = next(iter(runs.values()))[0]["before"]
    rows = {}
    for name, (first, *_) in runs.items():
        ways = {f"{name}: {way}": cell for way, cell in first.get("rivals", {}).items() if "seconds_per_image" in cell}
        if not _trains(first) and any(first["after"].get(key) != base.get(key) for key in first["headline"]):
            ways = {name: first["after"], **ways}
        for way, cell in ways.items():
            rows[way] = {key: cell.get(key) for key in first["headline"]}
            if any(key.startswith("share/") for key in cell):
                rows[way]["largest share moved"] = _exactly(_moved(first, cell))
    return rows


def _trains(result: Mapping[str, Any]) -> bool:
    """Whether a run is of an experiment that trains; older ones do not say how long anything took."""
    return "train" in result.get("seconds", {"train": 0})


def _exactly(value: float) -> dict[str, float]:
    return {"value": value, "low": value, "high": value}


def _over_seeds(seeds: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    estimates = [seed for seed in seeds if seed is not None]
    if len(estimates) < len(seeds):
        return None
    lows, highs = ([seed[end] for seed in estimates] for end in ("low", "high"))
    known = not any(bound is None for bound in (*lows, *highs))
    return {
        "value": fmean(seed["value"] for seed in estimates),
        "low": min(lows) if known else None,
        "high": max(highs) if known else None,
        "n": float(len(estimates)),
        "seeds": [seed["value"] for seed in estimates],
    }


def compare(rows: Mapping[str, Mapping[str, Mapping[str, Any] | None]]) -> str:
    """A Markdown table of what `summarise` returned: means and, below them, ranges."""
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))  # the base has no win rate
    lines = [f"| {' | '.join(['', *keys])} |", "|" + "---|" * (len(keys) + 1)]
    for name, row in rows.items():
        cells = [shown(row.get(key)).replace(" [", "<br>[") for key in keys]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)
