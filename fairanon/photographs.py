"""The verbs for photographs: anonymize, calibrate, evaluate."""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
import re
import secrets
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from tqdm import tqdm

from fairanon import __version__
from fairanon.anonymize.attack import ENOUGH, Attacker, Threshold, threshold_of, told_threshold, usual_threshold
from fairanon.anonymize.evidence import Evidence, Labels, Paired, read_labels
from fairanon.anonymize.faces import Picture
from fairanon.anonymize.find import Finder
from fairanon.anonymize.folder import PEOPLE, UNFINISHED, Embeddings, Job, check_out, is_done
from fairanon.anonymize.hide import Classical
from fairanon.anonymize.judges import FINDS, MATCHES, judge, judges
from fairanon.anonymize.manifest import FOLDERS, MANIFEST, REVIEWED, counts, foreign_files, printable, read_manifest
from fairanon.anonymize.photos import read_photo
from fairanon.anonymize.picture import Choices, Treatment
from fairanon.anonymize.sources import Item, Source, collect
from fairanon.evaluators.inception import inception_weights
from fairanon.experiments import UserError
from fairanon.failures import EXPECTED, in_a_sentence
from fairanon.files import content_key, read_json, write_json, write_text
from fairanon.imaging import CorruptImageError, read_regions
from fairanon.protocols import FaceMatcher
from fairanon.redaction import REDACTIONS

NEEDS_EYES = 3
"""Exit code: something lies in review."""


def run(given: Namespace) -> int:
    """Run one verb, see `fairanon.verbs.run`."""
    logging.getLogger("fairanon").setLevel(logging.INFO)
    logging.basicConfig(format="%(message)s")
    return in_a_sentence(lambda: _VERBS[given.verb](given), EXPECTED)


def anonymize(given: Namespace) -> int:
    """``fairanon anonymize IN OUT``: 0 if everything may be published, 3 if somebody has to look at something."""
    _check(given)
    source, out = collect([Path(path) for path in given.inputs]), Path(given.out)
    if source.passed_over:
        print(source.passed_over)
    if given.boxes == "only" and not any(item.boxes is not None for item in source.items):
        raise UserError("--boxes only needs a CSV or .jsonl with boxes of yours as IN.")
    about = about_of(given)
    check_out([Path(path) for path in given.inputs], out)
    source.pass_over(out)
    devices = devices_of(given.device, given.method in REDACTIONS)
    with ExitStack() as stack:
        shows = given.dry_run or given.preview
        job = build(given, source, about, devices[0], stack, writes=not shows)
        if shows:
            from fairanon.anonymize.preview import dry_run, preview

            return dry_run(job) if given.dry_run else preview(job, given.preview)
        people = getattr(job.treatment.hider, "people", None)
        elsewhere = None if len(devices) == 1 else _Shards(given, devices, people)
        lines = job.run(elsewhere)
    return _said(lines, out, about["judges"])


def _said(lines: list[dict[str, Any]], out: Path, judges: dict[str, dict[str, Any]]) -> int:
    """The last lines, and the exit code."""
    found = counts(lines)
    total, finished = sum(found.values()), found.get("finished", 0)
    rest = [
        f"{found[kind]} {where}"
        for kind, where in (
            ("review", f"to be looked at in {out / 'review'}"), ("unreadable", "could not be read or handled"),
            ("left", "passed over"),
            ("no-face", f"without a face in {out / 'no-face'}"), ("skipped", "without a face skipped"),
        )
        if found.get(kind)
    ]  # fmt: skip
    foreign = foreign_files(out, lines)
    if foreign:
        rest.append(f"{len(foreign)} files there are not fairanon's ({printable(foreign[0])}): move them away")
    eyes = found.get("review", 0) + found.get("unreadable", 0) + found.get("left", 0) + len(foreign)
    why = f" ({out / REVIEWED} says why)" if eyes else ""
    print(
        f"{finished} of {total} files may be published: {out / str(FOLDERS['finished'])}"
        + "".join(f"; {part}" for part in rest) + why
    )  # fmt: skip
    faces = [line for line in lines if line["face"] is not None and line["verdict"] != "left as it is"]
    if faces:
        print(_said_of_faces(faces, judges))
    if any(line["verdict"] == "obscured" for line in faces):
        print(
            "obscured is not anonymized: who holds the very photograph can find a blurred or pixelated face, and something of "
            "it can be computed back; --method mask leaves nothing"
        )
    tested = [line["collection"] for line in lines if line.get("collection")]
    if faces and tested and tested[-1] == "not testable":
        print(
            f"the test of the whole collection was skipped: it takes {ENOUGH} hidden faces that a recognizer can judge"
        )
    return NEEDS_EYES if eyes else 0


