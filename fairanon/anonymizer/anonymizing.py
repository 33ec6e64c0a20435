"""The Python door to photographs: what is asked for becomes models, and these go through a collection."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fairanon.anonymizer.attack import threshold_of
from fairanon.anonymizer.block import Block, Unit
from fairanon.anonymizer.collection_page import write_page
from fairanon.anonymizer.faces import Picture
from fairanon.anonymizer.folder import PEOPLE, SETTINGS, Engine, Job, check_out, refuse_held
from fairanon.anonymizer.job import job_of
from fairanon.anonymizer.manifest import FOLDERS, Tally, foreign_files, read_manifest
from fairanon.anonymizer.preview import dry_run, preview
from fairanon.anonymizer.request import AnonymizeRequest
from fairanon.anonymizer.sources import Source, collect
from fairanon.config.experiments import UserError
from fairanon.engines import Crew, Start, Task, Tell, Work, devices_of, hands_of
from fairanon.files import named_path, read_table
from fairanon.imaging import most_pixels

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnonymizeResult:
    """What became of a collection.

    Attributes:
        out: The folder that was asked for.
        published: Where the files lie that may be published.
        files: How many files came to which end: "finished" may be published, "review" wait for somebody's eyes,
            "unreadable", "left" (passed over), "no-face", "skipped"; of a dry run or a preview "shown".
            Of a part where its files would go, and "published already" if everything is.
        verdicts: How many faces that were to be hidden have which verdict; of a dry run or a preview how many were "found".
        tally: What the manifest adds up to; nothing after a dry run, a preview or a part.
        judges: Who found and who attacked, by name.
        foreign: Files among the published ones that are not fairanon's.
        passed_over: A sentence about what lies in the input and was not looked at; "" if nothing was.
        shown: What a dry run or a preview wrote: it shows originals.
    """

    out: Path
    published: Path
    files: dict[str, int]
    verdicts: dict[str, int]
    tally: Tally
    judges: dict[str, dict[str, Any]]
    foreign: list[str]
    passed_over: str
    shown: Path | None = None

    @property
    def complete(self) -> bool:
        """Whether nobody has to look at anything; never after a part, a dry run or a preview."""
        return bool(self.tally.files) and not self.tally.waiting and not self.foreign

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The manifest's lines, as dictionaries; none after a dry run, a preview or a part."""
        return list(read_manifest(self.out)) if self.tally.files else []


def anonymize(request: AnonymizeRequest) -> AnonymizeResult:
    """See `fairanon.anonymize`; errors are not put into sentences here."""
    if request.key_file:
        from fairanon.anonymizer.register import read_key

        read_key(request.key_file)  # before models are loaded
    if request.finish and not (request.out / SETTINGS).exists():
        raise UserError(f"--finish: nothing was begun in {request.out}; begin with --part, or leave --finish out.")
    most_pixels()  # a wrong one is said before anything is done
    source = collect(request.inputs)
    if request.boxes == "only" and not any(item.boxes is not None for item in source.items):
        raise UserError("--boxes only needs a CSV or .jsonl with boxes of yours as IN.")
    person_of = _told_people(request.people, [item.name for item in source.items])
    check_out(request.inputs, request.out)
    passed_over = source.passed_over
    if passed_over:
        _log.warning(passed_over)
    source.pass_over(request.out)
    devices = devices_of(request.device, on_the_cpu=request.redacts)
    published, tally, foreign = request.out / str(FOLDERS["finished"]), Tally(), list[str]()
    shown: Path | None = None
    with ExitStack() as stack:
        job = job_of(request, source, devices[0], stack)
        engine = _engine(request, devices, job, stack)
        if request.shows:
            _tell_who_is_who(request, job, person_of, writes=False)
            shown, faces, pictures = dry_run(job) if request.dry_run else preview(job, request.preview or 1)
            files, verdicts = {"shown": pictures}, {"found": faces}
        elif request.share is not None:
            done = job.run_part(*request.share, engine)
            files, verdicts = {"published already": 1} if done is None else dict(done), {}
        else:
            job.run(engine, lambda: _tell_who_is_who(request, job, person_of))
            tally, foreign = write_results(request.out, job.about)
            files, verdicts = dict(tally.files), dict(tally.verdicts)
    return AnonymizeResult(
        request.out, published, files, verdicts, tally, job.about["judges"], foreign, passed_over, shown
    )


