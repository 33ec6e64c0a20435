"""Masks of faces, of their parts and of hands for a plain folder of images."""

from __future__ import annotations

import errno
import json
import logging
import os
from abc import abstractmethod
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from fairanon.evaluators.judge import jsonable
from fairanon.files import IMAGES, TextError, Walked, atomic_write, content_key, read_json, read_text, walk, write_json
from fairanon.imaging import CorruptImageError, combine_regions, dilate, read_image, read_regions, write_image
from fairanon.prepare.base import Preparation
from fairanon.progress import progress_bar
from fairanon.protocols import Detections, Detector, FaceParser, LandmarkDetector

_log = logging.getLogger(__name__)
KINDS = ("face", "hand")


class ImageMasks(Preparation):
    """Goes through a folder of images and writes ``metadata.jsonl`` in the layout of FairHuman's code.

    Images are read where they are and never written to; the result names them by their paths from its own folder.

    Args:
        folder: Result: ``metadata.jsonl``, ``masks/`` and ``counts.json``; finished masks of the same recipe are kept.
        images: Folder of images, searched through, see `fairanon.files.walk`. A text file of the same name beside an image is
            its caption.
        kinds: What masks there are: the field "mask_KIND" of a line.
        recipe: Who finds them, and with which settings.
        caption: The caption of images without a text file.
    """

    result = "metadata.jsonl"
    reads = ("images",)

    def __init__(self, folder: str, images: str, kinds: tuple[str, ...], recipe: dict[str, Any], caption: str) -> None:
        super().__init__(folder)
        self.images, self.kinds, self.recipe, self.caption = Path(images), kinds, recipe, caption
        self.most: int | None = None

    @abstractmethod
    def masks(self, image: Tensor) -> dict[str, Tensor]:
        """Masks of each kind, bool (1, H, W), of a uint8 (3, H, W) image; all False where nothing is found."""

    def facts(self, image: Tensor) -> dict[str, Any]:
        """What else the line of an image says, for ``metadata.jsonl``."""
        return {}

    def shorten(self) -> None:
        """See `Preparation.shorten`."""
        self.most = 16

    def looked_at(self) -> int:
        """See `Preparation.looked_at`."""
        return len(self._found().files)

    def _found(self) -> Walked:
        try:
            walked = walk(self.images)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(f"prepare.images: {error}") from None
        walked.files = walked.files[: self.most]
        if not walked.files:
            raise FileNotFoundError(
                f"prepare.images: {self.images} holds no image ({', '.join(IMAGES)}). {walked.report()}".strip()
            )
        if self.folder.resolve().is_relative_to(self.images.resolve()):
            raise ValueError("prepare.folder: it lies inside prepare.images; choose a folder outside.")
        return walked

    def make_pieces(self, share: int = 0, of: int = 1) -> None:
        """See `Preparation.make_pieces`; `make` says which images cannot be read."""
        images = self._found().files[share::of]
        for path in progress_bar(images, desc=f"masks of {' and '.join(self.kinds)}", unit="img"):
            try:
                self._find(path)
            except CorruptImageError:
                continue
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise

    def make(self) -> None:
        """Look at what has no masks yet; write the list of all."""
        walked = self._found()
        images = walked.files
        counts = {"images": len(images), "unreadable": 0, **dict.fromkeys(self.kinds, 0)}
        with atomic_write(self.folder / "metadata.jsonl") as partial:
            with partial.open("w", encoding="utf-8") as lines:
                self._look(images, counts, lines)
            if counts["unreadable"] == len(images):
                raise CorruptImageError(
                    f"prepare.images: none of the {len(images)} images in {self.images} is readable."
                )
        write_json(self.folder / "counts.json", {**self.recipe, **counts, "passed over": dict(walked.passed_over)})
        parts = [f"{self.folder}: " + ", ".join(f"{count} {name}" for name, count in counts.items()), walked.report()]
        print("; ".join(part for part in parts if part))

    def _look(self, images: list[Path], counts: dict[str, int], lines: TextIO) -> None:
        """Write a line for each readable image as soon as it is known: landmarks of millions fill the memory."""
        for path in progress_bar(images, desc=f"masks of {' and '.join(self.kinds)}", unit="img"):
            text, caption = path.with_suffix(".txt"), self.caption
            try:
                if text.exists():
                    caption = read_text(text, "skipped: caption").strip()
                masks, facts = self._find(path)
            except (CorruptImageError, TextError) as error:
                counts["unreadable"] += 1
                _log.warning("skipped %s", error)
                continue
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                counts["unreadable"] += 1
                _log.warning("skipped %s: its name is too long to name a mask after it", path)
                continue
            for kind in self.kinds:
                counts[kind] += masks[kind] is not None
            row = {
                "image": os.path.relpath(path.resolve(), self.folder.resolve()),
                "text_english": caption,
                **{f"mask_{kind}": masks[kind] for kind in self.kinds},
                **facts,
            }
            lines.write(json.dumps(row) + "\n")

    def _find(self, path: Path) -> tuple[dict[str, str | None], dict[str, Any]]:
        """Paths of an image's masks, relative to the folder, None for a kind that was not found; and its facts."""
        name = f"{path.relative_to(self.images)}.png"
        files = {kind: Path("masks") / kind / name for kind in self.kinds}
        done = self.folder / "masks" / "done" / f"{name}.json"
        state = path.stat()
        made_of = {**self.recipe, "bytes": state.st_size, "changed": state.st_mtime_ns, "notes": "what is found"}
        known = read_json(done, "prepare.folder") if done.exists() else {}
        if known.get("made_of") != made_of or not all((self.folder / files[kind]).exists() for kind in known["found"]):
            image = read_image(path, str(path))
            masks = self.masks(image)
            for kind, file in files.items():
                (self.folder / file).unlink(missing_ok=True)
                if masks[kind].any():
                    write_image(masks[kind].expand(3, -1, -1).to(torch.uint8) * 255, self.folder / file)
            found = [kind for kind in self.kinds if masks[kind].any()]
            known = {"made_of": made_of, "found": found, "facts": self.facts(image)}
            write_json(done, known)
        paths = {kind: str(file) if kind in known["found"] else None for kind, file in files.items()}
        return paths, known["facts"]