def _said_of_faces(faces: list[dict[str, Any]], attackers: dict[str, dict[str, Any]]) -> str:
    verdicts = Counter(line["verdict"] for line in faces)
    attacked = sum(bool(line["distances"]) for line in faces)
    told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    if not attacked and set(verdicts) == {"not attacked"}:
        return f"{_counted(len(faces), 'face')} hidden, none of them attacked (--skip-attack)"
    nearest = []
    for name, attacker in attackers.items():
        distances = [line["distances"][name] for line in faces if name in line["distances"]]
        if distances:
            nearest.append(
                f"{min(distances):.2f} by {name}, which takes two faces for one person up to {attacker['value']:g} "
                f"({attacker['origin']})"
            )
    near = f"; the one most like its original has the distance {'; '.join(nearest)}" if nearest else ""
    return f"{_counted(len(faces), 'face')} hidden ({told}), {attacked} attacked{near}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _check(given: Namespace) -> None:
    classical = given.method in REDACTIONS
    if classical and given.checkpoint:
        raise UserError(f"--checkpoint: {given.method} needs none; --method ano-face-fair or id2face draws new faces.")
    if not classical and not given.checkpoint:
        raise UserError(f"--method {given.method} needs --checkpoint: a run's folder, or a pipeline's.")
    if classical and (given.key_file or given.prompt or given.seed is not None):
        raise UserError(f"--method {given.method} draws nobody: --key-file, --prompt and --seed are for new faces.")
    if given.prompt and given.method == "id2face":
        raise UserError("--prompt: id2face takes no prompt; leave it out.")
    if given.keep and not given.parser:
        raise UserError("--keep needs --parser, which says where that is, for example facexlib_parser.")
    if given.key_file and given.seed is not None:
        raise UserError("--seed and --key-file: the key says who is drawn; give one of them.")
    if given.key_file:
        from fairanon.anonymize.people import read_key

        read_key(Path(given.key_file))  # before models are loaded
    if given.key_scope != "folder" and not given.key_file:
        raise UserError("--key-scope needs --key-file.")
    _in_range(given)


def _in_range(given: Namespace) -> None:
    for name, least, most in _RANGES:
        value = getattr(given, name, None)
        if value is not None and not least <= value <= most:  # nan is outside of everything
            raise UserError(f"--{name.replace('_', '-')} must be from {least:g} to {most:g}, got {value}.")


_RANGES = (
    ("tries", 1, 100), ("workers", 1, 1024), ("batch_size", 1, 4096), ("steps", 1, 10_000), ("preview", 1, 1000),
    ("box_scale", 1, 5), ("cut_scale", 1, 20), ("side", 64, 20_000), ("min_face", 0, 100_000), ("threshold", 0.01, 0.99),
    ("strength", 0.01, 1), ("jpeg_quality", 1, 100), ("size", 16, 4096), ("false_match_rate", 1e-6, 0.5),
)  # fmt: skip
"""Numbers that the commands take, from the least to the most that makes sense."""


