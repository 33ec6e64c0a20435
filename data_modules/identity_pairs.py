"""Pairs of images of one person, with masks and landmarks that ``fairanon prepare`` found."""

from __future__ import annotations

import dataclasses
import logging
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_modules.base import StepDataModule
from data_modules.folders import file_stamp, given_as, missing_data
from data_modules.records import Mask, Turns
from fairanon.batches import LANDMARKS, IdentityBatch, PromptRow
from fairanon.files import read_json_lines
from fairanon.imaging import joint_crop, read_image
from fairanon.seeding import keyed_generator, keyed_randint

_log = logging.getLogger(__name__)
_TREE = (
    "  FOLDER/metadata.jsonl   one object a line: image, mask_face, landmarks\n"
    "  FOLDER/masks/...        the masks that it names"
)


class PeopleSource(Protocol):
    """A data set on disk that knows who is who."""

    minimum: int
    """Images that a person must have; 1 pairs a single one with itself."""

    def people(self) -> dict[str, list[Path]]:
        """Each person's images, in a fixed order."""
        ...


@dataclass(frozen=True)
class AnnotatedFace:
    """An image of one face.

    Attributes:
        image: Its file.
        mask: Its mask.
        landmarks: float32 (68, 2), shares of the image's sides.
    """

    image: Path
    mask: Path
    landmarks: Tensor

    def read(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Image uint8 (3, S, S), mask bool (1, S, S) and landmarks (68, 2), cropped alike."""
        image = read_image(self.image, str(self.image))
        height, width = image.shape[-2:]
        mask = Mask(path=self.mask).read(str(self.image), width, height)
        image, mask = joint_crop([image, mask], size)
        side = torch.tensor([width, height]) / min(height, width)  # of the image, in sides of the crop
        return image, mask > 127, self.landmarks * side - (side - 1) / 2


class Annotations:
    """What ``fairanon prepare`` found in images; those without a face are not in it. Millions of faces fit.

    Args:
        folders: What it wrote.
    """

    def __init__(self, folders: list[str]) -> None:
        self._rows: dict[str, int] = {}
        self._masks: list[str] = []
        points = array("f")
        for folder in map(Path, folders):
            path = self.file(folder)
            for number, row in read_json_lines(path, "annotations", ("image", "mask_face", "landmarks")):
                if row["mask_face"] is None or row["landmarks"] is None:
                    continue
                flat = [value for point in row["landmarks"] for value in point]
                if len(flat) != 2 * LANDMARKS:
                    raise ValueError(
                        f"annotations: {path}, line {number} has {len(flat)} coordinates of landmarks, wanted "
                        f"{2 * LANDMARKS}."
                    )
                self._rows[str((folder / row["image"]).resolve())] = len(self._masks)
                self._masks.append(str(folder / row["mask_face"]))
                points.extend(flat)
        self._landmarks = torch.tensor(points).view(-1, LANDMARKS, 2)

    @staticmethod
    def file(folder: Path) -> Path:
        """The annotations in a folder; an error where there are none."""
        path = folder / "metadata.jsonl"
        if not path.exists():
            raise missing_data(
                folder, "annotations", _TREE,
                f"Make it with `fairanon prepare {folder.name}`, or with `fairanon prepare faces IMAGES` from images.",
            )  # fmt: skip
        return path

    def __contains__(self, image: str) -> bool:
        return image in self._rows

    def face(self, image: str) -> AnnotatedFace:
        """The face in an image, by its absolute path."""
        row = self._rows[image]
        return AnnotatedFace(Path(image), Path(self._masks[row]), self._landmarks[row])


def people_with_faces(source: PeopleSource, faces: Annotations) -> list[list[str]]:
    """Paths of each person's faces; people with too few are left out, and both are counted in the log."""
    counts: Counter[str] = Counter()
    result = []
    for images in source.people().values():
        seen = [name for path in images if (name := str(path.resolve())) in faces]
        counts["without a face"] += len(images) - len(seen)
        if len(seen) >= source.minimum:
            result.append(seen)
            counts["images"] += len(seen)
        else:
            counts["people with too few"] += 1
    name = type(source).__name__
    _log.info("%s: %s people, %s", name, len(result), ", ".join(f"{n} {what}" for what, n in counts.items()))
    if not result:
        raise ValueError(
            f"nobody in {name} has {source.minimum} images with a face ({dict(counts)}); prepare its "
            "images and name the folder in annotations."
        )
    return result


def _read(image: str, size: int) -> Tensor:
    """An image alone, cropped: uint8 (3, S, S)."""
    return joint_crop([read_image(Path(image), image)], size)[0]


class _Pairs(Dataset[IdentityBatch]):
    def __init__(self, people: list[list[str]], faces: Annotations, size: int, seed: int) -> None:
        self.people, self.faces, self.size, self.seed = people, faces, size, seed
        self.rows = [(person, k) for person, faces in enumerate(people) for k in range(len(faces))]
        self.turns = Turns(self.rows, None, seed)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, where: tuple[int, int]) -> IdentityBatch:
        row, number = where
        key = f"{row}.{number}"
        return self.turns.read(row, key, partial(self._pair, key))

    def _pair(self, key: str, row: tuple[int, int]) -> IdentityBatch:
        person, k = row
        images = self.people[person]
        image, mask, landmarks = self.faces.face(images[k]).read(self.size)
        reference = image
        if len(images) > 1:  # any of the others
            other = k + 1 + int(keyed_randint([(self.seed, "pair", key)], len(images) - 1))
            reference = _read(images[other % len(images)], self.size)
        return IdentityBatch([key], image[None], reference[None], mask[None], landmarks[None])