def _engine(request: AnonymizeRequest, devices: list[str], job: Job, stack: ExitStack) -> Engine | None:
    """Who works on the blocks; None: this process. Others are started with the first work, and stay until the end."""
    if request.engine == "here" and len(devices) == 1:
        return None
    crews: list[Crew] = []

    def engine(work: Sequence[tuple[Block, Unit]], tell: Tell) -> None:
        if not work:
            return
        if not crews:
            people = getattr(job.treatment.hider, "people", None)
            start = Start(_blocks, (request, job.source.roots, people), tuple(FOLDERS))
            hands = hands_of(start, request.engine, devices, request.device, request.workers)
            stack.callback(hands.end)
            crews.append(Crew(hands))
        tasks = [
            Task(block.number, f"block {block.number} of the collection", (block.items, unit)) for block, unit in work
        ]
        refuse_held(len(crews[0](tasks, tell)))

    return engine


def _blocks(request: AnonymizeRequest, roots: tuple[Path, ...], people: Any, device: str, stack: ExitStack) -> Work:
    """Who works on blocks in another process, see `Start`.

    Args:
        request: What is wanted.
        roots: Of the collection, see `Source`.
        people: Who is who, with a key.
        device: Where.
        stack: Undoes afterwards what is undone.
    """
    job = job_of(request, Source(roots=roots), device, stack)
    job.join()  # named people are those of the first process, too
    if people is not None:
        job.treatment.hider.people = people  # type: ignore[attr-defined]  # with a key it draws

    def work(task: Task, tell: Tell) -> None:
        items, unit = task.about
        job.block(task.number, list(items.values())).run(unit, tell)

    return work


def write_results(out: Path, about: Mapping[str, Any]) -> tuple[Tally, list[str]]:
    """Write the page and the tables of a result; what its manifest adds up to, and files that are not ours."""
    tally, foreign = Tally.of(read_manifest(out)), foreign_files(out)
    write_page(out, tally, about, foreign)
    return tally, foreign


def _tell_who_is_who(request: AnonymizeRequest, job: Job, person_of: dict[str, str], writes: bool = True) -> None:
    """Go through the whole collection once and say who is drawn instead of whom, if a key asks for it."""
    if request.key_file is None:
        return
    from fairanon.anonymizer.register import Register, read_key, who_is_who

    hider: Any = job.treatment.hider  # with a key it draws
    key, matcher = read_key(request.key_file), hider.turn
    register = Register(job.out / PEOPLE, key, request.key_scope, writes)
    pictures = (picture for item in job.source.items if isinstance(picture := job.treatment.look_at(item), Picture))
    threshold = threshold_of(matcher, request.thresholds).value
    hider.people = who_is_who(pictures, hider.square, hider.drawer, matcher, threshold, key, register, person_of)


def _told_people(table: Path | None, names: Sequence[str]) -> dict[str, str]:
    """Who the largest face of a file is, as the user's table says it."""
    person_of: dict[str, str] = {}
    for number, row in [] if table is None else read_table(table, "--people", ("file", "person")):
        name, person = (
            named_path(row["file"].strip(), f"{table}, line {number}").as_posix(),
            " ".join(row["person"].split()),
        )
        if name not in names:
            raise UserError(f"--people: {table}, line {number} names {name}, which is not there.")
        if person_of.setdefault(name, person) != person or not person:
            raise UserError(f"--people: {table}, line {number} does not say one person for {name}.")
    return person_of
