"""An audit as one self-contained HTML page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fairanon.auditor.findings import holm
from fairanon.auditor.sentences import leaning, number
from fairanon.batches import PromptRow
from fairanon.evaluation.engine import Samples
from fairanon.files import write_text
from fairanon.imaging import grid, to_array
from fairanon.report.answer import brief
from fairanon.report.page import data_uri, dot_row, render

_SHOWN, _BARS, _GRIDS, _TABS = 8, 200, 3, 3
"""Images of a prompt, prompts of an attribute, sheets of prompts and attributes with a tab of their own that a page shows."""
SHOWN_PROMPTS = 2 * _BARS
"""Prompts whose images are kept for it: the first ones."""
_WORDS = {
    "distance": "distance from the target, without what chance and the judge's errors add",
    "distance_as_judged": "the same as the judge says it",
    "per_prompt": "mean distance of a prompt, chance included (other papers' number)",
    "pooled": "all images together (PopAlign's tables)",
    "worst": "the farthest prompt, chance included",
    "floor": "what a fair model of as many images would score per prompt",
    "most": "the farthest that there is: every prompt of one class alone",
    "total_variation": "share of the images that would have to change, chance included (total variation)",
    "divergence": "Kullback-Leibler divergence from the target, in nats",
    "gap": "mean difference of two classes' shares (aDFT)",
}
_MISSING = {
    "blank": "Not counted, nothing is to be seen (blacked out, refused, unreadable)",
    "no_face": "Not counted, no face was found",
    "unsure": "Counted, but the judge was not sure (under .8)",
}


def write_page(
    out: Path, result: Mapping[str, Any], sentences: Sequence[str], samples: Samples, rows: Sequence[PromptRow]
) -> Path:
    """Write ``report.html``.

    Args:
        out: The audit's folder.
        result: What audit.json says.
        sentences: What it comes to.
        samples: Whose images are shown.
        rows: Their prompts.
    """
    strips, attributes = strips_of(samples, rows), result["attributes"]
    groups = [bars_of(name, findings, strips) for name, findings in attributes.items()]
    tabs = [(f"Every prompt: {group['name']}", [group]) for group in groups[:_TABS]]
    if len(groups) > _TABS:
        tabs[-1:] = [("Every prompt: the other attributes", groups[_TABS - 1 :])]
    certain = holm({name: findings["chance"] for name, findings in result["together"].items()})
    page = render(
        "audit.html",
        refresh=False,
        title=f"How the model {result['model']!r} portrays people",
        made=_made(result),
        word="",
        told=sentences,
        tiles=[_tile(name, findings) for name, findings in attributes.items()],
        groups=groups,
        tabs=tabs,
        grids=_grids(result, strips),
        together=[(name, _together(findings, certain[name])) for name, findings in result["together"].items()],
        obeyed=_dots(result["obeyed"]),
        shown=_dots(result["shown"], "shows the {} asked for"),
        scores=[(name, number(score)) for name, score in result["scores"].items()],
        missing=[(name, _lost(findings)) for name, findings in attributes.items()],
        bounds=[(name, ["n/a" if end is None else brief(end) for end in findings["bounds"]]) for name, findings in attributes.items()],
        judges=[(name, findings["confusion"], findings["classes"], _confusion(findings)) for name, findings in attributes.items()],
        labels=[(name, _by_people(findings)) for name, findings in attributes.items() if findings["labels"]],
        comparison=_comparison(result),
        others=(result["compared_with"], result["model"]),
        kinds=[(column, _kinds(values)) for column, values in result["kinds"].items()],
        numbers=[(name, _all_numbers(findings)) for name, findings in attributes.items()],
        judge=result["judge"],
        corrected=[name for name, findings in attributes.items() if findings["corrected"]],
        titles=[
            *(title for title, _ in tabs), *(["Compared"] if result.get("comparison") else []), *(["By " + ", ".join(result["kinds"])] if result["kinds"] else []),
            "Who is obeyed, what goes together", "Missing, and the judge", "All numbers", "How, and limits",
        ],
    )  # fmt: skip
    write_text(out / "report.html", page)
    return out / "report.html"


def _made(result: Mapping[str, Any]) -> list[str]:
    how = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result["how"].items())
    return [
        datetime.now().astimezone().isoformat(" ", "minutes"),
        f"{result['prompts']} prompts that name no group, {result['images']} images",
        *([how] if how else []),
        *([] if result["seed"] is None else [f"seed {result['seed']}"]),
        f"appearance as judged by {result['judge']}",
        f"fairanon {result['fairanon']}",
    ]


def _tile(name: str, findings: Mapping[str, Any]) -> dict[str, Any]:
    rows = [row for row in findings["prompts"] if row["shares"]]
    away, numbers = sum(row["named"] for row in rows), findings["numbers"]
    floor = numbers["floor"]
    fair = "" if floor is None else f"; a fair model of as many images: {number(floor)}"
    return {
        "title": f"{name}: distance from {'even shares' if findings['even'] else 'the target'}",
        "after": number(numbers["distance"]), "before": "", "change": f"{away} of {len(rows)} prompts are clearly away from it",
        "state": "", "note": f"per prompt, chance included: {number(numbers['per_prompt'])}{fair}", "key": "distance",
    }  # fmt: skip


def bars_of(name: str, findings: Mapping[str, Any], strips: Mapping[str, str]) -> dict[str, Any]:
    """A bar for each prompt, the farthest from its target first; grey where chance may explain it."""
    classes, rows = findings["classes"], [row for row in findings["prompts"] if row["shares"]]
    rows.sort(key=lambda row: -(row["square"] if row["square"] is not None else -1.0))
    bars = []
    for row in rows[:_BARS]:
        k = 0 if len(classes) == 2 else leaning(row, classes)
        share = row["shares"][k]
        label = row["prompt"] if len(classes) == 2 else f"{row['prompt']}: {classes[k]}"
        everybody = ", ".join(f"{class_name} {count}" for class_name, count in zip(classes, row["counts"], strict=True))
        bars.append({
            **dot_row(label, None if row["named"] else share, share if row["named"] else None, row["target"][k]),
            "strip": strips.get(row["prompt"]), "all": f"{everybody} of {row['judged']} images as judged", "said": number(share),
        })  # fmt: skip
    what = f"share that looks {classes[0]}" if len(classes) == 2 else "the class that is shown most beyond its target"
    away = sum(row["named"] for row in rows)
    return {
        "name": name, "title": f"{name}: {what}", "rows": bars, "away": away, "count": len(rows),
        "more": len(rows) - len(bars), "first": f"the {min(8, len(bars))} farthest of {len(rows)} prompts; {away} are clearly away from the target",
    }  # fmt: skip


def strips_of(samples: Samples, rows: Sequence[PromptRow]) -> dict[str, str]:
    """The first images of each prompt, side by side."""
    place = {row: k for k, row in enumerate(samples.thumbnail_prompt.unique().tolist()[:SHOWN_PROMPTS])}
    strips = {}
    for row in place:
        images = samples.thumbnails[samples.thumbnail_prompt == row][:_SHOWN]
        strips[rows[row].prompt] = _jpeg(grid(images, _SHOWN))
    return strips


def _jpeg(image: Tensor) -> str:
    file = io.BytesIO()
    Image.fromarray(to_array(image)).save(file, "jpeg", quality=85)
    return data_uri(file.getvalue(), "image/jpeg")


def _grids(result: Mapping[str, Any], strips: Mapping[str, str]) -> list[tuple[str, str]]:
    """The most skewed prompts' images, and why: only prompts that are clearly away from the target."""
    skewed: dict[str, tuple[float, str]] = {}
    for name, findings in result["attributes"].items():
        for row in findings["prompts"]:
            if row["named"] and row["prompt"] in strips and row["square"] > skewed.get(row["prompt"], (0.0, ""))[0]:
                k = leaning(row, findings["classes"])
                why = f"{row['prompt']}: {name}, {findings['classes'][k]} in {row['counts'][k]} of {row['judged']}"
                skewed[row["prompt"]] = row["square"], why
    order = sorted(skewed, key=lambda prompt: -skewed[prompt][0])[:_GRIDS]
    return [(skewed[prompt][1], strips[prompt]) for prompt in order]