def about_of(given: Namespace) -> dict[str, Any]:
    """Whatever results depend on, as the manifest and ``settings.json`` say it: no secret, no path, nobody's name."""
    names = _SETTINGS if given.method in REDACTIONS else (*_SETTINGS, *_DRAWN)
    settings = {name: getattr(given, name) for name in names if getattr(given, name) not in (None, "", False)}
    for name in ("detector", "recognizer", "parser", "landmarks", "checkpoint"):
        if name in settings:
            settings[name] = _named(name, settings[name])
    if given.key_file:
        settings["key"] = "one face for each person: who has the key can link pictures"
        settings["key_scope"] = given.key_scope
    return {"method": given.method, "version": __version__, "settings": settings}


def _named(option: str, given: str) -> str:
    """Judges and checkpoints without the folders they lie in, and with a digest that tells two of one name apart."""
    if option == "checkpoint":
        path = Path(given)
        return f"{path.name} {content_key(str(path.resolve()))[:8]}"
    return ",".join(Path(one).name for one in given.split(","))


_SETTINGS = (
    "strength", "keep", "faces", "boxes", "min_face", "threshold", "box_scale", "tries", "no_face", "skip_attack", "side",
    "no_tiles", "fast", "jpeg_quality", "detector", "recognizer", "parser", "hashes",
)  # fmt: skip
_DRAWN = ("checkpoint", "prompt", "steps", "cut_scale", "landmarks")
"""Words of the command that change what comes out, and those that matter where faces are drawn."""


def devices_of(given: str, on_the_cpu: bool) -> list[str]:
    """Where models work: one process each.

    Args:
        given: What ``--device`` says.
        on_the_cpu: ``auto`` is the CPU.

    Raises:
        UserError: A device is none, or not there.
    """
    gpus = torch.cuda.device_count()
    if given == "auto":
        return ["cpu"] if on_the_cpu or not gpus else [f"cuda:{k}" for k in range(gpus)]
    devices = [re.sub(r"^gpu", "cuda", name.strip()) for name in given.split(",")]
    for name in devices:
        number = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
        if number is None:
            raise UserError(f"--device: {name!r} is no device; take auto, cpu, cuda, cuda:0, cuda:1, ...")
        if name != "cpu" and int(number[1] or 0) >= gpus:
            raise UserError(
                f"--device {given}: this machine has {gpus or 'no'} CUDA devices; take cpu, or leave it out."
            )
    return devices


def build(
    given: Namespace, source: Source, about: dict[str, Any], device: str, stack: ExitStack, writes: bool = True,
    people: Any = None,
) -> Job:  # fmt: skip
    """Everything that a process needs.

    Args:
        given: Words of the command line.
        source: What is anonymized.
        about: See `about_of`; the judges are added.
        device: Where this process works.
        stack: Undoes afterwards what is undone.
        writes: It may write into the result's folder.
        people: Who is who, if another process knows it already.
    """
    writes = writes and not is_done(Path(given.out), source)
    if given.method in REDACTIONS:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)  # workers share the cores, and their number changes no rounding
    finders = judges(given.detector, "--detector", FINDS)
    for one in finders:
        if given.threshold is not None:
            one.threshold = given.threshold
    matchers = (
        [] if given.skip_attack and given.method in REDACTIONS else judges(given.recognizer, "--recognizer", MATCHES)
    )
    parser = judge(given.parser, "--parser") if given.parser else None
    kept = given.keep.replace(",", "+")
    if parser is not None and kept:
        read_regions(kept, parser.regions)  # refuses what it does not know
    for one in (*finders, *matchers, *([parser] if parser else [])):
        one.to(device)
    tables = [Path(path) for path in given.thresholds]
    attacker = None
    if not given.skip_attack:
        attacker = Attacker(matchers, {m.name: threshold_of(m, tables) for m in matchers}, finders[0])
    _known_in(tables, [m.name for m in matchers])
    about["judges"] = {f.name: {"licence": f.licence} for f in finders} | (attacker.describe() if attacker else {})
    finder = Finder(finders, given.side, tiles=not given.no_tiles, fast=given.fast)
    choices = Choices(
        given.faces, given.boxes, given.min_face, given.no_face, given.tries, not given.skip_attack, given.jpeg_quality,
        given.hashes,
    )  # fmt: skip
    if given.method in REDACTIONS:
        hider: Any = Classical(given.method, given.strength, given.box_scale, given.tries, parser, kept)
    else:
        from fairanon.anonymize.draw import Generative

        region = f"face-{kept.replace('+', '-')}" if kept else "face"
        drawer = _drawer(given, device, stack)
        hider = Generative(
            drawer, _seed(given, writes), matchers[0], parser, region, given.cut_scale, given.box_scale,
            batch_size=given.batch_size,
        )  # fmt: skip
    treatment = Treatment(hider, finder, attacker, choices)
    job = Job(source, Path(given.out), treatment, about, given.workers, given.keep_date)
    if given.key_file:
        if writes:
            job.begin()
        threshold = threshold_of(matchers[0], tables).value
        hider.people = people or _people(given, job, matchers[0], threshold, writes)
    return job


