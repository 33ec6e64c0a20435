"""Counts how often the embedded judge says which class of portraits whose classes are known: its confusion, for audits.

python -m fairanon.assets.judge_errors
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def confusion(count: int = 6000) -> dict[str, Any]:
    """The judge's confusion on balanced portraits, as ``fairanon audit --confusion`` reads it."""
    judge, tables = TinyAttributes(), {}
    for name in PEOPLE:
        tables[name] = torch.zeros(len(judge.classes[name]), len(judge.classes[name]), dtype=torch.long)
    for first in progress_bar(range(0, count, 500), desc="portraits", unit="part"):
        scenes = draw_scenes(_SEED, range(first, min(first + 500, count)), "balanced")
        probabilities = judge.classify(render(scenes).image)
        for name, table in tables.items():
            seen = ~probabilities[name].isnan().any(1)
            true, guess = getattr(scenes, name).long()[seen], probabilities[name][seen].argmax(1)
            table.index_put_((true, guess), torch.ones(len(true), dtype=torch.long), accumulate=True)
    return {
        "judge": judge.name,
        "data": f"{count} balanced portraits of the embedded world (seed {_SEED}), which trained no judge",
        "made_by": "python -m fairanon.assets.judge_errors",
        "attributes": {
            name: {"classes": list(judge.classes[name]), "said": table.tolist()} for name, table in tables.items()
        },
    }


def place() -> Path:
    """Where the file lies: beside the judge's own."""
    return experiments_folder() / "judges" / "tiny_attributes.confusion.json"


if __name__ == "__main__":
    write_json(place(), confusion())
