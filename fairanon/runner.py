"""What the verbs do: builds the trainer from configuration files, keeps the run's folder, turns errors into sentences."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import itertools
import json
import logging
import os
import re
import subprocess
import sys
import time
import warnings
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import jsonargparse
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from omegaconf import OmegaConf
from torch import Tensor

from fairanon import cli
from fairanon.callbacks.evaluate import Evaluate
from fairanon.callbacks.run_record import RunRecord, code_version
from fairanon.export import export_pipeline, export_weights
from fairanon.methods.base import DiffusionMethod, NonFiniteLossError
from fairanon.prepare.base import Preparation, write_json
from fairanon.report import compare, print_table, summarise, write_report

_RUN_VARIABLE = "FAIRANON_RUN"
"""Tells the processes that DDP starts which folder the first one chose."""

_EXPECTED = (ValueError, FileNotFoundError, NonFiniteLossError, cli.UserError, OSError)
"""Errors whose message is written for the user; anything else is a bug and keeps its traceback."""


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
        parser.add_argument("--evaluate", type=Callback | None, default=None, help="Measures before and after.")
        parser.add_argument("--start_from", type=StartFrom | None, default=None, help="Trained weights to begin with.")
        parser.add_argument("--checkpoint_every", type=int, default=50, help="Optimizer steps between checkpoints.")

    def before_instantiate_classes(self) -> None:
        """The folder of the run must be known before anything is built."""
        self.text = self.parser.dump(self.config, skip_none=False)

    def instantiate_classes(self) -> None:
        """Only if asked to: printing a configuration needs no weights."""
        if self._build:
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Built by `_build_trainer`, once the folder of the run is known."""
        self.trainer_settings = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        return None  # type: ignore[return-value]


def run_verb(verb: str, files: list[Path], words: list[str]) -> int:
    """Run one verb and turn a user's mistake into one sentence; returns the exit code."""
    logging.getLogger("fairanon").setLevel(logging.INFO)
    logging.basicConfig(format="%(message)s")
    _hide_what_nobody_can_act_on()
    try:
        if verb == "config":
            print(FairAnonCLI([*_as_options(files), *words], build=False).text, end="")
        elif verb == "train":
            _train_stages(files, words)
            _fit(files, words)
        elif verb == "fit":
            _fit([], words)
        elif verb == "prepare":
            _prepare(words)
        elif verb == "evaluate":
            _evaluate(words)
        elif verb == "table":
            _table(words)
        elif verb == "export":
            _export(words)
        else:
            _report(words)
    except (ArgumentError, jsonargparse.ArgumentError) as error:
        print(f"fairanon: {_sentence(str(error))}", file=sys.stderr)
        return 2
    except _EXPECTED as error:
        if os.environ.get("FAIRANON_DEBUG"):
            raise
        print(f"fairanon: {_sentence(str(error))}", file=sys.stderr)
        return 1
    return 0


def _hide_what_nobody_can_act_on() -> None:
    """Libraries' remarks about things that are meant to be so; they would bury our own lines."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="torchmetrics")
    for message in (
        "LightningCLI's args parameter is intended",
        "Experiment logs directory",  # `_csv_logger` keeps the old rows
        r"Found \d+ module\(s\) in eval mode",  # the frozen ones
        ".*isinstance.treespec, LeafSpec",  # between Lightning and torch
        "Using ModelCheckpoint with manual optimization",  # it saves after the step, as it should
    ):
        warnings.filterwarnings("ignore", message=message)


def _as_options(files: Sequence[Path]) -> list[str]:
    return [word for file in files for word in ("--config", str(file))]


_TREE = re.compile(
    r"[\s-]*(Problem with|Parser key|Does not validate|Subtypes|Errors:|Given value|Expected a <class .NoneType)"
)


def _sentence(message: str) -> str:
    """What is wrong, without the parser's tree of everything else it tried."""
    lines = [line for line in message.splitlines() if line.strip()]
    if "Does not validate" in message:
        key = ".".join(re.findall(r'[Pp]arser key "([^"]+)"', message))
        leaves = dict.fromkeys(line.strip(" -") for line in lines if not _TREE.match(line))
        return f"{key}: {'; '.join(leaves)}".removeprefix(": ")
    return "\n".join(lines)


# --- runs -----------------------------------------------------------------------------------------------------


def _find_run(name: str, text: str, finished: bool) -> Path | None:
    """The newest run of this experiment with this resolved configuration and this code."""
    for record in sorted(Path("runs").glob(f"{name}/*/run.json"), reverse=True):
        if not record.parent.is_symlink() and json.loads(record.read_text()) == _identity(name, text, finished):
            return record.parent
    return None


