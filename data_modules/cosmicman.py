"""CosmicMan-HQ: images of people with captions per body part and parsing maps. Non-commercial; gated on the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_modules import folders
from data_modules.folders import file_stamp, missing_data
from data_modules.preference_rows import open_parquet
from data_modules.records import Mask, Record
from data_modules.tars import in_tars
from fairanon.files import atomic_write
from fairanon.places import files_below, place
from fairanon.progress import progress_bar

_TREE = (
    "  FOLDER/label/*.parquet  columns path, segm_path, aa_text, person_type, ...\n  IMAGES/PATH and IMAGES/SEGM_PATH"
)
_COLUMNS = ("path", "segm_path", "aa_text", "person_type")
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


def _mapped(files: list[Path]) -> pa.Table:
    """The labels as a table that lies on the disk: six million of them do not fit into every process's memory."""
    path = folders.CACHE / f"cosmicman-{file_stamp(*files)}.arrow"
    if not path.exists():
        opened = [open_parquet(file, "CosmicMan") for file in files]
        columns = [name for name in _COLUMNS if name in opened[0].schema_arrow.names]
        schema = pa.schema([opened[0].schema_arrow.field(name) for name in columns])
        with (
            atomic_write(path) as partial,
            pa.OSFile(str(partial), "wb") as sink,
            pa.ipc.new_file(sink, schema) as writer,
        ):
            for file in progress_bar(opened, desc="reading labels", unit="file"):
                for batch in file.iter_batches(columns=columns):
                    writer.write_batch(batch.cast(schema))
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


class _Labels(Sequence[Record]):
    """Records of a table's rows, each made when it is asked for."""

    def __init__(self, table: pa.Table, record: Callable[[dict[str, Any]], Record]) -> None:
        self.table, self._record = table, record

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, row: Any) -> Any:
        return self._record(self.table.slice(row, 1).to_pylist()[0])


class CosmicMan:
    """CosmicMan-HQ 1.0. Its images are not shipped: download them from the addresses in its labels.

    Args:
        folder: With ``label``; it, and ``images``, may be an address in an object store.
        images: What the columns path and segm_path are relative to; None is ``folder``. Where tars lie in it, the files in them.
        face_ids: Values of faces in the parsing maps.
        hand_ids: Values of hands in the parsing maps.
    """

    def __init__(
        self, folder: str, face_ids: tuple[int, ...], hand_ids: tuple[int, ...], images: str | None = None
    ) -> None:
        self.folder, self.images = place(folder), place(images or folder)
        self.face_ids, self.hand_ids = face_ids, hand_ids

    def look(self) -> None:
        """See `fairanon.protocols.OnDisk`."""
        self.records()

    def records(self) -> Sequence[Record]:
        """See `RegionSource`."""
        label = self.folder / "label"
        files = sorted(path for path in files_below(label) if path.suffix == ".parquet" and path.parent == label)
        if not files:
            raise missing_data(self.folder, "CosmicMan", _TREE, "Ask for access on its hub page and download it.")
        self._files = in_tars(self.images, "CosmicMan")
        return _Labels(_mapped(files), self._record)

    def _record(self, row: dict[str, Any]) -> Record:
        parts = row["aa_text"]
        if isinstance(parts, str):
            parts = json.loads(parts)
        parsing = self._files / row["segm_path"]
        masks = (Mask(path=parsing, values=self.face_ids), Mask(path=parsing, values=self.hand_ids))
        return Record(self._files / row["path"], caption(row.get("person_type"), parts or []), masks)
