"""Draws the trade-off of the tuning sweep: what fairness costs in identity-specific recall and in image quality.

Run: ``python benchmarks/tradeoff.py`` (reads docs/tuning-popalign-tiny.csv, writes the .png beside it).
"""

from __future__ import annotations

import csv
from pathlib import Path

from matplotlib.figure import Figure

TABLE = Path(__file__).parent.parent / "docs" / "tuning-popalign-tiny.csv"
ASKED = {"gender": 0.43, "tone": 0.39}
KINDS = {
    "PopAlign, no prior": ("popalign", False, "#b5562a", "o"),
    "PopAlign with prior": ("popalign", True, "#2b5d8a", "o"),
    "SFT, no prior": ("sft", False, "#b5562a", "x"),
    "SFT with prior": ("sft", True, "#2b5d8a", "x"),
}


def main() -> None:
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    bases = {(row["base_steps"], row["guidance"]): row for row in rows if row["objective"] == "base"}
    figure = Figure(figsize=(9, 3.6))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, attribute in zip(axes, ASKED, strict=True):
        for label, (objective, prior, colour, marker) in KINDS.items():
            chosen = [r for r in rows if r["objective"] == objective and (float(r["prior_weight"]) > 0) == prior]
            x = [float(r[attribute]) / float(bases[r["base_steps"], r["guidance"]][attribute]) for r in chosen]
            lost = [float(bases[r["base_steps"], r["guidance"]]["recall"]) - float(r["recall"]) for r in chosen]
            axis.scatter(x, [100 * value for value in lost], color=colour, marker=marker, label=label)
        axis.axvline(ASKED[attribute], color="#777777", linestyle=":")
        axis.axhline(2, color="#777777", linestyle=":")
        axis.set_yscale("symlog", linthresh=2)
        axis.set_yticks([0, 1, 2, 5, 10, 50], ["0", "1", "2", "5", "10", "50"])
        axis.set_title(f"{attribute}: asked is the lower left corner", fontsize=9)
        axis.set_xlabel("discrepancy, after / before")
    axes[0].set_ylabel("points of recall lost")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(TABLE.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
