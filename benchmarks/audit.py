"""Audits of worlds whose truth is known: how far off each formula is, and how often its interval holds the truth.

A world has prompts whose true shares are even, or Dirichlet(8) (weakly skewed) or Dirichlet(1); a judge that is right in .93 (two
classes) or .7 (six), counted on 500 images of each class; and a tenth of the images shows nobody. Each formula is compared with
what it would say of the true shares of all prompts of the kind: the table in docs/audit.md.

python benchmarks/audit.py [--worlds 200] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from fairanon.metrics.functional.confusion import Confusion
from fairanon.metrics.functional.discrepancy import rms_discrepancy
from fairanon.metrics.functional.estimates import Estimate

Numbers = NDArray[np.float64]
RIGHT = {2: 0.93, 6: 0.7}
_SEEN = 0.9


@dataclass(frozen=True)
class World:
    """What an audit sees of a model.

    Attributes:
        said: (P, K), how many images of each prompt the judge said each class of.
        counted: (K, K), how often it said what of images whose class is known.
    """

    said: Numbers
    counted: Numbers


def draw(generator: np.random.Generator, prompts: int, images: int, classes: int, skew: float | None) -> World:
    """A world; ``skew`` is Dirichlet's concentration, None is a fair model."""
    even = np.full((prompts, classes), 1 / classes)
    true = even if skew is None else generator.dirichlet(np.full(classes, skew), prompts)
    right = np.full((classes, classes), (1 - RIGHT[classes]) / (classes - 1))
    np.fill_diagonal(right, RIGHT[classes])
    seen = generator.binomial(images, _SEEN, prompts)
    counted = np.stack([generator.multinomial(500, row) for row in right])
    return World(generator.multinomial(seen, true @ right).astype(float), counted.astype(float))


def corrected(world: World) -> Estimate | None:
    """Ours: `fairanon audit`."""
    return rms_discrepancy(torch.from_numpy(world.said), confusion=Confusion(torch.from_numpy(world.counted)))


def as_judged(world: World) -> Estimate | None:
    """Ours without the correction (--confusion none)."""
    return rms_discrepancy(torch.from_numpy(world.said))


def by_images(world: World) -> Estimate | None:
    """The root mean square of raw shares, every image a draw of its own: binomial intervals."""
    counts = world.said[world.said.sum(1) > 0]
    shares = counts / counts.sum(1, keepdims=True)
    again = np.random.default_rng(0).multinomial(counts.sum(1).astype(int), shares, (200, len(counts)))
    draws = _distance(again / again.sum(-1, keepdims=True))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(_distance(shares)), float(low), float(high), int(counts.sum()))


def entropy(world: World) -> Estimate | None:
    """1 - normalized entropy of each prompt's raw labels, averaged (as OpenBias scores); it prints no interval."""
    counts = world.said[world.said.sum(1) > 0]
    return Estimate(float(_entropy(counts / counts.sum(1, keepdims=True))), None, None, int(counts.sum()))


def deviation(world: World) -> Estimate | None:
    """Mean absolute deviation of raw shares from even ones (as DALL-Eval scores); it prints no interval."""
    counts = world.said[world.said.sum(1) > 0]
    return Estimate(float(_deviation(counts / counts.sum(1, keepdims=True))), None, None, int(counts.sum()))


def _distance(shares: Numbers) -> Numbers:
    return np.sqrt(np.square(shares - 1 / shares.shape[-1]).sum(-1).mean(-1))


def _entropy(shares: Numbers) -> Numbers:
    logs = np.log(np.where(shares > 0, shares, 1))
    return 1 + (shares * logs).sum(-1).mean(-1) / math.log(shares.shape[-1])


def _deviation(shares: Numbers) -> Numbers:
    return np.abs(shares - 1 / shares.shape[-1]).mean(-1).mean(-1)


ENTRANTS: dict[str, tuple[Callable[[World], Estimate | None], Callable[[Numbers], Numbers]]] = {
    "ours": (corrected, _distance),
    "ours, the judge taken at its word": (as_judged, _distance),
    "raw shares, an interval by images": (by_images, _distance),
    "entropy of raw labels": (entropy, _entropy),
    "mean absolute deviation": (deviation, _deviation),
}
"""Each formula, and what it says of true shares."""


def main() -> None:
    """Print a row for each world and formula."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.json:
        print(
            "| classes | prompts | images | skew | formula | truth | mean value | held |\n|---|---|---|---|---|---|---|---|"
        )
    for classes in (2, 6):
        for prompts, images in ((4, 50), (10, 50), (100, 20)):
            for skew in (None, 8.0, 1.0):
                generator = np.random.default_rng([classes, prompts, int(skew or 0)])
                worlds = [draw(generator, prompts, images, classes, skew) for _ in range(arguments.worlds)]
                many = (
                    np.full((1, classes), 1 / classes)
                    if skew is None
                    else generator.dirichlet(np.full(classes, skew), 200_000)
                )
                for name, (formula, of) in ENTRANTS.items():
                    estimates = [
                        estimate
                        for world in tqdm(worlds, desc=name, unit="world", leave=False)
                        if (estimate := formula(world))
                    ]
                    truth = float(of(many))
                    held = [
                        estimate.low - 1e-9 <= truth <= estimate.high + 1e-9
                        for estimate in estimates
                        if estimate.low is not None and estimate.high is not None
                    ]
                    row = [classes, prompts, images, "fair" if skew is None else f"Dirichlet({skew:g})", name, round(truth, 3),
                           round(sum(estimate.value for estimate in estimates) / len(estimates), 3), round(sum(held) / len(held), 3) if held else None]  # fmt: skip
                    cells = ["no interval" if cell is None else cell for cell in row]
                    print(json.dumps(row) if arguments.json else f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