def join(samples: Sequence[IdentityBatch]) -> IdentityBatch:
    """Batches to one."""
    fields = [field.name for field in dataclasses.fields(IdentityBatch) if field.name != "keys"]
    return IdentityBatch(
        [key for sample in samples for key in sample.keys],
        *(torch.cat([getattr(sample, name) for sample in samples]) for name in fields),
    )


class IdentityPairs(StepDataModule):
    """Pairs from data sets that know who is who; every image is drawn once a pass, its mate anew.

    Args:
        sources: For example VGGFace2-HQ and FFHQ.
        annotations: Folders that ``fairanon prepare faces`` made from their images.
        val_sources: Validation data; None is none.
        batch_size: Pairs of one rank and step.
        size: Image side in pixels.
        num_workers: Loader processes.
        seed: Of the order and the mates.
    """

    def __init__(
        self,
        sources: list[PeopleSource],
        annotations: list[str],
        val_sources: list[PeopleSource] | None = None,
        batch_size: int = 8,
        size: int = 256,
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.sources = {"train": sources, "validate": val_sources or []}
        self.annotations, self.size = annotations, size
        self._data: dict[str, _Pairs] = {}

    def look(self) -> None:
        """See `fairanon.protocols.OnDisk`; annotations are not read."""
        with given_as("data"):
            for folder in self.annotations:
                Annotations.file(Path(folder))

    def setup(self, stage: str) -> None:
        """Read the annotations; once."""
        if self._data:
            return
        with given_as("data"):
            faces = Annotations(self.annotations)
        for name, sources in self.sources.items():
            with given_as("data.sources" if name == "train" else "data.val_sources"):
                people = [person for source in sources for person in people_with_faces(source, faces)]
            self._data[name] = _Pairs(people, faces, self.size, self.seed if name == "train" else 0)

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless pairs, see `StepDataModule`."""
        return self.endless_loader(self._data["train"], join)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every validation image once, in its order."""
        return self.ordered_loader(self._data["validate"], join)


class PeopleToAnonymize:
    """Images to anonymize, what an attacker who knows the method anonymized, and one image many times.

    Args:
        source: Images and who is in them.
        annotations: See `IdentityPairs`.
        count: People, one image of each, fewer if there are not so many; drawn by ``seed``.
        attacked: So many of them an attacker has anonymized with the same model.
        draws: One of them is anonymized so often ("diverse").
        size: Image side in pixels.
        seed: Of the draw.
    """

    def __init__(
        self,
        source: PeopleSource,
        annotations: list[str],
        count: int = 5000,
        attacked: int = 1000,
        draws: int = 200,
        size: int = 512,
        seed: int = 0,
    ) -> None:
        if not 0 <= attacked <= count or count < 1:
            raise ValueError(
                f"evaluate.prompts: attacked ({attacked}) must be at most count ({count}), and that at least 1."
            )
        self.source, self.annotations, self.count, self.attacked = source, annotations, count, attacked
        self.draws, self.size, self.seed = draws, size, seed

    def look(self) -> None:
        """See `fairanon.protocols.OnDisk`."""
        self.rows()

    def rows(self) -> list[PromptRow]:
        """See `fairanon.protocols.PromptSource`; a person's first other image is the reference."""
        with given_as("evaluate.prompts"):
            annotations = Annotations(self.annotations)
        with given_as("evaluate.prompts.source"):
            people = people_with_faces(self.source, annotations)
        order = torch.randperm(len(people), generator=keyed_generator(self.seed, "draw")).tolist()
        asked = [("people", order[: self.count]), ("attacker", order[: self.attacked]),
                 ("diverse", order[:1] * self.draws)]  # fmt: skip
        rows: list[PromptRow] = []
        for name, persons in asked:
            for person in persons:
                face, others = annotations.face(people[person][0]), people[person][1:2]
                stamp = file_stamp(face.image, face.mask, *map(Path, others), said=str(face.landmarks.tolist()))
                read = partial(self._read, face, others)
                names = ("image", "mask", "landmarks", *["reference"][: len(others)])
                rows.append(
                    PromptRow("", name, {}, person=str(person), read=read, stored=names, stamp=f"{stamp} {self.size}")
                )
        return rows

    def _read(self, face: AnnotatedFace, others: list[str]) -> dict[str, Tensor]:
        image, mask, landmarks = face.read(self.size)
        sample = {"image": image, "mask": mask, "landmarks": landmarks}
        if others:
            sample["reference"] = _read(others[0], self.size)
        return sample
