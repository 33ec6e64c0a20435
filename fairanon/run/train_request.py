"""What one asks of experiments. Imports nothing heavy."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairanon.config.experiments import Experiment, UserError, own, resolve
from fairanon.config.options import ENGINE, InParts, check_who_works, option, tidy

Settings = Mapping[str, Any] | Sequence[str]


LOGGERS = ("wandb", "tensorboard", "none")
"""Where numbers can go besides metrics.csv."""


@dataclass(frozen=True)
class TrainRequest:
    """Prepare an experiment's data, train it, measure it before and after, and write the report.

    Its attributes are the options of ``fairanon train``; ``fairanon train --help`` says what each is.

    Attributes:
        settings: Any keys that ``fairanon config NAME`` prints, for example ``{"model.beta": 2000}``; or words of a command
            line, ``("--model.beta=2000",)``.

    Raises:
        UserError: Neither an experiment nor a configuration file is named.

    Examples:
        >>> TrainRequest("popalign_tiny", settings={"trainer.max_steps": 100}).experiment().settings
        ('--trainer.max_steps=100',)
    """

    name: str = option(
        "", "an experiment; `fairanon experiments` lists them", metavar="NAME", positional=True
    )  # fmt: skip
    config: tuple[Path, ...] = option(
        (), "a configuration file of your own; `extends: NAME` in it begins with an experiment; may be given again", "FILE",
        short="-c",
    )  # fmt: skip
    overlay: tuple[str, ...] = option(
        (), "experiments/overlays/O.yaml, for example bf16 or ddp; may be given again", "O"
    )
    seed: int | None = option(
        None, "one seed for the run: global, model and data (not evaluate.seed)", "N", least=0, most=2**32 - 1
    )
    fresh: bool = option(False, "begin a new run, even if one is unfinished")
    log: str = option(
        "wandb",
        "where numbers go besides metrics.csv: wandb, tensorboard, both with a comma between them, or none",
        "L,L",
    )
    log_images: bool = option(False, "show W&B and TensorBoard what was made of real people's photographs, too")
    settings: Settings = ()

    def __post_init__(self) -> None:
        tidy(self)
        if not self.name and not self.config:
            raise UserError(
                "there is nothing to train: name an experiment, or a configuration file of your own (`fairanon fit -c FILE`)."
            )

        loggers = set(self.log.split(","))
        if unknown := loggers - {*LOGGERS, "csv"}:
            raise UserError(f"--log: there is no {min(unknown)!r}; choose one of wandb, tensorboard, none.")
        if "none" in loggers and len(loggers) > 1:
            raise UserError("--log: none stands alone.")
        if "tensorboard" in loggers and importlib.util.find_spec("tensorboard") is None:
            raise UserError("--log tensorboard: the package is not installed; `pip install 'fairanon[dashboard]'`.")

    def experiment(self) -> Experiment:
        """What is to be trained.

        Raises:
            UserError: There is no such experiment or overlay, or a file cannot be read.
        """
        words = in_words(self.settings)
        words += [] if self.seed is None else [f"--seed={self.seed}"]
        files = [str(path) for path in self.config]
        return resolve(self.name, self.overlay, files, words) if self.name else own(files, self.overlay, words)


@dataclass(frozen=True)
class MeasureRequest(InParts):
    """Measure a finished run again, for example with more images; or a folder of images as an experiment measures its own.

    Attributes:
        folder: The run's, for example ``runs/popalign_tiny/latest``; or one of images.
        settings: Any keys of its ``config.yaml`` (of the experiment that ``like`` names), for example ``{"evaluate.images": 200}``; or words, as `TrainRequest`.
    """

    folder: Path = option(
        positional=True, metavar="RUN", help="a run's folder, for example runs/popalign_tiny/latest, or a folder of images (layouts: docs/audit.md)"
    )  # fmt: skip
    settings: Settings = ()
    like: str = option("", "needed for a folder of images: the experiment whose measures it is measured by", "NAME")
    prompts: Path | None = option(None, "of a folder of images: a CSV that says which file is of which prompt", "CSV")
    device: str = option("auto", "where models work, a process each (default: all GPUs, or cpu)", "D,D")
    engine: str = option("here", ENGINE, "E")
    part: str | None = option(
        None, "for several machines: draw and judge part K of N, for example 3/100, and count nothing yet", "K/N"
    )
    finish: bool = option(False, "after the parts: draw and judge what they have left, and count")

    def __post_init__(self) -> None:
        tidy(self)
        check_who_works(self.engine, self.device, self.part, self.finish)


def in_words(settings: Settings) -> list[str]:
    """Settings as words of a command line.

    Examples:
        >>> in_words({"trainer.max_steps": 100, "evaluate": None, "evaluate.measures.alike": ["tone"]})
        ['--trainer.max_steps=100', '--evaluate=null', '--evaluate.measures.alike=["tone"]']
    """
    if isinstance(settings, Mapping):
        return [f"--{key}={value if isinstance(value, str) else _as_json(value)}" for key, value in settings.items()]
    if isinstance(settings, (list, tuple)) and all(isinstance(word, str) for word in settings):
        return list(settings)
    raise UserError(f"settings must be a dictionary of keys and values, or a list of words, got {settings!r}.")


def _as_json(value: Any) -> str:
    def other(inner: Any) -> Any:
        return inner.item() if hasattr(inner, "item") else str(inner)

    return str(value) if isinstance(value, Path) else json.dumps(value, default=other)
