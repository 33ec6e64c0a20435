"""The verbs for photographs: anonymize, calibrate, evaluate."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import pickle
import secrets
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fairanon import __version__
from fairanon.anonymize.attack import Attacker, Threshold, known_threshold, threshold_of
from fairanon.anonymize.faces import Picture
from fairanon.anonymize.find import Finder
from fairanon.anonymize.folder import UNFINISHED, Choices, Embeddings, Job, check_out
from fairanon.anonymize.hide import Classical, Hider
from fairanon.anonymize.judges import FINDS, MATCHES, judge, judges
from fairanon.anonymize.photos import read_photo
from fairanon.anonymize.sources import Item, Source, collect
from fairanon.evaluators.inception import inception_weights
from fairanon.experiments import UserError
from fairanon.failures import EXPECTED, in_a_sentence
from fairanon.files import read_table, write_json, write_text
from fairanon.imaging import CorruptImageError, read_regions
from fairanon.metrics.functional.verification import distances
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
    about = about_of(given, source)
    check_out([Path(path) for path in given.inputs], out)
    devices = devices_of(given)
    with ExitStack() as stack:
        if given.dry_run or given.preview:
            from fairanon.anonymize.preview import dry_run, preview

            shown = build(given, source, about, devices[0], stack)
            return dry_run(shown) if given.dry_run else preview(shown, given.preview)
        job = build(given, source, about, devices[0], stack)
        elsewhere = None if len(devices) == 1 else _Shards(given, devices)
        found = job.run(elsewhere)
    return _said(found, out)


def _said(found: dict[str, int], out: Path) -> int:
    """The last line, and the exit code."""
    total, finished = sum(found.values()), found.get("finished", 0)
    rest = [
        f"{found[kind]} {where}"
        for kind, where in (
            ("review", f"to be looked at in {out / 'review'}"), ("unreadable", "could not be read or handled"),
            ("no-face", f"without a face in {out / 'no-face'}"), ("skipped", "without a face skipped"),
        )
        if found.get(kind)
    ]  # fmt: skip
    eyes = found.get("review", 0) + found.get("unreadable", 0)
    why = f" ({out / 'review.csv'} says why)" if eyes else ""
    print(f"{finished} of {total} pictures may be published: {out}" + "".join(f"; {part}" for part in rest) + why)
    return NEEDS_EYES if eyes else 0


def _check(given: Namespace) -> None:
    classical = given.method in REDACTIONS
    if classical and given.checkpoint:
        raise UserError(f"--checkpoint: {given.method} needs none; --method ano-face-fair or id2face draws new faces.")
    if not classical and not given.checkpoint:
        raise UserError(f"--method {given.method} needs --checkpoint: a run's folder, or a pipeline's.")
    if classical and (given.key_file or given.prompt or given.seed is not None):
        raise UserError(f"--method {given.method} draws nobody: --key-file, --prompt and --seed are for new faces.")
    if given.prompt and given.method == "id2face":
        raise UserError("--prompt: id2face takes none.")
    if given.keep and not given.parser:
        raise UserError("--keep needs --parser, which says where that is, for example facexlib_parser.")
    if given.key_file and given.seed is not None:
        raise UserError("--seed and --key-file: the key says who is drawn; give one of them.")
    for name, least in (("tries", 1), ("workers", 1), ("batch_size", 1), ("box_scale", 1), ("side", 64)):
        if getattr(given, name) < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(given, name)}.")
    if not 0 < given.strength <= 1:
        raise UserError(f"--strength must be above 0 and at most 1, got {given.strength}.")


def about_of(given: Namespace, source: Source) -> dict[str, Any]:
    """Whatever results depend on, as the manifest and ``settings.json`` say it; no secret, no path of the originals."""
    names = _SETTINGS if given.method in REDACTIONS else (*_SETTINGS, *_DRAWN)
    settings = {name: getattr(given, name) for name in names if getattr(given, name) not in (None, "", False)}
    if given.key_file:
        settings["key"] = "one face for each person: who has the key can link pictures"
    return {"method": given.method, "version": __version__, "input": source.root.resolve().name, "settings": settings}


_SETTINGS = (
    "strength", "keep", "faces", "min_face", "threshold", "box_scale", "tries", "no_face", "skip_attack", "side", "no_tiles",
    "detector", "recognizer", "parser", "hashes",
)  # fmt: skip
_DRAWN = ("checkpoint", "prompt", "steps", "cut_scale", "landmarks")
"""Words of the command that change what comes out, and those that matter where faces are drawn."""


def devices_of(given: Namespace) -> list[str]:
    """Where models work: one process each."""
    if given.device != "auto":
        return str(given.device).split(",")
    if given.method in REDACTIONS or not torch.cuda.is_available():
        return ["cpu"]
    return [f"cuda:{k}" for k in range(torch.cuda.device_count())]


def build(given: Namespace, source: Source, about: dict[str, Any], device: str, stack: ExitStack) -> Job:
    """Everything that a process needs."""
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
    about["judges"] = {f.name: {"licence": f.licence} for f in finders} | (attacker.describe() if attacker else {})
    finder = Finder(finders, given.side, max(given.min_face, 20), not given.no_tiles)
    choices = Choices(given.faces, given.min_face, given.no_face, given.tries, not given.skip_attack, given.hashes)
    hider: Hider
    if given.method in REDACTIONS:
        hider = Classical(given.method, given.strength, given.box_scale, given.tries, parser, kept)
        return Job(source, Path(given.out), hider, finder, attacker, choices, about, given.workers)
    from fairanon.anonymize.draw import Generative

    region = f"face-{kept.replace('+', '-')}" if kept else "face"
    drawer = _drawer(given, device, stack)
    hider = Generative(
        drawer, _seed(given), matchers[0], parser, region, given.cut_scale, given.box_scale, batch_size=given.batch_size
    )
    job = Job(source, Path(given.out), hider, finder, attacker, choices, about, given.workers)
    if given.key_file:
        _begun_with(given, "key-file", hashlib.sha256(Path(given.key_file).read_bytes()).hexdigest(), None)
        hider.people = _people(job, hider, matchers[0], threshold_of(matchers[0], tables).value, Path(given.key_file))
    return job


def _seed(given: Namespace) -> int:
    """The new faces' seed; a secret one is kept until everything is done, and known to nobody afterwards."""
    return int(_begun_with(given, "seed", given.seed, secrets.randbits(62)))


