"""What FairHuman's steps cost beside linear scalarization on the same batch: time and peak memory, as ratios.

Run: ``python benchmarks/fairhuman_cost.py [--json]``. All variants step in turn in one process, on the whole embedded
U-Net; medians of the paired ratios. ``published`` is the procedure of the official code written plainly: three backward
passes, a flattened float32 matrix of three gradients, scipy's least squares on the host, the result written back.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from common import own_peak, peak_of
from common import row as row_of
from scipy.optimize import least_squares

from data_modules.synthetic_faces import SyntheticPeople
from fairanon.backbones import StableDiffusion
from fairanon.batches import RegionBatch
from fairanon.methods import FairHuman
from fairanon.solvers import FairGrad, LinearScalarization

K = 3
VARIANTS: dict[str, dict[str, object]] = {
    "ls": {"solver": LinearScalarization()},
    "full": {"solver": FairGrad()},
    "last_block": {"solver": FairGrad(), "gram": "last_block"},
    "prediction": {"solver": FairGrad(), "gram": "prediction"},
    "every_10": {"solver": FairGrad(), "every": 10},
    "published": {"solver": FairGrad()},
}
CYCLE = 10
"""Steps that are timed together: what happens every ten steps happens once."""


def build(name: str, samples: int) -> tuple[Callable[[int], None], FairHuman, RegionBatch]:
    """A step of a variant, its module and its batch."""
    torch.manual_seed(0)
    module = FairHuman(StableDiffusion("tiny"), **VARIANTS[name]).train()
    batch = next(iter(SyntheticPeople(batch_size=samples).train_dataloader()))

    def step(number: int) -> None:
        if name == "published":
            published(module, batch)
        else:
            module.objectives.backward(module._parts(batch), number)

    return step, module, batch


def published(module: FairHuman, batch: RegionBatch) -> None:
    """The official procedure."""
    (part,) = module._parts(batch)
    losses = part.sums(part.predict()) / part.counts
    parameters = module.objectives.parameters
    rows = []
    for k in range(K):
        for parameter in parameters:
            parameter.grad = None
        losses[k].backward(retain_graph=k < K - 1)
        rows.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
    gradients = torch.stack(rows, 1)
    gram = (gradients.T @ gradients).double().numpy()
    weights = least_squares(lambda w: gram @ w - w**-0.5, [1 / K] * K, bounds=(0, float("inf"))).x
    combined = (gradients * torch.tensor(weights, dtype=torch.float32)).sum(1) * K
    start = 0
    for parameter in parameters:
        parameter.grad = combined[start : start + parameter.numel()].view_as(parameter).clone()
        start += parameter.numel()


def backward_over_forward(module: FairHuman, batch: RegionBatch, repeats: int) -> float:
    """How much longer a backward pass takes than a forward pass."""
    ratios = []
    for _ in range(repeats):
        (part,) = module._parts(batch)
        start = time.perf_counter()
        loss = part.sums(part.predict()).sum()
        middle = time.perf_counter()
        loss.backward()
        ratios.append((time.perf_counter() - middle) / (middle - start))
    return statistics.median(ratios)


def four_steps(name: str, samples: int) -> float:
    """Peak memory of four steps of a variant, see `own_peak`."""
    step, _, _ = build(name, samples)

    def steps() -> None:
        for number in range(4):
            step(number)

    return own_peak(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3, help="of ten steps each")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--peak-of", choices=VARIANTS, help="only print this variant's peak memory")
    arguments = parser.parse_args()
    if arguments.peak_of:
        print(four_steps(arguments.peak_of, arguments.size))
        return
    memory = {name: [peak_of(__file__, name, arguments.size)] for name in VARIANTS}
    steps = {name: build(name, arguments.size) for name in VARIANTS}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for repeat in range(arguments.repeats):
        taken = dict.fromkeys(VARIANTS, 0.0)
        for number in range(CYCLE):  # in turn, step by step: a busy machine slows all alike
            for name, (step, _, _) in steps.items():
                start = time.perf_counter()
                step(repeat * CYCLE + number)
                taken[name] += time.perf_counter() - start
        for name, value in taken.items():
            seconds[name].append(value / CYCLE)
    _, module, batch = steps["ls"]
    b = backward_over_forward(module, batch, 5)
    gradients = sum(p.numel() for p in module.objectives.parameters) * 4 / 2**20
    most = {"full": 1.1 * (1 + K * b) / (1 + b), "prediction": 1.15, "every_10": 1.15}
    for name in VARIANTS:
        if name == "ls":
            continue
        for what, values, unit in (("step_time", seconds, "s"), ("step_peak_memory", memory, "MB")):
            row = row_of(f"fairhuman/{name}/{what}", values[name], values["ls"], unit)
            if arguments.json:
                print(json.dumps(row))
                continue
            bound = f", asked: at most {most[name]:.2f}" if name in most and unit == "s" else ""
            if name == "full" and unit == "MB":
                bound = f", asked: at most {1.1 + (K - 1) * gradients / float(row['theirs']):.2f}"
            print(f"{row['name']}: {row['ratio']} times linear scalarization [{row['low']}, {row['high']}]{bound}")
    print(f"a backward pass takes {b:.2f} forward passes; one set of gradients is {gradients:.1f} MB", file=sys.stderr)
    faster = statistics.median(x / y for x, y in zip(seconds["published"], seconds["full"], strict=True))
    smaller = memory["published"][0] / memory["full"][0]
    print(f"published / full: {faster:.2f} times the time, {smaller:.2f} times the memory", file=sys.stderr)


if __name__ == "__main__":
    main()
