"""PopAlign's rivals on the embedded world: prints their table, and draws what evenness costs each of them.

Run: ``python benchmarks/frontier.py`` (reads experiments/results, writes docs/rivals.png).

It reads the cells of ``fairanon table ... --overlay second_judge`` in ``rivals``; ``measured/popalign_tiny_rivals.json``, the steerings; and in ``rivals/strengths``
files ``EXPERIMENT-SEED-STRENGTH.json`` of the same seed at other strengths. Each of the latter says by which command it was made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
TRAINED = {
    "popalign_tiny": "PopAlign", "popalign_tiny_paper": "PopAlign, no prior", "sft_tiny": "SFT", "dpo_tiny": "Diffusion-DPO",
    "adft_tiny": "aDFT", "uce_tiny": "UCE", "uce_tiny_kept": "UCE, keeping", "iti_gen_tiny": "ITI-GEN",
}  # fmt: skip
"""What each experiment is called."""
STEERED = ("guidance on", "guidance", "CADS", "dynamic guidance", "injection", "Fair-Diffusion")
"""Methods that train nothing: what their rows begin with, the longer one first."""
COLUMNS = {
    "gender": "discrepancy/gender/per_prompt", "gender, pooled": "discrepancy/gender/pooled", "gender, held out": "discrepancy/gender/heldout",
    "tone": "discrepancy/tone/per_prompt", "tone, pooled": "discrepancy/tone/pooled", "tone, held out": "discrepancy/tone/heldout",
    "recall": "recall/overall", "of the worst class": "recall/worst", "occupation": "alignment/occupation", "FID": "fid/balanced", "FID, nobody": "fid/generic",
    "moved": "moved", "seconds": "seconds_per_image", "minutes": "minutes",
}  # fmt: skip
"""Of the table."""
PRICES = {
    "recall/overall": ("recall of prompts that name a group", True),
    "fid/balanced": ("Fréchet distance to even people", False),
}
"""What evenness may cost, and whether more of it is better."""

BOUND = "injection"
"""Asks for each class by name as often as its share is: the bound. Neither it nor the same without a gate makes another one grey;
without a gate it pays with recall, so it stands beside recall alone."""


@dataclass(frozen=True)
class Setting:
    """One way to draw.

    Attributes:
        method: Whose.
        name: Its row's.
        values: Numbers by their keys: a value, and its ends if it has any.
        main: It has a row in the table; the others are strengths that the figure alone shows.
    """

    method: str
    name: str
    values: dict[str, tuple[float, float | None, float | None]]
    main: bool = True

    def value(self, key: str) -> float:
        """A number's value."""
        return self.values[key][0]


def settings(folder: Path = RESULTS) -> list[Setting]:
    """Everything that was measured, the base first."""
    rows = _read(folder / "measured/popalign_tiny_rivals.json")["metrics"]["rivals"]
    base = rows["base"]
    found = [Setting(_method(name), name, _numbers([numbers], base)) for name, numbers in rows.items()]
    for experiment, name in TRAINED.items():
        cells = [_read(path)["metrics"] for path in sorted((folder / "rivals").glob(f"{experiment}-[0-9]*.json"))]
        if cells:
            minutes = {"minutes": (sum(cell["seconds"]["train"] for cell in cells) / len(cells) / 60, None, None)}
            found.append(Setting(name, name, _numbers([cell["after"] for cell in cells], base) | minutes))
        for path in sorted((folder / "rivals/strengths").glob(f"{experiment}-[0-9]*-*.json")):
            strength = f"{name}, {path.stem.rpartition('-')[2].replace('_', ' ')}"
            found.append(Setting(name, strength, _numbers([_read(path)["metrics"]["after"]], base), main=False))
    return found


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _method(row: str) -> str:
    return next((name for name in STEERED if row.startswith(name)), row)


def _numbers(
    runs: Sequence[Mapping[str, Any]], base: Mapping[str, Any]
) -> dict[str, tuple[float, float | None, float | None]]:
    """Of several seeds mean and range, of one the value and its interval; of the class that is obeyed least the value alone."""
    numbers: dict[str, tuple[float, float | None, float | None]] = {}
    worst = [
        [number["value"] for key, number in run.items() if key.startswith("recall/") and key.count("/") == 2]
        for run in runs
    ]
    if all(worst):
        numbers["recall/worst"] = sum(map(min, worst)) / len(worst), None, None
    for key in runs[0]:
        values = [run[key]["value"] for run in runs if run.get(key) is not None]
        if len(values) < len(runs):
            continue  # of some seeds nobody knows it
        if len(runs) > 1:
            numbers[key] = sum(values) / len(values), min(values), max(values)
        else:
            numbers[key] = values[0], runs[0][key]["low"], runs[0][key]["high"]
    shares = [key for key in base if key.startswith("share/")]
    moved = [max(abs(run[key]["value"] - base[key]["value"]) for key in shares) for run in runs]
    return numbers | {"moved": (sum(moved) / len(moved), None, None)}


