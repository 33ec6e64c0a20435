"""What MODEL stands for: something that draws, or a folder of what was drawn."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fairanon.audit.request import AuditRequest
from fairanon.backbones import Sampling, StableDiffusion, StableDiffusionXL
from fairanon.batches import PromptRow
from fairanon.config.experiments import UserError, experiments_folder
from fairanon.config.runs import find_settings
from fairanon.config.settings import FairAnonCLI
from fairanon.evaluation.folders import ImageFolder, is_image_folder
from fairanon.evaluation.samplers import BackboneSampler, MethodSampler, Sampler
from fairanon.files import TextError, read_table
from fairanon.methods.load import load_run
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
        return Model(source.parent.name, MethodSampler(method, sampling), None, drawn, _told(sampling))
    sampling = _sampling(request, _STEPS.get(name, 30), _GUIDANCE.get(name, 7.5))
    kind = StableDiffusionXL if _is_xl(name) else StableDiffusion
    backbone = kind(name, frozen=True)
    if backbone.inpaints:
        raise UserError(f"MODEL: {name} inpaints; name a model that draws of words alone.")
    backbone.to(device)
    backbone.eval()
    told = BackboneSampler(backbone, sampling)
    return Model(folder.name if folder.is_dir() else name, told, None, name == EMBEDDED, _told(sampling))


def _sampling(request: AuditRequest, steps: int, scale: float) -> Sampling:
    return Sampling(request.steps or steps, request.guidance_scale or scale)


def _told(sampling: Sampling) -> dict[str, object]:
    return {"steps": sampling.steps, "guidance_scale": sampling.guidance_scale}


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
