"""The trainer of a run: its callbacks, loggers and checkpoint files."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import time
from datetime import timedelta
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from fairanon.callbacks.results import Results
from fairanon.callbacks.run_record import RunRecord
from fairanon.files import atomic_write
from fairanon.methods.load import read_checkpoint
from fairanon.progress import shown

_log = logging.getLogger(__name__)


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes it and renames it.

    Lightning's own way goes through the main memory and the system's temporary folder, which 29 GiB need not fit into.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """See Lightning's ``CheckpointIO``."""
        with (
            atomic_write(Path(path)) as partial,
            partial.open("wb") as file,
        ):  # torch's own writer hides a full disk's error
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See Lightning's ``CheckpointIO``."""
        return read_checkpoint(Path(path))


class SaveLast(Checkpoint):
    """Keeps the newest state of a training in one file: every so many optimizer steps or so often, and at the end.

    (Lightning's ModelCheckpoint knows no time where a method steps its optimizer itself, and not the last step.)

    Args:
        path: The file.
        every: Optimizer steps, or time.
    """

    def __init__(self, path: Path, every: int | timedelta) -> None:
        self.path, self.every = path, every
        self._step, self._time = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here."""
        self._step, self._time = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, between two optimizer steps."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if isinstance(self.every, int):
            due = self._step % self.every == 0
        else:
            due = trainer.strategy.broadcast(time.monotonic() - self._time >= self.every.total_seconds())
        if due:
            trainer.save_checkpoint(self.path)
            self._time = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was reached."""
        trainer.save_checkpoint(self.path)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was only put together: with ``max_steps`` 0 no training starts or ends."""
        if trainer.global_step == 0:
            trainer.save_checkpoint(self.path)


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
        step = read_checkpoint(checkpoint)["global_step"]
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


def _wandb_loggers(folder: Path) -> list[WandbLogger]:
    """W&B's logger, offline where there is no key, no network or no such account; none if even that fails."""
    if not os.access(os.environ.get("HOME", "/nowhere"), os.W_OK):  # W&B wants to keep its settings somewhere
        for name in ("CONFIG", "CACHE", "DATA"):
            os.environ.setdefault(f"WANDB_{name}_DIR", str(folder / "wandb" / name.lower()))
    asked = "WANDB_MODE" in os.environ
    offline = not asked and not _has_wandb_key()
    for attempt in dict.fromkeys((offline, True)):
        if attempt:
            os.environ.setdefault("WANDB_SILENT", "true")  # online its lines name the run's page
        try:
            logger = _wandb_logger(folder, attempt)
            _ = logger.experiment  # begins it
            return [logger]
        except Exception as error:  # noqa: BLE001  (whatever is wrong there, the training goes on)
            wandb.teardown()
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            instead = "without it" if attempt else "offline, `wandb sync` sends it later"
            _log.warning("W&B: %s; the run is logged %s", said, instead)
    return []


def _wandb_logger(folder: Path, offline: bool) -> WandbLogger:
    name = f"{folder.parent.name}-{folder.name}"
    run = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # a run that goes on is the same one there
    seconds = float(os.environ.get("WANDB_INIT_TIMEOUT", "20"))  # W&B itself would try for a minute and a half
    logger = WandbLogger(
        project="fairanon", name=name, id=run, resume="allow", save_dir=folder, offline=offline,
        settings=wandb.Settings(init_timeout=seconds),
    )  # fmt: skip
    logger._wandb_init.pop("anonymous", None)  # Lightning still passes it, W&B warns about it
    return logger


def build_trainer(
    settings: dict[str, Any],
    folder: Path,
    checkpoint: Path | None,
    evaluate: Callback | None,
    every: int | timedelta,
) -> Trainer:
    """The trainer of the configuration, with the callbacks and loggers that every run has.

    Args:
        settings: Lightning's.
        folder: Of the run.
        checkpoint: What it goes on from; None begins.
        evaluate: Measures before and after; None does not.
        every: Optimizer steps or time between checkpoints.
    """
    given = settings.pop("callbacks", None) or []
    settings["default_root_dir"] = str(folder)
    callbacks: list[Callback] = [*given, RunRecord(), Results()]
    if not shown():  # not in the configuration, whose text names the run
        settings["enable_progress_bar"] = False
    if settings.get("enable_progress_bar") is not False:
        callbacks.append(_StepBar(refresh_rate=10))
    if evaluate is not None:
        callbacks.append(evaluate)
    if settings.get("enable_checkpointing") is not False:
        callbacks.append(SaveLast(folder / "checkpoints" / "last.ckpt", every))
    if settings.get("logger") in (None, True):
        settings["logger"] = [_csv_logger(folder, checkpoint), *_wandb_loggers(folder)]
    plugins = settings.pop("plugins", None) or []
    plugins = [*(plugins if isinstance(plugins, list) else [plugins]), CheckpointFiles()]
    return Trainer(**settings, callbacks=callbacks, plugins=plugins)
