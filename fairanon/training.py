"""One training from configuration to a finished run: what it builds on, what it prepares, what it leaves."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pkgutil
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loggers import WandbLogger
from omegaconf import OmegaConf
from torch.nn.attention import SDPBackend, sdpa_kernel

from fairanon import cli
from fairanon.callbacks.evaluate import Evaluate
from fairanon.experiment import FairAnonCLI, StartFrom, as_options, build_trainer, read_checkpoint
from fairanon.files import read_text
from fairanon.methods.base import DiffusionMethod, NonFiniteLossError
from fairanon.prepare.base import Preparation, drop_empty, mark_of, mark_prepared, origin, recipe_key
from fairanon.runs import find_run, finish, run_folder, runs_root, working_on

EXPECTED = (
    ValueError,
    FileNotFoundError,
    ModuleNotFoundError,
    MisconfigurationException,
    NonFiniteLossError,
    cli.UserError,
    OSError,
)
"""Errors whose message is written for the user; anything else is a bug and keeps its traceback."""

Shorten = Callable[[FairAnonCLI], None]


def fit(files: Sequence[Path], words: Sequence[str], shorten: Shorten | None = None) -> None:
    """Prepare, measure, train, measure, export; an unfinished run is continued.

    Args:
        files: Configuration files, the later ones win.
        words: Further words of the command line, and ``--fresh`` for a new run.
        shorten: What a rehearsal makes of the experiment, once it is built.
    """
    start = time.time()
    fresh = "--fresh" in words
    words = [word for word in words if word != "--fresh"]
    given = [*as_options(files), *words]
    planned = FairAnonCLI(given, build=False)
    planned.check_precision()
    prepare_for(planned)
    parsed = FairAnonCLI(given)
    name = files[-1].stem if files and files[-1].parent == cli.EXPERIMENTS else name_of(files, words)
    evaluate = parsed._get(parsed.config_init, "evaluate")
    if isinstance(evaluate, Evaluate):
        evaluate.check(evaluate.method(parsed.model))
    folder, checkpoint = run_folder(name, parsed.text, fresh)
    if (origin := parsed._get(parsed.config_init, "start_from")) is not None:
        begin_with(parsed.model, origin)
    steps, minutes = (parsed._get(parsed.config_init, f"checkpoint_{unit}") for unit in ("every", "minutes"))
    every = timedelta(minutes=minutes) if steps is None else steps
    if shorten is not None:
        shorten(parsed)
    trainer = build_trainer(parsed.trainer_settings, folder, checkpoint, evaluate, every)
    if isinstance(evaluate, Evaluate):
        evaluate.seconds["prepare"] = time.time() - start
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            logger.log_hyperparams({"config": parsed.text})
    last = folder / "checkpoints" / "last.ckpt"
    try:
        with _attention(trainer):
            trainer.fit(parsed.model, datamodule=parsed.datamodule, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # Lightning's answer to an interrupt
        goes_on = f"step {read_checkpoint(last)['global_step']}" if last.exists() else "the beginning"
        raise cli.Stopped(f"stopped at step {trainer.global_step}; the same command goes on from {goes_on}") from None
    if not trainer.interrupted and trainer.global_step == 0:  # nothing was trained, only put together
        trainer.save_checkpoint(last)  # on every rank: it is a collective call
    if trainer.is_global_zero and not trainer.interrupted:
        if isinstance(parsed.model, DiffusionMethod):
            parsed.model.export_weights(folder, name)
        finish(folder)


def _attention(trainer: Trainer) -> AbstractContextManager[None]:
    """The plain attention kernel on a CPU in bfloat16: the flash kernel's backward pass is slow there.

    `benchmarks/cpu_precision.py` measures it.
    """
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.precision == "bf16-mixed":
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def name_of(files: Sequence[Path], words: Sequence[str]) -> str:
    """The experiment's name: the last configuration file outside overlays/."""
    paths = list(files)
    for flag, value in itertools.pairwise(words):
        if flag in ("-c", "--config"):
            paths.append(Path(value))
    named = [path.stem for path in paths if path.parent.name != "overlays" and not path.stem.startswith("_")]
    return named[-1] if named else "run"


