"""A finished run as one self-contained HTML page."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from fairanon.config.experiments import experiments_folder, first_line
from fairanon.files import read_json, read_text, write_text
from fairanon.imaging import GAP, open_image
from fairanon.report.answer import answer, brief, change_of, interval, state
from fairanon.report.table import alike, counted, shown
from fairanon.report.words import missing_needs, words

_FIGURES = {"identities.png": ("whose faces", "t-SNE of the judge's embeddings: near is alike")}
_NAMES = {
    "neutral": "Prompts that name no group",
    "heldout": "Prompts that training never saw",
    "specific": "Prompts that name a group",
    "generic": "Prompts without people",
    "people": "People",
}


def render(template: str, **content: Any) -> str:
    """A page of ours: no other file, no other host."""
    environment = Environment(
        loader=PackageLoader("fairanon.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["image"] = data_uri
    environment.filters["brief"] = lambda value: brief(float(value))
    return environment.get_template(template).render({"mark": "", **content})


def data_uri(content: Path | bytes, kind: str = "image/png") -> str:
    """A file's content as an address that needs no file."""
    raw = content if isinstance(content, bytes) else content.read_bytes()
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def write_report(folder: Path) -> Path:
    """Write ``report.html``: the answer, who is drawn, images before and after, rivals, curves, settings, all numbers.

    Args:
        folder: A finished run's folder.

    Returns:
        The path of the page; it needs no other file.
    """
    from fairanon.report.plots import plot_curves  # matplotlib takes seconds, and most pages have no curves

    result = read_json(folder / "metrics.json", "report")
    plot_curves(folder)
    reply = answer(result)
    shares, sheets, beside, stay = _shares(result), sheets_of(folder), _beside(result), _stay(result)
    curves = folder / "curves.png"
    tabs = [*(["People"] if shares or sheets else []), *(title for title, *_ in beside)]
    tabs += [*(["What should stay"] if stay else []), *(["Training"] if curves.exists() else [])]
    page = render(
        "page.html",
        refresh=False,
        title=result["experiment"],
        made=_made(folder, result),
        word=reply.word,
        state=reply.state,
        sentence=reply.sentence,
        answer=reply,
        result=result,
        counted=counted(result),
        alike=alike(result),
        who=_who(result, shares),
        shares=shares,
        sheets=sheets,
        beside=beside,
        stay=stay,
        figures=[(folder / name, *captions) for name, captions in _FIGURES.items() if (folder / name).exists()],
        curves=curves if curves.exists() else None,
        looks=_looks(folder),
        described=described(result["experiment"]),
        files={
            name: read_text(folder / name, "report")
            for name in ("config.yaml", "versions.json")
            if (folder / name).exists()
        },
        numbers=_numbers(result),
        absent=[(words(key), missing_needs(key)) for key, value in result["after"].items() if value is None],
        csv=data_uri(as_csv(result).encode(), "text/csv"),
        titles=[*tabs, "Method and settings", "All numbers"],
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def write_first_page(folder: Path, experiment: str, numbers: Mapping[str, Any], shares: list[dict[str, Any]]) -> Path:
    """Write ``report.html`` while training goes on: what the model scored before.

    Args:
        folder: Of the run.
        experiment: Its name.
        numbers: Of the model as it is, as metrics.json has them.
        shares: Who it draws, see `Measure.shares`, as "after".

    Returns:
        The path of the page; it loads itself again until the report has taken its place.
    """
    result = {"before": {}, "after": numbers, "headline": list(numbers), "shares": shares}
    page = render(
        "first.html",
        title=experiment,
        refresh=True,
        made=[described(experiment)],
        begun=datetime.now().astimezone().isoformat(" ", "minutes"),
        word="IN TRAINING",
        state="same",
        sentence="So far there is only what the model scored before.",
        tiles=answer(result).tiles,
        who=_who(result, _shares(result)),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def described(experiment: str) -> str:
    """The first line of an experiment's file; "" if it is none of ours."""
    path = experiments_folder() / f"{experiment}.yaml"
    return first_line(path) if path.is_file() else ""


def as_csv(result: Mapping[str, Any]) -> str:
    """All numbers, a row for each stage of each."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["key", "words", "stage", "value", "low", "high", "n", "missing"])
    for stage in ("before", "after", "ratio", "difference", "same_noise"):
        for key, value in result.get(stage, {}).items():
            cells = ["n/a"] * 5 if value is None else [value[name] for name in ("value", "low", "high", "n", "missing")]
            writer.writerow([key, words(key), stage, *cells])
    return table.getvalue()


def _made(folder: Path, result: Mapping[str, Any]) -> list[str]:
    """When, with which seed and code, how long and where."""
    versions, facts = result.get("versions", {}), [result["date"]] if "date" in result else []
    config = folder / "config.yaml"
    if config.exists():
        facts.append(f"seed {(yaml.safe_load(read_text(config, 'report')) or {}).get('seed_everything')}")
    git = versions.get("git")
    facts += [f"fairanon {versions['fairanon']}"] if "fairanon" in versions else []
    facts += [f"commit {git[:7]}{'' if versions.get('git_changes') == 'none' else ', changed'}"] if git else []
    minutes = sum(result["seconds"].values()) / 60
    return [
        *facts,
        f"{minutes:.0f} min" if minutes >= 1 else "under a minute",
        *([versions["device"]] if "device" in versions else []),
    ]


def dot_row(label: str, before: Any, after: Any, ideal: float | None = None) -> dict[str, Any]:
    """A line of a plot of dots: two estimates, and where they should be."""
    text = " → ".join(brief(estimate["value"]) for estimate in (before, after) if estimate)
    return {"label": label, "before": before, "after": after, "ideal": ideal, "said": text or "n/a"}


def _shares(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each attribute who is drawn: of two classes one, prompt by prompt; of more all, over all prompts."""
    by_attribute: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in result.get("shares", []):
        by_attribute.setdefault(row["attribute"], {}).setdefault(row["class"], []).append(row)
    groups: list[dict[str, Any]] = []
    for attribute, classes in by_attribute.items():
        chosen = dict([next(iter(classes.items()))]) if len(classes) == 2 else classes
        by_class = [
            (
                f"share that looks {name}",
                [dot_row(row["prompt"], row["before"], row["after"], row["ideal"]) for row in rows if row["prompt"]],
            )
            for name, rows in chosen.items()
        ]
        every = [
            dot_row(name, row["before"], row["after"], row["ideal"])
            for name, rows in classes.items()
            for row in rows
            if not row["prompt"]
        ]
        if len(chosen) == 1:
            groups.append({"title": f"Who is drawn: {by_class[0][0]}", "rows": by_class[0][1], "more": []})
        else:
            groups.append(
                {"title": f"Who is drawn: {attribute}, all prompts together", "rows": every, "more": by_class}
            )
    return groups


def _who(result: Mapping[str, Any], shares: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the first screen shows beside the images: who is drawn, or how each loss changed."""
    if shares:
        return {"title": shares[0]["title"], "rows": shares[0]["rows"], "low": 0, "high": 1, "dotted": "even"}
    rows = [dot_row(words(key), None, value, 1.0) for key, value in result.get("ratio", {}).items() if value]
    if not rows:
        return None
    low, high = axis(rows)
    return {
        "title": "After, as a part of before",
        "rows": rows,
        "low": min(low, 0.5),
        "high": max(high, 1.1),
        "dotted": "unchanged",
    }


def _stay(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Shares that training should leave alone."""
    return [
        dot_row(words(key).removeprefix("share of "), result["before"].get(key), value)
        for key, value in result["after"].items()
        if key.startswith("share/")
    ]


def axis(rows: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """An axis that holds all of them."""
    ends = [
        row[stage][end]
        for row in rows
        for stage in ("before", "after")
        if row[stage]
        for end in ("low", "high", "value")
    ]
    ends += [row["ideal"] for row in rows if row["ideal"] is not None]
    known = [end for end in ends if end is not None]
    low, high = min(known), max(known)
    margin = 0.05 * (high - low or abs(high) or 1.0)
    least = 0.0 if low >= 0 else low - margin  # nothing is below 0 of what never was, nor a share above 1
    return max(low - margin, least), min(high + margin, 1.0 if high <= 1 else high + margin)


def _beside(result: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]], list[tuple[str, list[str]]], str, str]]:
    """This run beside its stages and its rivals: title, a plot for each number, the table, what is said, the command."""
    sections = []
    for title, key, note in (
        (
            "Stages",
            "stages",
            f"{result['images']} images in each row: the same prompts, sources and noise; 95 % intervals.",
        ),
        ("Rivals", "rivals", "On the same images; 95 % intervals."),
    ):
        if key not in result:
            continue
        lines, command = result[key], result.get("rivals_from", "") if key == "rivals" else ""
        if command:
            note = "Mean and range over seeds; this run: 95 % intervals." + _other_base(result) + " Measured by"
        if key == "rivals":
            lines = {"this run": result["after"], **lines}
        keys = [metric for metric in result["headline"] if any(line.get(metric) for line in lines.values())]
        groups = []
        for metric in keys:
            rows = [dot_row(name, None, line.get(metric)) for name, line in lines.items() if line.get(metric)]
            low, high = axis(rows)
            groups.append({"key": metric, "title": words(metric), "rows": rows, "low": low, "high": high})
        table = [(name, [shown(line.get(metric)) for metric in keys]) for name, line in lines.items()]
        sections.append((title, groups, table, note, command))
    return sections


def _other_base(result: Mapping[str, Any]) -> str:
    """That the table's base model scored otherwise than this run's did, where it did."""
    base = result["rivals"].get("base", {})
    for key in result["headline"]:
        here, there = result["before"].get(key), base.get(key)
        if here and there and abs(here["value"] - there["value"]) > 5e-4:
            return (
                f" The table was measured elsewhere: there {words(key)} was {brief(there['value'])} for the base model, here it "
                f"was {brief(here['value'])}."
            )
    return ""


def sheets_of(folder: Path) -> list[dict[str, Any]]:
    """For each set of prompts its images: before, or the source, above those after; and the prompts."""
    path = folder / "grids" / "prompts.json"
    sheets = []
    for name, lines in (read_json(path, "report") if path.exists() else {}).items():
        there = {stage: folder / "grids" / f"{name}-{stage}.png" for stage in ("source", "before", "after")}
        there = {stage: sheet for stage, sheet in there.items() if sheet.exists()}
        if not there:
            continue
        lower = list(there)[-1]
        upper = next(iter(there)) if len(there) > 1 else None
        sheets.append(
            {
                "title": _NAMES.get(name, name), "prompts": lines, "a_row_each": _a_row_each(there[lower], len(lines)), "lower": there[lower], "lower_name": lower,
                "upper": there[upper] if upper else None, "upper_name": upper or "",
            }
        )  # fmt: skip
    return sheets


def _a_row_each(sheet: Path, prompts: int) -> bool:
    """Whether a sheet of square images has a row for each prompt."""
    with open_image(sheet) as image:
        step = (image.height + GAP) / prompts
        return (image.width + GAP) % step == 0


def _looks(folder: Path) -> list[tuple[int, Path]]:
    """What was drawn in the midst of the training: at most six of the looks, with their steps."""
    paths = sorted((folder / "looks").glob("step-*.png"))
    chosen = paths[:: -(-len(paths) // 6)] if paths else []
    return [(int(path.stem.removeprefix("step-")), path) for path in chosen]


def _numbers(result: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = []
    for key, after in result["after"].items():
        if after is None:
            continue
        before = result["before"].get(key)
        cells = [f"{brief(estimate['value'])} {interval(estimate)}" if estimate else "" for estimate in (before, after)]
        rows.append(
            {
                "key": key, "words": words(key), "before": cells[0], "after": cells[1], "change": change_of(result, key),
                "state": state(result, key), "n": format(after["n"], ".0f"),
            }
        )  # fmt: skip
    return rows