def _begun_with(given: Namespace, name: str, wanted: Any, otherwise: Any) -> str:
    """What an unfinished run was begun with; it must not go on with something else."""
    path = Path(given.out) / UNFINISHED / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, str(otherwise if wanted is None else wanted))
    known = path.read_text()
    if wanted is not None and str(wanted) != known:
        raise UserError(f"--{name}: {given.out} was begun with another one; take that, or name a new folder.")
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
    model = finished_run(folder, "anonymize")[2]
    model.to(device)
    model.eval()
    if given.method == "ano-face-fair":
        return InpaintDrawer(model.backbone, given.prompt or "a photo of a person", given.steps)
    if not isinstance(model, ID2Face):
        raise UserError(f"--checkpoint: {folder} is no run of ID2Face.")
    landmarks = judge(given.landmarks, "--landmarks")
    landmarks.to(device)
    return ID2FaceDrawer(stack.enter_context(model.pipeline()), landmarks, given.steps)


def _people(job: Job, hider: Any, matcher: FaceMatcher, threshold: float, path: Path) -> Any:
    """Who is who in the collection, and who is drawn instead: goes through all pictures once."""
    from fairanon.anonymize.draw import People
    from fairanon.pipelines.collection import keyed_draws, people_by_likeness

    key = path.read_bytes()
    keyed_draws(key, ["nobody"], (1,))  # refuses one that is too short
    where: list[tuple[str, int]] = []
    embeddings: list[Tensor] = []
    latents: list[Tensor] = []
    for item in tqdm(job.source.items, desc="who is who", unit="img"):
        picture = job.look_at(item)
        if not isinstance(picture, Picture):
            continue
        for number, face in enumerate(picture.faces):
            if not face.asked:
                continue
            where.append((picture.name, number))
            square = matcher.align(picture.photo.pixels, torch.tensor(face.box))
            pixels = picture.photo.pixels
            embeddings.append(
                torch.full((1,), torch.nan)
                if square is None
                else matcher.embed_aligned(square.cut(pixels, matcher.size)[None])[0]
            )
            latents.append(hider.drawer.latents(hider.square(pixels, face).cut(pixels, hider.drawer.size)[None])[0])
    if not where:
        return People(key, {}, None, {})
    width = max(map(len, embeddings))
    rows = torch.stack([row if len(row) == width else torch.full((width,), torch.nan) for row in embeddings])
    called = people_by_likeness([f"{name}#{k}" for name, k in where], distances(rows, rows, matcher.metric), threshold)
    people = list(dict.fromkeys(called))
    mean = torch.stack(
        [
            torch.stack([one for one, of in zip(latents, called, strict=True) if of == person]).mean(0)
            for person in people
        ]
    )
    controls = hider.drawer.identities(mean, people, key)
    return People(key, dict(zip(where, called, strict=True)), controls, {name: k for k, name in enumerate(people)})


