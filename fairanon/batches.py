"""The door in for data: typed batches, validated once.

Every batch carries ``keys``: one string per sample that names the sample and the pass over the data set. All
randomness of a training step is drawn from generators keyed by it (see `fairanon.seeding`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


def _check_images(name: str, value: Tensor, count: int) -> None:
    if value.dtype != torch.uint8 or value.dim() != 4 or value.shape[1] != 3:
        raise ValueError(f"{name} must be uint8 (B, 3, H, W), got {value.dtype} {tuple(value.shape)}.")
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} images for {count} keys.")


def stacked(tensors: Iterable[Tensor | None]) -> Tensor | None:
    """What rows have, as a batch; None unless all have it."""
    entries = list(tensors)
    return torch.stack([t for t in entries if t is not None]) if all(t is not None for t in entries) else None


@dataclass(frozen=True)
class _Batch:
    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> _Batch:
        """A copy with every tensor on ``device``; Lightning calls it."""
        moved = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)  # type: ignore[arg-type]  # the fields of a subclass

    def __getitem__(self, rows: slice) -> _Batch:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        cut: dict[str, Any] = {name: None if value is None else value[rows] for name, value in values.items()}
        return replace(self, **cut)


@dataclass(frozen=True)
class PromptBatch(_Batch):
    """Images that are to be drawn: those of one prompt stand side by side.

    Attributes:
        prompts: B prompts.
    """

    prompts: list[str]

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.keys):
            raise ValueError(f"{len(self.prompts)} prompts for {len(self.keys)} keys.")


@dataclass(frozen=True)
class PreferenceBatch(_Batch):
    """Pairs of a preferred and a rejected image for one caption.

    Attributes:
        winners: uint8 (B, 3, H, W).
        losers: uint8 (B, 3, H, W).
        captions: B captions, shared by both images of a pair.
        winner_prompts: B prompts that the winners were sampled from; None where nobody knows.
    """

    winners: Tensor
    losers: Tensor
    captions: list[str]
    winner_prompts: list[str] | None = None

    def __post_init__(self) -> None:
        _check_images("winners", self.winners, len(self.keys))
        _check_images("losers", self.losers, len(self.keys))
        if self.winners.shape != self.losers.shape:
            raise ValueError(
                f"winners {tuple(self.winners.shape)} and losers {tuple(self.losers.shape)} differ in shape."
            )
        if len(self.captions) != len(self.keys):
            raise ValueError(f"captions has {len(self.captions)} entries for {len(self.keys)} keys.")
        if self.winner_prompts is not None and len(self.winner_prompts) != len(self.keys):
            raise ValueError(f"winner_prompts has {len(self.winner_prompts)} entries for {len(self.keys)} keys.")


REGIONS = ("face", "hand")
"""Regions that have an objective of their own, in the order of their masks."""


@dataclass(frozen=True)
class RegionBatch(_Batch):
    """Images of people with masks of their faces and hands.

    Attributes:
        images: uint8 (B, 3, H, W).
        captions: B captions.
        masks: bool (B, 2, H, W) in the order of `REGIONS`; all False where the image has no such region.
        controls: uint8 (B, 3, H, W), condition images (pose, depth); None without.
        frames: int64 (B, 4), where each image was cut from: original height and width, top and left of the crop in
            pixels of the resized image; None where nobody says.
    """

    images: Tensor
    captions: list[str]
    masks: Tensor
    controls: Tensor | None = None
    frames: Tensor | None = None

    def __post_init__(self) -> None:
        _check_images("images", self.images, len(self.keys))
        if len(self.captions) != len(self.keys):
            raise ValueError(f"captions has {len(self.captions)} entries for {len(self.keys)} keys.")
        expected = (len(self.keys), len(REGIONS), *self.images.shape[-2:])
        if self.masks.dtype != torch.bool or self.masks.shape != expected:
            raise ValueError(f"masks must be bool {expected}, got {self.masks.dtype} {tuple(self.masks.shape)}.")
        if self.frames is not None and (self.frames.shape != (len(self.keys), 4) or self.frames.dtype != torch.int64):
            raise ValueError(f"frames must be int64 {(len(self.keys), 4)}, got {tuple(self.frames.shape)}.")
        if self.controls is not None:
            _check_images("controls", self.controls, len(self.keys))
            if self.controls.shape != self.images.shape:
                raise ValueError(
                    f"controls {tuple(self.controls.shape)} and images {tuple(self.images.shape)} differ in shape."
                )


ROLES = ("instance", "prior", "difference")
"""What an image of DreamBooth-like training is for: the subject, its class, or the classes to be told apart from it."""


@dataclass(frozen=True)
class InpaintBatch(_Batch):
    """Images with the part that is to be inpainted.

    Attributes:
        images: uint8 (B, 3, H, W).
        captions: B captions.
        masks: bool (B, 1, H, W), True where the image is inpainted; nobody's is empty.
        roles: B of `ROLES`.
    """

    images: Tensor
    captions: list[str]
    masks: Tensor
    roles: list[str]

    def __post_init__(self) -> None:
        _check_images("images", self.images, len(self.keys))
        for name, values in (("captions", self.captions), ("roles", self.roles)):
            if len(values) != len(self.keys):
                raise ValueError(f"{name} has {len(values)} entries for {len(self.keys)} keys.")
        if wrong := sorted(set(self.roles) - set(ROLES)):
            raise ValueError(f"roles are {', '.join(ROLES)}, got {', '.join(wrong)}.")
        expected = (len(self.keys), 1, *self.images.shape[-2:])
        if self.masks.dtype != torch.bool or self.masks.shape != expected:
            raise ValueError(f"masks must be bool {expected}, got {self.masks.dtype} {tuple(self.masks.shape)}.")
        empty = [key for key, mask in zip(self.keys, self.masks, strict=True) if not mask.any()]
        if empty:
            raise ValueError(f"the mask of {empty[0]} is empty: nothing would be inpainted.")


LANDMARKS = 68


@dataclass(frozen=True)
class IdentityBatch(_Batch):
    """Pairs of images of one person.

    Attributes:
        images: uint8 (B, 3, H, W), what is to be drawn.
        references: uint8 (B, 3, H, W), other images of the same people: who is to be drawn.
        masks: bool (B, 1, H, W), the face in ``images``.
        landmarks: float32 (B, 68, 2), x and y in ``images`` as shares of its sides.
    """

    images: Tensor
    references: Tensor
    masks: Tensor
    landmarks: Tensor

    def __post_init__(self) -> None:
        _check_images("images", self.images, len(self.keys))
        _check_images("references", self.references, len(self.keys))
        expected = (len(self.keys), 1, *self.images.shape[-2:])
        if self.masks.dtype != torch.bool or self.masks.shape != expected:
            raise ValueError(f"masks must be bool {expected}, got {self.masks.dtype} {tuple(self.masks.shape)}.")
        if self.landmarks.shape != (len(self.keys), LANDMARKS, 2) or not self.landmarks.is_floating_point():
            raise ValueError(
                f"landmarks must be float {(len(self.keys), LANDMARKS, 2)}, got {self.landmarks.dtype} "
                f"{tuple(self.landmarks.shape)}."
            )
        for name, value in (
            ("mask", self.masks.flatten(1).any(1)),
            ("landmarks", self.landmarks.isfinite().all((1, 2))),
        ):
            if not value.all():
                raise ValueError(f"{self.keys[int((~value).nonzero()[0])]} has no {name}: no face was found in it.")


@dataclass(frozen=True)
class SegmentationBatch(_Batch):
    """Images with a label for every pixel.

    Attributes:
        images: uint8 (B, 3, H, W).
        labels: int64 (B, H, W), 0 is the background.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        _check_images("images", self.images, len(self.keys))
        expected = (len(self.keys), *self.images.shape[-2:])
        if self.labels.dtype != torch.int64 or self.labels.shape != expected:
            raise ValueError(f"labels must be int64 {expected}, got {self.labels.dtype} {tuple(self.labels.shape)}.")