def _known_in(tables: Sequence[Path], recognizers: Sequence[str]) -> None:
    """Refuse tables that say nothing of the recognizers in use."""
    for path in tables:
        table = read_json(path, "--thresholds")
        if isinstance(table, dict) and not set(table) & set(recognizers):
            raise UserError(
                f"--thresholds: {path.name} has no threshold for {' or '.join(recognizers)}; it has {list(table)}."
            )


def _people(given: Namespace, job: Job, matcher: FaceMatcher, threshold: float, writes: bool) -> Any:
    from fairanon.anonymize.people import Register, read_key, who_is_who

    hider, key = job.treatment.hider, read_key(Path(given.key_file))
    register = Register(job.out / PEOPLE, key, given.key_scope, writes)
    pictures = (found for item in job.source.items if isinstance(found := job.treatment.look_at(item), Picture))
    return who_is_who(pictures, hider.square, hider.drawer, matcher, threshold, key, register)  # type: ignore[attr-defined]  # with a key it is Generative


def _seed(given: Namespace, writes: bool) -> int:
    """The new faces' seed; a secret one is kept until everything is done, and known to nobody afterwards."""
    path = Path(given.out) / UNFINISHED / "seed"
    if not path.exists():
        seed = secrets.randbits(62) if given.seed is None else given.seed
        if not writes:
            return int(seed)
        write_text(path, str(seed))
    known = int(path.read_text())
    if given.seed is not None and given.seed != known:
        raise UserError(f"--seed: {given.out} was begun with another one; take that, or name a new folder.")
    return known


def _drawer(given: Namespace, device: str, stack: ExitStack) -> Any:
    """What draws, of a run's folder or of a pipeline's."""
    from fairanon.anonymize.draw import ID2FaceDrawer, InpaintDrawer
    from fairanon.backbones import StableDiffusion

    folder = Path(given.checkpoint)
    if given.method == "ano-face-fair" and (folder / "model_index.json").exists():
        backbone = StableDiffusion(str(folder), frozen=True)
        backbone.to(device)
        return InpaintDrawer(backbone, given.prompt or "a photo of a person", given.steps)
    from fairanon.methods import ID2Face
    from fairanon.verbs import finished_run

    if (folder / "id2face" / "config.json").exists():  # the judges that it needs are named by its run
        folder = folder.resolve().parent
        if not (folder / "config.yaml").exists():
            raise UserError(f"--checkpoint: {given.checkpoint} does not bring its judges; name the run's folder.")
    place = ["--trainer.accelerator=cpu"] if device == "cpu" else []  # which precision it has, too
    model = finished_run(folder, "anonymize", place)[2]
    model.to(device)
    model.eval()
    if given.method == "ano-face-fair":
        return InpaintDrawer(model.backbone, given.prompt or "a photo of a person", given.steps)
    if not isinstance(model, ID2Face):
        raise UserError(f"--checkpoint: {folder} is no run of ID2Face.")
    landmarks = judge(given.landmarks, "--landmarks")
    landmarks.to(device)
    return ID2FaceDrawer(stack.enter_context(model.pipeline()), landmarks, given.steps)


