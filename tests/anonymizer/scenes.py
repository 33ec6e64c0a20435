"""Photographs of the embedded world: portraits side by side between trees, houses and cars."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.imaging import write_image

SIDE = 64


def scene(number: int, faces: int, seed: int = 0, columns: int = 3, rows: int = 2) -> Tensor:
    """A picture of so many people in so many places, none twice: uint8 (3, rows * 64, columns * 64)."""
    places = columns * rows
    scenes = draw_scenes(seed, range(number * places, (number + 1) * places), "balanced")
    order = torch.randperm(places, generator=torch.Generator().manual_seed(number))
    subject = torch.where(order < faces, 0, 1 + order % 3)
    tiles = render(scenes.replace(subject=subject, hands=torch.zeros_like(scenes.hands))).image
    return tiles.view(rows, columns, 3, SIDE, SIDE).permute(2, 0, 3, 1, 4).reshape(3, rows * SIDE, columns * SIDE)


def write_scenes(folder: Path, counts: list[int], seed: int = 0) -> None:
    """A folder of scenes with so many faces each."""
    for number, faces in enumerate(counts):
        write_image(scene(number, faces, seed), folder / f"{number // 10}" / f"scene {number}.png")
