"""The embedded world: procedurally drawn faces with exact labels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from data_modules.synthetic_faces.groups import FacesToAnonymize, Strangers, SyntheticGroup
from data_modules.synthetic_faces.identities import PeopleToAnonymize, SyntheticIdentities
from data_modules.synthetic_faces.parts import SyntheticParts
from data_modules.synthetic_faces.people_images import PeoplePrompts, SyntheticPeople
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import OCCUPATIONS, draw_scenes

__all__ = [
    "BalancedPortraits",
    "FacesToAnonymize",
    "PeoplePrompts",
    "PeopleToAnonymize",
    "Strangers",
    "SyntheticGroup",
    "SyntheticIdentities",
    "SyntheticParts",
    "SyntheticPeople",
]


class BalancedPortraits:
    """A fair population: images of chosen occupations in equal parts, every other attribute uniform.

    Args:
        count: Number of images.
        occupations: How many of the world's occupations, from the first.
        seed: Of the images.
    """

    def __init__(self, count: int, occupations: int = len(OCCUPATIONS), seed: int = 0) -> None:
        self.count, self.occupations, self.seed = count, occupations, seed

    def images(self) -> Iterator[Tensor]:
        """uint8 (count, 3, 64, 64)."""
        for first in range(0, self.count, 64):
            index = torch.arange(first, min(first + 64, self.count))
            scenes = draw_scenes(self.seed, index.tolist(), "balanced")
            yield render(scenes.replace(occupation=index % self.occupations)).image