_runs: dict[str, Path] = {}
"""Folders of the runs that an experiment builds on, by name; what ``${run:NAME}`` in its file stands for."""

OmegaConf.register_resolver("run", lambda name: str(_runs.get(name, runs_root() / name / "latest")), replace=True)


def stages(files: Sequence[Path]) -> list[str]:
    """Names of the experiments that an experiment's files build on, as ``${run:NAME}``."""
    return list(dict.fromkeys(name for file in files for name in re.findall(r"\$\{run:(\w+)\}", read_text(file, "-c"))))


def recipe_of(files: Sequence[Path], words: Sequence[str]) -> str:
    """Names what a training does wherever it runs: what its files and those of its stages say, and further words."""
    found = hashlib.sha256(json.dumps([[cli.read_yaml(file) for file in files], list(words)]).encode())
    for name in stages(files):
        found.update(recipe_of(cli.experiment_files([name], "train")[0], []).encode())
    return found.hexdigest()[:16]


def train_stages(files: Sequence[Path], words: list[str]) -> None:
    """Train the experiments that this one's files name as ``${run:NAME}``, unless their runs are finished.

    The seeds and overlays go to all of them, every other setting to those of the same family (an ancestor in common).
    """
    overlays = [word for file in files if file.parent.name == "overlays" for word in ("--overlay", file.stem)]
    names = stages(files)
    apart = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    seeds = [
        word
        for flag, value in itertools.pairwise(apart)
        if flag in ("--seed_everything", "--model.seed", "--data.seed")
        for word in (flag, value)
    ]
    for name in names:
        own, _ = cli.experiment_files([name], "train")
        family = own[1] in files  # own[0] is what every experiment shares
        given = [name, *overlays, *([word for word in words if word != "--fresh"] if family else seeds)]
        stage_files, overrides = cli.experiment_files(given, "train")
        _runs[name] = trained(name, given, stage_files, overrides, name).resolve()


def trained(name: str, given: list[str], files: list[Path], overrides: list[str], label: str) -> Path:
    """The finished run of ``fairanon train GIVEN``, whose files and overrides these are; trained first if there is none.

    ``label`` names the run where it is spoken of.

    Raises:
        UserError: the training stopped before its end.
    """
    train_stages(files, overrides)
    text = FairAnonCLI([*as_options(files), *overrides], build=False).text
    if find_run(name, text, finished=True) is None:
        print(f"training {label}", flush=True)
        _run([sys.executable, "-m", "fairanon", "train", *given])
    folder = find_run(name, text, finished=True)
    if folder is None:
        raise cli.UserError(f"{label} did not finish; the same command goes on from there.")
    return folder


def _run(command: list[str]) -> None:
    """Run a program to its end; whoever stops this one stops that one, and hears what it says."""
    with subprocess.Popen(command) as process:
        try:
            process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    if process.returncode in (130, 143):
        raise cli.Stopped


def begin_with(model: LightningModule, start: StartFrom) -> None:
    """Load a finished run's trained weights, and add another run's adapters."""
    if not isinstance(model, DiffusionMethod):
        raise cli.UserError(f"start_from: {type(model).__name__} has no diffusion backbone.")
    load_trained(Path(start.run), model)
    if start.lora is not None:
        model.backbone.add(start.lora, start.weight)


def load_trained(run: Path, model: DiffusionMethod) -> None:
    """Load what a run trained into a model that was built with its configuration."""
    checkpoint = run / "checkpoints" / "last.ckpt"
    if not checkpoint.exists():
        raise cli.UserError(f"{checkpoint} is missing: the run has not finished; `make train` goes on with it.")
    state = read_checkpoint(checkpoint)
    model.on_load_checkpoint(state)
    model.load_state_dict(state["state_dict"], strict=False)


