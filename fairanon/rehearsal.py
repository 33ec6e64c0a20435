"""A whole experiment with every count cut to its minimum: what is missing, what works, what the full run will take."""

from __future__ import annotations

import math
import os
import pkgutil
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from fairanon.backbones import Backbone, hub
from fairanon.callbacks.evaluate import Evaluate
from fairanon.evaluators import Judge
from fairanon.experiments import Experiment, UserError, locate
from fairanon.export import read_back
from fairanon.failures import sentence
from fairanon.footprint import GIB, build, footprint, outline
from fairanon.methods.base import DiffusionMethod
from fairanon.prepare import Preparation
from fairanon.prepare.run import preparation, preparations, prepared
from fairanon.runs import find_run, runs_root
from fairanon.settings import FairAnonCLI
from fairanon.training import EXPECTED, fit

STEPS = 3
"""Optimizer steps of a rehearsal; it is killed and resumed before the last one."""


# --- what is missing -------------------------------------------------------------------------------------


def lacking(config: jsonargparse.Namespace) -> list[str]:
    """Everything that an experiment needs and that is not there, a sentence each.

    Nothing is prepared and of models nothing but configurations is fetched; judges are built, and what of them is fetched
    when they are is fetched now.

    Args:
        config: Its resolved configuration.
    """
    unfinished = {folder: recipe for folder, recipe in preparations(config).items() if not prepared(folder, recipe)}
    said: list[str] = []
    built: list[Evaluate] = []
    for key in ("model", "data", "evaluate"):
        said += _lacks(config[key], key, set(unfinished), built)
    for recipe in unfinished.values():
        said += _lacks(preparation(recipe)[1].prepare, "prepare", set(), [])
    try:
        method = None if any(line.startswith("model.backbone.") for line in said) else outline(config)
        if method is not None:
            for evaluate in built:
                evaluate.check(method)
            said += _room(config, method)
    except EXPECTED as error:
        said.append(" ".join(sentence(str(error)).split()))
    return list(dict.fromkeys(said))


def _lacks(node: Any, key: str, unfinished: set[str], built: list[Evaluate]) -> list[str]:
    """What a node of a configuration lacks, with everything below it; what measures and lacks nothing joins ``built``."""
    if isinstance(node, (list, tuple)):
        return [line for value in node for line in _lacks(value, key, unfinished, built)]
    values = vars(node) if isinstance(node, jsonargparse.Namespace) else node
    if not isinstance(values, dict):
        return []
    if not isinstance(node, jsonargparse.Namespace) or "class_path" not in values:
        return [line for name, value in values.items() for line in _lacks(value, f"{key}.{name}", unfinished, built)]
    kind, given = pkgutil.resolve_name(values["class_path"]), values.get("init_args") or {}
    if not isinstance(kind, type) or issubclass(kind, (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)):
        return []
    if issubclass(kind, Backbone):
        return _model_lacks(given)
    if given.get("folder") in unfinished:
        return []  # a preparation will make it
    waits = any(f"{folder!r}" in repr(given) for folder in unfinished)
    if not waits and not issubclass(kind, (LightningModule, Preparation)):
        try:
            found = build(node, kind)
            on_disk = any(name in given for name in ("folder", "path", "source", "sources", "annotations"))
            for name in ("look", "records", "people", "rows") if on_disk else ():  # what is asked for first
                if hasattr(found, name):
                    getattr(found, name)()
                    break
            if isinstance(found, Evaluate):
                built.append(found)
            if not isinstance(found, LightningDataModule):
                return []
        except EXPECTED as error:
            said = " ".join(sentence(str(error)).split())
            if hasattr(kind, "records") or hasattr(kind, "people"):  # a source does not know where it was given
                said = f"{key}: {said}"
            below = _lacks(given, key, unfinished, built)
            return [*below, *(_alone(kind, given) if issubclass(kind, Judge) else [])] if below else [said]
    below = _lacks(given, key, unfinished, built)
    if issubclass(kind, Preparation):
        for name in ("images", "prompts"):
            if isinstance(given.get(name), str) and not locate(given[name]).exists():
                below.append(f"prepare.{name}: {given[name]} is missing; `fairanon prepare` reads it.")
    return below


