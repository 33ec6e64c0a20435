"""Provenance leaves here: what ran, with which versions, in which state of the code."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from fairanon.backbones.adapters import count_parameters
from fairanon.config.runs import versions
from fairanon.files import write_json


class RunRecord(Callback):
    """Writes ``versions.json`` into the run's folder when training starts."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Once, on the first rank."""
        if not trainer.is_global_zero:
            return
        trainable, total = count_parameters(pl_module)
        write_json(
            Path(trainer.default_root_dir) / "versions.json",
            {
                **versions(),
                "parameters": total,
                "trainable": trainable,
                "callbacks": [type(callback).__name__ for callback in trainer.callbacks],  # type: ignore[attr-defined]
            },
        )
