"""Figures: curves, shares, scatter plots, mixtures."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from fairanon.files import atomic_write


def plot_curves(folder: Path) -> None:
    """Draw ``curves.png`` from the run's ``metrics.csv``: one panel per logged training number."""
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
        points = [(int(line["step"]), float(line[name])) for line in lines if line[name]]
        axis.set_visible(True)
        axis.plot(*zip(*points, strict=True), linewidth=1.0, color="#2b5d8a")
        axis.set_title(name.removeprefix("train/"), fontsize=10)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    save_figure(figure, folder / "curves.png")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG under a temporary name first.

    (Figures are not pyplot's: that would choose how a notebook shows its own.)
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    with atomic_write(path) as partial:
        partial.write_bytes(buffer.getvalue())


def plot_shares(
    path: Path,
    prompts: Sequence[str],
    classes: Mapping[str, Sequence[str]],
    shares: Mapping[str, tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]],
    ideal: Mapping[str, Sequence[float]],
) -> None:
    """Who is drawn: each prompt's share of every class as a stacked bar, before and after.

    Args:
        path: Where the figure goes.
        prompts: P prompts.
        classes: K classes of each attribute.
        shares: For each attribute the shares before and after, P rows of K.
        ideal: The K shares that each attribute should have; dotted lines.
    """
    figure = Figure(figsize=(10, len(shares) * (0.9 + 0.24 * len(prompts))))
    axes = figure.subplots(len(shares), 2, squeeze=False, sharex=True, sharey=True)
    for row, (attribute, stages) in zip(axes, shares.items(), strict=True):
        names = classes[attribute]
        colours = colormaps["cividis_r"]([k / max(1, len(names) - 1) for k in range(len(names))])
        for axis, stage, values in zip(row, ("before", "after"), stages, strict=True):
            left = [0.0] * len(prompts)
            for k, name in enumerate(names):
                widths = [line[k] for line in values]
                axis.barh(range(len(prompts)), widths, left=left, color=colours[k], label=name, height=0.8)
                left = [a + b for a, b in zip(left, widths, strict=True)]
            for edge in itertools.accumulate(ideal[attribute][:-1]):
                axis.axvline(edge, color="tab:red", linestyle=":", linewidth=1.2)
            axis.set_yticks(range(len(prompts)), prompts, fontsize=7)
            axis.set_title(f"{attribute}, {stage}", fontsize=9)
            axis.set_xlim(0, 1)
        row[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    axes[0][0].invert_yaxis()  # the first prompt on top, in every panel: they share the axis
    figure.tight_layout()
    save_figure(figure, path)


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
