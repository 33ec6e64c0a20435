"""Counts how often an embedded judge says which class of portraits whose classes are known: its confusion, for audits.

python -m fairanon.assets.judge_errors
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.config.experiments import experiments_folder
from fairanon.evaluators import TinyAttributes
from fairanon.files import write_json
from fairanon.progress import progress_bar

_SEED = 601
"""Of portraits that trained no judge."""
PEOPLE = ("gender", "tone", "age", "expression", "glasses", "hands")


JUDGES: dict[str, Literal["attributes", "attributes_b"]] = {
    "tiny_attributes": "attributes",
    "tiny_attributes_b": "attributes_b",
}
"""The judges' files, and their networks."""


def confusion(name: str = "tiny_attributes", count: int = 6000) -> dict[str, Any]:
    """A judge's confusion on balanced portraits, as ``fairanon audit --confusion`` reads it."""
    judge, tables = TinyAttributes(network=JUDGES[name]), {}
    for attribute in PEOPLE:
        size = len(judge.classes[attribute])
        tables[attribute] = torch.zeros(size, size, dtype=torch.long)
    for first in progress_bar(range(0, count, 500), desc="portraits", unit="part"):
        scenes = draw_scenes(_SEED, range(first, min(first + 500, count)), "balanced")
        probabilities = judge.classify(render(scenes).image)
        for attribute, table in tables.items():
            seen = ~probabilities[attribute].isnan().any(1)
            true, guess = getattr(scenes, attribute).long()[seen], probabilities[attribute][seen].argmax(1)
            table.index_put_((true, guess), torch.ones(len(true), dtype=torch.long), accumulate=True)
    return {
        "judge": judge.name,
        "data": f"{count} balanced portraits of the embedded world (seed {_SEED}), which trained no judge",
        "made_by": "python -m fairanon.assets.judge_errors",
        "attributes": {
            attribute: {"classes": list(judge.classes[attribute]), "said": table.tolist()}
            for attribute, table in tables.items()
        },
    }


def place(name: str) -> Path:
    """Where the file lies: beside the judge's own."""
    return experiments_folder() / "judges" / f"{name}.confusion.json"


if __name__ == "__main__":
    for judge_name in JUDGES:
        write_json(place(judge_name), confusion(judge_name))
