"""One training from configuration to a finished run: what it builds on, what it prepares, what it leaves."""

from __future__ import annotations

import logging
import os
import pkgutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Protocol, runtime_checkable

import wandb
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from torch.nn.attention import SDPBackend, sdpa_kernel

from fairanon.backbones.base import cut_off
from fairanon.callbacks.dashboard import Dashboard, Described
from fairanon.callbacks.evaluate import Evaluate
from fairanon.config.experiments import Experiment, Stopped, UserError, runs_here
from fairanon.config.ranks import ask, first_process, started_together, tell
from fairanon.config.resolvers import STAGES, run_of
from fairanon.config.runs import bring, find_run, finish, run_folder, versions
from fairanon.config.settings import FairAnonCLI, device_of
from fairanon.evaluation import Ranks
from fairanon.files import write_json
from fairanon.methods.base import DiffusionMethod
from fairanon.methods.load import begin_with, read_checkpoint
from fairanon.prepare.run import preparations, prepare_for, prepared
from fairanon.progress import HIDDEN, Plan, shown
from fairanon.run.loggers import LOG, LOG_IMAGES
from fairanon.run.missing import refuse_what_is_missing
from fairanon.run.trainer import build_trainer

_log = logging.getLogger(__name__)
Shorten = Callable[[FairAnonCLI], None]


@runtime_checkable
class HasWeights(Protocol):
    """A module that leaves weights for others."""

    def export_weights(self, folder: Path, name: str) -> Path:
        """Write them; ``name`` is the experiment's."""
        ...


@runtime_checkable
class HasCaptions(Protocol):
    """A data module that knows the captions of its images once it is set up."""

    def setup(self, stage: str) -> None:
        """Read what there is; a second time it does nothing new."""
        ...

    def captions(self) -> Sequence[str]:
        """All or many of them."""
        ...


def train(experiment: Experiment, fresh: bool = False, log: str = "wandb", log_images: bool = False) -> Path:
    """Everything, from what an experiment builds on to its finished run.

    Args:
        experiment: Which.
        fresh: Begin a new run, even if one is unfinished.
        log: Where numbers go besides metrics.csv, see `TrainRequest`.
        log_images: See `Described`.

    Returns:
        The run's folder.

    Raises:
        UserError: Something is missing.
    """
    STAGES.clear()
    with _logging({LOG: log, LOG_IMAGES: str(int(log_images))}):
        if first_process():
            refuse_what_is_missing(experiment)
        train_stages(experiment)
        return fit(experiment, fresh)


