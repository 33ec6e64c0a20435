"""What one visitor has brought to the page, what is done with it, and how it is shown."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal, cast

from PIL import Image, ImageDraw, ImageFont

from fairanon.anonymizer.anonymizing import AnonymizeResult, anonymize
from fairanon.anonymizer.collection_page import told_of
from fairanon.anonymizer.manifest import FACES, FOLDERS, MANIFEST, PAGE, REVIEWED, counted, printable
from fairanon.anonymizer.photos import read_photo
from fairanon.anonymizer.request import AnonymizeRequest, Method
from fairanon.anonymizer.sources import collect
from fairanon.anonymizer.verdicts import HIDDEN, KEPT
from fairanon.app.app_request import AppRequest
from fairanon.imaging import CorruptImageError, open_image, to_array

_MOST, _BYTES = 200, 2**30
"""Photographs at once, and all they may take; more are for `fairanon anonymize`."""
_TABLE, _MINE = ".faces.jsonl", ".mine"
"""A table of all boxes, and a mark that nobody has forgotten a desk; nothing that is brought has such names."""
_SIDES = (640, 1280)
"""Of a photograph on the page, in pixels: smaller ones are enlarged, larger ones reduced."""
_FORGOTTEN = "Everything was forgotten meanwhile: drop the photographs again."
_LEAST = 8
"""Pixels on each side of a box, as `fairanon anonymize` asks for."""
_LINES = {"hidden": "#18a058", "stays": "#e08a00", "not hidden": "#d03050", "drawn": "#2080f0"}
Box = tuple[float, float, float, float]


@dataclass
class Desk:
    """What one visitor has brought, and what became of it.

    Attributes:
        folder: Theirs alone, in the private one.
        left: What was brought and is no photograph, and why.
        result: Of the last attempt.
        keep: Boxes of faces that may stay, by file.
        hide: Boxes of faces that are hidden in any case, by file.
        sizes: Width and height of photographs in which somebody chose something, by file.
        drawn: Boxes that were drawn, which are hidden too, by file.
        done: What stayed and was hidden at the last attempt.
        corner: Of which file, and where, a box begins that is being drawn.
    """

    folder: Path
    left: list[tuple[str, str]] = field(default_factory=list)
    result: AnonymizeResult | None = None
    keep: dict[str, list[Box]] = field(default_factory=dict)
    hide: dict[str, list[Box]] = field(default_factory=dict)
    drawn: dict[str, list[Box]] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    done: str = ""
    corner: tuple[str, float, float] | None = None

    @property
    def photographs(self) -> Path:
        """Where the originals lie."""
        return self.folder / "in"

    def there(self) -> bool:
        """Whether there is something to look at that nobody has forgotten meanwhile."""
        return self.result is not None and (self.folder / _MINE).exists()

    def choices(self) -> str:
        """What stays and is hidden at the next attempt, to be compared."""
        kinds = (self.keep, self.hide, self.drawn)
        return json.dumps([{name: boxes for name, boxes in sorted(kind.items()) if boxes} for kind in kinds])

    def names(self) -> list[tuple[str, str]]:
        """The photographs that can be looked at, as a list says them and by name: first those that somebody has to look at."""
        lines = self.result.lines if self.result is not None else []
        there = [line for line in lines if line["face"] is None and line["verdict"] not in ("unreadable", "failed")]
        there.sort(key=lambda line: line["publishable"])
        return [
            (line["file"] if line["publishable"] else f"{line['file']}: to be looked at", line["file"])
            for line in there
        ]

    def line(self, name: str) -> dict[str, Any]:
        """The manifest's line of a photograph."""
        lines = self.result.lines if self.result is not None else []
        return next(line for line in lines if line["file"] == name and line["face"] is None)

    def faces(self, name: str) -> list[dict[str, Any]]:
        """The manifest's lines of a photograph's faces."""
        lines = self.result.lines if self.result is not None else []
        return [line for line in lines if line["file"] == name and line["face"] is not None]


@dataclass(frozen=True)
class Wishes:
    """How faces are hidden, as the page's controls say it."""

    method: str
    shape: str
    strength: float
    colour: str
    who: str
    people: Sequence[str] | None


# --- what is done ----------------------------------------------------------------------------------------


