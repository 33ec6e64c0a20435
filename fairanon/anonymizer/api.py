"""The Python door to photographs: what is asked for becomes models, and these go through a collection."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairanon.anonymizer.attack import threshold_of
from fairanon.anonymizer.engines import Processes
from fairanon.anonymizer.faces import Picture
from fairanon.anonymizer.folder import PEOPLE, SETTINGS, Job, check_out
from fairanon.anonymizer.job import job_of
from fairanon.anonymizer.judges import devices_of
from fairanon.anonymizer.manifest import FOLDERS, counts, foreign_files, hidden_of
from fairanon.anonymizer.page import write_page
from fairanon.anonymizer.preview import dry_run, preview
from fairanon.anonymizer.request import AnonymizeRequest
from fairanon.anonymizer.sources import collect
from fairanon.config.experiments import UserError
from fairanon.files import named_path, read_table

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnonymizeResult:
    """What became of a collection.

    Attributes:
        out: The folder that was asked for.
        published: Where the files lie that may be published.
        files: How many files came to which end: "finished" may be published, "review" wait for somebody's eyes,
            "unreadable", "left" (passed over), "no-face", "skipped"; of a dry run or a preview "shown"; of a part "waiting".
        verdicts: How many faces that were to be hidden have which verdict; of a dry run or a preview how many were "found".
        lines: The manifest's lines, as dictionaries; none after a dry run, a preview or a part.
        judges: Who found and who attacked, by name.
        foreign: Files among the published ones that are not fairanon's.
        passed_over: A sentence about what lies in the input and was not looked at; "" if nothing was.
        shown: What a dry run or a preview wrote: it shows originals.
    """

    out: Path
    published: Path
    files: dict[str, int]
    verdicts: dict[str, int]
    lines: list[dict[str, Any]]
    judges: dict[str, dict[str, Any]]
    foreign: list[str]
    passed_over: str
    shown: Path | None = None

    @property
    def complete(self) -> bool:
        """Whether nobody has to look at anything."""
        eyes = sum(self.files.get(kind, 0) for kind in ("review", "unreadable", "left"))
        return not eyes and not self.foreign


def anonymize(request: AnonymizeRequest) -> AnonymizeResult:
    """See `fairanon.anonymize`; errors are not put into sentences here."""
    if request.key_file:
        from fairanon.anonymizer.people import read_key

        read_key(request.key_file)  # before models are loaded
    if request.finish and not (request.out / SETTINGS).exists():
        raise UserError(f"--finish: nothing was begun in {request.out}; begin with --part, or leave --finish out.")
    source = collect(request.inputs)
    if request.boxes == "only" and not any(item.boxes is not None for item in source.items):
        raise UserError("--boxes only needs a CSV or .jsonl with boxes of yours as IN.")
    told = _told_people(request.people, [item.name for item in source.items])
    check_out(request.inputs, request.out)
    passed_over = source.passed_over
    if passed_over:
        _log.warning(passed_over)
    source.pass_over(request.out)
    devices = devices_of(request.device, on_the_cpu=request.redacts)
    lines: list[dict[str, Any]] = []
    wrote, faces, pictures, published = None, 0, 0, request.out / str(FOLDERS["finished"])
    with ExitStack() as stack:
        job = job_of(request, source, devices[0], stack)
        if request.shows:
            _tell_who_is_who(request, job, told, writes=False)
            wrote, faces, pictures = dry_run(job) if request.dry_run else preview(job, request.preview or 1)
        else:
            engine = None if len(devices) == 1 else Processes(request, devices, job)
            if request.share is not None:
                files = {"waiting": job.run_part(*request.share, engine)}
                return AnonymizeResult(request.out, published, files, {}, [], job.about["judges"], [], passed_over)
            lines = job.run(engine, lambda: _tell_who_is_who(request, job, told))
            write_page(request.out, lines, job.about, foreign_files(request.out, lines))
    hidden = hidden_of(lines)
    return AnonymizeResult(
        request.out, published, {"shown": pictures} if request.shows else dict(counts(lines)),
        {"found": faces} if request.shows else dict(Counter(line["verdict"] for line in hidden)), lines, job.about["judges"],
        foreign_files(request.out, lines) if lines else [], passed_over, wrote,
    )  # fmt: skip


def _tell_who_is_who(request: AnonymizeRequest, job: Job, told: dict[str, str], writes: bool = True) -> None:
    """Go through the whole collection once and say who is drawn instead of whom, if a key asks for it."""
    if request.key_file is None:
        return
    from fairanon.anonymizer.people import Register, read_key, who_is_who

    hider: Any = job.treatment.hider  # with a key it draws
    key, matcher = read_key(request.key_file), hider.turn
    register = Register(job.out / PEOPLE, key, request.key_scope, writes)
    pictures = (found for item in job.source.items if isinstance(found := job.treatment.look_at(item), Picture))
    threshold = threshold_of(matcher, request.thresholds).value
    hider.people = who_is_who(pictures, hider.square, hider.drawer, matcher, threshold, key, register, told)


def _told_people(table: Path | None, names: Sequence[str]) -> dict[str, str]:
    """Who the largest face of a file is, as the user's table says it."""
    told: dict[str, str] = {}
    for number, row in [] if table is None else read_table(table, "--people", ("file", "person")):
        name, person = (
            named_path(row["file"].strip(), f"{table}, line {number}").as_posix(),
            " ".join(row["person"].split()),
        )
        if name not in names:
            raise UserError(f"--people: {table}, line {number} names {name}, which is not there.")
        if told.setdefault(name, person) != person or not person:
            raise UserError(f"--people: {table}, line {number} does not say one person for {name}.")
    return told
