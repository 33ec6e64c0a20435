"""A training step on the CPU: mixed bfloat16 with the flash or the plain attention kernel beside float32.

Run: ``python benchmarks/cpu_precision.py [--repeats 7] [--threads 2] [--json]``. All variants run in turn in one process, each
on its own copy; medians of the paired ratios. A batch of 16 pairs for PopAlign (LoRA), of 16 people for ID2Face.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack
from typing import Any

import torch
from common import row as row_of
from torch.nn.attention import SDPBackend, sdpa_kernel

from data_modules.synthetic_faces import SyntheticIdentities
from fairanon.backbones import Lora, StableDiffusion
from fairanon.batches import PreferenceBatch
from fairanon.config.experiments import resolve
from fairanon.config.settings import FairAnonCLI
from fairanon.methods import PopAlign
from fairanon.methods.base import DiffusionMethod

VARIANTS = ("float32", "bfloat16, flash kernel", "bfloat16, plain kernel")


def popalign(half: bool) -> tuple[DiffusionMethod, Any]:
    """PopAlign with LoRA, as its experiment trains it, and a batch."""
    torch.manual_seed(0)
    backbone = StableDiffusion("tiny", lora=Lora(rank=16), dtype="bfloat16" if half else "float32")
    images = torch.randint(0, 256, (2, 16, 3, 64, 64), dtype=torch.uint8)
    texts = ["a photo of a doctor"] * 16
    batch = PreferenceBatch([f"{n}.0" for n in range(16)], images[0], images[1], texts, texts)
    return PopAlign(backbone).train(), batch


def id2face(half: bool) -> tuple[DiffusionMethod, Any]:
    """ID2Face, as experiments/id2face_tiny.yaml builds it, and a batch."""
    settings = [f"--trainer.precision={'bf16-mixed' if half else '32'}"]
    method = FairAnonCLI(resolve("id2face_tiny", settings=settings).words()).model
    assert isinstance(method, DiffusionMethod)
    return method.train(), next(iter(SyntheticIdentities(batch_size=16).train_dataloader()))


def seconds(method: DiffusionMethod, batch: Any, variant: str) -> float:
    """Of one forward and backward pass."""
    with ExitStack() as stack:
        if variant != "float32":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        if variant.endswith("plain kernel"):
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        start = time.perf_counter()
        method.loss(batch)[0].backward()
        took = time.perf_counter() - start
    method.zero_grad(set_to_none=True)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name, build in (("popalign", popalign), ("id2face", id2face)):
        subjects = {variant: build(variant != "float32") for variant in VARIANTS}
        times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for repeat in range(arguments.repeats + 1):
            for variant in VARIANTS:
                took = seconds(*subjects[variant], variant)
                if repeat:  # the first warms up
                    times[variant].append(took)
        for variant in VARIANTS[1:]:
            row = row_of(f"{name}: {variant} / float32", times[variant], times["float32"], "s")
            print(json.dumps(row) if arguments.json else row)


if __name__ == "__main__":
    main()
