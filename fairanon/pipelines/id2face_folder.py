"""ID2Face's pipeline as a folder: diffusers' own for its parts, ``id2face`` for ours, judges by their names alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers import AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn

from fairanon.degradation import Degradation, IdentityMask
from fairanon.evaluators.description import FaceDescription
from fairanon.evaluators.recognizers import FeatureMaps, Recognizer
from fairanon.files import atomic_write, read_json, write_json
from fairanon.networks.harmonizer import Harmonizer
from fairanon.networks.id2face_networks import (
    IdentityNetworks,
    OrthogonalIdentityMapping,
    refuse_negated,
)

if TYPE_CHECKING:
    from fairanon.pipelines.id2face_pipeline import ID2FacePipeline

Judges = Mapping[str, Recognizer | FeatureMaps | FaceDescription | None]
"""``recognizer``, ``features`` and ``description``."""
_SCHEDULERS = {"DDIMScheduler": DDIMScheduler, "DPMSolverMultistepScheduler": DPMSolverMultistepScheduler}
_CARD = """---
pipeline_tag: image-to-image
tags: [fairanon, face-anonymization, diffusers]
base_model: {base}
---

# {name}

ID2Face, trained by fairanon from `{base}`. Use:
`fairanon.pipelines.ID2FacePipeline.from_pretrained("FOLDER/pipeline", recognizer, features, description)` with the
recognizer {recognizer}, the features {features} and the description {description}.

The `metrics.json` of the run says how often people are still found, by which recognizer and among how many. That is no
guarantee that a person is not recognized: read RESPONSIBLE_USE.md of fairanon before you rely on it.
"""


def names_of(judges: Judges) -> dict[str, str | None]:
    """What judges are called."""
    return {what: None if judge is None else judge.name for what, judge in judges.items()}


def card(pipeline: ID2FacePipeline, name: str, base: str) -> str:
    """A model card with this title, of a pipeline that was trained from this base model."""
    names = {what: called or "(none)" for what, called in names_of(pipeline.judges).items()}
    return _CARD.format(name=name, base=base, **names)


def write(pipeline: ID2FacePipeline, folder: Path) -> None:
    """Write a pipeline.

    Raises:
        ValueError: There is something else in that folder.
        UserError: Its new identities are negated ones.
    """
    refuse_negated(pipeline.mapping)
    if folder.exists() and any(folder.iterdir()) and not (folder / "id2face" / "config.json").exists():
        raise ValueError(f"{folder} holds something else than a pipeline; choose a new folder.")
    with atomic_write(folder) as partial:
        for name in ("vae", "unet", "scheduler"):
            getattr(pipeline, name).save_pretrained(partial / name)
        ours = partial / "id2face"
        ours.mkdir()
        state = _ours(pipeline.networks, pipeline.harmonizer).state_dict()
        save_file({key: value.contiguous() for key, value in state.items()}, ours / "model.safetensors")
        degradation, mapping = pipeline.degradation, pipeline.mapping
        config = {
            "networks": pipeline.networks.config,
            "harmonized": pipeline.harmonizer is not None,
            "degradation": None if degradation is None else dataclasses.asdict(degradation),
            "appearance": pipeline.appearance,
            "mapping": None if mapping is None else dataclasses.asdict(mapping),
            "shape": pipeline.shape,
            "feather": pipeline.feather,
            **names_of(pipeline.judges),
        }
        write_json(ours / "config.json", config)
        write_json(partial / "model_index.json", {"_class_name": type(pipeline).__name__})


def read(folder: Path, judges: Judges) -> dict[str, Any]:
    """Read what `write` wrote: the pipeline's arguments besides its judges.

    Raises:
        FileNotFoundError: There is no pipeline.
        ValueError: It was trained with other judges, or its scheduler is none that we know.
    """
    if not (folder / "id2face" / "config.json").exists():
        raise FileNotFoundError(f"{folder} holds no ID2Face pipeline: id2face/config.json is missing.")
    config = read_json(folder / "id2face" / "config.json", "pipeline")
    for what, name in names_of(judges).items():
        if name != config[what]:
            raise ValueError(f"{folder} was trained with the {what} {config[what]}, not with {name}.")
    kind = read_json(folder / "scheduler" / "scheduler_config.json", "pipeline")["_class_name"]
    if kind not in _SCHEDULERS:
        raise ValueError(f"{folder}: the scheduler {kind} is none of {', '.join(_SCHEDULERS)}.")
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    networks = IdentityNetworks(**config["networks"])
    if networks.spatial is not None:
        networks.spatial.install(unet)
    harmonizer = Harmonizer(unet, config["networks"]["tokens"]) if config["harmonized"] else None
    _ours(networks, harmonizer).load_state_dict(load_file(folder / "id2face" / "model.safetensors"))
    degradation, mapping = config["degradation"], config["mapping"]
    if degradation is not None:
        ranges = {name: tuple(value) for name, value in degradation.items() if isinstance(value, list)}
        degradation = Degradation(**{**degradation, **ranges, "mask": IdentityMask(**degradation["mask"])})
    return {
        "vae": AutoencoderKL.from_pretrained(folder, subfolder="vae"),
        "unet": unet,
        "scheduler": _SCHEDULERS[kind].from_pretrained(folder, subfolder="scheduler"),
        "networks": networks,
        "harmonizer": harmonizer,
        "degradation": degradation,
        "mapping": None if mapping is None else OrthogonalIdentityMapping(**mapping),
        **{name: config[name] for name in ("appearance", "shape", "feather")},
    }


def _ours(networks: IdentityNetworks, harmonizer: Harmonizer | None) -> nn.ModuleDict:
    parts: dict[str, nn.Module] = {"networks": networks}
    if harmonizer is not None:
        parts["harmonizer"] = harmonizer
    return nn.ModuleDict(parts)