def _identity(name: str, text: str, finished: bool) -> dict[str, Any]:
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {"experiment": name, "config": digest, "code": code_version(), "finished": finished}


def _run_folder(name: str, text: str, fresh: bool) -> tuple[Path, Path | None]:
    """Where this run goes on, or a new folder.

    An unfinished run of the same experiment, resolved configuration and code version is continued; a finished one
    is never touched.

    Returns:
        The folder and the checkpoint to go on from, if there is one.
    """
    if chosen := os.environ.get(_RUN_VARIABLE):  # a further rank of a run that the first one started
        folder = Path(chosen)
    elif not fresh and (unfinished := _find_run(name, text, finished=False)):
        folder = unfinished
        _claim(folder)
        print(f"going on with the unfinished run {folder} (--fresh starts a new one)")
        os.environ[_RUN_VARIABLE] = str(folder)
    else:
        folder = _new_folder(Path("runs") / name)
        _claim(folder)
        (folder / "config.yaml").write_text(text)
        write_json(folder / "run.json", _identity(name, text, finished=False))
        os.environ[_RUN_VARIABLE] = str(folder)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    return folder, checkpoint if checkpoint.exists() else None


def _new_folder(parent: Path) -> Path:
    """A folder named by the time that no other process made."""
    parent.mkdir(parents=True, exist_ok=True)
    name = datetime.now().strftime("%Y%m%d-%H%M%S")
    while True:
        try:
            (parent / name).mkdir()
        except FileExistsError:
            name += "-1"
        else:
            return parent / name


def _claim(folder: Path) -> None:
    """Lock a run for the life of this process, so that the same command typed twice does not share its files."""
    if folder in _locks:
        return
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ValueError(f"{folder} is being worked on by another process; wait for it, or add --fresh.") from None
    _locks[folder] = file


_locks: dict[Path, IO[str]] = {}
"""What this process has claimed; an open file holds its lock."""


def _finish(folder: Path) -> None:
    """Mark a run as finished and let ``latest`` point to it."""
    record = json.loads((folder / "run.json").read_text())
    write_json(folder / "run.json", {**record, "finished": True})
    link = folder.parent / "latest"
    temporary = folder.parent / ".latest.partial"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    temporary.replace(link)


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
        step = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["global_step"]
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


def _build_trainer(
    settings: dict[str, Any], folder: Path, checkpoint: Path | None, evaluate: Callback | None, checkpoint_every: int
) -> Trainer:
    """The trainer of the configuration, with the callbacks and loggers that every run has."""
    given = settings.pop("callbacks", None) or []
    settings["default_root_dir"] = str(folder)
    callbacks: list[Callback] = [*given, RunRecord()]
    if settings.get("enable_progress_bar") is not False:
        callbacks.append(_StepBar(refresh_rate=10))
    if evaluate is not None:
        callbacks.append(evaluate)
    if settings.get("enable_checkpointing") is not False:
        callbacks.append(
            ModelCheckpoint(
                folder / "checkpoints",
                filename="last",
                every_n_train_steps=checkpoint_every,
                enable_version_counter=False,
            )
        )
    if settings.get("logger") in (None, True):
        key = "WANDB_API_KEY" in os.environ or (Path.home() / ".netrc").exists()
        offline = not key and "WANDB_MODE" not in os.environ
        if offline:
            os.environ.setdefault("WANDB_SILENT", "true")  # online its lines name the run's page
        online = WandbLogger(
            project="fairanon", name=f"{folder.parent.name}-{folder.name}", save_dir=folder, offline=offline
        )
        online._wandb_init.pop("anonymous", None)  # Lightning still passes it, W&B warns about it
        settings["logger"] = [_csv_logger(folder, checkpoint), online]
    return Trainer(**settings, callbacks=callbacks)


