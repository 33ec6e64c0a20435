"""Finished runs: their configuration, and the model that they trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from safetensors import safe_open

from fairanon.config.build import build
from fairanon.config.experiments import UserError
from fairanon.config.runs import SHIPPED, find_settings, is_finished
from fairanon.config.settings import FairAnonCLI, StartFrom
from fairanon.embedded import embedded
from fairanon.methods.base import DiffusionMethod


def load_run(folder: str | Path, device: str | torch.device = "cpu") -> DiffusionMethod:
    """The model that a finished run trained.

    Args:
        folder: The run's, for example ``runs/popalign_tiny/latest``. Where there is none, and fairanon has weights of that
            experiment, these.
        device: Where to.

    Returns:
        The method, in evaluation mode: ``.backbone`` draws, ``.export_pipeline(FOLDER, NAME)`` writes a diffusers pipeline.

    Raises:
        UserError: There is no such run.
        ValueError: It has not finished, or its checkpoint is damaged.
    """
    source, words = find_settings(Path(folder))
    settings = FairAnonCLI([*words, "--trainer.accelerator=cpu"] if str(device) == "cpu" else words, build=False)
    model = load_into(build(settings.config.model, LightningModule), source)
    model.to(device)
    model.eval()
    return model


def load_into(model: LightningModule, source: Path) -> DiffusionMethod:
    """Load what a run trained into the model that its configuration describes; folder as `find_settings` gives it.

    Raises:
        UserError: The model has no diffusion backbone.
    """
    if not isinstance(model, DiffusionMethod):
        raise UserError(f"{source} has no diffusion backbone.")
    if source.name == "shipped":
        print(f"these are the weights of {source.parent.name} that come with fairanon")
        with safe_open(embedded(source.parent.name, SHIPPED), "pt") as file:
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118  (not a dictionary)
            model.on_load_checkpoint({"state_dict": state, **file.metadata()})
        model.load_state_dict(state, strict=False)
    elif model.trains:
        if not is_finished(source):
            raise UserError(f"{source} has not finished; the command that began it goes on with it.")
        load_trained(source, model)
    return model


def shipped(experiment: str) -> dict[str, str]:
    """When and how the weights were trained that come with fairanon: "trained" (a day), "steps", "seed"."""
    with safe_open(embedded(experiment, SHIPPED), "pt") as file:
        return dict(file.metadata())


def begin_with(model: LightningModule, start: StartFrom) -> None:
    """Load a finished run's trained weights, and add another run's adapters."""
    if not isinstance(model, DiffusionMethod):
        raise UserError(f"start_from: {type(model).__name__} has no diffusion backbone.")
    load_trained(Path(start.run), model)
    if start.lora is not None:
        model.backbone.add(start.lora, start.weight)


def load_trained(run: Path, model: DiffusionMethod) -> None:
    """Load what a run trained into a model that was built with its configuration."""
    checkpoint = run / "checkpoints" / "last.ckpt"
    if not checkpoint.exists():
        raise UserError(f"{checkpoint} is missing: the run has not finished; `make train` goes on with it.")
    state = read_checkpoint(checkpoint)
    model.on_load_checkpoint(state)
    model.load_state_dict(state["state_dict"], strict=False)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds; tensors stay on the disk until they are looked at.

    Raises:
        ValueError: It is damaged.
    """
    try:
        return dict(torch.load(path, map_location="cpu", mmap=True, weights_only=True))
    except Exception:  # noqa: BLE001  (torch, zip and pickle each have their own)
        raise ValueError(
            f"{path} is damaged; delete it and the run begins anew, or add --fresh to train another."
        ) from None
