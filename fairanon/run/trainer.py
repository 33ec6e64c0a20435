"""The trainer of a run: its callbacks and checkpoint files."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, TQDMProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO

from fairanon.callbacks.dashboard import Dashboard, Described
from fairanon.callbacks.results import Results
from fairanon.callbacks.run_record import RunRecord
from fairanon.files import atomic_write
from fairanon.methods.load import read_checkpoint
from fairanon.mirror import keep_soon
from fairanon.progress import shown
from fairanon.run.loggers import loggers
from fairanon.run.sharded import PutTogether

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
        self._together = self._together_before = 0  # samples of a step

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says beside the model's own."""
        return {"together": self._together}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What a checkpoint says."""
        self._together_before = state_dict["together"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here."""
        self._step, self._time = trainer.global_step, time.monotonic()
        each = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
        self._together = (each or 0) * trainer.world_size * trainer.accumulate_grad_batches
        if trainer.is_global_zero and self._together != (self._together_before or self._together):
            _log.warning(
                "a step took %d samples before, and takes %d now (data.batch_size %d x %d processes x trainer.accumulate_grad_batches "
                "%d): the order of the samples is another one, too",
                self._together_before, self._together, each, trainer.world_size, trainer.accumulate_grad_batches,
            )  # fmt: skip

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
            keep_soon(self.path.parent.parent)
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


def build_trainer(
    settings: dict[str, Any],
    folder: Path,
    checkpoint: Path | None,
    evaluate: Callback | None,
    every: int | timedelta,
    described: Described,
) -> Trainer:
    """The trainer of the configuration, with the callbacks and loggers that every run has.

    Args:
        settings: Lightning's.
        folder: Of the run.
        checkpoint: What it goes on from; None begins.
        evaluate: Measures before and after; None does not.
        every: Optimizer steps or time between checkpoints.
        described: What a dashboard says of the run.
    """
    extra_callbacks = settings.pop("callbacks", None) or []
    settings["default_root_dir"] = str(folder)
    callbacks: list[Callback] = [PutTogether(), *extra_callbacks, RunRecord(), Results()]
    if not shown():  # not in the configuration, whose text names the run
        settings["enable_progress_bar"] = False
    if settings.get("enable_progress_bar") is not False:
        callbacks.append(_StepBar(refresh_rate=10))
    if evaluate is not None:
        callbacks.append(evaluate)
    callbacks.append(Dashboard(described))
    if settings.get("enable_checkpointing") is not False:
        callbacks.append(SaveLast(folder / "checkpoints" / "last.ckpt", every))
    if settings.get("logger") in (None, True):
        settings["logger"] = loggers(folder, checkpoint, described)
    plugins = settings.pop("plugins", None) or []
    plugins = [*(plugins if isinstance(plugins, list) else [plugins]), CheckpointFiles()]
    return Trainer(**settings, callbacks=callbacks, plugins=plugins)
