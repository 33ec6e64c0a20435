"""From configuration files to a model, its data and its trainer."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import pkgutil
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

import torch
import wandb
from jsonargparse import _typehints
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, TQDMProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from fairanon.callbacks.run_record import RunRecord
from fairanon.files import beside

_log = logging.getLogger(__name__)


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


_DTYPES = {"bf16-mixed": "bfloat16", "bf16": "bfloat16", "16-mixed": "float16", "16": "float16"}


def _drop_arguments(parser: Any, before: Any, now: Any) -> None:
    """A class that takes another's place does not get its arguments.

    (jsonargparse by itself keeps those that the new class knows by the same name: one segmenter's file for another's. Of
    optimizers that is right: the learning rate is the experiment's.)
    """
    if before and "init_args" in before and _is_optimizer(before) and _is_optimizer(now):
        _keep_known_arguments(parser, before, now)
    elif before and "init_args" in before and before["class_path"] != now["class_path"]:
        for name in list(before["init_args"].keys()):
            before["init_args"].pop(name)


def _is_optimizer(given: Any) -> bool:
    try:
        return issubclass(pkgutil.resolve_name(given["class_path"]), torch.optim.Optimizer)
    except (ImportError, AttributeError, TypeError, ValueError):
        return False


_keep_known_arguments: Callable[[Any, Any, Any], None] = _typehints.discard_init_args_on_class_path_change
_typehints.discard_init_args_on_class_path_change = _drop_arguments


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
        parser.add_argument(
            "--prepare", type=list[str], default=[], help="Preparations that make folders of the data, if missing."
        )
        parser.add_argument("--evaluate", type=Callback | None, default=None, help="Measures before and after.")
        parser.add_argument("--start_from", type=StartFrom | None, default=None, help="Trained weights to begin with.")
        parser.add_argument("--checkpoint_minutes", type=float, default=15.0, help="Minutes between checkpoints.")
        parser.add_argument(
            "--checkpoint_every", type=int | None, default=None, help="Optimizer steps between checkpoints instead."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """A backbone whose ``dtype`` nobody gives has the trainer's precision: one key decides."""
        super().parse_arguments(parser, args)
        backbone = self.config.get("model.init_args.backbone.init_args")
        if backbone is not None and "dtype" in backbone and backbone.dtype is None:
            backbone.dtype = _DTYPES.get(str(self.config.trainer.precision), "float32")

    def check_precision(self) -> None:
        """Refuse to train in half precision without a scaled loss, and to scale it where only a GPU could.

        Raises:
            ValueError: Says what fits.
        """
        settings = self.config.trainer
        precision = str(settings["precision"])
        if precision not in (*_DTYPES, "None", "32", "32-true"):
            raise ValueError(
                f"trainer.precision: {precision} would round what trains, which is held in float32 here; take bf16-mixed, "
                "16-mixed or 32-true."
            )
        endless = settings["max_steps"] == -1 and settings["max_time"] is None
        if endless and settings["limit_train_batches"] in (None, 1.0):
            raise ValueError(
                "trainer.max_steps: -1 would train for ever, the data never ends; give a number of steps, or max_time."
            )
        scaled = _DTYPES.get(precision) == "float16"
        backbone = self.config.get("model.init_args.backbone.init_args") or {}
        if scaled and (settings["accelerator"] == "cpu" or not torch.accelerator.is_available()):
            raise ValueError(
                "trainer.precision: 16-mixed needs a GPU; on a CPU take bf16-mixed (OVERLAY=bf16) or full precision "
                "(OVERLAY=cpu)."
            )
        if backbone.get("dtype") == "float16" and not scaled and settings["max_steps"] != 0:
            raise ValueError(
                f"model.backbone.dtype: float16 loses small gradients unless the loss is scaled, and trainer.precision is "
                f"{settings['precision']}; leave dtype out, or set precision to 16-mixed."
            )

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


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes it and renames it.

    Lightning's own way goes through the main memory and the system's temporary folder, which 29 GiB need not fit into.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """See Lightning's ``CheckpointIO``."""
        with beside(Path(path)) as partial, partial.open("wb") as file:  # torch's own writer hides a full disk's error
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


_TREE = re.compile(
    r"[\s-]*(Problem with|Parser key|Does not validate|Subtypes|Errors:|Given value|Expected a <class .NoneType)"
)


_LONGEST = 480  # characters of a line; nobody reads more of an error


def sentence(message: str) -> str:
    """What is wrong, without the parser's tree of everything else it tried."""
    lines = [line for line in message.splitlines() if line.strip()]
    said = re.sub(r"^Problem with given class_path '[^']+':\s*", "", "\n".join(lines))
    if "Does not validate" in message:
        key = ".".join(re.findall(r'[Pp]arser key "([^"]+)"', message))
        leaves = dict.fromkeys(line.strip(" -") for line in lines if not _TREE.match(line))
        said = f"{key}: {'; '.join(leaves)}".removeprefix(": ")
    return "\n".join(
        line if len(line) <= _LONGEST else f"{line[: _LONGEST - 4]} ..." for line in said.splitlines()[:20]
    )


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
    host = urlparse(_wandb_address()).hostname or ""
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
    if not asked and not offline and (reason := _unreachable()):
        _log.warning("W&B cannot be reached (%s): the run is logged offline, `wandb sync` sends it later", reason)
        offline = True
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
            _log.warning("W&B: %s; the run is logged %s", said, "without it" if attempt else "offline")
    return []


def _wandb_logger(folder: Path, offline: bool) -> WandbLogger:
    name = f"{folder.parent.name}-{folder.name}"
    run = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # a run that goes on is the same one there
    logger = WandbLogger(project="fairanon", name=name, id=run, resume="allow", save_dir=folder, offline=offline)
    logger._wandb_init.pop("anonymous", None)  # Lightning still passes it, W&B warns about it
    return logger


def _wandb_address() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def _unreachable() -> str:
    """Why W&B does not answer; "" if it does, whatever it says."""
    try:
        urlopen(_wandb_address(), timeout=5).close()
    except HTTPError:
        pass
    except (OSError, ValueError) as error:
        return str(error)
    return ""


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
    callbacks: list[Callback] = [*given, RunRecord()]
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