class _Shards:
    """Goes through items in one process for each device."""

    def __init__(self, given: Namespace, devices: list[str]) -> None:
        self.given, self.devices = given, devices

    def __call__(self, items: list[Item]) -> Iterator[Embeddings]:
        """See `Job.go_through`."""
        count = len(self.devices)
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
            shards = [
                pool.submit(_shard, self.given, [item.name for item in items[k::count]], k, device)
                for k, device in enumerate(self.devices)
            ]
            for shard in shards:
                yield from pickle.loads(shard.result())  # our own process wrote it


def _shard(given: Namespace, names: list[str], number: int, device: str) -> bytes:
    """Go through some items; what was seen comes back as bytes: torch would send each tensor through shared memory."""
    source = collect([Path(path) for path in given.inputs])
    wanted = set(names)
    with ExitStack() as stack:
        job = build(given, source, about_of(given, source), device, stack)
        mine = [item for item in source.items if item.name in wanted]
        return pickle.dumps(list(job.go_through(mine, f"journal-{number}.jsonl", bar=number == 0)))


def _place(judges: Sequence[Any], device: str) -> None:
    """Put judges on a device, "auto" is a GPU if there is one."""
    place = "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
    for one in judges:
        if one is not None:
            one.to(place)


# --- calibrate -------------------------------------------------------------------------------------------


def calibrate(given: Namespace) -> None:
    """``fairanon calibrate FOLDER``: a table of thresholds for ``--thresholds``."""
    from fairanon.anonymize.calibrate import calibrate as thresholds_of

    source = collect([Path(given.folder)])
    groups = _groups(Path(given.groups)) if given.groups else {}
    finders, matchers = judges(given.detector, "--detector", FINDS), judges(given.recognizer, "--recognizer", MATCHES)
    _place([*finders, *matchers], given.device)

    def people() -> Iterator[tuple[Tensor, str | None]]:
        for item in tqdm(source.items, desc="people", unit="img"):
            try:
                yield read_photo(item.read(), item.name).pixels, groups.get(item.name)
            except CorruptImageError as error:
                print(f"skipped {error}")

    table = thresholds_of(people(), Finder(finders), matchers, given.false_match_rate)
    write_json(Path(given.out), table)
    for name, row in table.items():
        said = "".join(f"; {group} {one['value']}" for group, one in row["groups"].items())
        print(f"{name}: {row['value']} ({row['people']} people, {row['pairs']} pairs{said})")
    print(f"{given.out}; `fairanon anonymize ... --thresholds {given.out}` goes by it")


def _groups(path: Path) -> dict[str, str]:
    return {row["file"]: row["group"] for _, row in read_table(path, "--groups", ("file", "group"))}


