"""Finished runs: their configuration, and the model that they trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from safetensors import safe_open

from fairanon.config.build import build
from fairanon.config.experiments import UserError, resolve
from fairanon.config.runs import is_finished, runs_root
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


def find_settings(folder: Path, settings: Sequence[str] = ()) -> tuple[Path, list[str]]:
    """A finished run's folder and its configuration as words of a command line, with further settings.

    Args:
        folder: Of the run; or of the latest run of an experiment whose weights come with fairanon, if there is none. A folder
            called ``shipped`` asks for these.
        settings: ``--KEY=VALUE`` each.

    Raises:
        UserError: It is none.
    """
    if (folder / "config.yaml").exists():
        source = folder.resolve()
        return source, ["--config", str(source / "config.yaml"), *settings]
    name = folder.parent.name
    if folder.name in ("latest", "shipped") and embedded(name, _SHIPPED).exists():
        if folder.name == "latest":
            print(f"there is no run of {name} yet: these are the weights that come with fairanon")
        return runs_root() / name / "shipped", resolve(name, settings=settings).words()
    latest = runs_root() / folder.name / "latest"
    hint = f"; {latest} is one" if (latest / "config.yaml").exists() else "; `fairanon train NAME` makes one"
    raise UserError(f"{folder} is no run's folder, it has no config.yaml{hint}.")


_SHIPPED = "trained.safetensors"


def load_into(model: LightningModule, source: Path) -> DiffusionMethod:
    """Load what a run trained into the model that its configuration describes; folder as `find_settings` gives it.

    Raises:
        UserError: The model has no diffusion backbone.
    """
    if not isinstance(model, DiffusionMethod):
        raise UserError(f"{source} has no diffusion backbone.")
    if source.name == "shipped":
        with safe_open(embedded(source.parent.name, _SHIPPED), "pt") as file:
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
    with safe_open(embedded(experiment, _SHIPPED), "pt") as file:
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