class _Shards:
    """Goes through items in one process for each device."""

    def __init__(self, given: Namespace, devices: list[str], people: Any) -> None:
        self.given, self.devices, self.people = given, devices, people

    def __call__(self, items: list[Item]) -> Iterator[Embeddings]:
        """See `Job.go_through`."""
        if not items:
            return
        count = len(self.devices)
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
            shards = [
                pool.submit(_shard, self.given, [item.name for item in items[k::count]], k, device, self.people)
                for k, device in enumerate(self.devices)
            ]
            for shard in shards:
                yield from pickle.loads(shard.result())  # our own process wrote it


def _shard(given: Namespace, names: list[str], number: int, device: str, people: Any) -> bytes:
    """Go through some items; what was seen comes back as bytes: torch would send each tensor through shared memory."""
    source = collect([Path(path) for path in given.inputs])
    source.pass_over(Path(given.out))
    wanted = set(names)
    with ExitStack() as stack:
        job = build(given, source, about_of(given), device, stack, writes=False, people=people)
        job.share_secret()
        mine = [item for item in source.items if item.name in wanted]
        return pickle.dumps(list(job.go_through(mine, f"journal-{number}.jsonl", bar=number == 0)))


# --- calibrate -------------------------------------------------------------------------------------------


def calibrate(given: Namespace) -> None:
    """``fairanon calibrate FOLDER``: a table of thresholds for ``--thresholds``."""
    from fairanon.anonymize.calibrate import calibrate as thresholds_of

    _in_range(given)
    source = collect([Path(given.folder)])
    labels = read_labels(Path(given.groups), "--groups", "file") if given.groups else Labels()
    for written, label in labels.changed.items():
        print(f"group {written!r} counts as {label!r}")
    if strangers := sorted(set(labels.rows) - {item.name for item in source.items}):
        print(f"--groups names {_counted(len(strangers), 'file')} that are not there ({printable(strangers[0])})")
    finders, matchers = judges(given.detector, "--detector", FINDS), judges(given.recognizer, "--recognizer", MATCHES)
    place = devices_of(given.device, on_the_cpu=False)[0]
    for one in (*finders, *matchers):
        one.to(place)

    def people() -> Iterator[tuple[str, Tensor, str | None]]:
        for item in tqdm(source.items, desc="people", unit="img"):
            try:
                yield item.name, read_photo(item.read(), item.name).pixels, labels.of(item.name)[0]
            except CorruptImageError as error:
                print(f"skipped {error}")

    table = thresholds_of(people(), Finder(finders), matchers, given.false_match_rate)
    write_json(Path(given.out), table)
    for name, row in table.items():
        said = "".join(f"; {group} {one['value']}" for group, one in row["groups"].items())
        rate = f"{row['false_match_rate']:g} [{row['low']:g}, {row['high']:g}]"
        print(
            f"{name}: {row['value']} at a false-match rate of {rate} ({row['people']} people, {row['pairs']} pairs{said})"
        )
    print(f"{given.out}; `fairanon anonymize ... --thresholds {given.out}` goes by it")


# --- evaluate --------------------------------------------------------------------------------------------