def _alone(kind: type, given: Any) -> list[str]:
    """What a judge itself lacks, where those that it holds lack something."""
    own = {
        key: None if isinstance(value, jsonargparse.Namespace) and "class_path" in value else value
        for key, value in vars(given).items()
    }
    try:
        kind(**own)
    except EXPECTED as error:
        return [" ".join(str(error).split())]
    except (TypeError, AttributeError):  # it cannot be without them
        pass
    return []


def _model_lacks(given: Any) -> list[str]:
    said = []
    for key in ("model", "vae", "unet"):
        try:
            _to_fetch(given, key)
        except EXPECTED as error:
            said.append(str(error))
    for key in ("lora", "control"):
        start = (given.get(key) or {}).get("start_from")
        if start is not None and not Path(start).exists():
            said.append(f"model.backbone.{key}.start_from: {start} is missing; give a file or folder, or null.")
    return said


def _to_fetch(given: Any, key: str) -> int:
    """Bytes that a backbone's setting ("model", "vae" or "unet") would fetch."""
    if given.get(key) is None:
        return 0
    half = given.get("dtype") in ("bfloat16", "float16")
    beside = half and any(given.get(name) for name in ("lora", "control", "frozen"))
    parts: dict[str, bool] | None = {"unet": beside}
    if key == "vae":
        parts = None
    elif key == "model":
        parts = {
            "text_encoder": half and not given.get("train_text_encoder"),
            "text_encoder_2": half,
            "scheduler": False,
        }
        parts |= {"tokenizer": False, "tokenizer_2": False}
        parts |= {} if given.get("vae") else {"vae": half}
        parts |= {} if given.get("unet") else {"unet": beside}
    revision = given.get("revision") if key == "model" else None
    return hub.to_fetch(given[key], revision, f"model.backbone.{key}", parts)


def _room(config: jsonargparse.Namespace, method: DiffusionMethod) -> list[str]:
    """What the disk and the GPU are too small for."""
    given, said = config.model.init_args.backbone.init_args, []
    fetched = sum(_to_fetch(given, key) for key in ("model", "vae", "unet"))
    needed = footprint(config, method)
    every, steps = config.get("checkpoint_every"), config.trainer.max_steps
    once = every is not None and 0 <= steps < every  # otherwise the next one is written beside the last
    wanted = (1 if once else 2) * needed.checkpoint + needed.checkpoint // 3
    for what, place, size in (
        (f"a checkpoint{'' if once else ', the next one beside it'} and the trained weights take", runs_root(), wanted),
        ("the models that are to be fetched take", hub.cache(), fetched),
    ):
        root = next(folder for folder in (place.resolve(), *place.resolve().parents) if folder.exists())
        free = shutil.disk_usage(root).free
        if size > free:
            said.append(f"the disk of {root} has {free / GIB:.1f} GiB free; {what} {size / GIB:.1f} GiB: make room.")
    print(f"models: {f'{fetched / GIB:.1f} GiB to be fetched' if fetched else 'here'}; checkpoints of "
          f"{needed.checkpoint / GIB:.1f} GiB; about {needed.total / GIB:.1f} GiB of GPU memory for training")  # fmt: skip
    if torch.cuda.is_available() and config.trainer.accelerator != "cpu":
        has = torch.cuda.get_device_properties(0).total_memory
        if needed.total > has:
            said.append(
                f"training takes about {needed.total / GIB:.1f} GiB of GPU memory, the card has {has / GIB:.1f}; "
                "docs/performance.md says what makes it smaller."
            )
    return said


