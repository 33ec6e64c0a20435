"""Measures the embedded models: do they draw what they are asked for, and how unfair are they?"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from data_modules.synthetic_faces import FacesToAnonymize, Strangers
from data_modules.synthetic_faces.captions import prompt
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import GENDERS, OCCUPATIONS, TONES, draw_scenes
from fairanon.backbones import Sampling, StableDiffusion
from fairanon.batches import PromptRow
from fairanon.evaluation import Anonymization, BackboneSampler, Engine, Measure, Population
from fairanon.evaluators import TinyAttributes, TinyEmbedder
from fairanon.imaging import grid, to_model, to_pixels, write_image
from fairanon.metrics.functional.recall import attribute_recall


def measure(
    model: str = "tiny",
    count: int = 1000,
    steps: int = 15,
    guidance_scale: float = 1.5,
    sheet: Path | None = None,
) -> dict[str, float]:
    """Quality of the model.

    Args:
        model: ``tiny``, ``tiny-inpainting`` or a pipeline's folder.
        count: Identity-specific samples, and neutral samples; of an inpainting model, faces.
        steps: DPM-Solver++ steps.
        guidance_scale: 1 is no guidance.
        sheet: Where to write a contact sheet of samples; None writes none.

    Returns:
        What `Population` measures, or of an inpainting model `Anonymization`; and the judges' accuracy on originals
        (``original/NAME``) and on the autoencoder's reconstructions (``reconstruction/NAME``).
    """
    backbone = StableDiffusion(model, frozen=True)
    engine = _inpainting(count) if backbone.inpaints else _drawing(count)
    with tempfile.TemporaryDirectory() as folder:
        sampler = BackboneSampler(backbone, Sampling(steps, guidance_scale))
        samples = engine.judge(sampler, Path(folder), engine.sets(), "sampling")
    if sheet is not None:
        write_image(grid(samples.thumbnails[:168], 12), sheet)
    (numbers,) = engine.numbers(samples)
    values = {name: value.value for name, value in numbers.items() if value is not None}
    if not backbone.inpaints:
        values |= _reconstruction(backbone)
    return {name: round(value, 4) for name, value in values.items()}


def _drawing(count: int) -> Engine:
    occupations = OCCUPATIONS[:14]
    asked = list(itertools.product(occupations, GENDERS, TONES))[:count]
    rows = [
        PromptRow(prompt(o, gender=g, tone=t), "specific", {"occupation": o, "gender": g, "tone": t})
        for o, g, t in asked
    ]
    rows += [PromptRow(prompt(o), "neutral", {"occupation": o}) for o in occupations]
    measures: list[Measure[Any]] = [Population(TinyAttributes(), subject="occupation")]
    return Engine(rows, measures, max(1, count // len(occupations)), max(1, count // len(asked)))


def _inpainting(count: int) -> Engine:
    measures: list[Measure[Any]] = [
        Anonymization(TinyAttributes(), TinyEmbedder(), Strangers(4000), "tone", ("gender",), alike=("tone", "gender"))
    ]
    return Engine(FacesToAnonymize(max(1, count // len(TONES))).rows(), measures)


def _reconstruction(backbone: StableDiffusion) -> dict[str, float]:
    """How often a judge is right about originals, and about what the autoencoder makes of them."""
    scenes, judge = draw_scenes(301, range(500), "balanced"), TinyAttributes()
    drawn = render(scenes).image
    rebuilt = torch.cat([backbone.decode(backbone.encode_images(to_model(x))).detach() for x in drawn.split(50)])
    return {
        f"{kind}/{name}": attribute_recall(rows, getattr(scenes, name).long()).value
        for kind, images in (("original", drawn), ("reconstruction", to_pixels(rebuilt)))
        for name, rows in judge.classify(images).items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m fairanon.assets.quality", description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--guidance-scale", type=float, default=1.5)
    parser.add_argument("--sheet", type=Path)
    print(json.dumps(measure(**vars(parser.parse_args())), indent=2))