def prepare_for(parsed: FairAnonCLI) -> None:
    """Make those folders of an experiment that are missing and that a preparation it names makes."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    device = ["--device", "cpu"] if parsed.config.trainer.accelerator == "cpu" else []
    for recipe in preparations(parsed.config).values():
        prepare([str(recipe), *device], keep=True)


def prepared(folder: str, recipe: Path) -> bool:
    """Whether the folder of a preparation is finished, whoever made it."""
    kind = preparation([str(recipe)])[1].prepare.class_path
    return (Path(folder) / pkgutil.resolve_name(kind).result).exists()


def preparations(config: jsonargparse.Namespace) -> dict[str, Path]:
    """The folders that an experiment's data and measuring name and that a preparation it names makes, each with its file."""
    wanted = {Path(folder) for folder in _folders([config.data, config.evaluate])}
    found = {}
    for name in config.prepare:
        recipe = cli.EXPERIMENTS / "prepare" / f"{name}.yaml"
        if not recipe.exists():
            raise cli.UserError(f"prepare: there is no {recipe}; `fairanon prepare` lists what there is.")
        folder = preparation([str(recipe)])[1].prepare.init_args.folder
        if Path(folder) in wanted:  # an experiment that extends this one may have other data
            found[folder] = recipe
    return found


def _folders(settings: Any) -> Iterator[str]:
    """Values of the keys ``folder`` and ``annotations`` (a list) at any depth of a configuration."""
    if isinstance(settings, list):
        for value in settings:
            yield from _folders(value)
    elif isinstance(settings, (dict, jsonargparse.Namespace)):
        for key, value in vars(settings).items() if isinstance(settings, jsonargparse.Namespace) else settings.items():
            if key == "folder" and isinstance(value, str):
                yield value
            elif key == "annotations" and isinstance(value, list):
                yield from value
            else:
                yield from _folders(value)


def prepare(words: list[str], keep: bool = False) -> None:
    """Run a preparation unless this very one is finished.

    Args:
        words: See `preparation`.
        keep: Whatever is finished stays, by whichever recipe it was made.
    """
    parser, settings = preparation(words)
    given = settings.prepare
    folder, kind = Path(given.init_args.folder), pkgutil.resolve_name(given.class_path)
    finished = (folder / kind.result).exists()
    if keep and finished:
        return
    images = origin(folder, given.init_args.get("images"))
    recipe, mark = recipe_key(given.as_dict()), mark_of(folder)
    if mark is not None and mark["recipe"] == recipe:
        print(f"{folder} is prepared")
        return
    if images is not None and finished and (mark is None or mark.get("images") != images):
        raise cli.UserError(
            f"prepare.folder: {folder} is finished and was made of other pictures; name another folder with "
            "--prepare.init_args.folder, or delete it."
        )
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    folder.mkdir(parents=True, exist_ok=True)
    with working_on(folder):
        for stale in folder.rglob("*.partial"):  # what a killed one left
            stale.unlink()
        mark_prepared(folder, None, images)
        try:
            parser.instantiate_classes(settings).prepare.run(device)
        except BaseException:
            drop_empty(folder)
            raise
        mark_prepared(folder, recipe, images)
    if device != "cpu":
        torch.cuda.empty_cache()  # what comes next wants it


def preparation(words: list[str]) -> tuple[jsonargparse.ArgumentParser, jsonargparse.Namespace]:
    """Parser and settings of ``NAME | FILE [IMAGES] [--device D] [--KEY VALUE ...]``: by its name, or a file of one's own."""
    folder = cli.EXPERIMENTS / "prepare"
    path = Path(words[0] if words else "")
    if words and (folder / f"{words[0]}.yaml").exists():
        path = folder / f"{words[0]}.yaml"
    if not path.is_file():
        if not folder.is_dir():
            raise cli.UserError(cli.no_experiment(""))
        names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise cli.UserError(
            f"`fairanon prepare` needs a preparation ({names}) or a file, got {words[:1] or 'nothing'}."
        )
    rest = words[1:]
    if rest and not rest[0].startswith("-"):
        rest = ["--prepare.init_args.images", rest[0], *rest[1:]]
    parser = jsonargparse.ArgumentParser(parser_mode="omegaconf+", exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--prepare", type=Preparation, required=True)
    parser.add_argument("--device", type=str, default="auto", help="Where models work; auto is a GPU if there is one.")
    return parser, parser.parse_args(["--config", str(path), *rest])
