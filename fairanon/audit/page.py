"""An audit as one self-contained HTML page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fairanon.audit.answer import leaning, number
from fairanon.batches import PromptRow
from fairanon.evaluation.engine import Samples
from fairanon.files import write_text
from fairanon.imaging import grid, to_array
from fairanon.report.page import data_uri, dot_row, render

_SHOWN = 8
"""Images of a prompt that a page shows."""
_GRIDS = 3
_WORDS = {
    "distance": "distance from the target, without what chance and the judge's errors add",
    "distance_as_judged": "the same as the judge says it",
    "per_prompt": "mean distance of a prompt, chance included (other papers' number)",
    "pooled": "all images together (PopAlign's tables)",
    "floor": "what a fair model of as many images would score per prompt",
    "total_variation": "total variation: share of the images that would have to change",
    "divergence": "Kullback-Leibler divergence from the target, in nats",
    "gap": "mean difference of two classes (aDFT)",
}
_MISSING = {
    "blank": "blank: blacked out, refused or unreadable",
    "no_face": "no face was found",
    "unsure": "the judge is not sure (under .8)",
}


def write_page(
    out: Path, result: Mapping[str, Any], told: Sequence[str], samples: Samples, rows: Sequence[PromptRow]
) -> Path:
    """Write ``report.html``.

    Args:
        out: The audit's folder.
        result: What audit.json says.
        told: What it comes to.
        samples: Whose images are shown.
        rows: Their prompts.
    """
    strips = _strips(samples, rows)
    groups = [_group(name, found, strips) for name, found in result["attributes"].items()]
    page = render(
        "audit.html",
        refresh=False,
        title=f"How {result['model']} portrays people",
        made=_made(result),
        word="",
        told=told,
        tiles=[_tile(name, found) for name, found in result["attributes"].items()],
        groups=groups,
        grids=_grids(result, strips),
        together=[(name, _together(one)) for name, one in result["together"].items()],
        obeyed=[dot_row(name, None, one) for name, one in result["obeyed"].items()],
        shown=[dot_row(f"shows the {name} asked for", None, one) for name, one in result["shown"].items()],
        missing=[(name, [(_MISSING[kind], number(one)) for kind, one in found["missing"].items()], found["bounds"]) for name, found in result["attributes"].items()],
        judges=[(name, found["confusion"], found["classes"], _confusion(found)) for name, found in result["attributes"].items()],
        labels=[(name, found["labels"], found["classes"]) for name, found in result["attributes"].items() if found["labels"]],
        comparison=_comparison(result),
        numbers=[(name, [(_WORDS[key], number(one)) for key, one in found["numbers"].items()] + [("variety within a prompt and class (0: one person again and again)", number(found["variety"]))]) for name, found in result["attributes"].items()],
        judge=result["judge"],
        corrected=[name for name, found in result["attributes"].items() if found["corrected"]],
        titles=_titles(result, groups),
    )  # fmt: skip
    write_text(out / "report.html", page)
    return out / "report.html"


def _titles(result: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [f"Every prompt: {group['name']}" for group in groups][:4]
    found += ["Compared"] if result.get("comparison") else []
    return [*found, "Who is obeyed, what goes together", "Missing, and the judge", "All numbers", "How, and limits"][:8]


def _made(result: Mapping[str, Any]) -> list[str]:
    how = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result["how"].items() if key != "folder")
    return [
        datetime.now().astimezone().isoformat(" ", "minutes"),
        f"{result['prompts']} prompts, {result['images']} images",
        *([how] if how else []),
        f"seed {result['seed']}",
        f"appearance as judged by {result['judge']}",
        f"fairanon {result['versions']['fairanon']}",
    ]


def _tile(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    rows = [row for row in found["prompts"] if row["shares"]]
    away = sum(row["named"] for row in rows)
    floor = found["numbers"]["floor"]
    note = (
        ""
        if floor is None
        else f"per prompt {number(found['numbers']['per_prompt'])}; a fair model would score {floor['value']:.2f}"
    )
    return {
        "title": f"{name}: distance from {'even shares' if found['even'] else 'the target'}",
        "after": number(found["numbers"]["distance"]), "before": "", "change": f"{away} of {len(rows)} prompts clearly away from it",
        "state": "", "note": note, "key": "distance",
    }  # fmt: skip


def _group(name: str, found: Mapping[str, Any], strips: Mapping[str, str]) -> dict[str, Any]:
    """A bar for each prompt, the farthest from its target first; grey where chance may explain it."""
    classes, rows = found["classes"], [row for row in found["prompts"] if row["shares"]]
    rows.sort(key=lambda row: -(row["square"] if row["square"] is not None else -1.0))
    bars = []
    for row in rows:
        k = 0 if len(classes) == 2 else leaning(row, classes)
        share = {
            key: None if row["shares"][k][key] is None else min(1.0, max(0.0, row["shares"][k][key]))
            for key in ("value", "low", "high")
        }
        label = row["prompt"] if len(classes) == 2 else f"{row['prompt']}: {classes[k]}"
        bars.append({
            **dot_row(label, None if row["named"] else share, share if row["named"] else None, row["target"][k]),
            "strip": strips.get(row["prompt"]), "all": ", ".join(f"{one} {number(row['shares'][j])}" for j, one in enumerate(classes)),
            "said": number(row["shares"][k]),
        })  # fmt: skip
    what = f"share that looks {classes[0]}" if len(classes) == 2 else "the class that is shown most beyond its target"
    return {"name": name, "title": f"{name}: {what}", "rows": bars}


def _strips(samples: Samples, rows: Sequence[PromptRow]) -> dict[str, str]:
    """The first images of each prompt, side by side."""
    found = {}
    for k, row in enumerate(rows):
        images = samples.thumbnails[samples.thumbnail_prompt == k][:_SHOWN]
        if len(images):
            found[row.prompt] = _jpeg(grid(images, _SHOWN))
    return found


def _jpeg(image: Tensor) -> str:
    file = io.BytesIO()
    Image.fromarray(to_array(image)).save(file, "jpeg", quality=85)
    return data_uri(file.getvalue(), "image/jpeg")


def _grids(result: Mapping[str, Any], strips: Mapping[str, str]) -> list[tuple[str, str]]:
    """The most skewed prompts' images: only prompts that are certainly away from the target."""
    found: dict[str, float] = {}
    for one in result["attributes"].values():
        for row in one["prompts"]:
            if row["named"] and row["prompt"] in strips:
                found[row["prompt"]] = max(found.get(row["prompt"], 0.0), row["square"])
    return [(prompt, strips[prompt]) for prompt in sorted(found, key=lambda one: -found[one])[:_GRIDS]]


def _together(one: Mapping[str, Any]) -> dict[str, Any]:
    cells = sorted(one["cells"].items(), key=lambda item: -item[1]["value"])
    even = 1 / len(cells) if cells else 0
    return {
        "rows": [dot_row(name, None, cell, even) for name, cell in cells], "smallest": one["smallest"],
        "share": number(one["cells"].get(one["smallest"])), "dependence": number(one["dependence"]), "chance": one["chance"],
        "distance": number(one["distance"]),
    }  # fmt: skip


def _confusion(found: Mapping[str, Any]) -> list[list[str]] | None:
    """The judge's errors, as parts of each true class."""
    if found["said"] is None:
        return None
    return [[f"{value / sum(row):.3f}" for value in row] for row in found["said"]]


def _comparison(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    found = []
    for name, row in (result.get("comparison") or {}).items():
        if row is not None:
            found.append((name, number(row["first"]), number(row["second"]), row["verdict"]))
    return found