def refuse_what_is_missing(experiment: Experiment) -> None:
    """Say all of it at once, before anything is prepared, fetched or trained.

    Raises:
        UserError: Something is missing.
    """
    planned = FairAnonCLI(experiment.words(), build=False)
    planned.check_precision()
    said = lacking(planned.config)
    for name in experiment.stages():  # their own training would say it hours later
        stage = FairAnonCLI(experiment.stage(name).words(), build=False)
        if find_run(name, stage.text, finished=True) is None:
            said += [f"{name}: {line}" for line in lacking(stage.config) if line not in said]
    if said:
        raise UserError("\n".join([f"missing ({len(said)}):", *(f"- {line}" for line in said)]))


# --- the run ---------------------------------------------------------------------------------------------


class _KilledError(Exception):
    """Ends a training in its middle."""


@dataclass
class _Stage:
    name: str
    seconds: float
    host: float  # peak GiB so far
    gpu: float  # peak GiB


@dataclass(eq=False)
class Rehearsal(Callback):
    """Watches a shortened training, and ends it once in its middle.

    Attributes:
        kill: Whether to end it before its last step.
        stages: What took how long.
        steps: Seconds of each optimizer step.
        validations: Seconds of each validation batch.
    """

    kill: bool = False
    stages: list[_Stage] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    validations: list[float] = field(default_factory=list)
    drawing: tuple[float, float, float] | None = None
    """Seconds of a batch: drawing it, each sampling step of that, judging it."""
    evaluate: Evaluate | None = None
    ranks: int = 1
    _since: float = 0.0
    _validated: float = 0.0
    _step: int = -1

    def __call__(self, parsed: FairAnonCLI) -> None:
        """Shorten what was built, see `fairanon.training.fit`."""
        self.model = parsed.model
        evaluate = parsed.config_init.get("evaluate")
        if isinstance(evaluate, Evaluate):
            if self.evaluate is None:
                before, after = evaluate.counts()
                after *= getattr(parsed.model, "trains", True)
                self.planned = ((before, after), evaluate.sampling_steps, evaluate.engine.batch_size)
            evaluate.cut()
            self.evaluate = evaluate
        settings = parsed.trainer_settings
        settings["callbacks"] = [*(settings.get("callbacks") or []), self]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        yield
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
        gpu = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else 0.0
        self.stages.append(_Stage(name, time.perf_counter() - start, host, gpu))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End the training as a kill would, between two steps; begin to time one."""
        if self.kill and trainer.global_step == STEPS - 1:
            raise _KilledError
        if trainer.global_step != self._step:
            self._step, self._since = trainer.global_step, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Time a step."""
        if trainer.global_step != self._step:
            self.steps.append(time.perf_counter() - self._since)

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None:
        """Begin to time a validation batch."""
        self._validated = time.perf_counter()

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        """Time it."""
        self.validations.append(time.perf_counter() - self._validated)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time how a batch is drawn and judged."""
        pl_module.to(trainer.strategy.root_device)  # Lightning has put it back to the CPU by now
        if trainer.is_global_zero:
            self.time_drawing(trainer.world_size)

    def time_drawing(self, ranks: int) -> None:
        """Time how a batch is drawn and judged by one of so many ranks."""
        if self.evaluate is not None and isinstance(self.model, DiffusionMethod):
            self.drawing, self.ranks = _drawing(self.model, self.evaluate), ranks


def _drawing(method: DiffusionMethod, evaluate: Evaluate) -> tuple[float, float, float]:
    engine = evaluate.engine
    rows = (engine.rows * engine.batch_size)[: engine.batch_size]
    keys = [("rehearsal", k) for k in range(len(rows))]
    taken, pixels, sampler = [], torch.empty(0), evaluate.sampler(method)
    for steps in (2, 6):
        sampler.steps = steps
        start = time.perf_counter()
        pixels = sampler.draw(rows, keys)
        taken.append(time.perf_counter() - start)
    start = time.perf_counter()
    engine.observe(pixels, rows)
    step = max(0.0, (taken[1] - taken[0]) / 4)
    return max(0.0, taken[0] - 2 * step), step, time.perf_counter() - start


def rehearse(experiment: Experiment) -> None:
    """Go through an experiment with the real models, data and judges and every count cut to its minimum.

    Raises:
        UserError: Something is missing.
    """
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if first:
        refuse_what_is_missing(experiment)
        print("nothing is missing")
    planned = FairAnonCLI(experiment.words(), build=False)
    name = experiment.name
    with _place() as root:
        os.environ["WANDB_MODE"] = "disabled"  # nothing of it is a run
        rehearsal, drawn, stored, looking = Rehearsal(), 0, 0, 0.0
        moved: dict[str, str] = {}
        for folder, recipe in preparations(planned.config).items():
            if prepared(folder, recipe) and first:
                continue
            moved[folder] = str(root / "data" / Path(folder).name)
            if first:
                with rehearsal.stage(f"prepare {Path(folder).name}"):
                    count, size, seconds = _prepare(recipe, moved[folder], planned)
                drawn, stored, looking = drawn + count, stored + size, looking + seconds
        shortened = root / f"{name}.yaml"
        if first:
            shortened.write_text(yaml.safe_dump(_shortened(yaml.safe_load(planned.text), moved, root)))
        if not getattr(pkgutil.resolve_name(planned.config.model.class_path), "trains", True):
            with rehearsal.stage("measure"), redirect_stdout(StringIO()):
                fit(Experiment(name, (shortened,)), shorten=rehearsal)
            rehearsal.time_drawing(1)
            _report(rehearsal, planned.config, drawn, looking, stored)
            return
        if planned.config.trainer.max_steps != 0:
            rehearsal.kill = True
            quiet = redirect_stdout(StringIO())  # its numbers mean nothing
            with rehearsal.stage("measure, train, kill"), suppress(_KilledError), quiet:
                fit(Experiment(name, (shortened,)), shorten=rehearsal)
            rehearsal.kill = False
        with rehearsal.stage("resume, train, measure, export"), redirect_stdout(StringIO()):
            fit(Experiment(name, (shortened,)), shorten=rehearsal)
        if not first:
            return
        run = next(path.parent for path in (root / "runs").glob(f"{name}/*/run.json"))
        with rehearsal.stage("read back what was exported"):
            read_back(run)
        checkpoint = (run / "checkpoints" / "last.ckpt").stat().st_size
        exported = sum(path.stat().st_size for path in run.rglob("*.safetensors") if "judged" not in path.parts)
        _report(rehearsal, planned.config, drawn, looking, stored + 2 * checkpoint + exported)


@contextmanager
def _place() -> Iterator[Path]:
    """A folder for everything that a rehearsal writes; further ranks are told of it."""
    if "FAIRANON_RUNS" in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        yield Path(os.environ["FAIRANON_RUNS"]).parent
        return
    Path("runs").mkdir(exist_ok=True)
    kept = {key: os.environ.get(key) for key in ("FAIRANON_RUNS", "FAIRANON_RUN", "WANDB_MODE")}
    with tempfile.TemporaryDirectory(prefix=".rehearsal-", dir="runs") as folder:
        root = Path(folder).resolve()
        os.environ["FAIRANON_RUNS"] = str(root / "runs")
        os.environ.pop("FAIRANON_RUN", None)
        try:
            yield root
        finally:
            for key, value in kept.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


def _prepare(recipe: Path, folder: str, planned: FairAnonCLI) -> tuple[int, int, float]:
    """Make a few pieces of a preparation elsewhere.

    Returns:
        How many images the whole of it draws, its bytes, and the seconds it takes to look at images that are there.
    """
    parser, settings = preparation(recipe, settings=[f"--prepare.init_args.folder={folder}"])
    preparing = parser.instantiate_classes(settings).prepare
    drawn, looked_at = preparing.drawn(), preparing.looked_at()
    preparing.cut()
    few = preparing.drawn() or preparing.looked_at()
    on_cpu = planned.config.trainer.accelerator == "cpu" or not torch.cuda.is_available()
    start = time.perf_counter()
    preparing.run("cpu" if on_cpu else "cuda")
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    whole = max(drawn, looked_at)
    return drawn, size * whole // max(1, few), seconds * looked_at / max(1, few)


def _shortened(config: dict[str, Any], moved: dict[str, str], root: Path) -> dict[str, Any]:
    """The configuration with the minimum counts that `Rehearsal` does not know, and with what was prepared elsewhere."""

    def elsewhere(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: elsewhere(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [elsewhere(inner) for inner in value]
        return moved.get(value, value) if isinstance(value, str) else value

    config = elsewhere(config)
    trainer = config["trainer"]
    trainer["max_steps"] = min(STEPS, trainer["max_steps"]) if trainer["max_steps"] >= 0 else STEPS
    trainer["val_check_interval"], trainer["limit_val_batches"], trainer["log_every_n_steps"] = 1, 1, 1
    config["checkpoint_every"] = 1
    method = config["model"]["init_args"]
    minimum = max(2, method.get("mixture") or 0)  # ID2Face's; a mixture is not fitted to fewer people than it has parts
    method |= {name: minimum for name in ("fit_pairs", "fit_steps") if name in method}
    config["ckpt_path"] = None
    if config.get("start_from"):  # its stages are experiments of their own
        config["start_from"] = None
    if config.get("evaluate"):
        config["evaluate"]["init_args"]["cache"] = str(root / "judged")
        config["evaluate"]["init_args"]["stages"] = None
    return config


# --- what it will take -----------------------------------------------------------------------------------


def _report(rehearsal: Rehearsal, config: jsonargparse.Namespace, drawn: int, looking: float, stored: int) -> None:
    print(f"\n{'stage':34} {'seconds':>8} {'host GiB':>9} {'GPU GiB':>8}")
    for stage in rehearsal.stages:
        print(f"{stage.name:34} {stage.seconds:8.1f} {stage.host:9.1f} {stage.gpu:8.1f}")
    found = forecast(rehearsal, config, drawn, looking)
    print("\nthe whole experiment will take about")
    for what, value in found.items():
        print(f"  {what:34} {value}")
    peak = max(stage.gpu for stage in rehearsal.stages)
    print(f"  {'GPU memory':34} {f'{peak:.1f} GiB, the most of any stage' if peak else 'none: it ran on the CPU'}")
    print(f"  {'disk':34} {stored / GIB:.2f} GiB (what is prepared, two checkpoints, the trained weights)")


def forecast(rehearsal: Rehearsal, config: jsonargparse.Namespace, drawn: int, looking: float) -> dict[str, str]:
    """What the full run takes, from the rehearsal's times.

    Args:
        rehearsal: Done.
        config: The experiment's resolved configuration.
        drawn: Images that preparations draw.
        looking: Seconds that preparations look at images that are there.

    Returns:
        Lines of a table.
    """
    trainer = config.trainer
    steps, micro = max(0, int(trainer.max_steps)), int(trainer.accumulate_grad_batches or 1)
    training = steps * _usual(rehearsal.steps)
    interval, limit = trainer.val_check_interval, trainer.limit_val_batches
    if steps and isinstance(interval, int) and isinstance(limit, int):
        training += steps * micro // interval * limit * _usual(rehearsal.validations)
    preparing, measuring, images = looking, 0.0, f"{drawn} to prepare"
    if rehearsal.drawing is not None:
        (before, after), sampling, batch = rehearsal.planned
        fixed, step, judging = rehearsal.drawing
        chunk = fixed + sampling * step + judging
        measuring = (math.ceil(before / batch) + math.ceil(after / batch)) * chunk / rehearsal.ranks
        preparing += math.ceil(drawn / batch) * chunk
        images += f", {before + after} to measure"
    return {
        "images to be drawn": images, "preparing": _hours(preparing), "training": _hours(training),
        "measuring": _hours(measuring), "all": _hours(preparing + training + measuring),
    }  # fmt: skip


def _usual(seconds: Sequence[float]) -> float:
    """The median without the first, which finds everything cold; the lower one of two."""
    warm = sorted(seconds[1:] or seconds or [0.0])
    return warm[(len(warm) - 1) // 2]


def _hours(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"