@contextmanager
def _logging(wanted: dict[str, str]) -> Iterator[None]:
    """Inside, this process and those that it starts log as somebody asked for."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ |= wanted
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def fit(experiment: Experiment, fresh: bool = False, shorten: Shorten | None = None) -> Path:
    """Prepare, measure, train, measure, export; an unfinished run is continued.

    Args:
        experiment: Which.
        fresh: Begin a new run, even if one is unfinished.
        shorten: What a rehearsal makes of the experiment, once it is built.

    Returns:
        The run's folder.
    """
    start = time.time()
    planned = FairAnonCLI(experiment.words(), build=False)
    planned.check_precision()
    ckpt_path = _given_checkpoint(planned)
    alone = shorten is None and first_process()
    if alone and shown():
        place = device_of(planned.config).type.upper()
        print(f"{experiment.name}, seed {planned.config.seed_everything}, on the {place}: {experiment.first_line}")
    plan = Plan(_parts(planned) if alone else {})
    plan.begin("prepare")
    prepare_for(planned.config)
    parsed = planned.build()
    evaluate = parsed.config_init.get("evaluate")
    if isinstance(evaluate, Evaluate):
        evaluate.check(evaluate.method(parsed.model))
    with run_folder(experiment.name, parsed.text, fresh) as (folder, checkpoint):
        if (origin := parsed.config_init.get("start_from")) is not None:
            begin_with(parsed.model, origin)
        if shorten is not None:
            shorten(parsed)
        if isinstance(parsed.model, DiffusionMethod) and not parsed.model.trains:
            _measure_alone(parsed, parsed.model, folder)
            return folder
        if first_process():
            _say_of_captions(parsed)
        every = parsed.config.checkpoint_every or timedelta(minutes=parsed.config.checkpoint_minutes)
        with _own_wandb_run():
            described = _described(experiment, parsed)
            trainer = build_trainer(parsed.trainer_settings, folder, checkpoint, evaluate, every, described)
            if isinstance(evaluate, Evaluate):
                evaluate.seconds["prepare"], evaluate.plan = time.time() - start, plan
            else:
                plan.begin("train")
            _train(trainer, parsed, checkpoint or ckpt_path, folder)
            if trainer.is_global_zero and not trainer.interrupted:
                if isinstance(parsed.model, HasWeights):
                    parsed.model.export_weights(folder, experiment.name)
                finish(folder)
                for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by a connector
                    if isinstance(callback, Dashboard):
                        callback.hand_over(trainer)
        plan.begin("")
    return folder


def _described(experiment: Experiment, parsed: FairAnonCLI) -> Described:
    """A run for those who look at many: what differs from its experiment, and what it is the same as but for seeds."""
    config = yaml.safe_load(parsed.text)
    changes = [word.rpartition(".")[2].replace("=", " ") for word in experiment.settings if word.startswith("--model.")]
    others = Experiment(
        experiment.name,
        experiment.files,
        experiment.overlays,
        tuple(word for word in experiment.settings if not word.partition("=")[0].endswith("seed")),
    )
    method = type(parsed.model).__name__
    world = "embedded world" if runs_here(experiment.name) else "real world"
    config["run"] = {
        "experiment": experiment.name,
        "method": method,
        "world": world,
        "recipe": experiment.recipe(),
        **versions(),
    }
    return Described(
        name=" · ".join([experiment.name, f"seed {config['seed_everything']}", *changes])[:120],
        group=f"{experiment.name}-{others.recipe()}",
        tags=(method, world, *experiment.overlays),
        notes=experiment.first_line,
        config=config,
        builds_on=tuple(run_of(name) for name in experiment.stages()),
        log_images=os.environ.get(LOG_IMAGES) == "1",
    )


def _parts(planned: FairAnonCLI) -> dict[str, str]:
    """What a training does, in words."""
    config, parts = planned.config, dict[str, str]()
    if not getattr(pkgutil.resolve_name(config.model.class_path), "trains", True):
        return {}  # a model that is measured as it is
    missing = [folder for folder, recipe in preparations(config).items() if not prepared(folder, recipe)]
    if missing:
        parts["prepare"] = f"make {', '.join(missing)}"
    if config.evaluate is not None:
        parts["before"] = "measure the model as it is"
    steps = config.trainer.max_steps
    parts["train"] = f"train {steps} steps" if steps > 0 else "train"
    if config.evaluate is not None:
        parts["after"] = "measure it again: about as long as before"
    return parts


@contextmanager
def _own_wandb_run() -> Iterator[None]:
    """A W&B run that began inside ends here, however that went: another training of this process is another run there."""
    before = wandb.run
    try:
        yield
    finally:
        if wandb.run is not None and wandb.run is not before:
            wandb.run.finish(int(sys.exc_info()[0] is not None))


def _say_of_captions(parsed: FairAnonCLI) -> None:
    """Captions that teach less than their authors meant: longer than the text encoder reads, or empty."""
    model, data = parsed.model, parsed.datamodule
    tokenizer = getattr(model.backbone, "tokenizer", None) if isinstance(model, DiffusionMethod) else None
    if tokenizer is None or not isinstance(data, HasCaptions):
        return
    data.setup("fit")
    captions = list(data.captions())
    empty = sum(not text.strip() for text in captions)
    if empty:
        _log.warning("data: %d of %d captions are empty", empty, len(captions))
    lost = [text for text in cut_off(tokenizer, captions) if text]
    if lost:
        _log.warning(
            "data: %d of %d captions are longer than the %d tokens that the text encoder reads; what stands behind is cut off, "
            'for example "... %s"',
            len(lost), len(captions), tokenizer.model_max_length, lost[0][-60:],
        )  # fmt: skip


def _measure_alone(parsed: FairAnonCLI, model: DiffusionMethod, folder: Path) -> None:
    """A run of a model that is measured as it is."""
    evaluate = parsed.config_init.get("evaluate")
    if not isinstance(evaluate, Evaluate):
        raise UserError(f"evaluate: {type(model).__name__} is measured alone; say how.")
    if parsed.config.trainer.devices not in (1, "1", "auto"):
        raise UserError("trainer.devices: a model that is measured alone is measured on one device; leave it at 1.")
    model.to(device_of(parsed.config))
    write_json(folder / "versions.json", versions())
    evaluate.finish(model, parsed.datamodule, folder, folder.parent.name, Ranks())
    finish(folder)


def _train(trainer: Trainer, parsed: FairAnonCLI, checkpoint: Path | None, folder: Path) -> None:
    last = folder / "checkpoints" / "last.ckpt"
    try:
        with _attention(trainer):
            trainer.fit(parsed.model, datamodule=parsed.datamodule, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # Lightning's answer to an interrupt
        goes_on = f"step {read_checkpoint(last)['global_step']}" if last.exists() else "the beginning"
        raise Stopped(f"stopped at step {trainer.global_step}; the same command goes on from {goes_on}") from None


def _given_checkpoint(parsed: FairAnonCLI) -> Path | None:
    ckpt_path, steps = parsed.config.ckpt_path, parsed.config.trainer.max_steps
    if ckpt_path is None:
        return None
    if not Path(ckpt_path).is_file():
        raise UserError(f"ckpt_path: {ckpt_path} is missing; give a run's checkpoints/last.ckpt, or leave it out.")
    if 0 <= steps <= (reached := read_checkpoint(Path(ckpt_path))["global_step"]):
        raise UserError(
            f"ckpt_path: {ckpt_path} is of step {reached}, trainer.max_steps is {steps}; raise it to go on."
        )
    return Path(ckpt_path)


def _attention(trainer: Trainer) -> AbstractContextManager[None]:
    """The plain attention kernel on a CPU in bfloat16: the flash kernel's backward pass is slow there.

    `benchmarks/cpu_precision.py` measures it.
    """
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.precision == "bf16-mixed":
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def train_stages(experiment: Experiment) -> None:
    """Train the experiments that this one builds on, unless their runs are finished."""
    for name in experiment.stages():
        STAGES[name] = trained(experiment.stage(name), name).resolve()


def trained(experiment: Experiment, label: str) -> Path:
    """The finished run of an experiment; trained first if there is none.

    Args:
        experiment: Which.
        label: Names the run where it is spoken of.

    Raises:
        UserError: the training stopped before its end.
    """
    train_stages(experiment)
    text = FairAnonCLI(experiment.words(), build=False).text
    if find_run(experiment.name, text, finished=True) is None:
        if started_together():
            raise UserError(
                f"{label} has no finished run: train what this experiment builds on first, `fairanon train {experiment.name}` "
                "with the same settings; processes that were started together train one experiment."
            )
        print(f"training {label}", flush=True)
        overlays = [word for name in experiment.overlays for word in ("--overlay", name)]
        loggers = [
            "--log",
            os.environ.get(LOG, "wandb"),
            *(["--log-images"] if os.environ.get(LOG_IMAGES) == "1" else []),
        ]
        _run([sys.executable, "-m", "fairanon", "train", experiment.name, *loggers, *overlays, *experiment.settings])
    folder = find_run(experiment.name, text, finished=True)
    if folder is None:
        raise UserError(f"{label} did not finish; the same command goes on from there.")
    if first_process():
        bring(folder)
        tell(f"{label} is there", "yes")
    elif started_together():
        ask(f"{label} is there")
    return folder


def _run(command: list[str]) -> None:
    """Run a program to its end; whoever stops this one stops that one, and hears what it says."""
    quiet = {} if shown() else {HIDDEN: "1"}
    with subprocess.Popen(command, env={**os.environ, **quiet}) as process:
        try:
            process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    if process.returncode in (130, 143):
        raise Stopped