def new_desk(place: Path, files: Sequence[str] | None, camera: str | None) -> Desk:
    """Take what was brought.

    Args:
        place: The private folder.
        files: Photographs and zips.
        camera: A photograph that was just taken.

    Raises:
        ValueError: There is nothing, or too much.
    """
    paths = [*(files or []), *([camera] if camera else [])]
    if not paths:
        raise ValueError("There is nothing to hide yet: drop photographs above, or take one.")
    if not all(Path(path).exists() for path in paths):
        raise ValueError("These photographs were forgotten meanwhile: drop them again.")
    sources = [collect((path,)) for path in map(Path, paths)]
    items = [item for source in sources for item in source.items]
    if len(items) > _MOST:
        raise ValueError(
            f"These are {len(items)} photographs; more than {_MOST} are for `fairanon anonymize FOLDER OUT`."
        )
    desk = Desk(
        Path(tempfile.mkdtemp(prefix="desk-", dir=place)), [leftover for source in sources for leftover in source.left]
    )
    try:
        (desk.folder / _MINE).touch()
        total = 0
        for item in items:
            target = desk.photographs / item.name
            number = 2
            while target.exists():
                target, number = target.with_name(f"{Path(item.name).stem} {number}{target.suffix}"), number + 1
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                raw = item.read()
            except CorruptImageError:
                raw = b""  # it is counted, and called unreadable
            total += len(raw)
            if total > _BYTES:
                raise ValueError(
                    "These photographs take more than a gigabyte; so many are for `fairanon anonymize FOLDER OUT`."
                )
            target.write_bytes(raw)
    except BaseException:
        leave(desk)
        raise
    return desk


def hide(desk: Desk, wishes: Wishes, request: AppRequest) -> None:
    """Hide and attack all photographs of a desk.

    Args:
        desk: Whose; gets the result.
        wishes: How.
        request: Which judges are asked.
    """
    out = Path(tempfile.mkdtemp(prefix="out-", dir=desk.folder))
    before, table = desk.result, desk.photographs / _TABLE
    try:
        rows = []
        for path in sorted(path for path in desk.photographs.rglob("*") if path.is_file() and path != table):
            name = path.relative_to(desk.photographs).as_posix()
            boxes = [*desk.hide.get(name, []), *desk.drawn.get(name, [])]
            row = {"file": name, "boxes": boxes, "keep": desk.keep.get(name, [])}
            rows.append({**row, "size": desk.sizes[name]} if name in desk.sizes else row)
        table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        named = _named(out / "people", wishes)
        strength: dict[str, Any] = {} if wishes.method == "mask" else {"strength": float(wishes.strength)}
        desk.result = anonymize(
            AnonymizeRequest(
                (table,),
                out / "result",
                method=cast(Method, wishes.method),
                shape=cast(Literal["auto", "box", "ellipse"], wishes.shape),
                **strength,
                colour=_digits(wishes.colour or "#7f7f7f"),
                keep_person=named if wishes.who == "keep" else None,
                only_person=named if wishes.who == "only" else None,
                detector=request.detector,
                recognizer=request.recognizer,
            )
        )
    except BaseException as error:
        shutil.rmtree(out, ignore_errors=True)
        if isinstance(error, Exception) and not (desk.folder / _MINE).exists():
            raise ValueError(_FORGOTTEN) from None
        raise
    finally:
        shutil.rmtree(out / "people", ignore_errors=True)
        if not (desk.folder / _MINE).exists():  # what was written since somebody forgot everything
            leave(desk)
    if not desk.there():
        raise ValueError(_FORGOTTEN)
    desk.done = desk.choices()
    if before is not None:
        shutil.rmtree(before.out.parent, ignore_errors=True)


def _named(folder: Path, wishes: Wishes) -> Path | None:
    if wishes.who == "all":
        return None
    if not wishes.people:
        raise ValueError("Say whom you mean: drop photographs of these people, one person in each.")
    folder.mkdir()
    for number, path in enumerate(wishes.people):
        shutil.copy(path, folder / f"{number} {Path(path).name}")
    return folder


def _digits(colour: str) -> str:
    """Six hexadecimal digits of what a colour picker says: "#7f7f7f", or "rgba(127.4, 127, 127, 1)"."""
    if not colour.startswith("rgb"):
        return colour.removeprefix("#")
    parts = [min(255, round(float(part))) for part in re.findall(r"\d+(?:\.\d+)?", colour)[:3]]
    if len(parts) < 3:
        raise ValueError(f"What colour is {colour!r}? Choose another one.")
    return "".join(f"{part:02x}" for part in parts)


