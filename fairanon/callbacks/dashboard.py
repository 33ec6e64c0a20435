"""What a dashboard shows of a run: Weights & Biases whole, TensorBoard numbers and pictures. docs/dashboard.md lists every key."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from fairanon.callbacks.evaluate import Evaluate
from fairanon.imaging import GAP
from fairanon.methods.base import NonFiniteLossError
from fairanon.report.answer import answer
from fairanon.report.page import sheets_of

_log = logging.getLogger(__name__)
_FELL = 0.02
"""Recall that falls by more is worth an alert."""
_WEIGHTS = ("lora.safetensors", "README.md", "config.yaml")


@dataclass(frozen=True)
class Described:
    """What a run is, for those who look at many.

    Attributes:
        name: What differs from the experiment, for people.
        group: The same for runs that differ in their seeds alone.
        tags: Method, world, overlays.
        notes: The first line of the experiment's file.
        config: Every setting, nested as in ``config.yaml``.
        builds_on: Folders of the runs whose weights it goes on from or is measured beside.
        log_images: Show what was made of real people's photographs, too.
    """

    name: str = "run"
    group: str = ""
    tags: tuple[str, ...] = ()
    notes: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    builds_on: tuple[Path, ...] = ()
    log_images: bool = False


class Dashboard(Callback):
    """Hands a run to its loggers as somebody wants to see it: settings, the base's numbers, looks, the answer, files, alerts.

    Args:
        described: The run.
    """

    def __init__(self, described: Described) -> None:
        self.described = described
        self._since, self._from = 0.0, 0

    # --- moments -----------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settings, and what is summed up how."""
        for logger in _of(trainer, WandbLogger):
            logger.log_hyperparams(dict(self.described.config))
            with _goes_on():
                logger.experiment.define_metric("answer/*", summary="last")
                logger.experiment.define_metric("train/loss", summary="min")
                logger.experiment.summary["progress/stage"] = "measure before"
            for folder in () if logger.experiment.offline else self.described.builds_on:
                with _goes_on():  # it may never have been sent
                    logger.experiment.use_artifact(f"model-{run_id(folder)}:latest")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The base's numbers, as soon as they are measured."""
        self._since, self._from = time.monotonic(), trainer.global_step
        evaluate = _evaluate(trainer)
        numbers = {} if evaluate is None else evaluate.before()
        for logger in _others(trainer):
            logger.log_metrics(_values(numbers, "before"), step=trainer.global_step)
        for logger in _of(trainer, WandbLogger):
            with _goes_on():
                logger.experiment.summary["progress/stage"] = "train"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Learning rate, speed, time left."""
        step = trainer.global_step
        if not trainer.is_global_zero or step <= self._from or step % trainer.log_every_n_steps:  # type: ignore[attr-defined]  # set by a connector
            return
        seconds = (time.monotonic() - self._since) / (step - self._from)
        numbers = {"progress/seconds_per_step": seconds}
        if trainer.max_steps > 0:
            numbers["progress/minutes_left"] = seconds * (trainer.max_steps - step) / 60
        if trainer.optimizers:
            numbers["train/lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        if torch.cuda.is_available():
            numbers["progress/gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
        for logger in _others(trainer):
            logger.log_metrics(numbers, step=step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """An alert if the loss is no number any more."""
        if isinstance(exception, NonFiniteLossError):
            self._alert(trainer, "the loss is no number", str(exception))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The newest look: the same prompts and noise each time, so that a slider over the steps is a film."""
        evaluate = _evaluate(trainer)
        look = None if evaluate is None else evaluate.look
        if evaluate is None or look is None or look.step != trainer.global_step or not trainer.is_global_zero:
            return
        shown = self._may_show(evaluate)
        for logger in _others(trainer):
            logger.log_metrics(_values(look.numbers, "look"), step=look.step)
            if shown and isinstance(logger, WandbLogger):
                images = [
                    wandb.Image(
                        Image.fromarray(image.permute(1, 2, 0).numpy()), caption=f"{caption} · step {look.step}"
                    )
                    for image, caption in zip(look.images, look.captions, strict=True)
                ]
                with _goes_on():
                    logger.experiment.log({"look": images, "trainer/global_step": look.step})
            elif shown and isinstance(logger, TensorBoardLogger):
                logger.experiment.add_images("look", look.images, look.step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The answer, tables, pictures, files."""
        evaluate = _evaluate(trainer)
        if evaluate is None or not evaluate.result or not trainer.is_global_zero:
            return
        result, folder = evaluate.result, Path(trainer.default_root_dir)
        shown = self._may_show(evaluate)
        for logger in trainer.loggers:
            logger.log_metrics(_values(result["after"], "evaluate"), step=trainer.global_step)
            if isinstance(logger, WandbLogger):
                with _goes_on():
                    self._finish(logger, result, folder, shown)
            elif shown and isinstance(logger, TensorBoardLogger):
                for path in _grids(folder):
                    picture = torch.from_numpy(_array(path))
                    logger.experiment.add_image(f"grids/{path.stem}", picture, trainer.global_step, dataformats="HWC")
        self._alert_of(trainer, result)

    # --- pieces ------------------------------------------------------------------------------------------

    def _may_show(self, evaluate: Evaluate) -> bool:
        """Nobody's own photograph leaves unless that was asked for, nor what was made of it."""
        return self.described.log_images or not evaluate.shows_people

    def _finish(self, logger: WandbLogger, result: Mapping[str, Any], folder: Path, shown: bool) -> None:
        run, run_answer = logger.experiment, answer(result)
        run.summary.update(
            {"answer/word": run_answer.word, "answer/sentence": run_answer.sentence, "progress/stage": "finished"}
        )
        for tile in run_answer.tiles:
            name = tile.key.removesuffix("/per_prompt")
            before, after, ratio = (result.get(stage, {}).get(tile.key) for stage in ("before", "after", "ratio"))
            numbers = {"before": before and before["value"], "after": after and after["value"]}
            numbers |= {"after_low": after and after["low"], "after_high": after and after["high"]}
            numbers |= {"ratio": ratio and ratio["value"], "state": tile.state}
            run.summary.update({f"answer/{name}/{kind}": value for kind, value in numbers.items() if value is not None})
        if run_answer.watched:
            run.summary.update({"answer/moved": len(run_answer.moved), "answer/watched": run_answer.watched})
        if result.get("shares"):
            columns = ["attribute", "prompt", "class", "ideal"]
            ends = [f"{stage}_{end}" for stage in ("before", "after") for end in ("value", "low", "high")]
            rows = [[row[name] for name in columns] + _ends(row) for row in result["shares"]]
            run.log({"tables/shares": wandb.Table(columns=columns + ends, data=rows)})
        if result.get("rivals"):
            keys = [key for key in result["headline"] if result["after"].get(key)]
            lines = {"this run": result["after"], **result["rivals"]}
            rows = [[name, *((line.get(key) or {}).get("value") for key in keys)] for name, line in lines.items()]
            run.log({"tables/rivals": wandb.Table(columns=["run", *keys], data=rows)})
        if shown:
            rows = [
                [name, stage, wandb.Image(str(path))]
                for path in _grids(folder)
                for name, _, stage in [path.stem.partition("-")]
            ]
            run.log({"tables/images": wandb.Table(columns=["prompts", "stage", "images"], data=rows)})
            if rows := _prompt_by_prompt(folder):
                run.log({"tables/prompts": wandb.Table(columns=["prompts", "prompt", "before", "after"], data=rows)})
        report = wandb.Artifact(
            f"report-{run.id}", "report", metadata={"sentence": run_answer.sentence, **self._lineage(folder)}
        )
        sources = list((folder / "grids").glob("*-source.png"))  # the page shows them
        for name in ("metrics.json", *(["report.html"] if shown and not sources else [])):
            report.add_file(str(folder / name))
        run.log_artifact(report)

    def hand_over(self, trainer: Trainer) -> None:
        """The trained adapters, once they are written."""
        folder, evaluate = Path(trainer.default_root_dir), _evaluate(trainer)
        drawn = "embedded world" in self.described.tags and evaluate is not None and self._may_show(evaluate)
        if not (drawn or self.described.log_images) or not (folder / _WEIGHTS[0]).exists():
            return  # weights remember whom they were trained on
        for logger in _of(trainer, WandbLogger):
            with _goes_on():
                self._hand_over(logger, folder)

    def _lineage(self, folder: Path) -> dict[str, Any]:
        """What an artifact was made of, for a run that is sent later, too."""
        return {
            "folder": folder.name,
            "experiment": self.described.config.get("run", {}).get("experiment", ""),
            "code": self.described.config.get("run", {}).get("code", ""),
            "builds_on": [f"model-{run_id(run_folder)}" for run_folder in self.described.builds_on],
        }

    def _hand_over(self, logger: WandbLogger, folder: Path) -> None:
        model = wandb.Artifact(f"model-{logger.experiment.id}", "model", metadata=self._lineage(folder))
        for name in _WEIGHTS:
            if (folder / name).exists():
                model.add_file(str(folder / name))
        logger.experiment.log_artifact(model, aliases=["latest"])

    def _alert_of(self, trainer: Trainer, result: Mapping[str, Any]) -> None:
        run_answer, recall = answer(result), "recall/overall"
        before, after = result["before"].get(recall), result["after"].get(recall)
        if before and after and before["value"] - after["value"] > _FELL:
            self._alert(trainer, "recall fell", f"{before['value']:.3f} to {after['value']:.3f}")
        if run_answer.moved:
            self._alert(trainer, "a share that should stay moved", ", ".join(run_answer.moved))
        self._alert(trainer, run_answer.word.lower(), run_answer.sentence)

    @staticmethod
    def _alert(trainer: Trainer, title: str, text: str) -> None:
        for logger in _of(trainer, WandbLogger):
            with _goes_on():
                logger.experiment.alert(title=title, text=text)


def run_id(folder: Path) -> str:
    """A run's name at W&B: one that goes on is the same one there."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


@contextmanager
def _goes_on() -> Iterator[None]:
    """Inside, whatever W&B cannot do is said, and the training goes on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  (W&B's own, a full disk's)
        _log.warning(
            "W&B: %s; the training goes on", str(error).splitlines()[0] if str(error) else type(error).__name__
        )


def _evaluate(trainer: Trainer) -> Evaluate | None:
    return next((callback for callback in trainer.callbacks if isinstance(callback, Evaluate)), None)  # type: ignore[attr-defined]  # set by a connector


def _of(trainer: Trainer, kind: type[WandbLogger]) -> list[WandbLogger]:
    """Loggers of a kind; of ranks but the first none."""
    return [logger for logger in trainer.loggers if isinstance(logger, kind)] if trainer.is_global_zero else []


def _others(trainer: Trainer) -> list[Logger]:
    """Loggers that show more than training's own numbers; metrics.csv has these alone, equal for equal trainings."""
    return (
        [logger for logger in trainer.loggers if isinstance(logger, (WandbLogger, TensorBoardLogger))]
        if trainer.is_global_zero
        else []
    )


def _values(numbers: Mapping[str, Any], head: str) -> dict[str, float]:
    return {f"{head}/{key}": value["value"] for key, value in numbers.items() if value is not None}


def _ends(row: Mapping[str, Any]) -> list[float | None]:
    return [
        None if row[stage] is None else row[stage][end]
        for stage in ("before", "after")
        for end in ("value", "low", "high")
    ]


def _grids(folder: Path) -> list[Path]:
    """Sheets of images before and after; nobody's own image is among them, as "before" is where nothing was changed yet."""
    sheets = []
    for path in sorted((folder / "grids").glob("*.png")):
        name, _, stage = path.stem.rpartition("-")
        source = path.with_name(f"{name}-source.png")
        if stage != "source" and not (source.exists() and np.array_equal(_array(path), _array(source))):
            sheets.append(path)
    return sheets


def _prompt_by_prompt(folder: Path) -> list[list[Any]]:
    """Prompts with their images before and after, of sheets that have a row for each; what a source became is in the grids."""
    table_rows = []
    for sheet in sheets_of(folder):
        if sheet["a_row_each"] and sheet["upper_name"] == "before":
            for k, prompt in enumerate(sheet["prompts"]):
                rows = []
                for whole in (_array(sheet["upper"]), _array(sheet["lower"])):
                    step = (len(whole) + GAP) // len(sheet["prompts"])
                    rows.append(wandb.Image(whole[k * step : (k + 1) * step - GAP]))
                table_rows.append([sheet["title"], prompt, *rows])
    return table_rows


def _array(path: Path) -> Any:
    return np.asarray(Image.open(path).convert("RGB")).copy()
