"""Faces of the embedded world to learn from and to anonymize, with masks that hide their whole appearance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from data_modules.records import Mask, Record
from data_modules.synthetic_faces.captions import captions
from data_modules.synthetic_faces.masks import appearance_masks
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import GENDERS, OCCUPATIONS, TONES, Scenes, draw_scenes
from fairanon.batches import PromptRow
from fairanon.imaging import combine_regions, dilate, write_image
from fairanon.protocols import FaceParser
from fairanon.seeding import uniform_rows


def _named(scenes: Scenes) -> Scenes:
    """The same people, everyday clothes, their captions name gender, tone and raised hands: "a photo of a woman ..."."""
    named = torch.zeros_like(scenes.named)
    named[:, 0], named[:, 1], named[:, 5] = True, True, scenes.hands
    person = torch.full_like(scenes.occupation, OCCUPATIONS.index("person"))
    return scenes.replace(named=named, occupation=person)


class SyntheticGroup:
    """A small set of images, written to a folder as a curated data set would be.

    Args:
        folder: Where the images lie; missing ones are drawn.
        tones: The share of each tone group; one alone is a group's own set.
        count: Number of images.
        seed: Of the people.
    """

    def __init__(self, folder: str, tones: dict[str, float], count: int = 60, seed: int = 4200) -> None:
        if set(tones) - set(TONES) or abs(sum(tones.values()) - 1) > 1e-6:
            raise ValueError(f"SyntheticGroup.tones: shares of {', '.join(TONES)} that add up to 1, got {tones}.")
        self.folder, self.count, self.seed = Path(folder), count, seed
        self.shares = torch.tensor([tones.get(name, 0.0) for name in TONES])

    def records(self) -> Sequence[Record]:
        """See `RegionSource`; the mask hides the whole appearance."""
        numbers = range(self.count)
        scenes = _named(draw_scenes(self.seed, numbers, "balanced"))
        above = uniform_rows(self.seed, numbers, 1) >= self.shares.cumsum(0)[:-1]
        scenes = scenes.replace(tone=above.sum(1))
        self.folder.mkdir(parents=True, exist_ok=True)
        names = [self.folder / f"{TONES[tone]}-{self.seed}-{k}.png" for k, tone in enumerate(scenes.tone.tolist())]
        if not all(name.with_suffix(".mask.png").exists() for name in names):
            for name, image, mask in zip(names, render(scenes).image, appearance_masks(scenes), strict=True):
                write_image(image, name)
                write_image(mask.expand(3, -1, -1).to(torch.uint8) * 255, name.with_suffix(".mask.png"))
        return [
            Record(name, text, (Mask(path=name.with_suffix(".mask.png")),))
            for name, text in zip(names, captions(scenes), strict=True)
        ]


class FacesToAnonymize:
    """Unseen people of every tone group, each with the prompt that describes the group and gender, and a mask.

    Args:
        count: People of each group.
        region: ``appearance`` hides everything that shows whose face it is, skin of neck, ears and hands included;
            otherwise regions of the parser, such as "eyes+nose" or "face-lips".
        parser: Finds the regions.
        grow: Pixels by which masks are dilated.
        seed: Of the people.
    """

    def __init__(
        self,
        count: int = 50,
        region: str = "appearance",
        parser: FaceParser | None = None,
        grow: int = 2,
        seed: int = 4300,
    ) -> None:
        if region != "appearance" and parser is None:
            raise ValueError(f"evaluate.prompts: region {region!r} needs a parser that finds it.")
        self.count, self.region, self.parser, self.grow, self.seed = count, region, parser, grow, seed

    def _scenes(self) -> Scenes:
        scenes = _named(draw_scenes(self.seed, range(self.count * len(TONES)), "balanced"))
        number = torch.arange(len(scenes))
        return scenes.replace(tone=number % len(TONES), gender=(number // len(TONES)) % len(GENDERS))

    def rows(self) -> list[PromptRow]:
        """See `fairanon.protocols.PromptSource`; ``asked`` names group, gender and region."""
        scenes = self._scenes()
        (images,) = self.images()
        if self.region == "appearance":
            masks = appearance_masks(scenes, self.grow)
        else:
            assert self.parser is not None
            masks = dilate(combine_regions(self.parser.parse(images), self.region), self.grow)
        if empty := (~masks.any((1, 2, 3))).nonzero().flatten().tolist():
            raise ValueError(
                f"evaluate.prompts: no {self.region} found in person {empty[0]} (of {len(empty)} such people): nobody "
                "would be anonymized; choose another region."
            )
        return [
            PromptRow(
                text, "people", {"tone": TONES[int(scenes.tone[k])], "gender": GENDERS[int(scenes.gender[k])]},
                image=images[k], mask=masks[k],
            )
            for k, text in enumerate(captions(scenes))
        ]  # fmt: skip

    def images(self) -> Iterator[Tensor]:
        """The people themselves: uint8 (N, 3, 64, 64)."""
        yield render(self._scenes()).image


class Strangers:
    """One image each of many people: impostor pairs, from which a verification threshold is calibrated.

    Args:
        count: People.
        population: ``balanced``: any two people; ``alike``: all of one tone, gender and age, the hardest pairs.
        seed: Of the people.
    """

    def __init__(
        self, count: int = 2000, population: Literal["balanced", "alike"] = "balanced", seed: int = 4400
    ) -> None:
        self.count, self.population, self.seed = count, population, seed

    def images(self) -> Iterator[Tensor]:
        """uint8 (count, 3, 64, 64)."""
        for first in range(0, self.count, 64):
            scenes = _named(draw_scenes(self.seed, range(first, min(first + 64, self.count)), "balanced"))
            if self.population == "alike":
                scenes = scenes.replace(
                    **{name: torch.zeros_like(getattr(scenes, name)) for name in ("tone", "gender", "age")}
                )
            yield render(scenes).image
