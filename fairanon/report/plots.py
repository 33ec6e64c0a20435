"""Figures: curves, scatter plots, mixtures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fairanon.files import atomic_write


def plot_curves(folder: Path) -> None:
    """Draw ``curves.png`` from the run's ``metrics.csv``: a panel for each number of training, that of held-out data with it.

    Args:
        folder: Of a run. Training is smoothed over a tenth of what was logged.
    """
    path = folder / "metrics.csv"
    if not path.exists():
        return
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    names = [name for name in (lines[0] if lines else {}) if name.startswith("train/")]
    if not names:
        return
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        steps, values = _logged(lines, name)
        held_out = _logged(lines, name.replace("train/", "val/"))
        axis.set_visible(True)
        axis.plot(steps, values, linewidth=0.7, color="#2b5d8a", alpha=0.4)
        axis.plot(
            steps, _smoothed(values, len(values) // 10 if len(values) >= 20 else 0), linewidth=1.8, color="#2b5d8a"
        )
        axis.plot(*held_out, "o", markersize=4, color="#c46a1c")
        axis.set_title(name.removeprefix("train/"), fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    figure.tight_layout()
    save_figure(figure, folder / "curves.png")


def _logged(lines: Sequence[Mapping[str, str]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a logged number."""
    points = [(int(line["step"]), float(line[name])) for line in lines if line.get(name)]
    return [step for step, _ in points], [value for _, value in points]


def _smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean over as many values on both sides."""
    parts = [values[max(0, k - window) : k + window + 1] for k in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG under a temporary name first.

    (Figures are not pyplot's: that would choose how a notebook shows its own.)
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    with atomic_write(path) as partial:
        partial.write_bytes(buffer.getvalue())


def plot_scatter(path: Path, points: Mapping[str, Any]) -> None:
    """Several sets of points in the plane.

    Args:
        path: Where the figure goes.
        points: For each set's name N points, (N, 2).
    """
    figure = Figure(figsize=(7, 6))
    axis = figure.subplots()
    for (name, rows), marker, colour in zip(points.items(), "o^x", ("#2b5d8a", "#c46a1c", "#4a7d3a"), strict=False):
        axis.scatter(rows[:, 0], rows[:, 1], s=14, marker=marker, color=colour, alpha=0.6, label=name)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    save_figure(figure, path)


def plot_mixtures(
    path: Path,
    names: list[str],
    axis: list[float],
    before: list[float],
    after: list[list[float]],
    history: list[list[list[float]]],
) -> None:
    """Density before and after, and the weights of the three Gaussians over the steps, one row per setting.

    Args:
        path: Where the figure goes.
        names: V settings.
        axis: X values.
        before: The reference's density at them.
        after: Each setting's density at them, V rows.
        history: Weights at every step: steps x V x 3.
    """
    figure = Figure(figsize=(9, 1.7 * len(names)))
    axes = figure.subplots(len(names), 2, squeeze=False)
    for row, name in enumerate(names):
        density, weights = axes[row]
        density.fill_between(axis, before, color="#c8c8c8", label="reference")
        density.plot(axis, after[row], color="#2b5d8a", linewidth=1.2, label="aligned")
        density.set_ylabel(name, fontsize=8)
        density.set_yticks([])
        for k, colour in enumerate(("#2b5d8a", "#7a7a7a", "#b5562a")):
            weights.plot([step[row][k] for step in history], color=colour, linewidth=1.0, label=f"G{k + 1}")
        weights.set_ylim(-0.02, 1.02)
    axes[0][0].legend(fontsize=7)
    axes[0][1].legend(fontsize=7)
    axes[0][0].set_title("density", fontsize=9)
    axes[0][1].set_title("weights over the steps", fontsize=9)
    figure.tight_layout()
    save_figure(figure, path)