# --- evaluate --------------------------------------------------------------------------------------------


def evaluate(given: Namespace) -> None:
    """``fairanon evaluate ORIGINALS ANONYMIZED``: who is found, who is protected less, what is kept."""
    from fairanon.anonymize.evaluate import evaluate as numbers_of
    from fairanon.anonymize.evidence import Looks, Pair, gather, keep, pair_up, read_kept
    from fairanon.report.evaluation import as_text, write_tables

    originals, anonymized, out = Path(given.originals), Path(given.anonymized), Path(given.out)
    table = Path(given.table) if given.table else None
    begin = time.perf_counter()
    looks, count = Looks(), 0
    unpaired: list[str] = []
    pairs: list[Pair] = []
    tables = [Path(path) for path in given.thresholds]
    known: dict[str, Threshold | None] = {}
    if originals.suffix == ".safetensors":
        if given.show_faces:
            raise UserError("--show-faces needs the pictures; stored embeddings show nobody.")
        evidence = read_kept(originals, anonymized, table)
        known = {name: known_threshold(name, tables) for name in evidence.recognized}
        count, named = len(evidence), {"recognition": ", ".join(evidence.recognized)}
    else:
        pairs, unpaired = pair_up(originals, anonymized, table, Path(given.parrot) if given.parrot else None)
        finders = judges(given.detector, "--detector", FINDS)
        matchers = judges(given.recognizer, "--recognizer", MATCHES)
        looks = Looks(**{name: judge(getattr(given, name), f"--{name}") for name in _LOOKS if getattr(given, name)})
        if looks.features is None and inception_weights().exists():
            looks.features = judge("inception", "--features")
        for one in finders:
            one.threshold = given.threshold
        _place([*finders, *matchers, *vars(looks).values()], given.device)
        evidence = gather(
            pairs, Finder(finders, given.side, tiles=not given.no_tiles), finders[0], matchers, looks, given.size,
            given.cut_scale, given.workers,
        )  # fmt: skip
        count = len(pairs)
        known = {matcher.name: _known(matcher, tables) for matcher in matchers}
        named = {"detection": ", ".join(f"{one.name} ({one.licence})" for one in finders)}
        named["recognition"] = ", ".join(f"{one.name} ({one.licence})" for one in matchers)
        named |= {what: one.name for what, one in vars(looks).items() if one is not None}
    found = numbers_of(evidence, known, looks)
    nearest = found.pop("nearest")
    result = {
        "experiment": f"{anonymized.name} beside {originals.name}", "versions": {"fairanon": __version__}, "judges": named,
        "pairs": count, "faces": len(evidence), "unpaired": len(unpaired), "faceless": len(evidence.faceless),
        "unreadable": len(evidence.unreadable), **found, "seconds": {"evaluate": round(time.perf_counter() - begin, 1)},
    }  # fmt: skip
    faces = None
    if given.show_faces:
        from fairanon.anonymize.preview import worst_cases

        faces = worst_cases(evidence, nearest[:12], pairs)
    write_json(out / "metrics.json", result)
    write_tables(out, result, faces)
    if given.keep_embeddings:
        keep(evidence, out / "originals.safetensors", out / "anonymized.safetensors")
    if given.json:
        print(json.dumps(result, indent=2))
        return
    for said in (*evidence.unreadable[:5], *(f"{name} has no counterpart" for name in unpaired[:5])):
        print(f"left out: {said}")
    print(as_text(result))
    print(f"\n{out / 'report.html'}, metrics.json, table.csv and table.tex beside it")


_LOOKS = ("geometry", "features", "clip", "perceptual", "quality", "attributes")


def _known(matcher: FaceMatcher, tables: list[Path]) -> Threshold | None:
    with suppress(ValueError):
        return threshold_of(matcher, tables)
    return None


_VERBS: dict[str, Callable[[Namespace], int | None]] = {
    "anonymize": anonymize, "calibrate": calibrate, "evaluate": evaluate,
}  # fmt: skip
