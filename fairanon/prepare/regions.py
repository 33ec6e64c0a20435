"""Masks of faces and hands for a plain folder of pictures."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fairanon.evaluators.protocols import Detections, Detector
from fairanon.imaging import CorruptImageError, dilate, read_image, write_image
from fairanon.prepare.base import Preparation, write_json

_log = logging.getLogger(__name__)
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
KINDS = ("face", "hand")


class RegionMasks(Preparation):
    """Finds faces and hands, and writes ``metadata.jsonl`` with boxes as masks, in the layout of FairHuman's code.

    Pictures are read where they are and never written to; the result names them by their absolute paths.

    Args:
        folder: Result: ``metadata.jsonl``, ``masks/`` and ``counts.json``; finished masks in it are kept.
        images: Folder of pictures, searched through. A text file of the same name beside a picture is its caption.
        detector: Finds "face" and "hand".
        grow: Pixels by which boxes are dilated; the paper's 16.
        caption: The caption of pictures without a text file.
    """

    def __init__(
        self, folder: str, images: str, detector: Detector, grow: int = 16, caption: str = "a photo of a person"
    ) -> None:
        super().__init__(folder)
        if missing := set(KINDS) - set(detector.kinds):
            raise ValueError(
                f"prepare.detector: {detector.name} does not find {', '.join(sorted(missing))}; join it with one that "
                "does (fairanon.evaluators.JoinedDetectors)."
            )
        self.images, self.detector, self.grow, self.caption = Path(images), detector, grow, caption

    def run(self) -> None:
        """Detect in what has no masks yet; write the list of all."""
        pictures = sorted(path for path in self.images.rglob("*") if path.suffix.lower() in _SUFFIXES)
        if not pictures:
            raise FileNotFoundError(f"prepare.images: {self.images} holds no picture ({', '.join(sorted(_SUFFIXES))}).")
        if self.folder.resolve().is_relative_to(self.images.resolve()):
            raise ValueError("prepare.folder: it lies inside prepare.images; choose a folder outside.")
        rows, counts = [], {"pictures": len(pictures), "unreadable": 0, **dict.fromkeys(KINDS, 0)}
        for path in tqdm(pictures, desc="finding faces and hands", unit="img"):
            try:
                masks = self._masks(path)
            except CorruptImageError as error:
                counts["unreadable"] += 1
                _log.warning("skipped %s", error)
                continue
            for kind in KINDS:
                counts[kind] += masks[kind] is not None
            text = path.with_suffix(".txt")
            rows.append(
                {
                    "image": str(path.resolve()),
                    "text_english": text.read_text().strip() if text.exists() else self.caption,
                    **{f"mask_{kind}": masks[kind] for kind in KINDS},
                }
            )
        if not rows:
            raise CorruptImageError(
                f"prepare.images: none of the {len(pictures)} pictures in {self.images} is readable."
            )
        partial = self.folder / "metadata.jsonl.partial"
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        partial.replace(self.folder / "metadata.jsonl")
        write_json(self.folder / "counts.json", {"detector": self.detector.name, **counts})
        print(f"{self.folder}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))

    def _masks(self, path: Path) -> dict[str, str | None]:
        """Paths of a picture's masks, relative to the folder; None for a kind that was not found."""
        name = f"{path.relative_to(self.images)}.png"
        files = {kind: Path("masks") / kind / name for kind in KINDS}
        done = self.folder / "masks" / "done" / f"{name}.json"
        if not done.exists():
            picture = read_image(path, str(path))
            (found,) = self.detector.detect(picture[None])
            for kind, file in files.items():
                (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
                if len(found[kind].boxes):
                    mask = boxes_to_mask(found[kind], picture.shape[-2], picture.shape[-1], self.grow)
                    write_image(mask.expand(3, -1, -1).to(torch.uint8) * 255, self.folder / file)
            done.parent.mkdir(parents=True, exist_ok=True)
            write_json(done, {kind: len(found[kind].boxes) for kind in KINDS})
        return {kind: str(file) if (self.folder / file).exists() else None for kind, file in files.items()}


def boxes_to_mask(found: Detections, height: int, width: int, grow: int) -> Tensor:
    """Boxes as a mask, dilated: bool (1, height, width)."""
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    for x0, y0, x1, y1 in found.boxes.tolist():
        mask[:, max(0, int(y0)) : max(0, round(y1)), max(0, int(x0)) : max(0, round(x1))] = True
    return dilate(mask[None], grow)[0]