def _fit(files: list[Path], words: list[str]) -> None:
    start = time.time()
    fresh = "--fresh" in words
    words = [word for word in words if word != "--fresh"]
    parsed = FairAnonCLI([*_as_options(files), *words])
    name = files[-1].stem if files and files[-1].parent == cli.EXPERIMENTS else _name_of(files, words)
    folder, checkpoint = _run_folder(name, parsed.text, fresh)
    _prepare_for(parsed)
    if (origin := parsed._get(parsed.config_init, "start_from")) is not None:
        _begin_with(parsed.model, origin)
    evaluate = parsed._get(parsed.config_init, "evaluate")
    every = parsed._get(parsed.config_init, "checkpoint_every")
    trainer = _build_trainer(parsed.trainer_settings, folder, checkpoint, evaluate, every)
    if isinstance(evaluate, Evaluate):
        evaluate.seconds["prepare"] = time.time() - start
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            logger.log_hyperparams({"config": parsed.text})
    trainer.fit(parsed.model, datamodule=parsed.datamodule, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero and not trainer.interrupted:
        if not (folder / "checkpoints" / "last.ckpt").exists():  # nothing was trained, only put together
            trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
        if isinstance(parsed.model, DiffusionMethod):
            export_weights(parsed.model.backbone, folder, name)
        _finish(folder)


def _name_of(files: list[Path], words: list[str]) -> str:
    """The experiment's name: the last configuration file outside overlays/."""
    paths = list(files)
    for flag, value in itertools.pairwise(words):
        if flag in ("-c", "--config"):
            paths.append(Path(value))
    named = [path.stem for path in paths if path.parent.name != "overlays" and not path.stem.startswith("_")]
    return named[-1] if named else "run"


_runs: dict[str, Path] = {}
"""Folders of the runs that an experiment builds on, by name; what ``${run:NAME}`` in its file stands for."""

OmegaConf.register_resolver("run", lambda name: str(_runs.get(name, Path("runs") / name / "latest")), replace=True)


def _train_stages(files: Sequence[Path], words: list[str]) -> None:
    """Train the experiments that this one's files name as ``${run:NAME}``, unless their runs are finished.

    The seeds go to all of them, every other setting to those of the same family (an ancestor in common).
    """
    names = dict.fromkeys(name for file in files for name in re.findall(r"\$\{run:(\w+)\}", file.read_text()))
    seeds = [
        word
        for flag, value in itertools.pairwise(words)
        if flag in ("--seed_everything", "--model.seed", "--data.seed")
        for word in (flag, value)
    ]
    for name in names:
        own, _ = cli.experiment_files([name], "train")
        family = own[1] in files  # own[0] is what every experiment shares
        given = [name, *([word for word in words if word != "--fresh"] if family else seeds)]
        stage_files, overrides = cli.experiment_files(given, "train")
        _train_stages(stage_files, overrides)
        text = FairAnonCLI([*_as_options(stage_files), *overrides], build=False).text
        if _find_run(name, text, finished=True) is None:
            print(f"first {name}", flush=True)
            subprocess.run([sys.executable, "-m", "fairanon", "train", *given], check=False)
        folder = _find_run(name, text, finished=True)
        if folder is None:
            raise cli.UserError(f"{name} did not finish; the same command goes on from there.")
        _runs[name] = folder.resolve()


def _begin_with(model: LightningModule, start: StartFrom) -> None:
    """Load a finished run's trained weights, and add another run's adapters."""
    if not isinstance(model, DiffusionMethod):
        raise cli.UserError(f"start_from: {type(model).__name__} has no diffusion backbone.")
    _load_trained(Path(start.run), model)
    if start.lora is not None:
        model.backbone.add(start.lora, start.weight)


def _load_trained(run: Path, model: DiffusionMethod) -> None:
    checkpoint = run / "checkpoints" / "last.ckpt"
    if not checkpoint.exists():
        raise cli.UserError(f"{checkpoint} is missing: the run has not finished; `make train` goes on with it.")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model.on_load_checkpoint(state)
    model.load_state_dict(state["state_dict"], strict=False)


def _prepare_for(parsed: FairAnonCLI) -> None:
    """Make every folder of the data for which a preparation of the same name exists; finished pieces are kept."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    for folder in _folders(parsed._get(parsed.config, "data")):
        recipe = cli.EXPERIMENTS / "prepare" / f"{Path(folder).name}.yaml"
        if recipe.exists():
            _prepare([str(recipe), "--prepare.init_args.folder", folder])


def _folders(settings: Any) -> Iterator[str]:
    """Values of the key ``folder`` at any depth of a configuration."""
    if isinstance(settings, list):
        for value in settings:
            yield from _folders(value)
    elif isinstance(settings, (dict, jsonargparse.Namespace)):
        for key, value in vars(settings).items() if isinstance(settings, jsonargparse.Namespace) else settings.items():
            if key == "folder" and isinstance(value, str):
                yield value
            else:
                yield from _folders(value)


def _prepare(words: list[str]) -> None:
    """``NAME | FILE [IMAGES] [settings]``: a preparation by its name, or a file of one's own."""
    folder = cli.EXPERIMENTS / "prepare"
    path = Path(words[0] if words else "")
    if words and (folder / f"{words[0]}.yaml").exists():
        path = folder / f"{words[0]}.yaml"
    if not path.is_file():
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
    settings = parser.parse_args(["--config", str(path), *rest])
    parser.instantiate_classes(settings).prepare.run()


def _trained(words: list[str], verb: str) -> tuple[Path, FairAnonCLI, DiffusionMethod]:
    """A finished run's folder, its configuration with further settings, and its model."""
    if not words or not (Path(words[0]) / "config.yaml").exists():
        given = words[0] if words else "nothing"
        raise cli.UserError(f"`fairanon {verb}` needs a run's folder with a config.yaml, got {given}.")
    source = Path(words[0]).resolve()
    parsed = FairAnonCLI(["--config", str(source / "config.yaml"), *words[1:]])
    if not isinstance(parsed.model, DiffusionMethod):
        raise cli.UserError(f"{source} has no diffusion backbone.")
    _load_trained(source, parsed.model)
    return source, parsed, parsed.model


def _evaluate(words: list[str]) -> None:
    source, parsed, model = _trained(words, "evaluate")
    evaluate = parsed._get(parsed.config_init, "evaluate")
    if not isinstance(evaluate, Evaluate):
        raise cli.UserError(f"{source} has no `evaluate` in its configuration; add it to the experiment.")
    folder = source / f"evaluate-{evaluate.images}"
    folder.mkdir(exist_ok=True)
    trainer = Trainer(default_root_dir=folder, logger=False, enable_checkpointing=False)
    model.to(trainer.strategy.root_device)
    evaluate.finish(trainer, model, parsed.datamodule, source.parent.name)


def _export(words: list[str]) -> None:
    """``RUN FOLDER [--weight W]``: a pipeline with the adapters fused."""
    if len(words) not in (2, 4) or (words[2:3] or ["--weight"]) != ["--weight"]:
        raise cli.UserError(
            "`fairanon export` needs a run and a new folder: `fairanon export RUN FOLDER [--weight 0.3]`."
        )
    try:
        weight = float(words[3]) if words[2:] else 1.0
    except ValueError:
        raise cli.UserError(f"--weight must be a number, got {words[3]}.") from None
    source, _, model = _trained([words[0]], "export")
    print(export_pipeline(model.backbone, Path(words[1]), source.parent.name, weight))


def _table(words: list[str]) -> None:
    """Every experiment with every seed; a finished cell is a finished run, so a stopped table goes on."""
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    rest = words[len(names) :]
    if not names or rest[:1] != ["--seeds"] or not re.fullmatch(r"\d+(,\d+)*", "".join(rest[1:2])):
        raise cli.UserError("`fairanon table` needs experiments and seeds: `fairanon table NAME ... --seeds 11,12,13`.")
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for name, seed in itertools.product(names, rest[1].split(",")):
        given = [name, "--seed_everything", seed, "--model.seed", seed, "--data.seed", seed, *rest[2:]]
        files, overrides = cli.experiment_files(given, "table")
        _train_stages(files, overrides)
        text = FairAnonCLI([*_as_options(files), *overrides], build=False).text
        if _find_run(name, text, finished=True) is None:
            print(f"{name}, seed {seed}", flush=True)
            subprocess.run([sys.executable, "-m", "fairanon", "train", *given], check=False)
        folder = _find_run(name, text, finished=True)
        if folder is None:
            raise cli.UserError(f"{name} with seed {seed} did not finish; the same command goes on from there.")
        rows[name].append(json.loads((folder / "metrics.json").read_text()))
    summary = summarise(rows)
    path = Path("runs") / f"table-{names[0]}.json"
    write_json(path, {"command": " ".join(["fairanon table", *words]), "rows": summary})
    count = next(iter(rows.values()))[0]["images_per_prompt"]
    print(compare(summary))
    seeds = rest[1].count(",") + 1
    print(f"\n{count} images a prompt; mean [range] over {seeds} seeds. The same for scripts: {path}")


def _report(words: list[str]) -> None:
    if not words or not (Path(words[0]) / "metrics.json").exists():
        raise cli.UserError(f"`fairanon report` needs a finished run's folder, got {words[0] if words else 'nothing'}.")
    folder = Path(words[0])
    print_table(json.loads((folder / "metrics.json").read_text()))
    print(f"report: {write_report(folder)}")
