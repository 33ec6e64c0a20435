"""CosmicMan-HQ: pictures of people with captions per body part and parsing maps. Non-commercial; gated on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_modules.base import missing_data
from data_modules.human_regions import Mask, Record

_TREE = (
    "  FOLDER/label/*.parquet  columns path, segm_path, aa_text, person_type, ...\n  IMAGES/PATH and IMAGES/SEGM_PATH"
)
_SHOTS = {"full_body": "a full-body shot", "nearly_full_body": "a nearly full-body shot",
          "upper_body": "an upper body shot", "portrait": "a close up portrait shot",
          "headshot": "a headshot"}  # fmt: skip


def caption(person_type: str | None, parts: list[dict[str, str] | None]) -> str:
    """A caption from the labels of the body parts, in their order.

    Args:
        person_type: How much of the person is seen.
        parts: For each body part its attributes; None where it is not seen.

    Returns:
        For example "a headshot, european young woman, long blond hair".
    """
    phrases = [_SHOTS.get(person_type or "", "a photo of a person")]
    phrases += [" ".join(str(value) for value in part.values()) for part in parts if part]
    return ", ".join(phrases)


class CosmicMan:
    """CosmicMan-HQ 1.0. Its pictures are not shipped: download them from the addresses in its labels.

    Args:
        folder: With ``label``.
        images: What the columns path and segm_path are relative to; None is ``folder``.
        face_ids: Values of faces in the parsing maps.
        hand_ids: Values of hands in the parsing maps.
    """

    def __init__(
        self, folder: str, face_ids: tuple[int, ...], hand_ids: tuple[int, ...], images: str | None = None
    ) -> None:
        self.folder, self.images = Path(folder), Path(images or folder)
        self.face_ids, self.hand_ids = face_ids, hand_ids

    def records(self) -> list[Record]:
        """See `RegionSource`."""
        files = sorted((self.folder / "label").glob("*.parquet"))
        if not files:
            raise missing_data(self.folder, "data.sources", _TREE, "Ask for access on its hub page and download it.")
        return [self._record(row) for file in files for row in pq.read_table(file).to_pylist()]

    def _record(self, row: dict[str, Any]) -> Record:
        parts = row["aa_text"]
        if isinstance(parts, str):
            parts = json.loads(parts)
        parsing = self.images / row["segm_path"]
        masks = (Mask(path=parsing, values=self.face_ids), Mask(path=parsing, values=self.hand_ids))
        return Record(self.images / row["path"], caption(row.get("person_type"), parts or []), masks)
