"""What MODEL stands for: something that draws, or a folder of what was drawn."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from fairanon.audit.request import AuditRequest
from fairanon.backbones import Sampling, StableDiffusion, StableDiffusionXL
from fairanon.batches import PromptRow
from fairanon.config.build import build
from fairanon.config.experiments import UserError, experiments_folder, read_yaml
from fairanon.config.runs import find_settings
from fairanon.config.settings import FairAnonCLI
from fairanon.evaluation.folders import ImageFolder, is_image_folder
from fairanon.evaluation.samplers import BackboneSampler, MethodSampler, Sampler, SteeredSampler
from fairanon.files import TextError, read_table
from fairanon.methods.load import load_run
from fairanon.pipelines.steering import CADS, DynamicGuidance, IntervalGuidance, Steering, refuse_what_cannot_be_steered
from fairanon.prompts import SETS, prompt_of

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
        told: How its images are drawn, for audit.json.
    """

    name: str
    sampler: Sampler
    rows: list[PromptRow] | None
    drawn: bool
    told: dict[str, object]


def open_model(name: str, request: AuditRequest, device: str) -> Model:
    """Find out what a name stands for, and load it.

    Args:
        name: See `AuditRequest`.
        request: How its images are drawn.
        device: Where.

    Raises:
        UserError: It is nothing that draws.
    """
    folder = Path(name)
    is_run = (folder / "config.yaml").exists() or folder.name in ("latest", "shipped")
    if is_image_folder(folder) and not is_run:
        if request.steering:
            raise UserError("--steering changes how a model draws; a folder of images is drawn already.")
        found = ImageFolder(folder, _table_of_files(request.prompts))
        return Model(folder.resolve().name, found, found.rows(), False, {"folder": folder.resolve().name})
    if folder.is_dir() and not is_run and not (folder / "model_index.json").exists():
        raise UserError(f"MODEL: {folder} holds no images, no model_index.json and no config.yaml.")
    if is_run:
        source, words = find_settings(folder)
        evaluate = FairAnonCLI(words, build=False).config.get("evaluate")
        said = evaluate.init_args if evaluate is not None else {}
        sampling = _sampling(request, int(said.get("sampling_steps", 30)), float(said.get("guidance_scale", 7.5)))
        method = load_run(folder, device)
        drawn = method.backbone.fingerprint().startswith(f"{EMBEDDED} ")
        return _drawing(source.parent.name, MethodSampler(method, sampling), drawn, request)
    sampling = _sampling(request, _STEPS.get(name, 30), _GUIDANCE.get(name, 7.5))
    kind = StableDiffusionXL if _is_xl(name) else StableDiffusion
    backbone = kind(name, frozen=True)
    if backbone.inpaints:
        raise UserError(f"MODEL: {name} inpaints; name a model that draws of words alone.")
    backbone.to(device)
    backbone.eval()
    return _drawing(
        folder.name if folder.is_dir() else name, BackboneSampler(backbone, sampling), name == EMBEDDED, request
    )


def _drawing(name: str, sampler: BackboneSampler | MethodSampler, drawn: bool, request: AuditRequest) -> Model:
    """A model that draws, steered if that is asked for."""
    told: dict[str, object] = {"steps": sampler.sampling.steps, "guidance_scale": sampler.sampling.guidance_scale}
    if not request.steering:
        return Model(name, sampler, None, drawn, told)
    steered = SteeredSampler(sampler, _steering(request.steering))
    refuse_what_cannot_be_steered(steered.backbone)
    return Model(f"{name}, {Path(request.steering).stem}", steered, None, drawn, {**told, "steering": request.steering})


_STEERINGS = {"cads": CADS, "dynamic": DynamicGuidance, "interval": IntervalGuidance}


def _steering(name: str) -> Steering:
    if name in _STEERINGS:
        return _STEERINGS[name]()
    if not name.endswith((".yaml", ".yml")):
        raise UserError(f"--steering: there is no {name!r}; take {', '.join(_STEERINGS)}, or a YAML file of yours.")
    if not Path(name).exists():
        raise UserError(f"--steering: {name} is missing.")
    return cast(Steering, build(read_yaml(Path(name)), Steering))


def _sampling(request: AuditRequest, steps: int, scale: float) -> Sampling:
    return Sampling(request.steps or steps, request.guidance_scale or scale)


def _is_xl(name: str) -> bool:
    """Whether a pipeline has SDXL's second text encoder."""
    if name == EMBEDDED:
        return False
    index = Path(name) / "model_index.json"
    if not index.exists():
        from huggingface_hub import hf_hub_download

        try:
            index = Path(hf_hub_download(name, index.name))
        except Exception:  # noqa: BLE001  (offline, no such model: whoever loads it says so)
            return "xl" in name.lower()
    return "text_encoder_2" in json.loads(index.read_text(encoding="utf-8"))


# --- prompts ---------------------------------------------------------------------------------------------


def prompts_of(request: AuditRequest, model: Model, attributes: tuple[str, ...]) -> list[PromptRow]:
    """The prompts whose images are judged.

    Args:
        request: Names them.
        model: A folder has its own.
        attributes: Prompts that name one of these are identity-specific, where nobody says which set they belong to.

    Raises:
        UserError: There is no such list.
        TextError: It is none.
    """
    if model.rows is not None:
        rows = model.rows
    else:
        rows = _read(_place(request.prompts or ("tiny_eval" if model.drawn else "occupations")))
    found: dict[str, PromptRow] = {}
    for row in rows:
        asked = {key.strip().lower(): value.strip().lower() for key, value in row.asked.items() if value.strip()}
        where = row.set or ("specific" if any(name in asked for name in attributes) else "neutral")
        if where not in SETS:
            raise TextError(f"--prompts: {row.prompt!r} is of the set {where!r}; accepted are {', '.join(SETS)}.")
        if row.prompt not in found:
            found[row.prompt] = PromptRow(row.prompt, where, asked, images=row.images)
    return list(found.values())


def _place(name: str) -> Path:
    ours = experiments_folder() / "prompts" / f"{name}.csv"
    if Path(name).suffix.lower() == ".csv":
        return Path(name)
    if not ours.exists():
        known = ", ".join(sorted(path.stem for path in ours.parent.glob("*.csv")))
        raise UserError(f"--prompts: there is no list {name!r}; there are {known}, or a CSV of your own.")
    return ours


def _table_of_files(prompts: str) -> Path | None:
    """A CSV that says which file of a folder is of which prompt."""
    return Path(prompts) if Path(prompts).suffix.lower() == ".csv" else None


def _read(path: Path) -> list[PromptRow]:
    found = []
    for number, line in read_table(path, "--prompts", ()):
        prompt = prompt_of(line, f"--prompts: {path}, line {number}")
        rest = {key: value for key, value in line.items() if value and key.lower() not in ("prompt", "text", "caption")}
        found.append(PromptRow(prompt, rest.pop("set", ""), rest))
    return found
