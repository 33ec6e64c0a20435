"""From configuration files to a model, its data and its trainer."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import Tensor

from fairanon.callbacks.run_record import RunRecord


@dataclass
class StartFrom:
    """Trained weights to begin with; the frozen start, with which everything is compared, stays the base model.

    Args:
        run: Folder of a finished run with the same model.
        lora: Adapters of yet another run (its folder or file), added to the U-Net's weights.
        weight: How strongly they act.
    """

    run: str
    lora: str | None = None
    weight: float = 1.0


class FairAnonCLI(LightningCLI):
    """Parses an experiment: ``model``, ``data``, ``trainer``, ``evaluate``, ``start_from``, ``seed_everything``."""

    def __init__(self, args: list[str], build: bool = True) -> None:
        self._build = build
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False, "allow_abbrev": False},
            run=False,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Measuring before and after training is a key of its own."""
        parser.add_argument("--extends", type=str | None, default=None, help="The experiment this one starts from.")
        parser.add_argument("--evaluate", type=Callback | None, default=None, help="Measures before and after.")
        parser.add_argument("--start_from", type=StartFrom | None, default=None, help="Trained weights to begin with.")
        parser.add_argument("--checkpoint_every", type=int, default=50, help="Optimizer steps between checkpoints.")

    def before_instantiate_classes(self) -> None:
        """The folder of the run must be known before anything is built."""
        self.text = self.parser.dump(self.config, skip_none=False)

    def instantiate_classes(self) -> None:
        """Only if asked to: printing a configuration needs no weights."""
        if self._build:
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Built by `build_trainer`, once the folder of the run is known."""
        self.trainer_settings = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        return None  # type: ignore[return-value]  # nobody asks for it before `build_trainer` has made it


def as_options(files: Sequence[Path]) -> list[str]:
    """Configuration files as words of the command line."""
    return [word for file in files for word in ("--config", str(file))]


class _StepBar(TQDMProgressBar):
    """Counts to ``max_steps``: the data itself never ends."""

    @property
    def total_train_batches(self) -> int | float:
        """Batches of the whole training, where that is known."""
        steps = self.trainer.max_steps
        return super().total_train_batches if steps < 0 else steps * self.trainer.accumulate_grad_batches


def _csv_logger(folder: Path, checkpoint: Path | None) -> CSVLogger:
    """The run's metrics.csv; what an earlier part of the run logged stays (Lightning by itself deletes the file)."""
    path = folder / "metrics.csv"
    rows: list[dict[str, str]] = []
    if checkpoint is not None and path.exists():
        step = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["global_step"]
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
    logger = CSVLogger(folder, name="", version="")
    for row in rows:
        numbers: dict[str, Tensor | float] = {
            key: float(value) for key, value in row.items() if value and key not in ("step", "epoch")
        }
        logger.log_metrics(numbers, int(row["step"]))
    logger.save()
    return logger


def _has_wandb_key() -> bool:
    """Whether a key for W&B is set or stored; one for another host is none."""
    if "WANDB_API_KEY" in os.environ:
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc().authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def build_trainer(
    settings: dict[str, Any], folder: Path, checkpoint: Path | None, evaluate: Callback | None, checkpoint_every: int
) -> Trainer:
    """The trainer of the configuration, with the callbacks and loggers that every run has."""
    given = settings.pop("callbacks", None) or []
    settings["default_root_dir"] = str(folder)
    callbacks: list[Callback] = [*given, RunRecord()]
    if settings.get("enable_progress_bar") is not False:
        callbacks.append(_StepBar(refresh_rate=10))
    if evaluate is not None:
        callbacks.append(evaluate)
    if settings.get("enable_checkpointing") is not False:
        callbacks.append(
            ModelCheckpoint(
                folder / "checkpoints",
                filename="last",
                every_n_train_steps=checkpoint_every,
                enable_version_counter=False,
            )
        )
    if settings.get("logger") in (None, True):
        offline = not _has_wandb_key() and "WANDB_MODE" not in os.environ
        if offline:
            os.environ.setdefault("WANDB_SILENT", "true")  # online its lines name the run's page
        online = WandbLogger(
            project="fairanon", name=f"{folder.parent.name}-{folder.name}", save_dir=folder, offline=offline
        )
        online._wandb_init.pop("anonymous", None)  # Lightning still passes it, W&B warns about it
        settings["logger"] = [_csv_logger(folder, checkpoint), online]
    return Trainer(**settings, callbacks=callbacks)
