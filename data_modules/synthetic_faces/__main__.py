"""A contact sheet of the embedded world: ``python -m data_modules.synthetic_faces --out sheet.png``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import OCCUPATIONS, draw_scenes
from fairanon.imaging import grid, write_image

COLUMNS = 12


def sheet(seed: int = 7, rows: int = len(OCCUPATIONS), scale: int = 2) -> torch.Tensor:
    """One row per occupation, the columns go through tones and gender appearances; a last row without people.

    Args:
        seed: Of the people.
        rows: Occupations shown.
        scale: Enlargement, by repeating pixels.

    Returns:
        uint8 (3, H, W).
    """
    number = torch.arange(rows * COLUMNS)
    scenes = draw_scenes(seed, number.tolist(), "balanced").replace(
        occupation=number // COLUMNS, tone=number % COLUMNS // 2, gender=number % 2
    )
    last = torch.arange(COLUMNS)
    things = draw_scenes(seed + 1, last.tolist(), "balanced").replace(subject=1 + last * 3 // COLUMNS)
    pixels = torch.cat([render(scenes).image, render(things).image])
    return grid(pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3), COLUMNS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m data_modules.synthetic_faces", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("sheet.png"))
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rows", type=int, default=len(OCCUPATIONS), help="occupations shown")
    given = parser.parse_args()
    write_image(sheet(given.seed, given.rows), given.out)
    print(given.out)
