"""What a person looks at first: boxes that are found, or some pictures before and after."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from fairanon.anonymizer.evidence import Evidence
from fairanon.anonymizer.faces import Picture
from fairanon.anonymizer.folder import Job
from fairanon.anonymizer.pairs import Pair
from fairanon.anonymizer.photos import read_photo
from fairanon.files import content_key
from fairanon.imaging import open_image, to_array
from fairanon.places import read_bytes
from fairanon.progress import progress_bar

_SIDE = 480
"""Of a picture on a sheet, in pixels."""


def dry_run(job: Job) -> tuple[Path | None, int, int]:
    """Draw the boxes into all pictures and write them to OUT/preview; replaces nothing.

    Returns:
        The folder, how many faces would be hidden, and in how many pictures.
    """
    folder, faces, pictures = job.preview(), 0, 0
    for picture in _pictures(job, "boxes", len(job.source.items)):
        job.result.put(_with_boxes(picture), folder / _named(picture.name))
        faces, pictures = faces + len(picture.asked), pictures + 1
    return folder, faces, pictures


def _named(name: str) -> str:
    """What a picture with boxes is called, whose own name may be as long as a file system takes."""
    folder, _, last = name.rpartition("/")
    short = last if len(os.fsencode(last)) <= 250 else content_key(last)
    return f"{folder}/{short}.jpg" if folder else f"{short}.jpg"


def preview(job: Job, count: int) -> tuple[Path | None, int, int]:
    """Write some pictures before and after to one sheet in OUT/preview.

    Returns:
        The sheet, None if there is no picture with a face; how many faces are on it, and how many pictures.
    """
    rows, faces = [], 0
    treatment = job.treatment
    for picture in itertools.islice(_pictures(job, "preview", count), count):
        if treatment.attacker is not None:
            treatment.attacker.meet(picture)
        while True:
            treatment.hider.draw([picture])
            if not treatment.try_once(picture):
                break
        faces += len(picture.asked)
        rows.append((_small(picture.photo.pixels), open_image(BytesIO(picture.encoded)).convert("RGB")))
    if not rows:
        return None, 0, 0
    for pair in rows:
        for image in pair:
            image.thumbnail((_SIDE, _SIDE))
    tops = [0, *itertools.accumulate(pair[0].height + 4 for pair in rows)]
    sheet = Image.new("RGB", (2 * _SIDE + 12, tops[-1]), "white")
    for top, pair in zip(tops, rows, strict=False):
        for column, image in enumerate(pair):
            sheet.paste(image, (column * (_SIDE + 12), top))
    raw, path = BytesIO(), job.preview() / "before and after.png"
    sheet.save(raw, "PNG")
    job.result.put(raw.getvalue(), path)
    return path, faces, len(rows)


def _pictures(job: Job, what: str, most: int) -> Iterator[Picture]:
    """Pictures with faces to be hidden."""
    count = 0
    for item in progress_bar(job.source.items, desc=what, unit="img"):
        picture = job.treatment.look_at(item)
        if isinstance(picture, Picture) and picture.asked:
            yield picture
            count += 1
            if count == most:
                return


def _small(pixels: Tensor) -> Image.Image:
    return Image.fromarray(to_array(pixels))


def _with_boxes(picture: Picture) -> bytes:
    image = _small(picture.photo.pixels)
    draw, line = ImageDraw.Draw(image), max(2, max(image.size) // 400)
    for face in picture.faces:
        colour = "lime" if face.asked else "orange"
        draw.rectangle(face.box, outline=colour, width=line)
        draw.text((face.box[0], face.box[1] - 12), f"{face.score:.2f}", fill=colour)
    raw = BytesIO()
    image.save(raw, "JPEG", quality=90)
    return raw.getvalue()


def worst_cases(evidence: Evidence, rows: Sequence[int], pairs: Sequence[Pair]) -> bytes:
    """A PNG of the files with the faces that are nearest to their originals: originals above, results below.

    Args:
        evidence: See `fairanon.anonymizer.evidence.gather`.
        rows: Faces, the worst first.
        pairs: The files.
    """
    names = list(dict.fromkeys(evidence.names[row] for row in rows))
    known = {pair.name: pair for pair in pairs}
    shown = [known[name] for name in names]
    side = 240
    sheet = Image.new("RGB", (max(1, len(shown)) * (side + 4), 2 * (side + 4)), "white")
    for column, pair in enumerate(shown):
        for row, path in enumerate((pair.original, pair.anonymized)):
            image = _small(read_photo(read_bytes(path), pair.name).pixels)
            image.thumbnail((side, side))
            sheet.paste(image, (column * (side + 4), row * (side + 4)))
    raw = BytesIO()
    sheet.save(raw, "PNG")
    return raw.getvalue()