def packed(desk: Desk) -> str | None:
    """A zip of what may be published, with the protocol; never of originals or of what waits for somebody's eyes."""
    if desk.result is None:
        return None
    path = desk.result.out.parent / "fairanon.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (PAGE, FACES, MANIFEST, REVIEWED):
            if (desk.result.out / name).exists():
                archive.write(desk.result.out / name, name)
        for file in sorted(desk.result.published.rglob("*")):
            if file.is_file():
                archive.write(file, f"{FOLDERS['finished']}/{file.relative_to(desk.result.published)}")
    return str(path)


# --- what is shown ---------------------------------------------------------------------------------------


def answer_of(desk: Desk) -> str:
    """The answer, in words; the numbers that it rests on are folded."""
    assert desk.result is not None
    summary, files = told_of(desk.result.tally, desk.result.judges, desk.result.foreign), desk.result.files
    hidden = sum(number for verdict, number in desk.result.verdicts.items() if verdict in HIDDEN)
    faces = f"{hidden} of {counted(sum(desk.result.verdicts.values()), 'face')} hidden"
    sentence = f"{summary.finished} of {sum(files.values())} photographs may be published; {faces}."
    look = [line for line in desk.result.lines if line["face"] is None and not line["publishable"]]
    notes = [f"{printable(line['file'])}: {line['reason'].removeprefix(line['file']).strip()}" for line in look]
    notes += [f"{printable(name)} was left out: {why}" for name, why in desk.left]
    stay = [note for note in summary.notes if "stay" in note]
    rest = [summary.sentence, *(note for note in summary.notes if note not in stay)]
    answer = f'<b class="{summary.state}">{escape(summary.word, False)}</b> {escape(sentence, False)}'
    return (
        f'<p class="answer">{answer}</p>{_listed([*stay, *notes])}'
        f"<details><summary>what was tested</summary>{_listed(rest)}</details>"
    )


def _listed(notes: Sequence[str]) -> str:
    lines = [escape(" ".join(note.split()), False) for note in notes]
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>" if lines else ""


