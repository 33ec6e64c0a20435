"""Real experiments at true size with random weights: what `true_size.py`, `footprint.py` and `on_gpu.py` share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningModule

import fairanon.run.training  # noqa: F401  # knows what ${run:NAME} stands for
from fairanon.backbones import architectures
from fairanon.backbones.base import without_weights
from fairanon.batches import IdentityBatch, InpaintBatch, PreferenceBatch, RegionBatch
from fairanon.config.build import build
from fairanon.config.experiments import resolve
from fairanon.config.settings import FairAnonCLI
from fairanon.methods import FairHuman, ID2Face
from fairanon.methods.base import DiffusionMethod
from fairanon.methods.preference import PreferenceMethod

ARCHITECTURE = {
    "popalign_sdxl": "sdxl", "popalign_sdxl_lora": "sdxl", "popalign_sdxl_dpo": "sdxl", "popalign_sdxl_age": "sdxl",
    "popalign_sdxl_couples": "sdxl", "popalign_sdxl_sft": "sdxl", "popalign_sd15": "sd15", "simpo_sd21": "sd21", "dpo_sd21": "sd21", "mapo_sd21": "sd21",
    "fairhuman_sdxl_lora": "sdxl", "fairhuman_sdxl_controlnet": "sdxl", "fairhuman_sdxl_t2i_adapter": "sdxl",
    "ano_face_fair_sd2_inpaint": "sd2-inpainting", "ano_face_fair_sd2_inpaint_celebahq": "sd2-inpainting",
    "ano_face_fair_sd2_inpaint_ffhq": "sd2-inpainting", "id2face_sd21_256": "sd21-base", "id2face_sd21_512": "sd21-base",
}  # fmt: skip
"""Every real experiment that trains the model, and its architecture; those that edit it, learn tokens alone, or draw what they learn from are not counted."""

DISTINCT = [name for name in ARCHITECTURE if not name.endswith(("_dpo", "_age", "_couples", "_celebahq", "_ffhq"))]
"""Those whose steps differ."""


def outline(name: str, folder: Path) -> Path:
    """A model's folder with configurations and tokenizers and without weights."""
    root = folder / name
    if not root.exists():
        with torch.device("meta"):
            architectures.unet(name).save_config(root / "unet")
            architectures.autoencoder(name).save_config(root / "vae")
            encoders = architectures.text_encoders(name)
        architectures.scheduler(name).save_config(root / "scheduler")
        for suffix, encoder in zip(("", "_2"), encoders, strict=False):
            encoder.config.save_pretrained(root / f"text_encoder{suffix}")
            architectures.tokenizer().save_pretrained(root / f"tokenizer{suffix}")
    return root


def configuration(
    name: str, folder: Path, dtype: str | None = None, checkpointing: bool | None = None, size: int | None = None,
    batch: int | None = None, further: Sequence[str] = (),
) -> Namespace:  # fmt: skip
    """The resolved configuration of a real experiment with further settings, its model an outline in ``folder``."""
    kind = ARCHITECTURE[name]
    model = outline(kind, folder)
    backbone = {"model": str(model), "dtype": dtype}
    if kind == "sdxl":
        backbone["vae"] = str(model / "vae")
    if name == "popalign_sdxl_dpo":
        backbone["unet"] = str(model)
    if checkpointing is not None:
        backbone["gradient_checkpointing"] = str(checkpointing).lower()
    settings = [f"--model.backbone.init_args.{key}={value}" for key, value in backbone.items() if value is not None]
    for key, number in (("size", size), ("batch_size", batch)):
        if number is not None:
            settings.append(f"--data.init_args.{key}={number}")
    if name.startswith("id2face"):  # its recognizer is a file, its features come from a hub
        settings += [
            "--model.recognizer=fairanon.evaluators.TinyRecognizer",
            "--model.features=fairanon.evaluators.TinyFeatureMaps",
            "--model.description=null",  # its judges are files too, and those of the embedded world see 64 x 64 alone
            "--model.landmarks=source",
        ]
    return FairAnonCLI(resolve(name, settings=[*settings, *further]).words(), build=False).config


def method_on(config: Namespace, device: torch.device) -> DiffusionMethod:
    """The method with random weights on a device, made there: nothing of it passes through the main memory of a GPU's host."""
    with without_weights():
        method = build(config.model, LightningModule)
    method.to_empty(device=device).to(device)  # Lightning hears of the device by the latter alone
    for copy in method.backbone.trainable.copies.values():
        copy.to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for network in (method, *method.backbone.trainable.copies.values()):
            for name, value in network.named_parameters():
                value.fill_(1.0) if "norm" in name and name.endswith("weight") else value.normal_(0, 0.02)
            for name, value in network.named_buffers():
                if name.endswith("position_ids"):
                    value.copy_(torch.arange(value.shape[-1], device=device).expand_as(value))
    if isinstance(method, FairHuman):  # moving from the meta device made new parameters
        method.objectives.parameters = [p for p in method.parameters() if p.requires_grad]
        method.objectives.last_block = method.backbone.last_block()
    return method.train()


def batch_for(method: DiffusionMethod, config: Namespace) -> Any:
    """Random images of the experiment's size, as many as one of its micro-steps has."""
    data, device = config.data.init_args, method.device
    count, side = int(data.batch_size), int(data.size)
    keys, captions = [f"{k}.0" for k in range(count)], ["a photo of a doctor"] * count
    images = torch.randint(0, 256, (2, count, 3, side, side), dtype=torch.uint8, device=device)
    masks = torch.zeros(count, 2, side, side, dtype=torch.bool, device=device)
    masks[:, :, side // 4 : side // 2, side // 4 : side // 2] = True
    if isinstance(method, PreferenceMethod):
        return PreferenceBatch(keys, images[0], images[1], captions, captions)
    if isinstance(method, FairHuman):
        return RegionBatch(keys, images[0], captions, masks, images[1])
    if isinstance(method, ID2Face):
        return IdentityBatch(keys, images[0], images[1], masks[:, :1], torch.rand(count, 68, 2, device=device))
    roles = (["instance", "difference"] * count)[: 2 * count]
    both = images.transpose(0, 1).flatten(0, 1)
    double = masks[:, :1].repeat_interleave(2, 0)
    return InpaintBatch([f"{k}.0" for k in range(2 * count)], both, captions * 2, double, roles)


def step_of(method: DiffusionMethod, config: Namespace, optimizer: torch.optim.Optimizer | None = None) -> float:
    """One optimizer step on random images, with the losses' own gradients; returns the loss."""
    optimizer = optimizer or torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-6)
    batch = batch_for(method, config)
    if isinstance(method, FairHuman):
        update = method.objectives.backward(method._parts(batch), 0, None)
        value = float(update.losses.sum())
    else:
        loss, _ = method.loss(batch)
        loss.backward()
        value = float(loss.detach())
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value
