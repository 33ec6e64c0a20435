"""Provenance leaves here: what ran, with which versions, in which state of the code."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

import fairanon
from fairanon.backbones.adapters import count_parameters
from fairanon.files import write_json

_PACKAGES = ("torch", "torchvision", "lightning", "diffusers", "transformers", "peft", "torchmetrics", "jsonargparse")


def code_version() -> str:
    """A digest of the packages' Python files: names the code with or without git."""
    total = hashlib.sha256()
    root = Path(fairanon.__file__).parent
    for package in (root, root.parent / "data_modules"):
        for path in sorted(package.rglob("*.py")):
            total.update(str(path.relative_to(root.parent)).encode())
            total.update(path.read_bytes())
    return total.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of everything that can change a number, and the state of git."""
    found = {"fairanon": fairanon.__version__, "python": platform.python_version(), "code": code_version()}
    found |= {name: metadata.version(name) for name in _PACKAGES}
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"
    root = Path(fairanon.__file__).parent.parent
    for name, command in (
        ("git", ["rev-parse", "HEAD"]),
        ("git_changes", ["status", "--porcelain", "--untracked-files=no"]),
    ):
        with suppress(OSError):  # no git here
            done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                found[name] = done.stdout.strip() or "none"
    return found


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
