"""Worlds whose truth is known: folders of drawn people for audits to be tried on, whoever wrote them."""

from __future__ import annotations

import csv
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import OCCUPATIONS, draw_scenes
from fairanon.config.experiments import UserError
from fairanon.evaluators.listed import name_of
from fairanon.evaluators.tiny import ATTRIBUTES
from fairanon.files import atomic_write, read_json, write_json
from fairanon.imaging import write_image
from fairanon.progress import progress_bar

SKEWS = {"fair": None, "weak": 8.0, "strong": 1.0}
"""Dirichlet's concentration of the prompts' true shares; None: all even."""
TRUTH = "truth.json"
_COUNTED = 500
"""Images of each class on which the erring judge is measured."""


def write_worlds(
    out: Path,
    worlds: int,
    prompts: int,
    images: int,
    attribute: str,
    skew: str,
    right: float,
    missing: float,
    seed: int,
) -> None:
    """Write ``OUT/000/``, ``OUT/001/``, ... and ``OUT/truth.json``.

    Each world has ``images/PROMPT/*.png``; ``judged.csv``, what a judge that errs says of each image, and ``judge.yaml`` to take it for a
    judge; ``confusion.json``, how often it was wrong on images whose class is known.

    Args:
        out: A new folder.
        worlds: How many.
        prompts: In each.
        images: Of each prompt.
        attribute: gender (two classes) or tone (six).
        skew: See `SKEWS`.
        right: How often the judge is.
        missing: Share of images that show nobody.
        seed: Of everything; None draws one, which truth.json has: whoever knows it knows the truth.

    Raises:
        UserError: OUT holds something else. Worlds that the same command began are gone on with.
    """
    seed = secrets.randbits(32) if seed is None else seed
    classes = ATTRIBUTES[attribute]
    count, concentration = len(classes), SKEWS[skew]
    settings: dict[str, Any] = {
        "attribute": attribute,
        "skew": skew,
        "asked": [worlds, prompts, images, right, missing],
        "seed": seed,
    }
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        settings["seed"] = seed = _begun(out, settings)
    even = np.full((prompts, count), 1 / count)
    kind = 0.0 if concentration is None else float(np.sqrt((count - 1) / (count * (count * concentration + 1))))
    truth = {}
    for world in range(worlds):
        drawn = np.random.default_rng([seed, world])
        shares = even if concentration is None else drawn.dirichlet(np.full(count, concentration), prompts)
        truth[f"{world:03}"] = {
            "distance": float(np.sqrt(np.square(shares - even).sum(1).mean())),
            "shares": shares.tolist(),
        }
    write_json(out / TRUTH, {**settings, "distance_of_the_kind": kind, "worlds": truth})
    confusion = np.full((count, count), (1 - right) / (count - 1))
    np.fill_diagonal(confusion, right)
    for name, row in progress_bar(truth.items(), desc="worlds", unit="world"):
        if not (out / name).exists():
            generator = np.random.default_rng([seed, int(name), 1])
            with atomic_write(out / name) as partial:
                _write(
                    partial,
                    out / name,
                    classes,
                    attribute,
                    np.array(row["shares"]),
                    images,
                    confusion,
                    missing,
                    generator,
                )


def _begun(out: Path, settings: dict[str, Any]) -> int:
    """The seed of worlds that were begun by the same command.

    Raises:
        UserError: OUT holds something else.
    """
    before = read_json(out / TRUTH, "OUT") if (out / TRUTH).is_file() else {}
    same = isinstance(before, dict) and all(
        before.get(key) == value for key, value in settings.items() if key != "seed"
    )
    if not same:
        raise UserError(f"OUT: {out} holds something else, or worlds of another command; name a new folder.")
    return int(before["seed"])


def _write(
    place: Path, final: Path, classes: Sequence[str], attribute: str, shares: NDArray[Any], images: int, confusion: NDArray[Any],
    missing: float, generator: np.random.Generator,
) -> None:  # fmt: skip
    """One world."""
    place.mkdir(parents=True)
    lines = []
    for p, row in enumerate(shares):
        prompt = f"a photo of a {OCCUPATIONS[p % len(OCCUPATIONS)]}" + (
            f", {p // len(OCCUPATIONS) + 1}" if p >= len(OCCUPATIONS) else ""
        )
        true = generator.choice(len(classes), images, p=row)
        gone = generator.random(images) < missing
        scenes = draw_scenes(int(generator.integers(2**31)), range(p * images, (p + 1) * images), "balanced")
        scenes = scenes.replace(**{attribute: torch.from_numpy(true), "subject": torch.from_numpy(gone.astype(np.int64) * 2),
                                   "occupation": torch.full((images,), p % len(OCCUPATIONS))})  # fmt: skip
        folder = place / "images" / prompt.replace(" ", "_")
        folder.mkdir(parents=True)
        for k, image in enumerate(render(scenes).image):
            write_image(image, folder / f"{k:03}.png")
            guess = "" if gone[k] else classes[generator.choice(len(classes), p=confusion[true[k]])]
            lines.append([f"images/{folder.name}/{k:03}.png", guess])
    with (place / "judged.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["file", attribute], *lines])
    counted = [generator.multinomial(_COUNTED, row).tolist() for row in confusion]
    write_json(place / "confusion.json", {
        "judge": name_of(place / "judged.csv"), "data": f"{_COUNTED} images of each class of this world",
        "attributes": {attribute: {"classes": list(classes), "said": counted}},
    })  # fmt: skip
    judge = {
        "class_path": "fairanon.evaluators.ListedAttributes",
        "init_args": {"classes": {attribute: list(classes)}, "table": str(final.resolve() / "judged.csv")},
    }
    (place / "judge.yaml").write_text(yaml.safe_dump(judge), encoding="utf-8")
