"""Two folders compared as somebody asks for it: pairs, judges, numbers, and what is written."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from fairanon import __version__
from fairanon.anonymizer.attack import told_threshold, usual_threshold
from fairanon.anonymizer.evidence import Evidence, joined, open_faces, write_faces
from fairanon.anonymizer.looking import Looked, Looker, Looks
from fairanon.anonymizer.manifest import FOLDERS, MANIFEST, counted, printable, read_manifest
from fairanon.anonymizer.numbers import evaluate as numbers_of
from fairanon.anonymizer.pairs import Labels, Pair, Paired, composed, pair_up, read_labels
from fairanon.anonymizer.preview import worst_cases
from fairanon.anonymizer.request import EvaluateRequest
from fairanon.anonymizer.stored import keep, read_kept
from fairanon.anonymizer.stretches import LOOKED, Elsewhere, Stretch, looker_of, refuse_alike, stretches_of
from fairanon.config.experiments import UserError
from fairanon.engines import devices_of
from fairanon.files import read_json, write_json
from fairanon.places import contains
from fairanon.progress import progress_bar
from fairanon.report.evaluated import write_tables

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateResult:
    """Numbers of an anonymizer.

    Attributes:
        out: The folder with ``metrics.json``, tables and report.
        metrics: What ``metrics.json`` says: "before" (the originals themselves) and "after", each number by its key; {} after
            a part.
        left_out: Files of which the numbers say nothing, and why.
        doubts: Sentences that somebody should know who reads the numbers.
        pairs: How many were looked at, a part's own after a part.
    """

    out: Path
    metrics: dict[str, Any]
    left_out: list[str]
    doubts: list[str]
    pairs: int

    @property
    def complete(self) -> bool:
        """Whether every file was compared; never after a part."""
        return bool(self.metrics) and not self.left_out


def evaluate(request: EvaluateRequest) -> EvaluateResult:
    """See `fairanon.evaluate`; errors are not put into sentences here."""
    begin = time.perf_counter()
    originals, anonymized, out = request.originals, _published(request.anonymized), request.out
    _check_place(out, originals, anonymized)
    labels = read_labels(request.table) if request.table else None
    stored = [path for path in (originals, anonymized) if path.suffix == ".safetensors"]
    if len(stored) == 1:
        raise UserError(f"{stored[0]} is stored embeddings and the other is not; name two such files, or two folders.")
    if stored:
        return _counted(request, _stored(request, labels), labels, begin)
    paired = pair_up(originals, anonymized, labels, request.parrot)
    try:
        with ExitStack() as stack:
            sight = _looked_at(request, paired, stack)
        if request.part is not None:
            return EvaluateResult(out, {}, [], [], sight.pairs)
        result = _counted(request, sight, labels, begin)
    except BaseException:
        if request.part is None and (out / LOOKED).exists():
            _log.warning(
                "%s is left: it tells who is who. The command goes on from there (--finish); if it is not to, remove the folder",
                out / LOOKED,
            )
        raise
    if sight.elsewhere is not None:
        sight.elsewhere.forget()
    return result


@dataclass
class _Sight:
    """What is counted.

    Attributes:
        paired: Which files belong together.
        evidence: What is seen of all of them.
        looks: Who judges looks.
        named: All judges, as metrics.json has it.
        told_how: A manifest says how faces were hidden.
        elsewhere: Who looked, if that was not this process.
        pairs: How many were looked at.
    """

    paired: Paired
    evidence: Evidence = field(default_factory=Evidence)
    looks: Looks = field(default_factory=Looks)
    named: dict[str, str] = field(default_factory=dict)
    told_how: bool = False
    elsewhere: Elsewhere | None = None
    pairs: int = 0


def _stored(request: EvaluateRequest, labels: Labels | None) -> _Sight:
    """Embeddings that are kept in files."""
    if request.show_faces:
        raise UserError("--show-faces needs the pictures; stored embeddings show nobody.")
    if request.part is not None or request.finish or request.engine != "here":
        raise UserError("--part, --finish, --engine: stored embeddings are compared at once; leave it out.")
    evidence = read_kept(request.originals, request.anonymized, labels)
    refuse_alike(list(evidence.recognized))
    paired = Paired(unknown=sorted(set(labels.rows if labels else ()) - set(map(composed, evidence.names))))
    return _Sight(paired, evidence, named={"recognition": ", ".join(evidence.recognized)}, pairs=len(evidence))


def _looked_at(request: EvaluateRequest, paired: Paired, stack: ExitStack) -> _Sight:
    """Pictures: this process looks at them, or others do and write down what they see."""
    hidden_by = _manifest_of(request.anonymized)
    stretches = stretches_of(paired.pairs, hidden_by)
    devices = devices_of(request.device)
    begun = (request.out / LOOKED).exists()
    if request.finish and not begun:
        raise UserError(f"--finish: nothing was begun in {request.out}; begin with --part, or leave --finish out.")
    if request.part is not None and not begun and (request.out / "metrics.json").exists():
        raise UserError(f"--part: {request.out} is finished already; name another --out for another evaluation.")
    sight = _Sight(paired, told_how=bool(hidden_by), pairs=len(paired.pairs))
    if begun or request.part is not None or request.engine != "here" or len(devices) > 1:
        sight.elsewhere = Elsewhere(request, stretches)
        sight.pairs = sight.elsewhere.look(request.share)
        if request.part is not None:
            return sight
        looker = looker_of(request, "cpu", stack)
        looked = sight.elsewhere.looked()
    else:
        looker = looker_of(request, devices[0], stack)
        looked = _one_by_one(looker, stretches)
    sight.evidence = joined(looked, looker.attacker.matchers, request.force)
    sight.looks, sight.named = looker.looks, _named(looker)
    return sight


def _counted(request: EvaluateRequest, sight: _Sight, labels: Labels | None, begin: float) -> EvaluateResult:
    """Count, and write everything down."""
    originals, anonymized, out = request.originals, _published(request.anonymized), request.out
    paired, evidence = sight.paired, sight.evidence
    own_thresholds = {
        name: told_threshold(name, request.thresholds, seen.published) for name, seen in evidence.recognized.items()
    }
    usual = {name: usual_threshold(name, seen.published) for name, seen in evidence.recognized.items()}
    numbers = numbers_of(evidence, own_thresholds, usual, sight.looks, request.calibrate)
    nearest = numbers.pop("nearest")
    left_out = list(_left_out(evidence, paired, request.parrot is not None))
    doubts = list(_doubts(evidence, paired, labels, sight.told_how))
    if originals.resolve() == anonymized.resolve():
        doubts.insert(0, f"ANONYMIZED is ORIGINALS itself ({anonymized}): every face is compared with itself")
    result = {
        "experiment": f"{anonymized.name} beside {originals.name}", "versions": {"fairanon": __version__}, "judges": sight.named,
        "pairs": sight.pairs, "faces": len(evidence), "unpaired": len(paired.alone),
        "unknown": len(paired.unknown), "faceless": len(evidence.faceless), "unreadable": len(evidence.unreadable),
        "left_out": left_out, "doubts": doubts, "open": open_faces(evidence), "date": datetime.now().astimezone().isoformat(" ", "minutes"), **numbers,
        "seconds": {"evaluate": round(time.perf_counter() - begin, 1)},
    }  # fmt: skip
    faces = worst_cases(evidence, nearest[:12], paired.pairs) if request.show_faces else None
    write_json(out / "metrics.json", result)
    write_tables(out, result, faces)
    write_faces(out, evidence, result["thresholds"])
    if request.keep_embeddings:
        keep(evidence, out / "originals.safetensors", out / "anonymized.safetensors")
    return EvaluateResult(out, result, left_out, doubts, sight.pairs)


def _one_by_one(looker: Looker, stretches: list[Stretch]) -> Iterator[tuple[Sequence[Pair], Looked]]:
    """What is seen of all pairs, in this process; nothing of it is written."""
    with progress_bar(total=sum(len(stretch.pairs) for stretch in stretches), desc="pairs", unit="pair") as bar:
        for stretch in stretches:
            yield stretch.pairs, looker.look(stretch.pairs, stretch.hidden_by, lambda _, __: bar.update())


def _named(looker: Looker) -> dict[str, str]:
    """Who looked, as metrics.json has it."""
    finders, matchers = looker.finder.detectors, looker.attacker.matchers
    named = {"detection": ", ".join(f"{entry.name} ({entry.licence})" for entry in finders)}
    named["recognition"] = ", ".join(f"{entry.name} ({entry.licence})" for entry in matchers)
    return named | {what: entry.name for what, entry in vars(looker.looks).items() if entry is not None}


def _left_out(evidence: Evidence, paired: Paired, parrot: bool) -> Iterator[str]:
    """Files that the numbers say nothing about."""
    yield from map(printable, evidence.unreadable)
    for name in evidence.strange:
        yield f"{printable(name)} and its result share nothing outside of the faces (--force)"
    for name in dict.fromkeys(itertools.chain(*evidence.foreign)):
        yield f"{printable(name)}: its result shows the scene of the picture before or after it (--force)"
    for name in paired.alone:
        yield f"{printable(name)} has no counterpart{' in both folders' if parrot else ''}"
    for name in paired.unknown:
        yield f"--table names {printable(name)}, which is not there"


def _doubts(evidence: Evidence, paired: Paired, labels: Labels | None, told_how: bool) -> Iterator[str]:
    """What somebody should know who reads the numbers."""
    if paired.unnamed:
        yield f"{counted(paired.unnamed, 'original')} not named in --table, not compared"
    readable = len(paired.pairs) - len(evidence.unreadable)
    if evidence.faces and len(evidence.alike) < readable:
        yield (
            f"{readable - len(evidence.alike)} of {readable} pairs show too little outside of the faces to tell whether both "
            "files are of one picture; check that the pairs are right"
        )
    if evidence.faces and not told_how:
        yield (
            "there is no manifest that says how faces were hidden: blurred and pixelated ones count as anonymized, and nobody "
            "tried to restore them"
        )
    if evidence.recognized and not evidence.faces:
        yield "stored embeddings show no pictures: whether row i of both files is of one picture cannot be checked"
    if evidence.names and all(identity is None for identity in evidence.identities):
        yield "nobody says who is who (column identity of --table): intervals are too narrow if people are there several times"
    table_labels = Labels() if labels is None else labels
    if table_labels.unused:
        yield f"--table has columns that are not read: {', '.join(table_labels.unused)} (read are original, anonymized, group, identity)"
    for written, label in table_labels.changed.items():
        yield f"group {written!r} counts as {label!r}"
    for written, times in table_labels.unsaid.items():
        yield f"{written!r} is taken for an empty cell, not for a person or a group ({times} times in --table)"


def _manifest_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """By the originals' names the faces' lines of the manifest that `fairanon anonymize` wrote, if it did."""
    places = (
        (folder, folder.parent) if folder.name in FOLDERS.values() else (folder,)
    )  # others' files are not ours to read
    place = next((candidate for candidate in places if (candidate / MANIFEST).exists()), None)
    face_lines: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate([] if place is None else read_manifest(place), 1):
        if not isinstance(line, dict) or not isinstance(line.get("file"), str):
            raise UserError(f"{place}/{MANIFEST}: entry {number} is none that `fairanon anonymize` wrote.")
        if line.get("face") is None:
            continue
        if not _tells_how(line):
            raise UserError(
                f"{place}/{MANIFEST}: entry {number} does not say how a face was hidden; move the file away."
            )
        face_lines.setdefault(line["file"], []).append(line)
    return face_lines


def _tells_how(line: dict[str, Any]) -> bool:
    """Whether a face's line has what is read of it."""

    def corners(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 4 and all(isinstance(v, (int, float)) for v in value)

    box, where, strength = line.get("box"), line.get("region"), line.get("strength")
    whole = where is None or (
        corners(where)
        and all(isinstance(v, int) for v in where)
        and 0 <= where[0] < where[2]
        and 0 <= where[1] < where[3]
    )
    strong = strength is None or (isinstance(strength, (int, float)) and 0 < strength <= 1)
    has_texts = all(isinstance(line.get(name), str) for name in ("method", "verdict"))
    return corners(box) and whole and strong and has_texts


def _check_place(out: Path, *inputs: Path) -> None:
    """Refuse to write among pictures, or over somebody's own files."""
    for path in inputs:
        if path.is_dir() and contains(path, out):
            raise UserError(f"--out: {out} lies in {path}; name a folder apart from the pictures.")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file; name a folder.")
    ours = ("metrics.json", "table.csv", "table.tex", "report.html", "faces.csv")
    there = [name for name in ours if (out / name).exists()]
    before = read_json(out / "metrics.json", "--out") if (out / "metrics.json").exists() else None
    if there and not (isinstance(before, dict) and "pairs" in before):
        raise UserError(f"--out: {out / there[0]} is of something else and would be replaced; name another folder.")


def _published(folder: Path) -> Path:
    """The finished pictures, where somebody names the whole folder that ``fairanon anonymize`` wrote."""
    inside = folder / str(FOLDERS["finished"])
    return inside if (folder / MANIFEST).exists() and inside.is_dir() else folder
