"""Masks of faces, of their parts and of hands for a plain folder of pictures."""

from __future__ import annotations

import json
import logging
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fairanon.evaluators.protocols import Detections, Detector, FaceParser
from fairanon.imaging import CorruptImageError, combine_regions, dilate, read_image, read_regions, write_image
from fairanon.prepare.base import Preparation, write_json

_log = logging.getLogger(__name__)
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
KINDS = ("face", "hand")


class PictureMasks(Preparation):
    """Goes through a folder of pictures and writes ``metadata.jsonl`` in the layout of FairHuman's code.

    Pictures are read where they are and never written to; the result names them by their absolute paths.

    Args:
        folder: Result: ``metadata.jsonl``, ``masks/`` and ``counts.json``; finished masks of the same recipe are kept.
        images: Folder of pictures, searched through. A text file of the same name beside a picture is its caption.
        kinds: What masks there are: the field "mask_KIND" of a line.
        recipe: Who finds them, and with which settings.
        caption: The caption of pictures without a text file.
    """

    def __init__(self, folder: str, images: str, kinds: tuple[str, ...], recipe: dict[str, Any], caption: str) -> None:
        super().__init__(folder)
        self.images, self.kinds, self.recipe, self.caption = Path(images), kinds, recipe, caption

    @abstractmethod
    def masks(self, picture: Tensor) -> dict[str, Tensor]:
        """Masks of each kind, bool (1, H, W), of a uint8 (3, H, W) picture; all False where nothing is found."""

    def run(self) -> None:
        """Look at what has no masks yet; write the list of all."""
        pictures = sorted(path for path in self.images.rglob("*") if path.suffix.lower() in _SUFFIXES)
        if not pictures:
            raise FileNotFoundError(f"prepare.images: {self.images} holds no picture ({', '.join(sorted(_SUFFIXES))}).")
        if self.folder.resolve().is_relative_to(self.images.resolve()):
            raise ValueError("prepare.folder: it lies inside prepare.images; choose a folder outside.")
        rows, counts = [], {"pictures": len(pictures), "unreadable": 0, **dict.fromkeys(self.kinds, 0)}
        for path in tqdm(pictures, desc=f"masks of {' and '.join(self.kinds)}", unit="img"):
            try:
                found = self._find(path)
            except CorruptImageError as error:
                counts["unreadable"] += 1
                _log.warning("skipped %s", error)
                continue
            for kind in self.kinds:
                counts[kind] += found[kind] is not None
            text = path.with_suffix(".txt")
            rows.append(
                {
                    "image": str(path.resolve()),
                    "text_english": text.read_text().strip() if text.exists() else self.caption,
                    **{f"mask_{kind}": found[kind] for kind in self.kinds},
                }
            )
        if not rows:
            raise CorruptImageError(
                f"prepare.images: none of the {len(pictures)} pictures in {self.images} is readable."
            )
        partial = self.folder / "metadata.jsonl.partial"
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        partial.replace(self.folder / "metadata.jsonl")
        write_json(self.folder / "counts.json", {**self.recipe, **counts})
        print(f"{self.folder}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))

    def _find(self, path: Path) -> dict[str, str | None]:
        """Paths of a picture's masks, relative to the folder; None for a kind that was not found."""
        name = f"{path.relative_to(self.images)}.png"
        files = {kind: Path("masks") / kind / name for kind in self.kinds}
        done = self.folder / "masks" / "done" / f"{name}.json"
        state = path.stat()
        made_of = {**self.recipe, "bytes": state.st_size, "changed": state.st_mtime_ns}
        if not done.exists() or json.loads(done.read_text()) != made_of:
            found = self.masks(read_image(path, str(path)))
            for kind, file in files.items():
                (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / file).unlink(missing_ok=True)
                if found[kind].any():
                    write_image(found[kind].expand(3, -1, -1).to(torch.uint8) * 255, self.folder / file)
            done.parent.mkdir(parents=True, exist_ok=True)
            write_json(done, made_of)
        return {kind: str(file) if (self.folder / file).exists() else None for kind, file in files.items()}


class RegionMasks(PictureMasks):
    """Boxes round faces and hands, for FairHuman.

    Args:
        folder: See `PictureMasks`.
        images: Likewise.
        detector: Finds "face" and "hand".
        grow: Pixels by which boxes are dilated; the paper's 16.
        caption: See `PictureMasks`.
    """

    def __init__(
        self, folder: str, images: str, detector: Detector, grow: int = 16, caption: str = "a photo of a person"
    ) -> None:
        if missing := set(KINDS) - set(detector.kinds):
            raise ValueError(
                f"prepare.detector: {detector.name} does not find {', '.join(sorted(missing))}; join it with one that "
                "does (fairanon.evaluators.JoinedDetectors)."
            )
        super().__init__(folder, images, KINDS, {"detector": detector.name, "grow": grow}, caption)
        self.detector, self.grow = detector, grow

    def masks(self, picture: Tensor) -> dict[str, Tensor]:
        """See `PictureMasks`."""
        (found,) = self.detector.detect(picture[None])
        return {kind: boxes_to_mask(found[kind], picture.shape[-2], picture.shape[-1], self.grow) for kind in KINDS}


class FaceMasks(PictureMasks):
    """Regions of segmented faces, for Ano-Face-Fair (section 3.1).

    Args:
        folder: See `PictureMasks`.
        images: Likewise; each picture is one face, aligned.
        parser: Segments faces.
        region: The mask, an expression of the parser's regions such as "face" or "eyes+nose".
        caption: See `PictureMasks`.
    """

    def __init__(
        self, folder: str, images: str, parser: FaceParser, region: str = "face", caption: str = "a photo of a person"
    ) -> None:
        read_regions(region, parser.regions)
        super().__init__(folder, images, ("face",), {"parser": parser.name, "region": region}, caption)
        self.parser, self.region = parser, region

    def masks(self, picture: Tensor) -> dict[str, Tensor]:
        """See `PictureMasks`."""
        found = {name: mask[0] for name, mask in self.parser.parse(picture[None]).items()}
        return {"face": combine_regions(found, self.region)}


def boxes_to_mask(found: Detections, height: int, width: int, grow: int) -> Tensor:
    """Boxes as a mask, dilated: bool (1, height, width)."""
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    for x0, y0, x1, y1 in found.boxes.tolist():
        mask[:, max(0, int(y0)) : max(0, round(y1)), max(0, int(x0)) : max(0, round(x1))] = True
    return dilate(mask[None], grow)[0]
