"""A whole experiment with every count cut to its minimum: what is missing, what works, what the full run will take."""

from __future__ import annotations

import os
import pkgutil
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from fairanon.backbones.export import read_back
from fairanon.callbacks.evaluate import Evaluate
from fairanon.config.experiments import Experiment, UserError
from fairanon.config.ranks import first_process, started_together
from fairanon.config.settings import FairAnonCLI
from fairanon.methods.base import DiffusionMethod
from fairanon.prepare.run import preparation, preparations, prepared
from fairanon.run.footprint import GIB
from fairanon.run.forecast import Stage, Times, report_times
from fairanon.run.missing import refuse_what_is_missing
from fairanon.run.training import fit

STEPS = 3
"""Optimizer steps of a rehearsal; it is killed and resumed before the last one."""


class _KilledError(Exception):
    """Ends a training in its middle."""


@dataclass(eq=False)
class Rehearsal(Times, Callback):
    """Watches a shortened training, and ends it once in its middle.

    Attributes:
        kill: Whether to end it before its last step.
        evaluate: What measures.
    """

    kill: bool = False
    evaluate: Evaluate | None = None
    _since: float = 0.0
    _validated: float = 0.0
    _step: int = -1

    def __call__(self, parsed: FairAnonCLI) -> None:
        """Shorten what was built, see `fairanon.run.training.fit`."""
        self.model = parsed.model
        evaluate = parsed.config_init.get("evaluate")
        if isinstance(evaluate, Evaluate):
            if self.evaluate is None:
                before, after = evaluate.counts()
                after *= getattr(parsed.model, "trains", True)
                self.planned = ((before, after), evaluate.sampling_steps, evaluate.engine.batch_size)
                self.look = len(evaluate.look_plan())
            evaluate.shorten()
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
        self.stages.append(Stage(name, time.perf_counter() - start, host, gpu))

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
        sampler.sampling = replace(sampler.sampling, steps=steps)
        start = time.perf_counter()
        pixels = sampler.sample(rows, keys)
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
    if started_together():
        raise UserError("rehearse: give the command once, on one machine; torchrun and srun are for training.")
    first = first_process()
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
            shortened.write_text(yaml.safe_dump(_shortened(yaml.safe_load(planned.text), moved, root), sort_keys=False))
        if not getattr(pkgutil.resolve_name(planned.config.model.class_path), "trains", True):
            with rehearsal.stage("measure"), redirect_stdout(StringIO()):
                fit(Experiment(name, (shortened,)), shorten=rehearsal)
            rehearsal.time_drawing(1)
            report_times(rehearsal, planned.config, drawn, looking, stored)
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
        if isinstance(rehearsal.model, DiffusionMethod):
            with rehearsal.stage("read back what was exported"):
                read_back(run)
        checkpoint = (run / "checkpoints" / "last.ckpt").stat().st_size
        exported = sum(path.stat().st_size for path in run.rglob("*.safetensors") if "judged" not in path.parts)
        report_times(rehearsal, planned.config, drawn, looking, stored + 2 * checkpoint + exported)


@contextmanager
def _place() -> Iterator[Path]:
    """A folder for everything that a rehearsal writes; further ranks are told of it."""
    if "FAIRANON_RUNS" in os.environ and not first_process():
        yield Path(os.environ["FAIRANON_RUNS"]).parent
        return
    Path("runs").mkdir(exist_ok=True)
    kept = {key: os.environ.get(key) for key in ("FAIRANON_RUNS", "WANDB_MODE")}
    with tempfile.TemporaryDirectory(prefix=".rehearsal-", dir="runs") as folder:
        root = Path(folder).resolve()
        os.environ["FAIRANON_RUNS"] = str(root / "runs")
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
    preparing.shorten()
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
    fit = method.get("fit") or {}
    if "pairs" in fit:  # ID2Face's; a mixture is not fitted to fewer people than it has parts
        fit["pairs"] = fit["steps"] = max(2, fit["mixture"])
    config["ckpt_path"] = None
    if config.get("start_from"):  # its stages are experiments of their own
        config["start_from"] = None
    if config.get("evaluate"):
        config["evaluate"]["init_args"]["cache"] = str(root / "judged")
        config["evaluate"]["init_args"]["stages"] = None
    return config