def evaluate(given: Namespace) -> int:
    """``fairanon evaluate ORIGINALS ANONYMIZED``: who is found, who is protected less, what is kept; 3 if something is missing."""
    from fairanon.anonymize.evaluate import evaluate as numbers_of
    from fairanon.anonymize.evidence import Looks, gather, keep, pair_up, read_kept, write_faces
    from fairanon.report.evaluation import as_text, write_tables

    _in_range(given)
    originals, anonymized, out = Path(given.originals), Path(given.anonymized), Path(given.out)
    hidden_by = _manifest_of(anonymized)
    anonymized = _published(anonymized)
    if originals.resolve() == anonymized.resolve() and not given.json:
        print(f"ANONYMIZED is ORIGINALS itself ({anonymized}): every face is compared with itself")
    _check_place(out, originals, anonymized)
    labels = read_labels(Path(given.table)) if given.table else None
    tables = [Path(path) for path in given.thresholds]
    begin = time.perf_counter()
    looks, paired = Looks(), Paired()
    stored = [path for path in (originals, anonymized) if path.suffix == ".safetensors"]
    if len(stored) == 1:
        raise UserError(f"{stored[0]} is stored embeddings and the other is not; name two such files, or two folders.")
    if stored:
        if given.show_faces:
            raise UserError("--show-faces needs the pictures; stored embeddings show nobody.")
        evidence = read_kept(originals, anonymized, labels)
        paired.unknown = sorted(set(labels.rows if labels else ()) - set(evidence.names))
        named = {"recognition": ", ".join(evidence.recognized)}
    else:
        paired = pair_up(originals, anonymized, labels, Path(given.parrot) if given.parrot else None)
        finders = judges(given.detector, "--detector", FINDS)
        matchers = judges(given.recognizer, "--recognizer", MATCHES)
        looks = Looks(**{name: judge(getattr(given, name), f"--{name}") for name in _LOOKS if getattr(given, name)})
        if looks.features is None and inception_weights().exists():
            looks.features = judge("inception", "--features")
        for option, one in vars(looks).items():
            side = getattr(one, "side", given.size)
            if side != given.size:
                raise UserError(f"--{option}: {one.name} looks at faces of {side} pixels; add --size {side}.")
        for one in finders:
            one.threshold = given.threshold
        place = devices_of(given.device, on_the_cpu=False)[0]
        for one in (*finders, *matchers, *vars(looks).values()):
            if one is not None:
                one.to(place)
        thresholds = {m.name: told_threshold(m.name, tables, m.published) or _NOBODY_IS_EMPTY for m in matchers}
        evidence = gather(
            paired.pairs, Finder(finders, given.side, tiles=not given.no_tiles), Attacker(matchers, thresholds, finders[0]),
            looks, given.size, given.cut_scale, given.workers, hidden_by, given.force,
        )  # fmt: skip
        named = {"detection": ", ".join(f"{one.name} ({one.licence})" for one in finders)}
        named["recognition"] = ", ".join(f"{one.name} ({one.licence})" for one in matchers)
        named |= {what: one.name for what, one in vars(looks).items() if one is not None}
    told = {name: told_threshold(name, tables, one.published) for name, one in evidence.recognized.items()}
    usual = {name: usual_threshold(name, one.published) for name, one in evidence.recognized.items()}
    found = numbers_of(evidence, told, usual, looks, given.calibrate)
    nearest = found.pop("nearest")
    lacking = [
        *map(printable, evidence.unreadable),
        *(f"{printable(name)} and its result share nothing outside of the faces (--force)" for name in evidence.strange),
        *(f"{printable(name)} has no counterpart{' in both folders' if given.parrot else ''}" for name in paired.alone),
        *(f"--table names {printable(name)}, which is not there" for name in paired.unknown),
    ]  # fmt: skip
    result = {
        "experiment": f"{anonymized.name} beside {originals.name}", "versions": {"fairanon": __version__}, "judges": named,
        "pairs": len(paired.pairs) or len(evidence), "faces": len(evidence), "unpaired": len(paired.alone),
        "unknown": len(paired.unknown), "faceless": len(evidence.faceless), "unreadable": len(evidence.unreadable),
        "left_out": lacking, **found,
        "seconds": {"evaluate": round(time.perf_counter() - begin, 1)},
    }  # fmt: skip
    faces = None
    if given.show_faces:
        from fairanon.anonymize.preview import worst_cases

        faces = worst_cases(evidence, nearest[:12], paired.pairs)
    write_json(out / "metrics.json", result)
    write_tables(out, result, faces)
    write_faces(out, evidence, result["thresholds"])
    if given.keep_embeddings:
        keep(evidence, out / "originals.safetensors", out / "anonymized.safetensors")
    to = sys.stderr if given.json else sys.stdout
    _say_what_is_left_out(lacking, to)
    for sentence in _doubts(evidence, paired, labels, bool(hidden_by)):
        print(sentence, file=to)
    if given.json:
        print(json.dumps(result, indent=2))
    else:
        print(as_text(result))
        also = "metrics.json, faces.csv," if evidence.faces else "metrics.json,"
        print(f"\n{out / 'report.html'}, {also} table.csv and table.tex beside it")
    return NEEDS_EYES if lacking else 0


