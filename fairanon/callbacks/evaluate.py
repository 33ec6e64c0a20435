"""Numbers leave here: measures before and after training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from fairanon.evaluation import Evaluation, Look, Ranks
from fairanon.imaging import grid, write_image
from fairanon.methods.base import DiffusionMethod
from fairanon.progress import Plan


class Evaluate(Evaluation, Callback):
    """`Evaluation` at the right moments of a training; its settings are those."""

    plan = Plan({})
    """Of the training, which hears when measuring begins and ends."""
    look: Look | None = None
    """The newest one of this training."""
    result: dict[str, Any] = {}  # noqa: RUF012  (only replaced)
    """What `finish` returned."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the reference, and write a first page."""
        self.plan.begin("before")
        method = self.method(pl_module)
        with method.backbone.gathered():
            self.measure_base(method, _data(trainer), ranks(trainer))
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            print(f"first page: {self.first_page(folder, folder.parent.name)}")
        self.plan.begin("train")
        self._started = time.time()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the trained model, and hand numbers and grids to the loggers."""
        self.seconds["train"] = time.time() - self._started
        self.plan.begin("after")
        method, folder = self.method(pl_module), Path(trainer.default_root_dir)
        method.to(trainer.strategy.root_device)  # Lightning has put it back to the CPU by now
        self.result = self.finish(
            method, _data(trainer), folder, folder.parent.name, ranks(trainer)
        )  # fmt: skip

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have a look at what the model draws by now."""
        if trainer.sanity_checking:
            return
        method = self.method(pl_module)
        with method.backbone.gathered():
            self.look = self.look_at(method, trainer.global_step) if trainer.is_global_zero else None
        if self.look is not None:
            path = Path(trainer.default_root_dir) / "looks" / f"step-{trainer.global_step:06}.png"
            path.parent.mkdir(exist_ok=True)
            write_image(grid(self.look.images, self.look.columns), path)

    @staticmethod
    def method(pl_module: LightningModule) -> DiffusionMethod:
        """The module, as a model to draw with."""
        if not isinstance(pl_module, DiffusionMethod):
            raise TypeError(f"evaluate: {type(pl_module).__name__} has no diffusion backbone to sample from.")
        return pl_module


def ranks(trainer: Trainer) -> Ranks:
    """A trainer's ranks."""
    return Ranks(trainer.global_rank, trainer.world_size, trainer.strategy.barrier)


def _data(trainer: Trainer) -> LightningDataModule | None:
    return getattr(trainer, "datamodule", None)
