"""A page on this machine on which people say what they see: the labels that `fairanon audit --labels` takes."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from fairanon.evaluation.folders import ImageFolder
from fairanon.files import atomic_write, write_text
from fairanon.report.page import render

PLACE = "label"


def write_labelling(
    out: Path, images: ImageFolder, files: Sequence[str], classes: Mapping[str, Sequence[str]], count: int, seed: int
) -> Path:
    """Copy some images, drawn at random, beside a page that asks for each of them.

    Args:
        out: The audit's folder.
        images: Where they lie.
        files: The names of those that are counted.
        classes: What is asked of each, and the answers.
        count: How many, at most.
        seed: Of the draw.

    Returns:
        The page. It needs no server, asks no other host, and gives a ``labels.csv`` to whoever answers.
    """
    folder = out / PLACE
    chosen = sorted(random.Random(seed).sample(list(files), min(count, len(files))))
    shown = []
    with atomic_write(folder / "images") as partial:
        partial.mkdir()
        for number, name in enumerate(chosen):
            place = f"{number:05}{Path(name).suffix.lower()}"  # their own names may be anything, and tell the prompt
            shutil.copyfile(os.fspath(images.there[name]), partial / place)
            shown.append([f"images/{place}", name])
    questions = [{"attribute": name, "classes": list(values)} for name, values in classes.items()]
    page = render(
        "label.html", refresh=False, title="What do you see?", made=[f"{len(chosen)} images, drawn at random"], word="",
        images=json.dumps(shown).replace("<", "\\u003c"), questions=json.dumps(questions).replace("<", "\\u003c"),
    )  # fmt: skip
    write_text(folder / "index.html", page)
    return folder / "index.html"