def _say_what_is_left_out(lacking: Sequence[str], to: TextIO) -> None:
    if not lacking:
        return
    print(f"{_counted(len(lacking), 'file')} left out: the numbers say nothing about them", file=to)
    for said in lacking[:5]:
        print(f"  {said}", file=to)
    if len(lacking) > 5:
        print(f"  and {len(lacking) - 5} more: left_out in metrics.json", file=to)


def _doubts(evidence: Evidence, paired: Paired, labels: Labels | None, told_how: bool) -> Iterator[str]:
    """What somebody should know who reads the numbers."""
    if paired.unnamed:
        yield f"{_counted(paired.unnamed, 'original')} not named in --table, not compared"
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
    if evidence.faces and all(one is None for one in evidence.identities):
        yield "nobody says who is who (column identity of --table): intervals are too narrow if people are there several times"
    for written, label in (Labels() if labels is None else labels).changed.items():
        yield f"group {written!r} counts as {label!r}"


def _manifest_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """By the originals' names the faces' lines of the manifest that `fairanon anonymize` wrote, if it did."""
    places = (
        (folder, folder.parent) if folder.name in FOLDERS.values() else (folder,)
    )  # others' files are not ours to read
    place = next((one for one in places if (one / MANIFEST).exists()), None)
    found: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate([] if place is None else read_manifest(place), 1):
        if not isinstance(line, dict) or not isinstance(line.get("file"), str):
            raise UserError(f"{place}/{MANIFEST}: entry {number} is none that `fairanon anonymize` wrote.")
        if line.get("face") is None:
            continue
        if not _tells_how(line):
            raise UserError(
                f"{place}/{MANIFEST}: entry {number} does not say how a face was hidden; move the file away."
            )
        found.setdefault(line["file"], []).append(line)
    return found


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
    said = all(isinstance(line.get(name), str) for name in ("method", "verdict"))
    return corners(box) and whole and strong and said


def _check_place(out: Path, *given: Path) -> None:
    """Refuse to write among pictures, or over somebody's own files."""
    place = out.resolve()
    for path in given:
        if path.is_dir() and (place == path.resolve() or place.is_relative_to(path.resolve())):
            raise UserError(f"--out: {out} lies in {path}; name a folder apart from the pictures.")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file; name a folder.")
    ours = ("metrics.json", "table.csv", "table.tex", "report.html", "faces.csv")
    there = [name for name in ours if (out / name).exists()]
    before = read_json(out / "metrics.json", "--out") if (out / "metrics.json").exists() else None
    if there and not (isinstance(before, dict) and "pairs" in before):
        raise UserError(f"--out: {out / there[0]} is of something else and would be replaced; name another folder.")


_NOBODY_IS_EMPTY = Threshold(-1.0, "not known before everybody was seen")
"""Of recognizers whose threshold is calibrated afterwards; then it is said who sees nobody."""


def _published(folder: Path) -> Path:
    """The finished pictures, where somebody names the whole folder that ``fairanon anonymize`` wrote."""
    inside = folder / str(FOLDERS["finished"])
    return inside if (folder / MANIFEST).exists() and inside.is_dir() else folder


_LOOKS = ("geometry", "features", "clip", "perceptual", "quality", "attributes")


_VERBS: dict[str, Callable[[Namespace], int | None]] = {
    "anonymize": anonymize, "calibrate": calibrate, "evaluate": evaluate,
}  # fmt: skip
