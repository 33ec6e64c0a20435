"""What one asks of photographs. Parser, help, ``settings.json`` and what other processes are sent come from here."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fairanon import __version__
from fairanon.anonymizer.manifest import printable
from fairanon.config.experiments import UserError
from fairanon.config.options import ENGINE, InParts, check_who_works, option, refuse_what_is_not_used, tagged, tidy
from fairanon.files import content_key
from fairanon.places import is_stored

Method = Literal["mask", "pixelate", "blur", "ano-face-fair", "id2face"]
_CLASSICAL = ("mask", "pixelate", "blur")
_DRAWING = ("ano-face-fair", "id2face")
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
ALWAYS, DRAWN = "changes results", "changes drawn faces"
"""Tags of options: what results depend on, and what they depend on where faces are drawn."""

_HIDE, _DRAW, _FIND, _TEST, _WRITE, _RUN = (
    "what is hidden, and how", "new faces (--method ano-face-fair, id2face)", "finding faces",
    "testing what was hidden", "what is written", "how it runs",
)  # fmt: skip


@dataclass(frozen=True)
class AnonymizeRequest(InParts):
    """Hide the faces of photographs, test each with a recognizer, and say which may be published.

    Its attributes are the options of ``fairanon anonymize``; ``fairanon anonymize --help`` says what each is.

    Raises:
        UserError: An option is out of range, or two contradict each other.

    Examples:
        >>> AnonymizeRequest("photographs", "hidden", method="blur").strength
        0.5
    """

    inputs: tuple[Path, ...] = option(
        positional=True,
        metavar="IN",
        help="files; or a folder, a zip, a CSV or .jsonl of files with boxes; or s3://BUCKET/FOLDER, gs://...",
        stored=True,
    )
    out: Path = option(
        positional=True, metavar="OUT", help="a new folder; the same command goes on where it was", stored=True
    )
    method: Method = option("mask", "how a face is hidden (default mask: nothing of it is left)", group=_HIDE)
    strength: float = option(
        0.5, "how strong blur or pixelate is at the first try, .01 to 1 (default .5)", "S", _HIDE, 0.01, 1,
        tags=[ALWAYS], used_by=("pixelate", "blur"),)  # fmt: skip
    shape: Literal["auto", "box", "ellipse"] = option(
        "auto", "of what is hidden (default: rounded and fading for blur and pixelate, a box for mask)", group=_HIDE,
        tags=[ALWAYS], used_by=_CLASSICAL,)  # fmt: skip
    colour: str = option(
        "7f7f7f",
        "of a mask: six hexadecimal digits, for example 000000 (default 7f7f7f, grey)",
        "RRGGBB",
        _HIDE,
        tags=[ALWAYS],
        used_by=_CLASSICAL,
    )
    replace_with: Path | None = option(
        None, "with --method mask: show this image in place of the colour, stretched; transparent parts show the colour", "IMAGE", _HIDE,
        tags=[ALWAYS], used_by=("mask",),)  # fmt: skip
    faces: Literal["all", "largest"] = option(
        "all", "hide all faces, or the largest alone (default all)", group=_HIDE, tags=[ALWAYS]
    )
    keep_person: Path | None = option(
        None,
        "hide everybody but the people in these photographs; a face that is not surely theirs is hidden",
        "FOLDER",
        _HIDE,
    )
    only_person: Path | None = option(
        None, "hide the people in these photographs alone; a face that may be theirs is hidden", "FOLDER", _HIDE
    )
    keep: str = option(
        "", "parts of a face that stay, for example eyes,lips; needs --parser", "R,R", _HIDE, tags=[ALWAYS]
    )
    parser: str | None = option(
        None, "model that marks the parts of a face, for example facexlib_parser", "J", _HIDE, tags=[ALWAYS]
    )
    min_face: float = option(
        0, "do not hide faces whose longer side is smaller; the picture goes to review", "PX", _HIDE, 0, 100_000,
        tags=[ALWAYS],
    )  # fmt: skip
    box_scale: float = option(1.4, "enlarge each box by this factor (default 1.4)", "X", _HIDE, 1, 5, tags=[ALWAYS])
    checkpoint: Path | None = option(
        None,
        "who draws new faces: a run's folder, or a pipeline's",
        "FOLDER",
        _DRAW,
        tags=[DRAWN],
        used_by=_DRAWING,
    )
    prompt: str | None = option(
        None, 'ano-face-fair: what every face should look like (default "a photo of a person")', "TEXT", _DRAW,
        tags=[DRAWN], used_by=("ano-face-fair",),)  # fmt: skip
    steps: int = option(
        20,
        "steps of drawing a face (default 20)",
        "N",
        _DRAW,
        1,
        10_000,
        tags=[DRAWN],
        used_by=_DRAWING,
    )
    guidance_scale: float | None = option(
        None,
        "ano-face-fair: how strongly the prompt acts (default 7.5)",
        "W",
        _DRAW,
        1,
        100,
        tags=[DRAWN],
        used_by=("ano-face-fair",),
    )
    cut_scale: float = option(
        1.8,
        "show so much round a face to what draws (default 1.8)",
        "X",
        _DRAW,
        1,
        20,
        tags=[DRAWN],
        used_by=_DRAWING,
    )
    landmarks: str = option(
        "insightface_landmarks", "id2face: who finds the 68 points", "J", _DRAW, tags=[DRAWN], used_by=("id2face",),)  # fmt: skip
    seed: int | None = option(
        None,
        "of the new faces; whoever knows it can draw them again (default secret)",
        "N",
        _DRAW,
        used_by=_DRAWING,
    )
    key_file: Path | None = option(
        None,
        "the same person gets the same new face in all pictures; a file of 16 random bytes or more",
        "FILE",
        _DRAW,
        used_by=_DRAWING,
    )
    key_scope: Literal["folder", "everywhere"] = option(
        "folder", "everywhere: the same key and file name give the same new face in another OUT too (default folder)",
        group=_DRAW,
    )  # fmt: skip
    people: Path | None = option(
        None, "with --key-file: columns file and person, who the largest face is; others are told by likeness", "CSV",
        _DRAW,
    )  # fmt: skip
    batch_size: int = option(
        8,
        "faces drawn at once (default 8)",
        "N",
        _DRAW,
        1,
        4096,
        used_by=_DRAWING,
    )
    detector: str = option(
        "centerface", "who finds faces; boxes of several are united", "J,J", _FIND, tags=[ALWAYS]
    )  # fmt: skip
    detector_threshold: float | None = option(
        None, "find faces from this score on (default the detector's, .2)", "S", _FIND, 0.01, 0.99, tags=[ALWAYS]
    )
    boxes: Literal["add", "only"] = option(
        "add", "your own boxes: beside what is found, or alone (default add)", group=_FIND, tags=[ALWAYS]
    )
    side: int = option(
        1280,
        "longer side at which detectors are shown a picture, about (default 1280)",
        "PX",
        _FIND,
        64,
        20_000,
        tags=[ALWAYS],
    )
    no_tiles: bool = option(
        False, "do not look at large pictures in parts: small faces are missed", group=_FIND, tags=[ALWAYS]
    )
    fast: bool = option(
        False, "look at fewer scales, and not at turned copies: fewer faces are found", group=_FIND, tags=[ALWAYS]
    )
    recognizer: str = option(
        "dlib", "recognizers that test each hidden face; with several, all must fail", "J,J", _TEST, tags=[ALWAYS]
    )
    thresholds: tuple[Path, ...] = option(
        (), "the recognizers' thresholds: what `fairanon calibrate` wrote", "FILE", _TEST
    )
    tries: int = option(
        4, "attempts for each face before somebody has to look (default 4)", "N", _TEST, 1, 100, tags=[ALWAYS]
    )
    skip_attack: bool = option(
        False, "attack nothing: then everything is to be looked at", group=_TEST, tags=[ALWAYS]
    )  # fmt: skip
    no_face: Literal["review", "copy", "skip"] = option(
        "review", "pictures without a face (default review)", group=_WRITE, tags=[ALWAYS]
    )
    jpeg_quality: int | None = option(
        None, "of JPEG, WebP, HEIC, AVIF (default: files stay about as large)", "Q", _WRITE, 1, 100, tags=[ALWAYS]
    )
    keep_date: bool = option(False, "files get the day of their originals as their time, no hour", group=_WRITE)
    hashes: bool = option(
        False, "note a SHA-256 of each original in the manifest: it links the two", group=_WRITE, tags=[ALWAYS]
    )
    dry_run: bool = option(False, "draw the boxes that are found, replace nothing", group=_WRITE)
    preview: int | None = option(
        None, "only write a sheet of N pictures before and after; publish nothing", "N", _WRITE, 1, 1000
    )
    workers: int = option(
        _CORES, "threads of each process, with Ray its CPUs, too (default one for each core)", "N", _RUN, 1, 1024
    )
    device: str = option("auto", "where models work, a process each (default: all GPUs, or cpu)", "D,D", _RUN)
    engine: str = option("here", ENGINE, "E", _RUN)
    part: str | None = option(
        None, "for several machines: do part K of N, for example 3/100, and publish nothing yet", "K/N", _RUN
    )
    finish: bool = option(False, "after the parts: do what they have left, test the whole, publish", group=_RUN)

    def __post_init__(self) -> None:
        tidy(self)
        if self.keep_date and is_stored(self.out):
            raise UserError(
                "--keep-date: files in an object store have the time at which they were written; leave it out."
            )
        if not self.inputs:
            raise UserError("IN: there is nothing to anonymize; name a folder, a zip, a table or pictures.")
        refuse_what_is_not_used(self, self.method)
        if not self.redacts and not self.checkpoint:
            raise UserError(f"--method {self.method} needs --checkpoint: a run's folder, or a pipeline's.")
        if not re.fullmatch("#?[0-9a-fA-F]{6}", self.colour):
            raise UserError(f"--colour must be six hexadecimal digits, for example 000000, got {self.colour!r}.")
        if self.keep_person and self.only_person:
            raise UserError("--keep-person and --only-person: give one of them.")
        if (self.keep_person or self.only_person) and self.skip_attack:
            raise UserError("--skip-attack: recognizers say who --keep-person and --only-person mean; leave it out.")
        if self.parser and self.redacts and not self.keep:
            raise UserError(
                f"--parser: --method {self.method} uses it with --keep alone; name what stays, or leave it out."
            )
        if self.thresholds and self.skip_attack:
            raise UserError("--thresholds: nothing is attacked with --skip-attack; leave one of them out.")
        if self.keep and not self.parser:
            raise UserError(
                "--keep needs --parser: a model that finds eyes, lips and so on, for example facexlib_parser."
            )
        if self.key_file and self.seed is not None:
            raise UserError("--seed and --key-file: the key says who is drawn; give one of them.")
        if self.key_scope != "folder" and not self.key_file:
            raise UserError("--key-scope needs --key-file.")
        if self.people and not self.key_file:
            raise UserError("--people needs --key-file.")
        check_who_works(self.engine, self.device, self.part, self.finish)
        if self.engine != "here" and self.key_file:
            raise UserError("--engine: a key stays on one machine; leave --engine or --key-file out.")
        if self.shows and (self.part is not None or self.finish):
            raise UserError("--dry-run and --preview look at the whole; leave --part and --finish out.")
        if self.part is not None and self.key_file:
            raise UserError("--part: a key needs to see all people together; leave --part or --key-file out.")

    @property
    def paint(self) -> tuple[int, int, int]:
        """Red, green and blue of a mask."""
        red, green, blue = bytes.fromhex(self.colour.removeprefix("#"))
        return red, green, blue

    @property
    def redacts(self) -> bool:
        """Whether faces are covered or blurred, and none is drawn."""
        return self.method in _CLASSICAL

    @property
    def shows(self) -> bool:
        """Whether it only shows what it would do."""
        return self.dry_run or self.preview is not None

    def about(self) -> dict[str, Any]:
        """Whatever results depend on, as the manifest and ``settings.json`` say it: no secret, no path, nobody's name."""
        names = [*tagged(type(self), ALWAYS), *([] if self.redacts else tagged(type(self), DRAWN))]
        settings = {name: getattr(self, name) for name in names if getattr(self, name) not in (None, "", False)}
        for name in ("detector", "recognizer", "parser", "landmarks", "checkpoint", "replace_with"):
            if name in settings:
                settings[name] = _without_folders(name, settings[name])
        if self.key_file:
            settings["key"] = "one face for each person: who has the key can link pictures"
            settings["key_scope"] = self.key_scope
        return {"method": self.method, "version": __version__, "settings": settings}


