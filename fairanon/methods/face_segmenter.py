"""Trains PointRend to segment faces: the source of mask prompts (Ano-Face-Fair, section 3.1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from fairanon.batches import SegmentationBatch
from fairanon.files import atomic_write
from fairanon.imaging import to_model
from fairanon.methods.base import ConstantWithWarmup
from fairanon.networks.point_rend import PointRend


class FaceSegmenter(LightningModule):
    """Cross-entropy of the coarse logits and of the point head, added; judged by the mean IoU over the regions.

    Args:
        regions: Names of the classes 1, 2, ...; 0 is the background.
        optimizer: Called with the trainable parameters.
        lr_scheduler: Called with the optimizer, stepped after each optimizer step.
        width: See `PointRend`.
        points: See `PointRend`.
        seed: Of the weights at the start and of the points.
    """

    title = "segmenter"

    def __init__(
        self,
        regions: tuple[str, ...],
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable = ConstantWithWarmup,
        width: int = 64,
        points: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler
        self.regions, self.point_seed = regions, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = PointRend(len(regions) + 1, width, points)
        self.iou = MulticlassJaccardIndex(len(regions) + 1, average="none")
        self.iou_of: dict[str, float] = {}

    def configure_optimizers(self) -> Any:
        """Optimizer over all parameters, schedule per optimizer step."""
        optimizer = self._optimizer(self.network.parameters())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._lr_scheduler(optimizer), "interval": "step"},
        }

    def training_step(self, batch: SegmentationBatch, batch_idx: int) -> Tensor:
        """Both losses; the points depend on the seed and the step alone."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.point_seed * 1_000_003 + self.global_step)
            losses = self.network.losses(to_model(batch.images), batch.labels)
        value = torch.stack(list(losses.values())).sum()
        self.log_dict({"train/loss": value, **{f"train/{k}": v for k, v in losses.items()}}, batch_size=len(batch))
        return value

    def validation_step(self, batch: SegmentationBatch, batch_idx: int) -> None:
        """Count intersections and unions by subdivision inference."""
        self.iou.update(self.network(to_model(batch.images)).argmax(1), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log the IoU of each region and their mean, the background left out."""
        ious = self.iou.compute()
        self.iou.reset()
        self.iou_of = {name: float(value) for name, value in zip(self.regions, ious[1:], strict=True)}
        self.iou_of["mean"] = float(ious[1:].mean())
        self.log_dict({f"val/iou/{name}": value for name, value in self.iou_of.items()})

    def results(self) -> dict[str, Any]:
        """The last IoU of each region, and their mean."""
        return {"iou": self.iou_of}

    def lines(self) -> list[str]:
        """Likewise."""
        return [f"IoU {name:<12}{value:.3f}" for name, value in self.iou_of.items()]

    def export_weights(self, folder: Path, name: str) -> Path:
        """Write the network in half precision, see `PointRendParser`.

        Returns:
            ``segmenter.safetensors``.
        """
        state = {
            name: (value.half() if value.is_floating_point() else value).contiguous().cpu()
            for name, value in self.network.state_dict().items()
        }
        with atomic_write(folder / "segmenter.safetensors") as partial:
            save_file(state, partial, {"regions": json.dumps(self.regions)})
        return folder / "segmenter.safetensors"
