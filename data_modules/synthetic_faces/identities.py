"""Pairs of images of the embedded world's people: same identity, gender, tone and age, everything else another draw."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from data_modules.base import StepDataModule
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.shapes import MASKS, SIZE
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.batches import IdentityBatch, PromptRow
from fairanon.imaging import combine_regions, read_regions
from fairanon.protocols import FaceParser, LandmarkDetector
from fairanon.seeding import keyed_randint

_log = logging.getLogger(__name__)
_SCENES = 10_000
"""Different images of a person."""
_FACE = ("face", "eyes", "brows", "nose", "lips")


class _Pairs(Dataset[Any]):
    def __init__(self, people: int, seed: int, paired: bool, region: str) -> None:
        self.people, self.seed, self.paired, self.region = people, seed, paired, region
        read_regions(region, MASKS)

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
        assert drawn.masks is not None
        parts = {name: drawn.masks[:, k : k + 1].bool() for k, name in enumerate(MASKS)}
        parts["face"] = torch.stack([parts[name] for name in _FACE]).any(0)  # as the segmenter says it
        masks = combine_regions(parts, self.region)
        return IdentityBatch(keys, drawn.image, references, masks, drawn.landmarks / SIZE)


class PeopleToAnonymize:
    """Unseen people, what an attacker who knows the method anonymized, and one person many times.

    Whoever anonymizes knows neither masks nor landmarks: a parser and a detector find them, as in photographs. People
    whose face is not found are left out and counted in the log.

    Args:
        parser: Finds the regions.
        detector: Finds the landmarks.
        region: The mask, an expression of the parser's regions.
        count: People, each in one image, with another image of the same person beside it.
        attacked: So many of them an attacker, who has their images, has anonymized with the same model.
        draws: One of them is anonymized so often ("diverse").
        seed: Of the people; other seeds than training's are other people.
    """

    def __init__(
        self,
        parser: FaceParser,
        detector: LandmarkDetector,
        region: str = "face+hair+left_hand+right_hand",
        count: int = 2000,
        attacked: int = 400,
        draws: int = 200,
        seed: int = 4700,
    ) -> None:
        if not 0 <= attacked <= count or count < 1:
            raise ValueError(
                f"evaluate.prompts: attacked ({attacked}) must be at most count ({count}), and that at least 1."
            )
        self.parser, self.detector, self.region = parser, detector, region
        self.count, self.attacked, self.draws, self.seed = count, attacked, draws, seed

    def rows(self) -> list[PromptRow]:
        """See `fairanon.protocols.PromptSource`."""
        people = [row for first in range(0, self.count, 64) for row in self._people(first)]
        if len(people) < self.count:
            _log.info("PeopleToAnonymize: %s people without a face, who are left out", self.count - len(people))
        attacked = [dataclasses.replace(row, set="attacker") for row in people[: self.attacked]]
        return people + attacked + [dataclasses.replace(people[0], set="diverse")] * self.draws

    def _people(self, first: int) -> list[PromptRow]:
        numbers = range(first, min(first + 64, self.count))
        images, references = (
            render(draw_scenes(self.seed, [part + n for n in numbers], "balanced", self.count)).image
            for part in (0, self.count)
        )
        masks = combine_regions(self.parser.parse(images), self.region)
        landmarks = self.detector.landmarks(images) / SIZE
        return [
            PromptRow(
                "", "people", {}, image=images[k], mask=masks[k], landmarks=landmarks[k], person=str(number),
                reference=references[k],
            )
            for k, number in enumerate(numbers)
            if not landmarks[k].isnan().any() and masks[k].any()
        ]  # fmt: skip


def _whole(batch: Any) -> Any:
    return batch


class SyntheticIdentities(StepDataModule):
    """People drawn on the fly, each in as many images as are asked for.

    Args:
        batch_size: Pairs of one rank and step.
        people: Training people.
        val_people: Validation people, others.
        paired: The reference is another image of the person; otherwise the image itself ("w/o pair").
        region: The mask, an expression of the renderer's parts.
        num_workers: Loader processes.
        seed: Of the order.
    """

    def __init__(
        self,
        batch_size: int = 16,
        people: int = 50_000,
        val_people: int = 256,
        paired: bool = True,
        region: str = "face+hair+neck+ears+glasses+left_hand+right_hand",
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.train_pairs = _Pairs(people, 4600, paired, region)
        self.val_pairs = _Pairs(val_people, 4601, paired, region)

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless pairs, see `StepDataModule`."""
        return self.endless_loader(self.train_pairs, _whole)

    def val_dataloader(self) -> DataLoader[Any]:
        """A pair of each held-out person, in their order."""
        return self.ordered_loader(self.val_pairs, _whole)
