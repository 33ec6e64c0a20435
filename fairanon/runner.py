"""What the verbs do, and how a user's mistake becomes a sentence."""

from __future__ import annotations

import itertools
import json
import logging
import os
import pkgutil
import re
import subprocess
import sys
import time
import warnings
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from omegaconf import OmegaConf
from safetensors import safe_open

from fairanon import cli
from fairanon.backbones.hub import ASSETS as SHIPPED
from fairanon.callbacks.evaluate import Evaluate
from fairanon.experiment import FairAnonCLI, StartFrom, as_options, build_trainer
from fairanon.methods.base import DiffusionMethod, NonFiniteLossError
from fairanon.prepare.base import Preparation, mark_prepared, prepared_by, recipe_key, write_json
from fairanon.report import compare, print_table, summarise, write_report
from fairanon.runs import find_run, finish, run_folder

_EXPECTED = (ValueError, FileNotFoundError, NonFiniteLossError, cli.UserError, OSError)
"""Errors whose message is written for the user; anything else is a bug and keeps its traceback."""


def run_verb(verb: str, files: list[Path], words: list[str]) -> int:
    """Run one verb and turn a user's mistake into one sentence; returns the exit code."""
    logging.getLogger("fairanon").setLevel(logging.INFO)
    logging.basicConfig(format="%(message)s")
    _hide_what_nobody_can_act_on()
    try:
        if verb == "config":
            print(FairAnonCLI([*as_options(files), *words], build=False).text, end="")
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
    ):
        warnings.filterwarnings("ignore", message=message)


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


def _fit(files: list[Path], words: list[str]) -> None:
    start = time.time()
    fresh = "--fresh" in words
    words = [word for word in words if word != "--fresh"]
    parsed = FairAnonCLI([*as_options(files), *words])
    parsed.check_precision()
    name = files[-1].stem if files and files[-1].parent == cli.EXPERIMENTS else _name_of(files, words)
    evaluate = parsed._get(parsed.config_init, "evaluate")
    if isinstance(evaluate, Evaluate):
        evaluate.check(evaluate.method(parsed.model))
    folder, checkpoint = run_folder(name, parsed.text, fresh)
    _prepare_for(parsed)
    if (origin := parsed._get(parsed.config_init, "start_from")) is not None:
        _begin_with(parsed.model, origin)
    steps, minutes = (parsed._get(parsed.config_init, f"checkpoint_{unit}") for unit in ("every", "minutes"))
    every = timedelta(minutes=minutes) if steps is None else steps
    trainer = build_trainer(parsed.trainer_settings, folder, checkpoint, evaluate, every)
    if isinstance(evaluate, Evaluate):
        evaluate.seconds["prepare"] = time.time() - start
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            logger.log_hyperparams({"config": parsed.text})
    trainer.fit(parsed.model, datamodule=parsed.datamodule, ckpt_path=checkpoint, weights_only=True)
    if not trainer.interrupted and trainer.global_step == 0:  # nothing was trained, only put together
        trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")  # on every rank: it is a collective call
    if trainer.is_global_zero and not trainer.interrupted:
        if isinstance(parsed.model, DiffusionMethod):
            parsed.model.export_weights(folder, name)
        finish(folder)


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

    The seeds and overlays go to all of them, every other setting to those of the same family (an ancestor in common).
    """
    overlays = [word for file in files if file.parent.name == "overlays" for word in ("--overlay", file.stem)]
    names = dict.fromkeys(name for file in files for name in re.findall(r"\$\{run:(\w+)\}", file.read_text()))
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
        _train_stages(stage_files, overrides)
        text = FairAnonCLI([*as_options(stage_files), *overrides], build=False).text
        if find_run(name, text, finished=True) is None:
            print(f"first {name}", flush=True)
            subprocess.run([sys.executable, "-m", "fairanon", "train", *given], check=False)
        folder = find_run(name, text, finished=True)
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
    """Make those folders of the data that are missing and that a preparation of ours makes; a finished one stays."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    device = ["--device", "cpu"] if parsed.config_init["trainer"]["accelerator"] == "cpu" else []
    for folder in dict.fromkeys(_folders([parsed._get(parsed.config, "data"), parsed._get(parsed.config, "evaluate")])):
        recipe = cli.EXPERIMENTS / "prepare" / f"{Path(folder).name}.yaml"
        if recipe.exists() and Path(_preparation([str(recipe)])[1].prepare.init_args.folder) == Path(folder):
            _prepare([str(recipe), *device], keep=True)


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


