"""What the verbs do, and how a user's mistake becomes a sentence."""

from __future__ import annotations

import itertools
import logging
import os
import re
import warnings
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from fairanon.assets.world import world_version
from fairanon.callbacks.evaluate import Evaluate
from fairanon.embedded import embedded
from fairanon.evaluation import Ranks
from fairanon.experiments import UserError, preparation_file, resolve
from fairanon.failures import in_a_sentence
from fairanon.files import read_json, write_json
from fairanon.methods.base import DiffusionMethod
from fairanon.prepare.run import prepare
from fairanon.rehearsal import refuse_what_is_missing, rehearse
from fairanon.report import compare, print_table, summarise, write_report
from fairanon.runs import runs_root
from fairanon.settings import FairAnonCLI, device_of
from fairanon.training import EXPECTED, fit, load_trained, train_stages, trained


def run(given: Namespace) -> int:
    """Run one verb and turn a user's mistake into one sentence.

    Args:
        given: What `fairanon.cli` read from the command line.

    Returns:
        The exit code.
    """
    logging.getLogger("fairanon").setLevel(logging.INFO)
    logging.basicConfig(format="%(message)s")
    _hide_what_nobody_can_act_on()
    return in_a_sentence(lambda: _run(given), EXPECTED)


def _run(given: Namespace) -> None:
    if given.verb == "config" or getattr(given, "print_config", False):
        print(FairAnonCLI(given.experiment.words(), build=False).text, end="")
    else:
        _VERBS[given.verb](given)


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


def _train(given: Namespace) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        refuse_what_is_missing(given.experiment)
    train_stages(given.experiment)
    fit(given.experiment, given.fresh)


def _prepare(given: Namespace) -> None:
    prepare(preparation_file(given.name), given.images, given.settings, given.device)


def finished_run(folder: Path, verb: str, settings: Sequence[str] = ()) -> tuple[Path, FairAnonCLI, DiffusionMethod]:
    """A finished run's folder, its configuration with further settings, and its model."""
    if not (folder / "config.yaml").exists():
        name = folder.parent.name
        if folder.name == "latest" and embedded(name, "trained.safetensors").exists():
            return _shipped(name, settings)
        latest = runs_root() / folder.name / "latest"
        hint = f"; {latest} is one" if (latest / "config.yaml").exists() else "; `fairanon train NAME` makes one"
        raise UserError(f"`fairanon {verb}` needs a run's folder with a config.yaml, and {folder} is none{hint}.")
    source = folder.resolve()
    parsed = FairAnonCLI(["--config", str(source / "config.yaml"), *settings])
    if not isinstance(parsed.model, DiffusionMethod):
        raise UserError(f"{source} has no diffusion backbone.")
    if parsed.model.trains:
        load_trained(source, parsed.model)
    return source, parsed, parsed.model


def _shipped(name: str, settings: Sequence[str]) -> tuple[Path, FairAnonCLI, DiffusionMethod]:
    """The same for the weights that come with fairanon; `fairanon.assets` says how they were trained."""
    print(f"there is no run of {name} yet: these are the weights that come with fairanon")
    parsed = FairAnonCLI(resolve(name, settings=settings).words())
    assert isinstance(parsed.model, DiffusionMethod)
    with safe_open(embedded(name, "trained.safetensors"), "pt") as file:
        state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118  (not a dictionary)
        parsed.model.on_load_checkpoint({"state_dict": state, **file.metadata()})
    parsed.model.load_state_dict(state, strict=False)
    return runs_root() / name / "shipped", parsed, parsed.model


def _measure(given: Namespace) -> None:
    source, parsed, model = finished_run(Path(given.folder), "measure", given.settings)
    evaluate = parsed.config_init.get("evaluate")
    if not isinstance(evaluate, Evaluate):
        raise UserError(f"{source} has no `evaluate` in its configuration; add it to the experiment.")
    evaluate.stages = {}  # those of other runs were measured with other settings
    changed = [re.sub(r"[^\w+.=-]", "_", word.removeprefix("--").removeprefix("evaluate.")) for word in given.settings]
    folder = source / f"measure-{'-'.join(changed) or evaluate.engine.images}".replace("=", "-")[:120]
    folder.mkdir(parents=True, exist_ok=True)
    model.to(device_of(parsed.config))
    evaluate.finish(model, parsed.datamodule, folder, source.parent.name, Ranks())


def _export(given: Namespace) -> None:
    source, _, model = finished_run(Path(given.folder), "export")
    print(model.export_pipeline(Path(given.to), source.parent.name, given.weight))


def _table(given: Namespace) -> None:
    """Every experiment with every seed; a finished cell is a finished run, so a stopped table goes on.

    With ``--cells FOLDER`` the numbers of finished cells are kept there, with the recipe, the embedded world and the code that made
    them; those of the same recipe and world are not trained again on another machine either.
    """
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in given.names}
    for name, seed in itertools.product(given.names, given.seeds):
        experiment = resolve(name, given.overlay, settings=[*given.settings, f"--seed={seed}"])
        cell = None if given.cells is None else Path(given.cells) / f"{name}-{seed}.json"
        made = {"recipe": experiment.recipe(), "world": world_version()}
        if cell is not None and cell.exists() and made.items() <= (known := read_json(cell, "--cells")).items():
            rows[name].append(known["metrics"])
            continue
        folder = trained(experiment, f"{name}, seed {seed}")
        rows[name].append(read_json(folder / "metrics.json", "table"))
        if cell is not None:
            write_json(cell, made | {"metrics": rows[name][-1]})
    summary = summarise(rows)
    path = runs_root() / f"table-{given.names[0]}.json"
    words = [*given.names, "--seeds", ",".join(map(str, given.seeds)), *(f"--overlay {name}" for name in given.overlay)]
    made_by = {"command": " ".join(["fairanon table", *words, *given.settings]), "world": world_version()}
    made_by["code"] = ", ".join(sorted({cell["versions"]["code"] for row in rows.values() for cell in row}))
    write_json(path, {**made_by, "rows": summary})
    first = next(iter(rows.values()))[0]
    print(compare(summary))
    print(
        f"\n{first['images']} images, {first['images_per_prompt']} a prompt; mean [range] over {len(given.seeds)} "
        f"seeds, of changes the outermost ends of the seeds' paired 95 % intervals. The same for scripts: {path}"
    )


def _report(given: Namespace) -> None:
    folder = Path(given.folder)
    if not (folder / "metrics.json").exists():
        raise UserError(f"`fairanon report` needs a finished run's folder, got {folder}.")
    print_table(read_json(folder / "metrics.json", "report"))
    print(f"report: {write_report(folder)}")


_VERBS = {
    "train": _train, "fit": _train, "rehearse": lambda given: rehearse(given.experiment), "measure": _measure,
    "table": _table, "export": _export, "report": _report, "prepare": _prepare,
}  # fmt: skip
