"""What MODEL stands for: something that draws, or a folder of what was drawn."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from fairanon.auditor.audit_request import AuditRequest
from fairanon.backbones import Sampling, StableDiffusion, StableDiffusionXL, hub
from fairanon.batches import PromptRow
from fairanon.config.build import build
from fairanon.config.experiments import UserError, experiments_folder, read_yaml
from fairanon.config.failures import as_user_error
from fairanon.config.runs import find_settings
from fairanon.config.settings import FairAnonCLI
from fairanon.evaluation.image_folder import ImageFolder, is_image_folder
from fairanon.evaluation.samplers import BackboneSampler, MethodSampler, Sampler, SteeredSampler
from fairanon.files import TextError, read_table
from fairanon.methods.load import load_run
from fairanon.pipelines.steering import BY_NAME, Steering, refuse_what_cannot_be_steered
from fairanon.prompts import PROMPT_COLUMNS, SETS, prompt_of

_log = logging.getLogger(__name__)
EMBEDDED = "tiny"
_STEPS, _GUIDANCE = {EMBEDDED: 15}, {EMBEDDED: 1.5}


@dataclass
class Model:
    """Something whose images are judged.

    Attributes:
        name: For people.
        sampler: Has its images.
        rows: Its prompts, where it is a folder; None: it draws whatever it is asked.
        drawn: It is of the embedded world.
        place: Tells it from others of its name.
        told: How its images are drawn, for audit.json.
    """

    name: str
    sampler: Sampler
    rows: list[PromptRow] | None
    drawn: bool
    told: dict[str, object]
    place: str = ""


def open_model(name: str, request: AuditRequest, device: str, steers: bool = True) -> Model:
    """Find out what a name stands for, and load it.

    Args:
        name: See `AuditRequest`.
        request: How its images are drawn.
        device: Where.
        steers: What the request says of steering is said of it.

    Raises:
        UserError: It is nothing that draws.
    """
    folder = Path(name)
    is_run = (folder / "config.yaml").exists() or folder.name in ("latest", "shipped")
    if is_image_folder(folder) and not is_run:
        if request.steering and steers:
            raise UserError("--steering changes how a model draws; a folder of images is drawn already.")
        if request.prompts and not request.prompts.lower().endswith(".csv"):
            raise UserError(
                f"--prompts: {folder} has prompts of its own; leave it out, or name a CSV that says which file is of which prompt."
            )
        images = ImageFolder(folder, Path(request.prompts) if request.prompts else None)
        if images.unused:
            _log.warning("%d images of %s are of no prompt and are left out", images.unused, folder)
        return Model(folder.resolve().name, images, images.rows(), False, {}, str(folder.resolve()))
    if folder.is_dir() and not is_run and not (folder / "model_index.json").exists():
        raise UserError(f"MODEL: {folder} holds no images, no model_index.json and no config.yaml.")
    if is_run:
        source, words = find_settings(folder)
        evaluate = FairAnonCLI(words, build=False).config.get("evaluate")
        settings = evaluate.init_args if evaluate is not None else {}
        sampling = _sampling(
            request, int(settings.get("sampling_steps", 30)), float(settings.get("guidance_scale", 7.5))
        )
        method = load_run(folder, device)
        drawn = method.backbone.fingerprint().startswith(f"{EMBEDDED} ")
        model = _drawing(source.parent.name, MethodSampler(method, sampling), drawn, steers and request.steering)
        model.place = str(source.resolve())
        return model
    sampling = _sampling(request, _STEPS.get(name, 30), _GUIDANCE.get(name, 7.5))
    kind = StableDiffusionXL if hub.is_xl(name) else StableDiffusion
    backbone = kind(name, frozen=True)
    if backbone.inpaints:
        raise UserError(f"MODEL: {name} inpaints; name a model that draws of words alone.")
    backbone.to(device)
    backbone.eval()
    model = _drawing(
        folder.name if folder.is_dir() else name, BackboneSampler(backbone, sampling), name == EMBEDDED, steers and request.steering,
    )  # fmt: skip
    model.place = str(folder.resolve()) if folder.is_dir() else ""
    return model


def _drawing(name: str, sampler: BackboneSampler | MethodSampler, drawn: bool, steering: str | bool) -> Model:
    """A model that draws, steered if that is asked for."""
    settings: dict[str, object] = {"steps": sampler.sampling.steps, "guidance_scale": sampler.sampling.guidance_scale}
    if not isinstance(steering, str) or not steering:
        return Model(name, sampler, None, drawn, settings)
    steered = SteeredSampler(sampler, _steering(steering))
    refuse_what_cannot_be_steered(steered.backbone)
    return Model(f"{name}, {Path(steering).stem}", steered, None, drawn, {**settings, "steering": Path(steering).name})


def _steering(name: str) -> Steering:
    if name in BY_NAME:
        return BY_NAME[name]()
    if not name.endswith((".yaml", ".yml")):
        raise UserError(f"--steering: there is no {name!r}; take {', '.join(BY_NAME)}, or a YAML file of yours.")
    if not Path(name).exists():
        raise UserError(f"--steering: {name} is missing.")
    node = read_yaml(Path(name))
    if "class_path" not in node:
        raise UserError(f"--steering: {name} has no class_path; docs/audit.md shows such a file.")
    try:
        with as_user_error():
            return cast(Steering, build(node, Steering))
    except UserError as error:
        said = str(error).removeprefix("it: ").removeprefix("evaluate.steerings: ")
        raise UserError(f"--steering: {name}: {said}") from error


def _sampling(request: AuditRequest, steps: int, scale: float) -> Sampling:
    return Sampling(request.steps or steps, request.guidance_scale or scale)


# --- prompts ---------------------------------------------------------------------------------------------


def prompts_of(
    request: AuditRequest, models: Sequence[Model], classes: Mapping[str, Sequence[str]], counted: Sequence[str]
) -> list[list[PromptRow]]:
    """The prompts whose images are judged, of each model: what a folder has, a model draws beside it.

    Args:
        request: Names them.
        models: Which.
        classes: What the judge judges.
        counted: Prompts that name one of these attributes are identity-specific, where nobody says which set they belong to.

    Raises:
        UserError: There is no such list.
        TextError: It is none, names a class that the judge does not have, or asks for two classes in one prompt.
    """
    for model in models:
        if isinstance(model.sampler, ImageFolder):
            for column, where in model.sampler.differing.items():
                if column in {name.casefold() for name in classes}:
                    raise TextError(where)
                _log.info("the column %s is left out: %s", column, where)
    own = next((model.rows for model in models if model.rows is not None), None)
    name = request.prompts or ("tiny_eval" if all(model.drawn for model in models) else "occupations")
    shared = _read(_place(name)) if own is None else [replace(row, images=None) for row in own]
    return [_sorted(model.rows or shared, classes, counted) for model in models]


def check_names(request: AuditRequest) -> None:
    """Refuse a list of prompts or a way to draw that there is none of, before any model is loaded.

    Raises:
        UserError: There is no such list, or no such steering.
    """
    if request.prompts and not _place(request.prompts).exists():
        raise UserError(f"--prompts: {request.prompts} is missing; give a CSV, or the name of a list.")
    if request.steering:
        _steering(request.steering)


def _sorted(rows: Sequence[PromptRow], classes: Mapping[str, Sequence[str]], counted: Sequence[str]) -> list[PromptRow]:
    """Each prompt once, in its set, with what it asks for as the judge calls it, and its further columns as they are."""
    prompts: dict[str, PromptRow] = {}
    judged = {name.casefold(): name for name in classes}
    for row in rows:
        cells = {key.strip().casefold(): " ".join(value.split()) for key, value in row.asked.items() if value.strip()}
        asked = {judged.get(key, key): value.casefold() if key in judged else value for key, value in cells.items()}
        for key, value in asked.items():
            if key in classes and value not in {class_name.casefold() for class_name in classes[key]}:
                raise TextError(
                    f"--prompts: {row.prompt!r} asks for the {key} {value!r}; the judge knows {', '.join(classes[key])}."
                )
        where = row.set or ("specific" if any(name in asked for name in counted) else "neutral")
        if where not in SETS:
            raise TextError(f"--prompts: {row.prompt!r} is of the set {where!r}; accepted are {', '.join(SETS)}.")
        first = prompts.setdefault(row.prompt, PromptRow(row.prompt, where, asked, images=row.images))
        if (first.set, first.asked) != (where, asked):
            _log.warning("the prompt %r stands twice with different columns; the first line counts", row.prompt)
    return list(prompts.values())


def _place(name: str) -> Path:
    """The file of a list: a path, or a name in ``experiments/prompts``, with or without its ``_eval``."""
    if name.lower().endswith(".csv"):
        return Path(name)
    folder = experiments_folder() / "prompts"
    for path in (folder / f"{name}.csv", folder / f"{name}_eval.csv"):
        if path.exists():
            return path
    known = ", ".join(sorted(path.stem for path in folder.glob("*.csv")))
    raise UserError(f"--prompts: there is no list {name!r}; there are {known}, or a CSV of your own.")


def _read(path: Path) -> list[PromptRow]:
    rows = []
    for number, line in read_table(path, "--prompts", ()):
        prompt = prompt_of(line, f"--prompts: {path}, line {number}")
        named = {key.strip().lower(): value for key, value in line.items() if value}
        rest = {key: value for key, value in named.items() if key not in PROMPT_COLUMNS}
        rows.append(PromptRow(prompt, rest.pop("set", ""), rest))
    return rows