def dominated(setting: Setting, others: Sequence[Setting], distance: str, price: str) -> bool:
    """Whether another setting is as even and as good, and better in one of both, by the values alone."""
    sign = 1 if PRICES[price][1] else -1

    def of(one: Setting) -> tuple[float, float]:
        return one.value(distance), -sign * one.value(price)

    own = of(setting)
    rivals = [one for one in others if one.method != BOUND]
    return setting.name != BOUND and any(
        all(a <= b for a, b in zip(of(one), own, strict=True)) and of(one) != own for one in rivals
    )


def table(found: Sequence[Setting]) -> str:
    """Markdown: a row for each setting that is no mere strength, and first of all what chance alone gives a fair model."""
    chance = [f"{found[0].value(least):.2f}" if (least := floor(key)) else "" for key in COLUMNS.values()]
    head = f"| {' | '.join(['', *COLUMNS])} |", "|" + "---|" * (len(COLUMNS) + 1)
    lines = [*head, f"| {' | '.join(['a fair model, by chance', *chance])} |"]
    for one in found:
        cells = [_cell(key, one.values.get(key)) for key in COLUMNS.values()] if one.main else []
        lines += [f"| {' | '.join([one.name, *cells])} |"] if one.main else []
    return "\n".join(lines)


def floor(key: str) -> str | None:
    """The key of what a fair model scores in a discrepancy per prompt whose images are drawn independently; None of other numbers."""
    return key.replace("/per_prompt", "/floor") if key.endswith("/per_prompt") else None


def _cell(key: str, number: tuple[float, float | None, float | None] | None) -> str:
    """A value; of the discrepancies of prompts and of recall its ends too."""
    if number is None:
        return ""
    value, low, high = (None if end is None else f"{end:.{1 if key.startswith('fid/') else 2}f}" for end in number)
    ends = key.endswith("/per_prompt") or key == "recall/overall"
    if key == "minutes":
        return f"{number[0]:.0f}"
    return f"{value}<br>[{low}, {high}]" if ends and low is not None else str(value)


def draw(found: Sequence[Setting], path: Path) -> None:
    """Two attributes by two prices; what is dominated is grey, and names stand beside each panel in the order of evenness."""
    pairs = [(f"discrepancy/{attribute}/per_prompt", price) for attribute in ("gender", "tone") for price in PRICES]
    best = [one.method for one in found if not all(dominated(one, found, *pair) for pair in pairs)]
    colours = {name: f"C{k}" for k, name in enumerate(dict.fromkeys(best))}
    figure = Figure(figsize=(15, 13))
    panels = figure.subplots(2, 2)
    for row, attribute in zip(panels, ("gender", "tone"), strict=True):
        distance = f"discrepancy/{attribute}/per_prompt"
        for panel, (price, (title, more)) in zip(row, PRICES.items(), strict=True):
            shown = [one for one in found if one.name == BOUND or one.method != BOUND or price == "recall/overall"]
            places = _apart([one.value(distance) for one in shown])
            panel.axhline(found[0].value(f"discrepancy/{attribute}/floor"), color="black", linestyle=":", linewidth=1)
            for one, place in zip(shown, places, strict=True):
                x, y = one.value(price), one.value(distance)
                grey = dominated(one, found, distance, price)
                colour = "#aab1b8" if grey else "black" if one.name == BOUND else colours[one.method]
                ring = {"markersize": 13, "fillstyle": "none", "zorder": 3} if one.name == BOUND else {}
                panel.plot(
                    x, y, "o", color=colour, **({"markersize": 5 if grey else 8, "zorder": 1 if grey else 2} | ring)
                )
                panel.annotate(
                    one.name, (x, y), xytext=(1.03, place), textcoords="axes fraction", fontsize=8, va="center",
                    color="#6b747c" if grey else "#1d2329", annotation_clip=False,
                    arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)},
                )  # fmt: skip
            panel.set(xlabel=title, ylabel=f"{attribute}: discrepancy per prompt", ylim=(-_ROOM, _TOP))
            panel.grid(alpha=0.25)
            if not more:
                panel.invert_xaxis()
    figure.suptitle(
        "Lower is more even, right is better. Grey: the value of another setting is as even and as good, and better in one of both; injection makes nobody grey.\n"
        "Black ring: injection with its gate, the bound. Dotted: what a fair model scores by chance, unless classes are dealt. A weight: one seed.",
        fontsize=11,
    )
    figure.subplots_adjust(left=0.05, right=0.84, top=0.95, bottom=0.05, wspace=0.66, hspace=0.14)
    figure.savefig(path, dpi=90)


_TOP, _ROOM, _LINE = 0.9, 0.05, 0.024
"""The largest distance that is drawn, the room below 0, and the height of a name as a part of a panel's."""


def _apart(distances: Sequence[float]) -> list[float]:
    """Where names stand, as parts of a panel's height: near their distances, each a line above the one before."""
    order = sorted(range(len(distances)), key=lambda k: distances[k])
    places, below = [0.0] * len(distances), -1.0
    for k in order:
        below = places[k] = max((distances[k] + _ROOM) / (_TOP + _ROOM), below + _LINE)
    above = 1.0 + _LINE
    for k in reversed(order):
        above = places[k] = min(places[k], above - _LINE)
    return places


def main() -> None:
    found = settings()
    print(table(found))
    draw(found, ROOT / "docs" / "rivals.png")


if __name__ == "__main__":
    main()
