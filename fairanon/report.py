"""A finished run for people: a table in the terminal and one self-contained HTML page."""

from __future__ import annotations

import base64
import csv
import html
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

from fairanon.files import beside, read_json, read_text, write_text

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .75rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}.better{color:#0a6b3d}.worse{color:#a3321f}small{color:#666}
figure{margin:1rem 0}img{max-width:100%;image-rendering:auto}.pair{display:flex;gap:1rem;flex-wrap:wrap}
.pair figure{flex:1 1 16rem}.wide{width:min(95vw,90rem);margin-left:calc(50% - min(47.5vw,45rem));overflow-x:auto}
td{white-space:nowrap}.wide table{margin:0 auto;font-size:14px}pre{background:#f6f6f6;padding:1rem;overflow:auto;font-size:13px}
"""
_LOWER = ("discrepancy", "fid", "kid", "loss")
_HIGHER = ("recall", "alignment", "confidence", "detection_rate", "score", "reward_accuracy", "group_accuracy")


def _format(estimate: Mapping[str, float] | None, spec: str = ".3f") -> str:
    if estimate is None:
        return "n/a"
    value, low, high = (format(estimate[key], spec) for key in ("value", "low", "high"))
    return value if estimate["low"] == estimate["high"] else f"{value} [{low}, {high}]"


def _verdict(key: str, before: Mapping[str, float] | None, after: Mapping[str, float] | None) -> str:
    """Better or worse where the intervals do not overlap, otherwise nothing."""
    kind = key.partition("/")[0]
    if before is None or after is None or kind not in (*_LOWER, *_HIGHER) or key.endswith("/floor"):
        return ""
    if after["high"] < before["low"]:
        return "better" if kind in _LOWER else "worse"
    if after["low"] > before["high"]:
        return "worse" if kind in _LOWER else "better"
    return ""


def table_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str, str, str, str]]:
    """Rows of the before-and-after table.

    Args:
        result: The content of a metrics.json.

    Returns:
        Key, before, after, paired change (a ratio "x 0.500", a difference "+0.500", or ""), verdict ("better", "worse" or
        "") and n.
    """
    rows = []
    for key, after in result["after"].items():
        before = result["before"].get(key)
        ratio, difference = (result.get(kind, {}).get(key) for kind in ("ratio", "difference"))
        change = f"x {_format(ratio)}" if ratio else _format(difference, "+.3f") if difference else ""
        count = "" if after is None else format(after["n"], ".0f")
        rows.append((key, _format(before), _format(after), change, _verdict(key, before, after), count))
    return rows


def _alike(result: Mapping[str, Any]) -> str:
    """One line on how alike the pictures of the same prompts and noise stayed; "" where it was not measured."""
    found = result.get("same_noise", {})
    if not found:
        return ""
    return "same noise before and after: " + ", ".join(f"{key} {_format(value)}" for key, value in found.items())


def print_table(result: Mapping[str, Any]) -> None:
    """Print the before-and-after table."""
    rows = [("", "before", "after", "change, paired", "", "n"), *table_rows(result)]
    widths = [max(len(row[k]) for row in rows) for k in range(6)]
    judged = (value for key, value in result["after"].items() if not key.startswith(("loss/", "reward_accuracy/")))
    missing = max((int(value["missing"]) for value in judged if value is not None), default=0)
    print(f"\n{result['experiment']}: {_counted(result)}, 95 % intervals, up to {missing} images without a judgement")
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(_alike(result))


def _counted(result: Mapping[str, Any]) -> str:
    """How many images were judged."""
    return f"{result['images']} images, {result['images_per_prompt']} a prompt"


def _moved(result: Mapping[str, Any]) -> float:
    """The largest change of a share that training should have left alone; nan where none is measured."""
    pairs = [
        abs(after["value"] - result["before"][key]["value"])
        for key, after in result["after"].items()
        if key.startswith("share/")
    ]
    return max(pairs, default=float("nan"))


def summarise(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, dict[str, float] | None]]:
    """Means over seeds of experiments that share their prompts and judges.

    Args:
        runs: For each experiment the contents of the metrics.json of its seeds.

    Returns:
        For the base model and each experiment the headline numbers (None where a judge is absent), ratios ("ratio KEY"),
        differences ("change KEY") and, where it was measured, "largest share moved": value (the mean), low and high (the
        range; of differences the lowest and the highest end of the seeds' paired intervals) and n (seeds).
    """
    base = next(iter(runs.values()))[0]

    def numbers(run: Mapping[str, Any], stage: str) -> dict[str, Mapping[str, float] | None]:
        found: dict[str, Any] = {}
        for key in base["headline"]:
            if key in run[stage]:
                found[key] = run[stage][key] and _exactly(run[stage][key]["value"])
        before = stage == "before"
        for key, value in run["ratio"].items():
            found[f"ratio {key}"] = _exactly(1.0 if before else value["value"])
        for key, value in run.get("difference", {}).items():
            found[f"change {key}"] = _exactly(0.0) if before else value
        if any(key.startswith("share/") for key in run[stage]):
            found["largest share moved"] = _exactly(0.0 if before else _moved(run))
        return found

    cells = {"base": [numbers(base, "before")]}
    cells |= {name: [numbers(seed, "after") for seed in seeds] for name, seeds in runs.items()}
    return {
        name: {key: _over_seeds([seed[key] for seed in seeds]) for key in seeds[0]} for name, seeds in cells.items()
    }


def _exactly(value: float) -> dict[str, float]:
    return {"value": value, "low": value, "high": value}


def _over_seeds(seeds: Sequence[Mapping[str, float] | None]) -> dict[str, float] | None:
    found = [seed for seed in seeds if seed is not None]
    if len(found) < len(seeds):
        return None
    return {
        "value": fmean(seed["value"] for seed in found),
        "low": min(seed["low"] for seed in found),
        "high": max(seed["high"] for seed in found),
        "n": float(len(found)),
    }


def compare(rows: Mapping[str, Mapping[str, Mapping[str, float] | None]]) -> str:
    """A Markdown table of what `summarise` returned: means and, below them, ranges."""
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))  # the base has no win rate
    lines = [f"| {' | '.join(['', *keys])} |", "|" + "---|" * (len(keys) + 1)]
    for name, row in rows.items():
        cells = [_format(row.get(key)).replace(" [", "<br>[") for key in keys]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def _html_table(rows: Mapping[str, Mapping[str, Any]], keys: Sequence[str], title: str, said: str) -> list[str]:
    """One line per row, one column per key; wider than the text if need be."""
    heads = "".join(f"<th>{html.escape(key).replace('/', '/<wbr>')}</th>" for key in keys)
    parts = [f"<h2>{title}</h2><div class=wide><table><tr><th></th>{heads}</tr>"]
    for name, row in rows.items():
        cells = (re.sub(r" (\[.*\])", r"<br><small>\1</small>", _format(row.get(key))) for key in keys)
        parts.append(f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return [*parts, f"</table></div><p><small>{said}</small></p>"]


def _comparisons(result: Mapping[str, Any]) -> list[str]:
    """The report's tables of this run beside its stages and its rivals."""
    keys = [key for key in result["headline"] if key in result["after"]]
    parts = []
    if "stages" in result:
        said = f"{result['images']} images in each row: the same prompts, sources and noise; 95 % intervals."
        parts += _html_table(result["stages"], keys, "stage by stage", said)
    if "rivals" in result:
        said = "On the same pictures; 95 % intervals."
        if "rivals_from" in result:
            said = f"Mean and range over seeds, measured by <code>{html.escape(result['rivals_from'])}</code>; this run: 95 % intervals."
        rows = {"this run": result["after"], **result["rivals"]}
        parts += _html_table(rows, keys, "beside its rivals", said)
    return parts


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'


def curves(folder: Path) -> None:
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
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False)
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


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG under a temporary name first, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    with beside(path) as partial:
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
    figure, axes = plt.subplots(
        len(shares), 2, figsize=(10, len(shares) * (0.9 + 0.24 * len(prompts))), squeeze=False, sharex=True, sharey=True
    )
    for row, (attribute, stages) in zip(axes, shares.items(), strict=True):
        names = classes[attribute]
        colours = plt.get_cmap("cividis_r")([k / max(1, len(names) - 1) for k in range(len(names))])
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
    figure, axis = plt.subplots(figsize=(7, 6))
    for (name, rows), marker, colour in zip(points.items(), "o^x", ("#2b5d8a", "#c46a1c", "#4a7d3a"), strict=False):
        axis.scatter(rows[:, 0], rows[:, 1], s=14, marker=marker, color=colour, alpha=0.6, label=name)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    save_figure(figure, path)


def write_report(folder: Path) -> Path:
    """Write ``report.html``: table with intervals, training curves, grids before and after, configuration.

    Args:
        folder: A finished run's folder.

    Returns:
        The path of the page; it needs no other file.
    """
    result = read_json(folder / "metrics.json", "report")
    judges = ", ".join(f"{what} by {name}" for what, name in result["judges"].items())
    curves(folder)
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{html.escape(result['experiment'])}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(result['experiment'])}</h1>",
        f"<p>{_counted(result)}; 95 % intervals.</p>",
        f"<p>Judges: {html.escape(judges)}. They see how a picture looks, not what a person is.</p>",
        "<table><tr><th></th><th>before</th><th>after</th><th>change, paired</th><th>n</th></tr>",
    ]
    for key, before, after, change, verdict, count in table_rows(result):
        parts.append(
            f"<tr><td>{html.escape(key)}</td><td>{before}</td><td class='{verdict}'>{after}</td><td>{change}</td>"
            f"<td>{count}</td></tr>"
        )
    parts.append(f"</table><p>{html.escape(_alike(result))}</p>")
    parts += _comparisons(result)
    if (folder / "shares.png").exists():
        parts.append(f"<h2>who is drawn</h2><figure>{_picture(folder / 'shares.png')}")
        parts.append("<figcaption>share of each class per neutral prompt; dotted: the ideal</figcaption></figure>")
    if (folder / "identities.png").exists():
        parts.append(f"<h2>whose faces</h2><figure>{_picture(folder / 'identities.png')}")
        parts.append("<figcaption>t-SNE of the judge's embeddings: near is alike</figcaption></figure>")
    prompts_path = folder / "grids" / "prompts.json"
    prompts = read_json(prompts_path, "report") if prompts_path.exists() else {}
    for name, lines in prompts.items():
        parts.append(f"<h2>{html.escape(name)} prompts</h2><div class=pair>")
        for stage in ("source", "before", "after"):
            path = folder / "grids" / f"{name}-{stage}.png"
            if not path.exists():
                continue
            picture = _picture(path)
            parts.append(f"<figure>{picture}<figcaption>{stage}</figcaption></figure>")
        listed = "<br>".join(html.escape(line) for line in lines)
        parts.append(
            f"</div><details><summary>the prompts, in the order of the pictures</summary><small>{listed}</small></details>"
        )
    if (folder / "curves.png").exists():
        parts.append(f"<h2>training</h2><figure>{_picture(folder / 'curves.png')}</figure>")
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in result["seconds"].items())
    parts.append(f"<p><small>{html.escape(seconds)}</small></p>")
    for name in ("config.yaml", "versions.json"):
        if (folder / name).exists():
            text = html.escape(read_text(folder / name, "report"))
            parts.append(f"<details><summary>{name}</summary><pre>{text}</pre></details>")
    page = folder / "report.html"
    write_text(page, "\n".join(parts))
    return page


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
    figure, axes = plt.subplots(len(names), 2, figsize=(9, 1.7 * len(names)), squeeze=False)
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