def _without_folders(option: str, setting: str | Path) -> str:
    """Judges, checkpoints and images without the folders they lie in, and with a digest that tells two of one name apart."""
    if option == "replace_with" and Path(setting).is_file():
        return f"{printable(Path(setting).name)} {hashlib.sha256(Path(setting).read_bytes()).hexdigest()[:8]}"
    if option == "checkpoint":
        return f"{Path(setting).name} {content_key(str(Path(setting).resolve()))[:8]}"
    return ",".join(Path(name).name for name in str(setting).split(","))


_LOOK, _WHO = "judges of what is kept (J is a judge, each optional)", "who is who"


@dataclass(frozen=True)
class EvaluateRequest(InParts):
    """Compare originals with what anybody's anonymizer made of them: who is found, who is protected less, what is kept.

    Its attributes are the options of ``fairanon evaluate``; ``fairanon evaluate --help`` says what each is.

    Raises:
        UserError: An option is out of range.
    """

    originals: Path = option(
        positional=True,
        metavar="ORIGINALS",
        help="a folder; or embeddings that --keep-embeddings wrote (.safetensors)",
        stored=True,
    )
    anonymized: Path = option(
        positional=True,
        metavar="ANONYMIZED",
        help="another; files of the same relative path belong together",
        stored=True,
    )
    out: Path = option(
        Path("evaluation"),
        "metrics.json, faces.csv, table.csv, table.tex, report.html (default evaluation)", "FOLDER", _WRITE,
    )  # fmt: skip
    table: Path | None = option(
        None, "columns original and, as far as known, anonymized, group, identity; then only the largest face counts",
        "CSV", _WHO,
    )  # fmt: skip
    calibrate: bool = option(
        False, "no person is in two originals: calibrate thresholds on them (142 people or more)", group=_WHO
    )
    thresholds: tuple[Path, ...] = option(
        (), "the recognizers' thresholds: what `fairanon calibrate` wrote", "FILE", _WHO
    )
    recognizer: str = option("dlib", "who recognizes; two are better than one", "J,J", _WHO)
    parrot: Path | None = option(
        None, "the originals anonymized once more, by an attacker who knows the method", "FOLDER", _WHO, stored=True
    )
    force: bool = option(False, "measure pairs that share nothing outside of the faces", group=_WHO)
    detector: str = option("centerface", "who finds faces", "J,J", _FIND)
    detector_threshold: float | None = option(
        None, "find faces from this score on (default .5, or what the judge's file says)", "S", _FIND, 0.01, 0.99
    )
    side: int = option(
        1280, "longer side at which detectors are shown a picture, about (default 1280)", "PX", _FIND, 64, 20_000
    )
    no_tiles: bool = option(False, "do not look at large pictures in parts", group=_FIND)
    geometry: str | None = option(None, "landmarks, pose, expression, gaze", "J", _LOOK)
    features: str | None = option(None, "FID and KID (default inception, if it is there)", "J", _LOOK)
    clip: str | None = option(None, "CLIP-I, for example clip_features", "J", _LOOK)
    perceptual: str | None = option(None, "a distance beside LPIPS", "J", _LOOK)
    quality: str | None = option(None, "image quality, for example musiq", "J", _LOOK)
    attributes: str | None = option(None, "whether a face still looks like its group", "J", _LOOK)
    size: int = option(256, "side of the faces that they see (default 256)", "PX", _LOOK, 16, 4096)
    cut_scale: float = option(1.8, "how much round a face they see (default 1.8)", "X", _LOOK, 1, 20)
    keep_embeddings: bool = option(
        False, "write the embeddings, too; they tell who is who: guard them", group=_WRITE
    )  # fmt: skip
    show_faces: bool = option(False, "show the worst cases in the report: it shows people", group=_WRITE)
    workers: int = option(
        _CORES, "threads that read, of each process, with Ray its CPUs, too (default one a core)", "N", _RUN, 1, 1024
    )
    device: str = option("auto", "where judges work, a process each (default: all GPUs, or cpu)", "D,D", _RUN)
    engine: str = option("here", ENGINE, "E", _RUN)
    part: str | None = option(
        None, "for several machines: look at part K of N, for example 3/100, and count nothing yet", "K/N", _RUN
    )
    finish: bool = option(False, "after the parts: look at what they have left, and count", group=_RUN)

    def __post_init__(self) -> None:
        tidy(self)
        check_who_works(self.engine, self.device, self.part, self.finish)