@dataclass(frozen=True)
class PromptRow:
    """A prompt to sample.

    Attributes:
        prompt: Its text.
        set: The set that it belongs to.
        asked: What it asks for, by name.
        control: A condition image, uint8 (3, H, W), for models that take one.
        image: An image to inpaint, uint8 (3, H, W).
        mask: Which part of it is inpainted, bool (1, H, W).
        landmarks: Of the face in it, float (68, 2), as shares of the sides.
        person: Who is in it, where that is known.
        reference: Another image of the same person, uint8 (3, H, W).
        read: Reads what stays in its files until it is needed (thousands of images do not fit into memory), by the names
            above; see `loaded`.
        stored: What ``read`` reads.
        stamp: Names what ``read`` reads, for example by the files' paths, sizes and times.
        images: How many images of it there are; None: as many as an evaluation says.
    """

    prompt: str
    set: str
    asked: dict[str, str]
    control: Tensor | None = None
    image: Tensor | None = None
    mask: Tensor | None = None
    landmarks: Tensor | None = None
    person: str | None = None
    reference: Tensor | None = None
    read: Callable[[], Mapping[str, Any]] | None = None
    stored: tuple[str, ...] = ()
    stamp: str = ""
    images: int | None = None

    def holds(self, name: str) -> bool:
        """Whether the row has an "image", "mask", "control", "landmarks" or "reference", loaded or not."""
        return name in self.stored or getattr(self, name) is not None

    def loaded(self) -> PromptRow:
        """The row with everything that it holds in memory."""
        return self if self.read is None else replace(self, read=None, stored=(), **self.read())

    def digest(self) -> str:
        """Names what the row holds besides its prompt, without reading files; "" where that is nothing."""
        if self.stamp:
            return self.stamp
        held = [t for t in (self.control, self.image, self.mask, self.landmarks, self.reference) if t is not None]
        hasher = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in held))
        return hasher.hexdigest()[:16] if held else ""