def _prepare(words: list[str], keep: bool = False) -> None:
    """Run a preparation unless this very one is finished.

    Args:
        words: See `_preparation`.
        keep: Whatever is finished stays, by whichever recipe it was made.
    """
    parser, settings = _preparation(words)
    given = settings.prepare
    folder, kind = Path(given.init_args.folder), pkgutil.resolve_name(given.class_path)
    recipe = recipe_key(given.as_dict())
    same = prepared_by(folder, recipe)
    if same or (keep and (folder / kind.result).exists()):
        if same is False:
            print(f"{folder} was prepared by another recipe and stays; `fairanon prepare {folder.name}` makes it anew")
        elif not keep:
            print(f"{folder} is prepared")
        return
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.instantiate_classes(settings).prepare.run(device)
    mark_prepared(folder, recipe)


def _preparation(words: list[str]) -> tuple[jsonargparse.ArgumentParser, jsonargparse.Namespace]:
    """Parser and settings of ``NAME | FILE [IMAGES] [--device D] [--KEY VALUE ...]``: by its name, or a file of one's own."""
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
    parser.add_argument("--device", type=str, default="auto", help="Where models work; auto is a GPU if there is one.")
    return parser, parser.parse_args(["--config", str(path), *rest])


def _trained(words: list[str], verb: str) -> tuple[Path, FairAnonCLI, DiffusionMethod]:
    """A finished run's folder, its configuration with further settings, and its model."""
    if not words or not (Path(words[0]) / "config.yaml").exists():
        given = words[0] if words else "nothing"
        name = Path(given).parent.name
        if Path(given).name == "latest" and (SHIPPED / name / "trained.safetensors").exists():
            return _shipped(name, words[1:])
        raise cli.UserError(f"`fairanon {verb}` needs a run's folder with a config.yaml, got {given}.")
    source = Path(words[0]).resolve()
    parsed = FairAnonCLI(["--config", str(source / "config.yaml"), *words[1:]])
    if not isinstance(parsed.model, DiffusionMethod):
        raise cli.UserError(f"{source} has no diffusion backbone.")
    _load_trained(source, parsed.model)
    return source, parsed, parsed.model


def _shipped(name: str, words: list[str]) -> tuple[Path, FairAnonCLI, DiffusionMethod]:
    """The same for the weights that come with fairanon; `fairanon.assets` says how they were trained."""
    print(f"there is no run of {name} yet: these are the weights that come with fairanon")
    files, overrides = cli.experiment_files([name, *words], "evaluate")
    parsed = FairAnonCLI([*as_options(files), *overrides])
    assert isinstance(parsed.model, DiffusionMethod)
    with safe_open(SHIPPED / name / "trained.safetensors", "pt") as file:
        state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118  (not a dictionary)
        parsed.model.on_load_checkpoint({"state_dict": state, **file.metadata()})
    parsed.model.load_state_dict(state, strict=False)
    return Path("runs") / name / "shipped", parsed, parsed.model


def _evaluate(words: list[str]) -> None:
    source, parsed, model = _trained(words, "evaluate")
    evaluate = parsed._get(parsed.config_init, "evaluate")
    if not isinstance(evaluate, Evaluate):
        raise cli.UserError(f"{source} has no `evaluate` in its configuration; add it to the experiment.")
    evaluate.stages = {}  # those of other runs were measured with other settings
    given = [part for word in words[1:] for part in (word.split("=", 1) if word.startswith("--") else [word])]
    named = [word.rpartition(".")[2] if word.startswith("--") else word for word in given]
    label = "-".join(re.sub(r"[^\w+.-]", "_", value.strip("-")) for value in named) or str(evaluate.images)
    folder = source / f"evaluate-{label}"
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(default_root_dir=folder, logger=False, enable_checkpointing=False, devices=1)
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
    print(model.export_pipeline(Path(words[1]), source.parent.name, weight))


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
        text = FairAnonCLI([*as_options(files), *overrides], build=False).text
        if find_run(name, text, finished=True) is None:
            print(f"{name}, seed {seed}", flush=True)
            subprocess.run([sys.executable, "-m", "fairanon", "train", *given], check=False)
        folder = find_run(name, text, finished=True)
        if folder is None:
            raise cli.UserError(f"{name} with seed {seed} did not finish; the same command goes on from there.")
        rows[name].append(json.loads((folder / "metrics.json").read_text()))
    summary = summarise(rows)
    path = Path("runs") / f"table-{names[0]}.json"
    write_json(path, {"command": " ".join(["fairanon table", *words]), "rows": summary})
    first = next(iter(rows.values()))[0]
    print(compare(summary))
    print(
        f"\n{first['images']} images, {first['images_per_prompt']} a prompt; mean [range] over {rest[1].count(',') + 1} "
        f"seeds, of changes the outermost ends of the seeds' paired 95 % intervals. The same for scripts: {path}"
    )


def _report(words: list[str]) -> None:
    if not words or not (Path(words[0]) / "metrics.json").exists():
        raise cli.UserError(f"`fairanon report` needs a finished run's folder, got {words[0] if words else 'nothing'}.")
    folder = Path(words[0])
    print_table(json.loads((folder / "metrics.json").read_text()))
    print(f"report: {write_report(folder)}")
