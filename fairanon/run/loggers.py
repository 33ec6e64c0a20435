"""Where a training's numbers go: always a CSV file, and what somebody asked for beside it."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable, Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import wandb
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from torch import Tensor

from fairanon.callbacks.dashboard import Described, run_id
from fairanon.methods.load import read_checkpoint

_log = logging.getLogger(__name__)
LOG, LOG_IMAGES = "FAIRANON_LOG", "FAIRANON_LOG_IMAGES"
"""In the environment: what ``--log`` and ``--log-images`` asked for, for the processes that a training starts."""


class SteadyWandbLogger(WandbLogger):
    """W&B's logger; whatever it cannot do any more is said once, and the training goes on."""

    _broken = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See Lightning's ``Logger``."""
        self._try(lambda: WandbLogger.log_metrics(self, metrics, step))

    def log_hyperparams(self, params: Any, *arguments: Any, **settings: Any) -> None:
        """See Lightning's ``Logger``."""
        self._try(lambda: WandbLogger.log_hyperparams(self, params))

    def finalize(self, status: str) -> None:
        """See Lightning's ``Logger``."""
        self._try(lambda: WandbLogger.finalize(self, status))

    def _try(self, action: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001  (W&B's own, a lost process's, a full disk's)
            self._broken = True
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            _log.warning("W&B: %s; the training goes on without it", message)


def loggers(folder: Path, checkpoint: Path | None, described: Described) -> list[Logger]:
    """The loggers of a run, the CSV file first.

    Args:
        folder: Of the run.
        checkpoint: What it goes on from; None begins.
        described: What a dashboard says of the run.
    """
    wanted = os.environ.get(LOG, "wandb").split(",")
    run_loggers: list[Logger] = [_csv_logger(folder, checkpoint)]
    if "wandb" in wanted:
        run_loggers += _wandb_loggers(folder, described)
    if "tensorboard" in wanted:
        run_loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    return run_loggers


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


def _wandb_loggers(folder: Path, described: Described) -> list[WandbLogger]:
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
            logger = _wandb_logger(folder, attempt, described)
            _ = logger.experiment  # begins it
            return [logger]
        except Exception as error:  # noqa: BLE001  (whatever is wrong there, the training goes on)
            wandb.teardown()
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            instead = "without it" if attempt else "offline, `wandb sync` sends it later"
            _log.warning("W&B: %s; the run is logged %s", message, instead)
    return []


def _wandb_logger(folder: Path, offline: bool, described: Described) -> WandbLogger:
    seconds = float(os.environ.get("WANDB_INIT_TIMEOUT", "20"))  # W&B itself would try for a minute and a half
    logger = SteadyWandbLogger(
        project="fairanon", name=described.name, group=described.group, job_type="train", tags=list(described.tags),
        notes=described.notes, id=run_id(folder), resume="allow", save_dir=folder, offline=offline,
        settings=wandb.Settings(init_timeout=seconds),
    )  # fmt: skip
    logger._wandb_init.pop("anonymous", None)  # Lightning still passes it, W&B warns about it
    return logger
