"""What steps on pairs cost beside a plain LoRA denoising step on the same images: time and peak memory, as ratios.

Run: ``python benchmarks/step_cost.py [--json]``. All steps run in turn in one process; medians of the paired ratios.
Every step sends the same 2 x SIZE images through the U-Net with gradient; the plain one just denoises them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from common import own_peak, peak_of
from common import row as row_of

from fairanon.backbones import Lora, StableDiffusion
from fairanon.batches import PreferenceBatch
from fairanon.losses.denoising import per_sample_mse
from fairanon.methods import PairwisePreference, PopAlign
from fairanon.methods.beforehand import Beforehand
from fairanon.methods.preference import PreferenceMethod

METHODS: dict[str, tuple[type[PreferenceMethod], dict[str, Any]]] = {
    "popalign": (PopAlign, {"caption_dropout": 0.0}),
    "popalign_beforehand": (PopAlign, {"caption_dropout": 0.0, "reference": "beforehand"}),
    "popalign_with_prior": (PopAlign, {"caption_dropout": 0.0, "prior_weight": 1.0}),
    "simpo": (PairwisePreference, {"objective": "simpo"}),
    "mapo": (PairwisePreference, {"objective": "mapo"}),
    "dpo": (PairwisePreference, {"objective": "dpo"}),
    "plain": (PairwisePreference, {}),
}


def build(name: str, pairs: int) -> tuple[PreferenceMethod, PreferenceBatch]:
    """A method on the embedded model, and a batch."""
    torch.manual_seed(0)
    kind, settings = METHODS[name]
    module = kind(StableDiffusion("tiny", lora=Lora(rank=8)), **settings).train()
    if module.frees_reference:
        module._beforehand = Beforehand(Path("nowhere"), [])  # the first step that warms up fills it
    images = torch.randint(0, 256, (2, pairs, 3, 64, 64), dtype=torch.uint8)
    texts = ["a photo of a doctor"] * pairs
    return module, PreferenceBatch([f"{n}.0" for n in range(pairs)], images[0], images[1], texts, texts)


def step(name: str, module: PreferenceMethod, batch: PreferenceBatch) -> None:
    """Forward and backward; the optimizer is the same for all."""
    if name == "plain":
        latents = torch.cat([module.latents(batch.winners, batch.keys), module.latents(batch.losers, batch.keys)])
        keys = [*batch.keys, *(f"{key}'" for key in batch.keys)]
        x = module.noised(latents, keys, module.condition(batch.captions * 2, batch.keys * 2))
        per_sample_mse(module.backbone.predict(x.noisy, x.timesteps, x.condition), x.target).mean().backward()
    else:
        module.loss(batch)[0].backward()
    module.zero_grad(set_to_none=True)


def three_steps(name: str, pairs: int) -> float:
    """Peak memory of three steps, see `own_peak`."""
    module, batch = build(name, pairs)

    def steps() -> None:
        for _ in range(3):
            step(name, module, batch)

    return own_peak(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--peak-of", choices=METHODS, help="only print this step's peak memory")
    arguments = parser.parse_args()
    if arguments.peak_of:
        print(three_steps(arguments.peak_of, arguments.size))
        return
    built = {name: build(name, arguments.size) for name in METHODS}
    memory = {name: [peak_of(__file__, name, arguments.size) for _ in range(3)] for name in METHODS}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for repeat in range(arguments.repeats + 2):
        for name, (module, batch) in built.items():
            start = time.perf_counter()
            step(name, module, batch)
            if repeat >= 2:  # warmed up
                seconds[name].append(time.perf_counter() - start)
    for name in list(METHODS)[:-1]:
        for what, values, unit in (("step_time", seconds, "s"), ("step_peak_memory", memory, "MB")):
            row = row_of(f"{name}/{what}", values[name], values["plain"], unit)
            plain_text = f"{row['name']}: {row['ratio']} times a plain step [{row['low']}, {row['high']}]"
            print(json.dumps(row) if arguments.json else plain_text)


if __name__ == "__main__":
    main()
