"""Pairs of pictures of the embedded world's people: same identity, gender, tone and age, everything else another draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from data_modules.base import StepDataModule
from data_modules.synthetic_faces.masks import identity_masks
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.shapes import SIZE
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.batches import IdentityBatch, PromptRow
from fairanon.seeding import keyed_randint

_SCENES = 10_000
"""Different pictures of a person."""


class _Pairs(Dataset[Any]):
    def __init__(self, people: int, seed: int, paired: bool) -> None:
        self.people, self.seed, self.paired = people, seed, paired

    def __len__(self) -> int:
        return self.people

    def __getitems__(self, where: Sequence[tuple[int, int]]) -> IdentityBatch:
        """Draw a batch at once: the renderer is vectorised."""
        keys = [f"{row}.{number}" for row, number in where]
        scene = [keyed_randint([(self.seed, side, key) for key in keys], _SCENES) for side in ("image", "reference")]
        rows = torch.tensor([row for row, _ in where])
        first, second = (rows + self.people * part for part in scene)
        scenes = draw_scenes(self.seed, first.tolist(), "balanced", self.people)
        drawn = render(scenes, masks=True)
        if self.paired:
            references = render(draw_scenes(self.seed, second.tolist(), "balanced", self.people)).image
        else:
            references = drawn.image
        return IdentityBatch(keys, drawn.image, references, identity_masks(scenes, drawn), drawn.landmarks / SIZE)


class PeopleToAnonymize:
    """Unseen people, what an attacker who knows the method anonymized, and one person many times.

    Args:
        count: People, each in one picture, with another picture of the same person beside it.
        attacked: So many of them an attacker, who has their pictures, has anonymized with the same model.
        draws: One of them is anonymized so often ("diverse").
        seed: Names the people; other seeds than training's are other people.
    """

    def __init__(self, count: int = 2000, attacked: int = 400, draws: int = 200, seed: int = 4700) -> None:
        if not 0 <= attacked <= count or count < 1:
            raise ValueError(
                f"evaluate.prompts: attacked ({attacked}) must be at most count ({count}), and that at least 1."
            )
        self.count, self.attacked, self.draws, self.seed = count, attacked, draws, seed

    def rows(self) -> list[PromptRow]:
        """See `fairanon.evaluators.protocols.PromptSource`."""
        people = [row for first in range(0, self.count, 64) for row in self._people(first)]
        attacked = [dataclasses.replace(row, set="attacker") for row in people[: self.attacked]]
        return people + attacked + [dataclasses.replace(people[0], set="diverse")] * self.draws

    def _people(self, first: int) -> list[PromptRow]:
        numbers = range(first, min(first + 64, self.count))
        scenes = draw_scenes(self.seed, numbers, "balanced", self.count)
        others = draw_scenes(self.seed, [self.count + n for n in numbers], "balanced", self.count)
        drawn, references = render(scenes, masks=True), render(others).image
        masks, landmarks = identity_masks(scenes, drawn), drawn.landmarks / SIZE
        return [
            PromptRow(
                "", "people", {}, picture=drawn.image[k], mask=masks[k], landmarks=landmarks[k], person=str(number),
                reference=references[k],
            )
            for k, number in enumerate(numbers)
        ]  # fmt: skip


def _whole(batch: Any) -> Any:
    return batch


class SyntheticIdentities(StepDataModule):
    """People drawn on the fly, each in as many pictures as are asked for.

    Args:
        batch_size: Pairs of one rank and step.
        people: Training people.
        val_people: Validation people, others.
        paired: The reference is another picture of the person; otherwise the picture itself ("w/o pair").
        num_workers: Loader processes.
        seed: Names the order.
    """

    def __init__(
        self,
        batch_size: int = 16,
        people: int = 4096,
        val_people: int = 256,
        paired: bool = True,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.train_pairs, self.val_pairs = _Pairs(people, 4600, paired), _Pairs(val_people, 4601, paired)

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless pairs, see `StepDataModule`."""
        return self.endless_loader(self.train_pairs, _whole)

    def val_dataloader(self) -> DataLoader[Any]:
        """A pair of each held-out person, in their order."""
        return self.ordered_loader(self.val_pairs, _whole)