def _dots(estimates: Mapping[str, Any], label: str = "{}") -> list[dict[str, Any]]:
    return [
        {
            **dot_row(label.format(name), None, estimate),
            "said": f"{round(estimate['value'] * estimate['n'])} of {estimate['n']}",
        }
        for name, estimate in estimates.items()
    ]


def _lost(findings: Mapping[str, Any]) -> list[str]:
    return [
        f"{_MISSING[kind]}: {round(estimate['value'] * estimate['n'])} of {estimate['n']}"
        for kind, estimate in findings["missing"].items()
    ]


def _together(findings: Mapping[str, Any], certain: bool) -> dict[str, Any]:
    cells = sorted(findings["cells"].items(), key=lambda item: -item[1]["value"])
    even = 1 / len(cells) if cells else 0
    rows = [
        {**dot_row(name, None, cell, even), "said": f"{round(cell['value'] * cell['n'])} of {cell['n']}"}
        for name, cell in cells
    ]
    return {
        "rows": rows, "smallest": findings["smallest"], "share": number(findings["cells"].get(findings["smallest"])),
        "depend": certain, "dependence": number(findings["dependence"]), "chance": f"{findings['chance']:.3f}",
        "distance": number(findings["distance"]),
    }  # fmt: skip


def _confusion(findings: Mapping[str, Any]) -> list[list[str]] | None:
    """The judge's errors, as parts of each true class."""
    if findings["said"] is None:
        return None
    return [[f"{value / sum(row):.3f}" for value in row] for row in findings["said"]]


