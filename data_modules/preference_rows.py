"""Rows of preference tables, in every layout that people write: images as bytes, paths or ``{bytes, path}``."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from fairanon.files import TextError, named_path
from fairanon.imaging import CorruptImageError, read_image
from fairanon.places import is_stored, opened_for_reading

IMAGES, CAPTION, LABEL = ("jpg_0", "jpg_1"), "caption", "label_0"
COLUMNS = (*IMAGES, CAPTION, LABEL)


def open_parquet(path: Path, key: str) -> pq.ParquetFile:
    """A Parquet file.

    Raises:
        TextError: It is none, or a damaged one.
    """
    try:
        return pq.ParquetFile(opened_for_reading(path) if is_stored(path) else path)
    except pa.ArrowInvalid:
        raise TextError(f"{key}: {path} is no Parquet file, or a damaged one; fetch it again.") from None


def check_schema(schema: pa.Schema, where: str, hint: str = "") -> None:
    """Refuse a table whose columns are missing or of another kind.

    Args:
        schema: The table's.
        where: Key and file, for error messages.
        hint: What is said besides when a column is missing.

    Raises:
        TextError: Names the column.
    """
    if missing := [name for name in COLUMNS if name not in schema.names]:
        raise TextError(f"{where} has no column {', '.join(missing)}; it has {', '.join(schema.names)}.{hint}")
    for name in COLUMNS:
        kind = schema.field(name).type
        if name in IMAGES:
            fits = _is_bytes(kind) or _is_text(kind) or _is_both(kind)
            wanted = "an image file's bytes, its path, or {bytes, path}"
        elif name == CAPTION:
            fits, wanted = _is_text(kind), "text"
        else:
            fits, wanted = pa.types.is_floating(kind) or pa.types.is_integer(kind), "a number"
        if not fits and not pa.types.is_null(kind):
            raise TextError(f"{where}: column {name} holds {kind}, wanted {wanted}.")


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_both(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and {field.name for field in kind} >= {"bytes", "path"}


def outcome(label: Any, where: str) -> float:
    """Who won: 1 the first image, 0 the second, .5 nobody.

    Args:
        label: A number, or text that is one.
        where: File, row and column, for error messages.

    Raises:
        TextError: It is something else.
    """
    try:
        value = math.nan if label is None or label == "" else float(label)
    except (TypeError, ValueError):
        value = math.nan
    if value not in (0, 0.5, 1):
        label_text = "empty" if label is None or label == "" else repr(label)
        raise TextError(f"{where} is {label_text}; a label is 0, 1 or, where nobody won, 0.5.")
    return value


def check_rows(rows: Sequence[dict[str, Any]], where: str) -> None:
    """Refuse rows without caption or image; `outcome` checks labels.

    Args:
        rows: With the columns `COLUMNS`.
        where: Key and file, for error messages.

    Raises:
        TextError: Names row and column.
    """
    for number, row in enumerate(rows):
        for name in (*IMAGES, CAPTION):
            if not row[name]:
                raise TextError(f"{where}, row {number}: column {name} is empty.")
        outcome(row[LABEL], f"{where}, row {number}: column {LABEL}")


class Root(Protocol):
    """What names of files are joined to: a folder, or tars."""

    def __truediv__(self, name: Any, /) -> Path:
        """The file of a name."""
        ...


def decode_image(value: Any, root: Root, where: str) -> Tensor:
    """The image of a cell: uint8 (3, H, W).

    Args:
        value: Bytes, a path, or ``{bytes, path}`` with one of the two.
        root: What relative paths start from.
        where: Row and column, for error messages.

    Raises:
        CorruptImageError: There is none, or it cannot be read.
    """
    if isinstance(value, dict):
        value = value["bytes"] or value["path"]
    if not value:
        raise CorruptImageError(f"{where} is empty")
    if isinstance(value, bytes):
        return read_image(io.BytesIO(value), where)
    path = root / named_path(value, where)
    return read_image(path, str(path))
