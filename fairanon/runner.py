"""What the verbs do, and how a user's mistake becomes a sentence."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import re
import sys
import tempfile
import traceback
import warnings
from argparse import ArgumentError
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from lightning.pytorch import Trainer
from safetensors import safe_open

from fairanon import cli
from fairanon.backbones.hub import ASSETS as SHIPPED
from fairanon.callbacks.evaluate import Evaluate
from fairanon.experiment import FairAnonCLI, as_options, sentence
from fairanon.files import read_json, write_json, write_text
from fairanon.methods.base import DiffusionMethod
from fairanon.rehearsal import refuse_what_is_missing, rehearse
from fairanon.report import compare, print_table, summarise, write_report
from fairanon.runs import runs_root
from fairanon.training import EXPECTED, fit, load_trained, prepare, recipe_of, train_stages, trained


def run_verb(verb: str, files: list[Path], words: list[str]) -> int:
    """Run one verb and turn a user's mistake into one sentence; returns the exit code."""
    logging.getLogger("fairanon").setLevel(logging.INFO)
    logging.basicConfig(format="%(message)s")
    _hide_what_nobody_can_act_on()
    try:
        if verb == "config":
            print(FairAnonCLI([*as_options(files), *words], build=False).text, end="")
        elif verb in ("train", "fit"):
            if os.environ.get("LOCAL_RANK", "0") == "0":
                refuse_what_is_missing(files, words)
            train_stages(files, words)
            fit(files, words)
        elif verb == "rehearse":
            rehearse(files, words)
        elif verb == "prepare":
            prepare(words)
        elif verb == "evaluate":
            _evaluate(words)
        elif verb == "table":
            _table(words)
        elif verb == "export":
            _export(words)
        else:
            _report(words)
    except (ArgumentError, jsonargparse.ArgumentError) as error:
        print(f"fairanon: {sentence(str(error))}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        said = str(error).partition(". ")[0]
        print(
            f"fairanon: the GPU's memory is too small ({said}); docs/performance.md says what takes less.",
            file=sys.stderr,
        )
        return 1
    except Exception as error:
        if os.environ.get("FAIRANON_DEBUG"):
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            said = f"the disk is full ({error.filename or runs_root()}); make room, the same command goes on."
        else:
            said = sentence(str(error)) if isinstance(error, EXPECTED) else _unforeseen(error)
        print(f"fairanon: {said}", file=sys.stderr)
        return 1
    return 0


def _unforeseen(error: Exception) -> str:
    """What is said of an error that nobody foresaw: its traceback goes to a file."""
    text = "".join(traceback.format_exception(error))
    for folder in (runs_root() / "errors", Path(tempfile.gettempdir())):
        with suppress(OSError):
            path = folder / f"fairanon-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.txt"
            write_text(path, text)
            return f"{type(error).__name__}: {sentence(str(error))} (a bug of fairanon's; {path} has the traceback)"
    return (
        f"{type(error).__name__}: {sentence(str(error))} (a bug of fairanon's; FAIRANON_DEBUG=1 prints the traceback)"
    )


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
        "You defined a `validation_step` but have no `val_dataloader`",
        "You're resuming from a checkpoint that ended before the epoch",  # `StepSampler` begins where it stood
    ):
        warnings.filterwarnings("ignore", message=message)


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
    load_trained(source, parsed.model)
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
    return runs_root() / name / "shipped", parsed, parsed.model


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
    """Every experiment with every seed; a finished cell is a finished run, so a stopped table goes on.

    With ``--cells FOLDER`` the numbers of finished cells are kept there, and those of the same recipe are not trained again
    on another machine either.
    """
    kept = None
    if "--cells" in words[:-1]:
        at = words.index("--cells")
        kept, words = Path(words[at + 1]), [*words[:at], *words[at + 2 :]]
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    rest = words[len(names) :]
    if not names or rest[:1] != ["--seeds"] or not re.fullmatch(r"\d+(,\d+)*", "".join(rest[1:2])):
        raise cli.UserError("`fairanon table` needs experiments and seeds: `fairanon table NAME ... --seeds 11,12,13`.")
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for name, seed in itertools.product(names, rest[1].split(",")):
        given = [name, "--seed_everything", seed, "--model.seed", seed, "--data.seed", seed, *rest[2:]]
        files, overrides = cli.experiment_files(given, "table")
        cell = None if kept is None else kept / f"{name}-{seed}.json"
        recipe = recipe_of(files, overrides)
        if cell is not None and cell.exists() and (known := read_json(cell, "--cells"))["recipe"] == recipe:
            rows[name].append(known["metrics"])
            continue
        folder = trained(name, given, files, overrides, f"{name}, seed {seed}")
        rows[name].append(read_json(folder / "metrics.json", "table"))
        if cell is not None:
            cell.parent.mkdir(parents=True, exist_ok=True)
            write_json(cell, {"recipe": recipe, "metrics": rows[name][-1]})
    summary = summarise(rows)
    path = runs_root() / f"table-{names[0]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)  # there may be nothing but kept cells
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
    print_table(read_json(folder / "metrics.json", "report"))
    print(f"report: {write_report(folder)}")
