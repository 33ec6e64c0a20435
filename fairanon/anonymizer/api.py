"""The Python door to photographs: what is asked for becomes models, and these go through a collection."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from fairanon.anonymizer.attack import Attacker, threshold_of
from fairanon.anonymizer.faces import Picture
from fairanon.anonymizer.find import Finder
from fairanon.anonymizer.folder import PEOPLE, PEOPLE_NOTED, UNFINISHED, Embeddings, Job, check_out, is_done
from fairanon.anonymizer.hide import Classical
from fairanon.anonymizer.judges import FINDS, MATCHES, devices_of, judge, judges
from fairanon.anonymizer.manifest import FOLDERS, counted, counts, foreign_files, hidden_of
from fairanon.anonymizer.named import NamedPeople
from fairanon.anonymizer.page import write_page
from fairanon.anonymizer.picture import Choices, Treatment
from fairanon.anonymizer.preview import dry_run, preview
from fairanon.anonymizer.request import AnonymizeRequest
from fairanon.anonymizer.sources import Item, Source, collect
from fairanon.config.experiments import UserError
from fairanon.files import named_path, read_json, read_table, write_text
from fairanon.imaging import read_regions
from fairanon.progress import progress, shown
from fairanon.redaction import Redaction

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnonymizeResult:
    """What became of a collection.

    Attributes:
        out: The folder that was asked for.
        published: Where the files lie that may be published.
        files: How many files came to which end: "finished" may be published, "review" wait for somebody's eyes,
            "unreadable", "left" (passed over), "no-face", "skipped"; of a dry run or a preview "shown".
        verdicts: How many faces that were to be hidden have which verdict; of a dry run or a preview how many were "found".
        lines: The manifest's lines, as dictionaries; none after a dry run or a preview.
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
    wrote, faces, pictures = None, 0, 0
    with ExitStack() as stack:
        job = _job(request, source, devices[0], stack)
        if request.shows:
            _tell_who_is_who(request, job, told, writes=False)
            wrote, faces, pictures = dry_run(job) if request.dry_run else preview(job, request.preview or 1)
        else:
            elsewhere = None if len(devices) == 1 else _Shards(request, devices, job)
            lines = job.run(elsewhere, lambda: _tell_who_is_who(request, job, told))
            write_page(request.out, lines, job.about, foreign_files(request.out, lines))
    hidden = hidden_of(lines)
    return AnonymizeResult(
        request.out, request.out / str(FOLDERS["finished"]), {"shown": pictures} if request.shows else dict(counts(lines)),
        {"found": faces} if request.shows else dict(Counter(line["verdict"] for line in hidden)), lines, job.about["judges"],
        foreign_files(request.out, lines) if lines else [], passed_over, wrote,
    )  # fmt: skip


def _job(request: AnonymizeRequest, source: Source, device: str, stack: ExitStack) -> Job:
    """Everything that a process needs.

    Args:
        request: What is wanted.
        source: What is anonymized.
        device: Where this process works.
        stack: Undoes afterwards what is undone.
    """
    if request.redacts:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)  # workers share the cores, and their number changes no rounding
    finders = judges(request.detector, "--detector", FINDS, threshold=request.detector_threshold)
    attacks = not (request.skip_attack and request.redacts)
    matchers = judges(request.recognizer, "--recognizer", MATCHES) if attacks else []
    parser = judge(request.parser, "--parser") if request.parser else None
    kept = request.keep.replace(",", "+")
    if parser is not None and kept:
        read_regions(kept, parser.regions)  # refuses what it does not know
    for one in (*finders, *matchers, *([parser] if parser else [])):
        one.to(device)
    attacker = None
    if not request.skip_attack:
        thresholds = {m.name: threshold_of(m, request.thresholds) for m in matchers}
        attacker = Attacker(matchers, thresholds, finders[0])
    _known_in(request.thresholds, [m.name for m in matchers])
    about = request.about()
    about["judges"] = {f.name: {"licence": f.licence} for f in finders} | (attacker.describe() if attacker else {})
    if request.redacts:
        hider: Any = Classical(
            cast(Redaction, request.method),
            request.strength,
            request.box_scale,
            request.tries,
            parser,
            kept,
            request.shape,
            request.paint,
            request.replace_with,
        )
    else:
        from fairanon.anonymizer.draw import Generative

        hider = Generative(
            _drawer(request, device, stack), _seed(request, source), matchers[0], parser,
            f"face-{kept.replace('+', '-')}" if kept else "face", request.cut_scale, request.box_scale,
            batch_size=request.batch_size,
        )  # fmt: skip
    finder = Finder(finders, request.side, tiles=not request.no_tiles, fast=request.fast)
    choices = Choices(
        request.faces, request.boxes, request.min_face, request.no_face, request.tries, not request.skip_attack,
        request.jpeg_quality, request.hashes,
    )  # fmt: skip
    named, noted = None, {}
    if attacker is not None and (folder := request.keep_person or request.only_person):
        named = NamedPeople(folder, request.keep_person is not None, finder, attacker)
        about["settings"]["keep_person" if request.keep_person else "only_person"] = counted(
            named.photographs, "photograph"
        )
        noted[PEOPLE_NOTED] = named.digest
    treatment = Treatment(hider, finder, attacker, choices, named)
    return Job(source, request.out, treatment, about, request.workers, request.keep_date, noted)