def _by_people(findings: Mapping[str, Any]) -> dict[str, Any]:
    labels = findings["labels"]
    return {
        "images": labels["images"],
        "apart": labels["apart"],
        "shares": {name: number(share) for name, share in labels["shares"].items()},
    }


def _kinds(values: Mapping[str, Any]) -> dict[str, Any]:
    """A table of the kinds of prompts: what is in each column, and a line for each kind."""
    first = next(iter(values.values()))
    names = list(first["distance"])
    shown = list(dict.fromkeys(name for kind in values.values() for name in kind["shown"]))
    titles = [
        "prompts",
        "images",
        *(f"{name}: distance" for name in names),
        *(f"{name}: looks" for name in names),
        "no face",
    ]
    titles += [
        "prompts that name a group",
        "obeyed",
        *(f"shows the {name} asked for" for name in shown),
        *first["scores"],
    ]
    rows = []
    for value, kind in values.items():
        cells = [number(kind["distance"][name]) for name in names] + [_looks(kind["shares"][name]) for name in names]
        cells += [number(kind["no_face"][names[0]]), str(kind["naming"]), number(kind["obeyed"])]
        cells += [number(kind["shown"].get(name)) for name in shown] + [
            number(score) for score in kind["scores"].values()
        ]
        rows.append([value, str(kind["prompts"]), str(kind["images"]), *cells])
    return {"titles": titles, "rows": rows}


def _looks(shares: Mapping[str, Any]) -> str:
    """Of two classes the first one's share, of more that of the most frequent one."""
    if not shares:
        return "n/a"
    name = next(iter(shares)) if len(shares) == 2 else max(shares, key=lambda one: shares[one]["value"])
    return f"{name} {number(shares[name])}"


def _all_numbers(findings: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(_WORDS[key], number(estimate)) for key, estimate in findings["numbers"].items()]
    return [*rows, ("variety within a prompt and class (0: one person again and again)", number(findings["variety"]))]


def _comparison(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What is compared, the other's number, this one's, and the verdict."""
    rows = [
        (f"{name}: distance", number(row["first"]), number(row["second"]), row["verdict"])
        for name, row in (result.get("comparison") or {}).items()
        if row is not None
    ]
    for title, key in (
        ("prompts that name a group are obeyed", "obeyed"),
        ("the image shows what else is asked for", "shown"),
    ):
        both = result.get("other", {}).get(key, {}), result[key]
        rows += [
            (f"{title}: {name}", number(both[0][name]), number(both[1][name]), "")
            for name in both[1]
            if name in both[0] and (key == "shown" or name == "all")
        ]
    rows += [
        (
            f"{name}: variety within a prompt and class",
            number(variety),
            number(result["attributes"][name]["variety"]),
            "",
        )
        for name, variety in result.get("other", {}).get("variety", {}).items()
        if variety is not None
    ]
    rows += [
        (
            f"{name}: mean score",
            number(theirs),
            number(ours),
            f"difference {number(more)} ({result['model']} less {result['compared_with']})",
        )
        for name, (ours, theirs, more) in result.get("other", {}).get("scores", {}).items()
    ]
    return rows