class RegionMasks(ImageMasks):
    """Boxes round faces and hands, for FairHuman.

    Args:
        folder: See `ImageMasks`.
        images: Likewise.
        detector: Finds "face" and "hand".
        grow: Pixels by which boxes are dilated; the paper's 16.
        caption: See `ImageMasks`.
    """

    def __init__(
        self, folder: str, images: str, detector: Detector, grow: int = 16, caption: str = "a photo of a person"
    ) -> None:
        if missing := set(KINDS) - set(detector.kinds):
            raise ValueError(
                f"prepare.detector: {detector.name} does not find {', '.join(sorted(missing))}; join it with one that "
                "does (fairanon.evaluators.JoinedDetectors)."
            )
        super().__init__(
            folder,
            images,
            KINDS,
            {"detector": detector.name, "grow": grow, "asked": content_key(jsonable(detector))},
            caption,
        )
        self.detector, self.grow = detector, grow

    def masks(self, image: Tensor) -> dict[str, Tensor]:
        """See `ImageMasks`."""
        (detections,) = self.detector.detect(image[None])
        return {kind: boxes_to_mask(detections[kind], image.shape[-2], image.shape[-1], self.grow) for kind in KINDS}


class FaceMasks(ImageMasks):
    """Regions of segmented faces, for Ano-Face-Fair (section 3.1), with landmarks for ID2Face (section III.C).

    Args:
        folder: See `ImageMasks`.
        images: Likewise; each image is one face, aligned.
        parser: Segments faces.
        region: The mask, an expression of the parser's regions such as "face" or "eyes+nose".
        caption: See `ImageMasks`.
        landmarks: Finds 68 points: the field "landmarks" of a line, as shares of the image's sides, null where no face
            was found. None leaves the field out.
    """

    def __init__(
        self,
        folder: str,
        images: str,
        parser: FaceParser,
        region: str = "face",
        caption: str = "a photo of a person",
        landmarks: LandmarkDetector | None = None,
    ) -> None:
        read_regions(region, parser.regions)
        recipe = {"parser": parser.name, "region": region, "asked": content_key(jsonable([parser, landmarks]))}
        if landmarks is not None:
            recipe["landmarks"] = landmarks.name
        super().__init__(folder, images, ("face",), recipe, caption)
        self.parser, self.region, self.landmarks = parser, region, landmarks

    def facts(self, image: Tensor) -> dict[str, Any]:
        """See `ImageMasks`."""
        if self.landmarks is None:
            return {}
        points = self.landmarks.landmarks(image[None])[0] / torch.tensor([image.shape[-1], image.shape[-2]])
        return {"landmarks": None if points.isnan().any() else [[round(v, 5) for v in p] for p in points.tolist()]}

    def masks(self, image: Tensor) -> dict[str, Tensor]:
        """See `ImageMasks`."""
        regions = {name: mask[0] for name, mask in self.parser.parse(image[None]).items()}
        return {"face": combine_regions(regions, self.region)}


def boxes_to_mask(detections: Detections, height: int, width: int, grow: int) -> Tensor:
    """Boxes as a mask, dilated: bool (1, height, width)."""
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    for x0, y0, x1, y1 in detections.boxes.tolist():
        mask[:, max(0, int(y0)) : max(0, round(y1)), max(0, int(x0)) : max(0, round(x1))] = True
    return dilate(mask[None], grow)[0]