def _known_in(tables: Sequence[Path], recognizers: Sequence[str]) -> None:
    """Refuse tables that say nothing of the recognizers in use."""
    for path in tables:
        table = read_json(path, "--thresholds")
        if isinstance(table, dict) and not set(table) & set(recognizers):
            raise UserError(
                f"--thresholds: {path.name} has no threshold for {' or '.join(recognizers)}; it has {list(table)}."
            )


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


def _seed(request: AnonymizeRequest, source: Source) -> int:
    """The new faces' seed; a secret one is kept until everything is done, and known to nobody afterwards."""
    path = request.out / UNFINISHED / "seed"
    if not path.exists():
        seed = secrets.randbits(62) if request.seed is None else request.seed
        if request.shows or is_done(request.out, source):
            return seed
        write_text(path, str(seed))
    known = int(path.read_text())
    if request.seed is not None and request.seed != known:
        raise UserError(f"--seed: {request.out} was begun with another one; take that, or name a new folder.")
    return known


def _drawer(request: AnonymizeRequest, device: str, stack: ExitStack) -> Any:
    """What draws, of a run's folder or of a pipeline's."""
    from fairanon.anonymizer.draw import ID2FaceDrawer, InpaintDrawer
    from fairanon.backbones import Sampling, StableDiffusion

    assert request.checkpoint is not None
    folder = request.checkpoint
    prompt = request.prompt or "a photo of a person"
    sampling = Sampling(request.steps, 7.5 if request.guidance_scale is None else request.guidance_scale)
    if request.method == "ano-face-fair" and (folder / "model_index.json").exists():
        backbone = StableDiffusion(str(folder), frozen=True)
        backbone.to(device)
        return InpaintDrawer(backbone, prompt, sampling)
    from fairanon.methods import ID2Face
    from fairanon.methods.load import load_run

    if (folder / "id2face" / "config.json").exists():  # the judges that it needs are named by its run
        folder = folder.resolve().parent
        if not (folder / "config.yaml").exists():
            raise UserError(f"--checkpoint: {request.checkpoint} does not bring its judges; name the run's folder.")
    model = load_run(folder, device)
    if request.method == "ano-face-fair":
        return InpaintDrawer(model.backbone, prompt, sampling)
    if not isinstance(model, ID2Face):
        raise UserError(f"--checkpoint: {folder} is no run of ID2Face.")
    landmarks = judge(request.landmarks, "--landmarks")
    landmarks.to(device)
    return ID2FaceDrawer(stack.enter_context(model.pipeline()), landmarks, request.steps)


class _Shards:
    """Goes through items in one process for each device."""

    def __init__(self, request: AnonymizeRequest, devices: list[str], job: Job) -> None:
        self.request, self.devices, self.job = request, devices, job

    def __call__(self, items: list[Item]) -> Iterator[Embeddings]:
        """See `Job.go_through`."""
        if not items:
            return
        count, people = len(self.devices), getattr(self.job.treatment.hider, "people", None)
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
            shards = [
                pool.submit(_shard, self.request, [item.name for item in items[k::count]], k, device, people, shown())
                for k, device in enumerate(self.devices)
            ]
            for shard in shards:
                yield from pickle.loads(shard.result())  # our own process wrote it


def _shard(
    request: AnonymizeRequest, names: list[str], number: int, device: str, people: Any, show: bool
) -> bytes:  # fmt: skip
    """Go through some items; what was seen comes back as bytes: torch would send each tensor through shared memory."""
    source = collect(request.inputs)
    source.pass_over(request.out)
    wanted = set(names)
    with ExitStack() as stack, progress(show and number == 0):
        job = _job(request, source, device, stack)
        if people is not None:
            job.treatment.hider.people = people  # type: ignore[attr-defined]  # with a key it draws
        job.keep_settings()  # its people are those of the first process, too
        job.share_secret()
        mine = [item for item in source.items if item.name in wanted]
        return pickle.dumps(list(job.go_through(mine, f"journal-{number}.jsonl")))
