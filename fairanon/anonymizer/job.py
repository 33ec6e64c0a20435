"""What is asked of photographs becomes models: everything that a process needs to work on a collection."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch

from fairanon.anonymizer.attack import Attacker, threshold_of
from fairanon.anonymizer.find import Finder
from fairanon.anonymizer.folder import PEOPLE_NOTED, UNFINISHED, Job, is_done
from fairanon.anonymizer.hide import Classical
from fairanon.anonymizer.judges import FINDS, MATCHES, judge, judges
from fairanon.anonymizer.manifest import counted
from fairanon.anonymizer.named import NamedPeople
from fairanon.anonymizer.picture import Choices, Treatment
from fairanon.anonymizer.request import AnonymizeRequest
from fairanon.anonymizer.sources import Source
from fairanon.config.experiments import UserError
from fairanon.files import read_json
from fairanon.imaging import read_regions
from fairanon.places import created
from fairanon.redaction import Redaction


def job_of(request: AnonymizeRequest, source: Source, device: str, stack: ExitStack) -> Job:
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
    for model in (*finders, *matchers, *([parser] if parser else [])):
        model.to(device)
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
        request.faces, request.boxes, request.min_face, request.no_face, request.tries,
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


def _seed(request: AnonymizeRequest, source: Source) -> int:
    """The new faces' seed; a secret one is kept until everything is done, and known to nobody afterwards."""
    path = request.out / UNFINISHED / "seed"
    seed = secrets.randbits(62) if request.seed is None else request.seed
    if not path.exists() and (request.shows or is_done(request.out, source)):
        return seed
    known = int(created(path, str(seed)))
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