def before_of(desk: Desk, name: str) -> Image.Image:
    """An original with a numbered box round each face."""
    pixels = read_photo((desk.photographs / name).read_bytes(), name).pixels
    image = _shown(Image.fromarray(to_array(pixels)).convert("RGB"))
    scale, draw = image.width / pixels.shape[-1], ImageDraw.Draw(image)
    width = max(2, max(image.size) // 300)
    staying = stays(desk, name)
    for number, face in enumerate(desk.faces(name), 1):
        kind = "stays" if number in staying else "hidden" if face["verdict"] in HIDDEN else "not hidden"
        _box(draw, face["box"], scale, _LINES[kind], width, str(number))
    for box in desk.drawn.get(name, []):
        _box(draw, box, scale, _LINES["drawn"], width, "")
    if desk.corner is not None and desk.corner[0] == name:
        x, y = (value * scale for value in desk.corner[1:])
        draw.line((x - 12, y, x + 12, y), _LINES["drawn"], width)
        draw.line((x, y - 12, x, y + 12), _LINES["drawn"], width)
    return image


def _box(draw: ImageDraw.ImageDraw, box: Sequence[float], scale: float, colour: str, width: int, text: str) -> None:
    x0, y0, x1, y1 = (value * scale for value in box)
    draw.rectangle((x0, y0, x1, y1), outline=colour, width=width)
    if text:
        size = 8 * width + 4  # the page may show it at a third
        top = max(0, y0 - 1.25 * size)
        draw.rectangle((x0, top, x0 + size * (0.5 + 0.6 * len(text)), top + 1.25 * size), fill=colour)
        draw.text((x0 + 0.25 * size, top), text, "white", ImageFont.load_default(size))


def after_of(desk: Desk, name: str) -> Image.Image | None:
    """What became of a photograph; None if nothing was written."""
    assert desk.result is not None
    line = desk.line(name)
    if line["result"] is None:
        return None
    return _shown(open_image(desk.result.out / line["result"]).convert("RGB"))


def _shown(image: Image.Image) -> Image.Image:
    scale = _scale(*image.size)
    sampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return image.resize((round(image.width * scale), round(image.height * scale)), sampling)


def _scale(width: int, height: int) -> float:
    """By how much a photograph is enlarged on the page."""
    longer = max(width, height)
    return _SIDES[1] / longer if longer > _SIDES[1] else max(1, _SIDES[0] // longer)


def said_of(desk: Desk, name: str) -> str:
    """A photograph's verdict, in words."""
    line = desk.line(name)
    where = "may be published" if line["publishable"] else "to be looked at"
    sentence = f"**{line['verdict']}**, {where}" + (f": {line['reason']}" if line["reason"] else "")
    if desk.corner is not None and desk.corner[0] == name:
        return f"{sentence}. **Now click on the opposite corner of the box**, or on *Remove boxes that were drawn*."
    if desk.choices() != desk.done:
        return f"{sentence}. **Your choices are not carried out yet**: press *Hide and test again*; a download is the earlier result."
    return sentence


def faces_of(desk: Desk, name: str) -> list[tuple[str, int]]:
    """What the list of faces says, and their numbers."""
    choices = []
    for number, face in enumerate(desk.faces(name), 1):
        near = "".join(f", {judge} {value:.2f}" for judge, value in face["distances"].items())
        what = "box" if tuple(face["box"]) in desk.drawn.get(name, []) else "face"
        choices.append((f"{what} {number}: {face['verdict']}{near}", number))
    return choices


def stays(desk: Desk, name: str) -> list[int]:
    """Numbers of the faces that stay, after the last attempt or at the next one."""
    keep, own = desk.keep.get(name, []), [*desk.hide.get(name, []), *desk.drawn.get(name, [])]
    numbers = []
    for number, face in enumerate(desk.faces(name), 1):
        box = tuple(face["box"])
        if box in keep or (box not in own and (face["verdict"] == KEPT or face["score"] == 1)):  # 1: it was drawn
            numbers.append(number)
    return numbers


def let_stay(desk: Desk, name: str, numbers: Sequence[int]) -> None:
    """Note which faces of a photograph may stay; those that stayed and may not any more are hidden in any case."""
    faces = list(enumerate(desk.faces(name), 1))
    seen = {tuple(face["box"]): number in numbers for number, face in faces}
    others = [box for box in desk.hide.get(name, []) if box not in seen]
    unticked = [tuple(face["box"]) for n, face in faces if n not in numbers and face["verdict"] == KEPT]
    again = [box for box in desk.hide.get(name, []) if box in seen and not seen[box]]
    drawn = [tuple(face["box"]) for _, face in faces if face["score"] == 1]  # no detector found anybody there
    desk.keep[name] = [
        box for box, stay in seen.items() if stay and (box not in drawn or box in desk.hide.get(name, []))
    ]
    desk.hide[name] = list(dict.fromkeys([*others, *again, *unticked]))
    desk.drawn[name] = [box for box in desk.drawn.get(name, []) if not seen.get(box, False)]


def clicked(desk: Desk, name: str, x: float, y: float) -> None:
    """Somebody clicked on a photograph: on a face, so that it stays or does not; or on a corner of a box to be hidden."""
    pixels = read_photo((desk.photographs / name).read_bytes(), name).pixels
    scale = _scale(pixels.shape[-1], pixels.shape[-2])
    x, y, now = x / scale, y / scale, stays(desk, name)
    if desk.corner is None or desk.corner[0] != name:
        for number, face in enumerate(desk.faces(name), 1):
            x0, y0, x1, y1 = face["box"]
            if x0 <= x <= x1 and y0 <= y <= y1:
                let_stay(desk, name, [n for n in now if n != number] if number in now else [*now, number])
                return
        desk.corner = (name, x, y)
        return
    (_, a, b), desk.corner = desk.corner, None
    add_box(desk, name, (min(a, x), min(b, y), max(a, x), max(b, y)))


def box_of(text: str) -> Box:
    """Two corners that somebody typed.

    Raises:
        ValueError: They are no four numbers.

    Examples:
        >>> box_of("190, 80, 120, 170")
        (120.0, 80.0, 190.0, 170.0)
    """
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"A box is four numbers, x0, y0, x1, y1 in pixels, got {text!r}.") from None
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def add_box(desk: Desk, name: str, box: Box) -> None:
    """Hide this, too.

    Raises:
        ValueError: It has no area, or lies outside of the photograph.
    """
    height, width = read_photo((desk.photographs / name).read_bytes(), name).pixels.shape[-2:]
    desk.sizes[name] = (width, height)
    x0, y0, x1, y1 = max(0.0, box[0]), max(0.0, box[1]), min(float(width), box[2]), min(float(height), box[3])
    if not (all(map(math.isfinite, box)) and x1 - x0 >= _LEAST and y1 - y0 >= _LEAST):
        raise ValueError(
            f"A box must have {_LEAST} pixels or more on each side, within the {width} x {height} of the photograph."
        )
    desk.drawn.setdefault(name, []).append((round(x0, 1), round(y0, 1), round(x1, 1), round(y1, 1)))


def leave(desk: Desk | None) -> None:
    """Somebody has closed the page, or brought something else."""
    if desk is not None:
        shutil.rmtree(desk.folder, ignore_errors=True)