LOOKS = {
    "geometry": "measure", "features": "features", "clip": "features", "perceptual": "distance", "quality": "score",
    "attributes": "classify",
}  # fmt: skip
"""Options of `EvaluateRequest` that name judges of what a face looks like, and what each of them does."""


@dataclass(frozen=True)
class CalibrateRequest:
    """Find the distance above which a recognizer takes two faces for two people.

    Its attributes are the options of ``fairanon calibrate``; ``fairanon calibrate --help`` says what each is.

    Raises:
        UserError: An option is out of range.
    """

    folder: Path = option(
        positional=True, metavar="FOLDER", help="photographs of at least 142 different people, one of each", stored=True
    )
    groups: Path | None = option(None, "columns file and group: a threshold for each group, too", "CSV")
    out: Path = option(Path("thresholds.json"), "the table (default thresholds.json)", "FILE")
    false_match_rate: float = option(
        1e-3, "share of pairs that may match (default .001)", "R", least=1e-6, most=0.5
    )  # fmt: skip
    detector: str = option("centerface", "who finds faces", "J,J")
    detector_threshold: float | None = option(
        None, "find faces from this score on (default the detector's, .2)", "S", least=0.01, most=0.99
    )
    recognizer: str = option("dlib", "whose thresholds", "J,J")
    device: str = option("auto", "where they work (default: a GPU if there is one)", "D")

    def __post_init__(self) -> None:
        tidy(self)
