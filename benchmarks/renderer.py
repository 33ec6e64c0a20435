"""How fast the embedded world is drawn on one thread: images per second without and with masks.

Run: ``python benchmarks/renderer.py [--json]``; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes

BATCH = 32


def rates(masks: bool, repeats: int) -> list[float]:
    speeds = []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        render(draw_scenes(1, range(repeat * BATCH, (repeat + 1) * BATCH)), masks=masks)
        speeds.append(BATCH / (time.perf_counter() - start))
    return sorted(speeds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    without, with_masks = (rates(masks, arguments.repeats) for masks in (False, True))
    ours, theirs = statistics.median(with_masks), statistics.median(without)
    row = {
        "name": "renderer/masks_against_none", "ratio": round(ours / theirs, 3),
        "low": round(with_masks[0] / without[-1], 3), "high": round(with_masks[-1] / without[0], 3),
        "ours": round(ours), "theirs": round(theirs), "unit": "images/s", "repeats": arguments.repeats,
    }  # fmt: skip
    print(json.dumps(row) if arguments.json else f"{row['theirs']} images/s, {row['ours']} with masks, one thread")


if __name__ == "__main__":
    main()
