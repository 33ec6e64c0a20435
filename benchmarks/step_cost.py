"""What a PopAlign step costs beside a plain LoRA denoising step on the same batch: time and peak memory, as ratios.

Run: ``python benchmarks/step_cost.py [--json]``. Both steps run in turn in one process; medians of the paired ratios.
The plain step denoises the same 2B pictures with the same adapters and no reference pass.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from common import own_peak, peak_of
from common import row as row_of

from fairanon.backbones import Lora, StableDiffusion
from fairanon.batches import PreferenceBatch
from fairanon.losses.denoising import per_sample_mse
from fairanon.methods import PopAlign


def build(pairs: int) -> tuple[PopAlign, PreferenceBatch]:
    torch.manual_seed(0)
    module = PopAlign(StableDiffusion("tiny", lora=Lora(rank=8)), caption_dropout=0.0).train()
    pictures = torch.randint(0, 256, (2, pairs, 3, 64, 64), dtype=torch.uint8)
    texts = ["a photo of a doctor"] * pairs
    batch = PreferenceBatch([f"{n}.0" for n in range(pairs)], pictures[0], pictures[1], texts, texts)
    return module, batch


def plain(module: PopAlign, batch: PreferenceBatch) -> None:
    """A LoRA denoising step on winners and losers."""
    backbone = module.backbone
    latents = torch.cat([module.latents(batch.winners, batch.keys), module.latents(batch.losers, batch.keys)])
    noise, t = module.draw([*batch.keys, *(f"{key}'" for key in batch.keys)], latents.shape[1:])
    condition = module.condition(batch.captions * 2, batch.keys * 2)
    prediction = backbone.predict(backbone.add_noise(latents, noise, t), t, condition)
    per_sample_mse(prediction, backbone.target(latents, noise, t)).mean().backward()


def popalign(module: PopAlign, batch: PreferenceBatch) -> None:
    """The paper's step."""
    module.prior_weight = 0.0
    module.loss(batch)[0].backward()


def with_prior(module: PopAlign, batch: PreferenceBatch) -> None:
    """With the prior, which denoises the winners once more."""
    module.prior_weight = 1.0
    module.loss(batch)[0].backward()


STEPS = {"popalign": popalign, "popalign_with_prior": with_prior, "plain": plain}


def three_steps(name: str, pairs: int) -> float:
    """Peak memory of three steps, see `own_peak`."""
    module, batch = build(pairs)

    def steps() -> None:
        for _ in range(3):
            STEPS[name](module, batch)

    return own_peak(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--peak-of", choices=STEPS, help="only print this step's peak memory")
    given = parser.parse_args()
    if given.peak_of:
        print(three_steps(given.peak_of, given.size))
        return
    module, batch = build(given.size)
    memory = {name: [peak_of(__file__, name, given.size) for _ in range(3)] for name in STEPS}
    seconds: dict[str, list[float]] = {name: [] for name in STEPS}
    for repeat in range(given.repeats + 2):
        for name, step in STEPS.items():
            start = time.perf_counter()
            step(module, batch)
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - start)
    for name in list(STEPS)[:-1]:
        for what, values, unit in (("step_time", seconds, "s"), ("step_peak_memory", memory, "MB")):
            row = row_of(f"{name}/{what}", values[name], values["plain"], unit)
            plain_text = f"{row['name']}: {row['ratio']} times a plain step [{row['low']}, {row['high']}]"
            print(json.dumps(row) if given.json else plain_text)


if __name__ == "__main__":
    main()
