"""A page on this machine on which people say what they see: the labels that `fairanon audit --labels` takes."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairanon.evaluation.image_folder import ImageFolder
from fairanon.files import atomic_write, content_key
from fairanon.imaging import CorruptImageError, read_image, write_image
from fairanon.progress import progress_bar
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
    questions = [{"attribute": name, "classes": list(values)} for name, values in classes.items()]
    with atomic_write(folder) as partial:
        (partial / "images").mkdir(parents=True)
        shown = []
        for number, name in enumerate(progress_bar(chosen, desc="images to label", unit="img", leave=False)):
            place = f"images/{number:05}.png"  # their own names may be anything, and tell the prompt
            try:
                write_image(read_image(images.there[name], name), partial / place)
            except CorruptImageError:
                continue  # it is counted as blank
            shown.append([place, name])
        page = render(
            "label.html", refresh=False, title="What do you see?", made=[f"{len(shown)} images, drawn at random"], word="",
            images=as_script(shown), questions=as_script(questions), key=as_script(f"fairanon {content_key(shown, questions, images.origin())}"),
        )  # fmt: skip
        (partial / "index.html").write_text(page, encoding="utf-8")
    return folder / "index.html"


def as_script(value: Any) -> str:
    """A value as a script may hold it: no text ends the script."""
    return json.dumps(value).replace("<", "\\u003c")
