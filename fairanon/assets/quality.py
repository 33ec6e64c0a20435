"""Measures the embedded models: do they draw what they are asked for, and how unfair are they?"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import torch
from tqdm import tqdm

from data_modules.synthetic_faces import FacesToAnonymize, Strangers
from data_modules.synthetic_faces.captions import prompt
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import GENDERS, OCCUPATIONS, TONES, draw_scenes
from fairanon.backbones import StableDiffusion
from fairanon.callbacks import Anonymization
from fairanon.callbacks.measures import Judged
from fairanon.evaluators import TinyAttributes, TinyEmbedder
from fairanon.imaging import grid, to_model, to_pixels, write_image
from fairanon.metrics import FairnessDiscrepancy
from fairanon.pipelines import inpaint


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
        count: Identity-specific samples, and neutral samples.
        steps: DPM-Solver++ steps.
        guidance_scale: 1 is no guidance.
        sheet: Where to write a contact sheet of identity-specific samples; None writes none.

    Returns:
        Share of samples judged as asked, per attribute; discrepancy on neutral prompts; the judges' accuracy on
        originals and on reconstructions of the autoencoder. Of an inpainting model, what `Anonymization` measures.
    """
    backbone, judge = StableDiffusion(model), TinyAttributes()
    if backbone.inpaints:
        return _measure_inpainting(backbone, count, steps, guidance_scale, sheet)
    occupations = OCCUPATIONS[:14]
    asked = list(itertools.islice(itertools.cycle(itertools.product(occupations, GENDERS, TONES)), count))
    neutral = list(itertools.islice(itertools.cycle(occupations), count))
    texts = [prompt(o, gender=g, tone=t) for o, g, t in asked] + [prompt(o) for o in neutral]
    parts = []
    for first in tqdm(range(0, len(texts), 32), desc="sampling", unit="batch"):
        part = texts[first : first + 32]
        keys = [("quality", first + n) for n in range(len(part))]
        parts.append(backbone.sample(part, keys, steps=steps, guidance_scale=guidance_scale))
    pixels = torch.cat(parts)
    if sheet is not None:
        write_image(grid(pixels[:168], 12), sheet)
    judged = judge.classify(pixels)
    result = {}
    for k, (name, classes) in enumerate((("occupation", OCCUPATIONS), ("gender", GENDERS), ("tone", TONES))):
        truth = torch.tensor([classes.index(row[k]) for row in asked])
        rows = judged[name][:count]
        result[f"asked/{name}"] = float(
            ((rows.nan_to_num(-1).argmax(1) == truth) & ~rows.isnan().any(1)).float().mean()
        )
    for name, classes in (("gender", GENDERS), ("tone", TONES)):
        metric = FairnessDiscrepancy(len(classes))
        metric.update(judged[name][count:], torch.tensor([occupations.index(o) for o in neutral]))
        result[f"discrepancy/{name}"] = metric.compute()["per_prompt"]["value"]
    result["no face"] = float(judged["gender"].isnan().any(1).float().mean())

    scenes = draw_scenes(301, range(500), "balanced")
    drawn = render(scenes).image
    rebuilt = to_pixels(
        torch.cat([backbone.decode(backbone.encode_images(to_model(x))).detach() for x in drawn.split(50)])
    )
    for kind, pictures in (("original", drawn), ("reconstruction", rebuilt)):
        for name, rows in judge.classify(pictures).items():
            result[f"{kind}/{name}"] = float((rows.argmax(1) == getattr(scenes, name).long()).float().mean())
    return {name: round(value, 4) for name, value in result.items()}


def _measure_inpainting(
    backbone: StableDiffusion, count: int, steps: int, guidance_scale: float, sheet: Path | None
) -> dict[str, float]:
    rows = FacesToAnonymize(max(1, count // len(TONES))).rows()
    measure = Anonymization(
        TinyAttributes(), TinyEmbedder(), Strangers(4000), "tone", ("gender",), alike=("tone", "gender")
    )
    pixels, values = [], []
    for first in tqdm(range(0, len(rows), 32), desc="inpainting", unit="batch"):
        part = rows[first : first + 32]
        pictures, masks = torch.stack([r.picture for r in part]), torch.stack([r.mask for r in part])  # type: ignore[misc]  # all have both
        keys = [("quality", first + n) for n in range(len(part))]
        pixels.append(
            inpaint(
                backbone, [r.prompt for r in part], keys, pictures, masks, steps=steps, guidance_scale=guidance_scale
            )
        )
        values.append(measure.observe(pixels[-1], part))
    if sheet is not None:
        write_image(grid(torch.cat(pixels)[:168], 12), sheet)
    joined = {name: torch.cat([part[name] for part in values]) for name in values[0]}
    judged = Judged(rows, torch.arange(len(rows)), joined, torch.empty(0), torch.empty(0))
    found = measure.numbers(judged, None)
    return {name: round(value["value"], 4) for name, value in found.items() if value is not None}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m fairanon.assets.quality", description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--guidance-scale", type=float, default=1.5)
    parser.add_argument("--sheet", type=Path)
    print(json.dumps(measure(**vars(parser.parse_args())), indent=2))
