"""Numbers leave here: samples fixed prompts before and after training, and has them judged and measured."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fairanon.callbacks.measures import Judged, Measure
from fairanon.evaluators.protocols import PromptSource
from fairanon.experiments import locate
from fairanon.files import beside, content_key, read_json, write_json
from fairanon.imaging import grid, write_image
from fairanon.methods.base import DiffusionMethod, stacked
from fairanon.metrics.functional.intervals import Estimate, interval, mean_interval
from fairanon.metrics.similarity import picture_pairs, similarity
from fairanon.prompts import SETS, read_prompts
from fairanon.report import print_table, write_report
from fairanon.runs import code_version, versions
from fairanon.seeding import Key

Stage = Literal["before", "noise", "after"]
_THUMBNAILS = 8  # pictures of each prompt that are kept for the grids
_THUMBNAIL_SIDE = 128


class Evaluate(Callback):
    """Measures the model before and after training on the same prompts and seeds.

    Every picture is judged as soon as it is sampled; judged chunks are files named by everything they depend on,
    so the base model is measured once for all experiments and a killed evaluation goes on where it was.

    Args:
        prompts: Prompt table, see `read_prompts`, or a data set's own prompts.
        measure: What is judged and measured.
        images: Pictures per prompt.
        specific_images: Pictures per prompt of the set "specific".
        sampling_steps: DPM-Solver++ steps.
        guidance_scale: 1 is no guidance.
        lora_weight: How strongly trained adapters act.
        batch_size: Pictures sampled at once.
        seed: Names the starting noise.
        rivals: A table's JSON file that the report shows beside this run; None shows nothing.
        stages: Rows of a table in the report: for each label "before", "after" (this run) or another run's folder.
        cache: Folder of judged samples.
    """

    def __init__(
        self,
        prompts: str | PromptSource,
        measure: Measure,
        images: int = 100,
        specific_images: int = 10,
        sampling_steps: int = 15,
        guidance_scale: float = 5.0,
        lora_weight: float = 1.0,
        batch_size: int = 32,
        seed: int = 0,
        rivals: str | None = None,
        stages: dict[str, str] | None = None,
        cache: str = "runs/.judged",
    ) -> None:
        self.rows = read_prompts(Path(prompts)) if isinstance(prompts, str) else prompts.rows()
        if not self.rows:
            raise ValueError("evaluate.prompts: there is not one; `--evaluate null` measures nothing.")
        counts = {"images": images, "sampling_steps": sampling_steps, "batch_size": batch_size}
        for name, value in {**counts, "specific_images": specific_images}.items():
            if value < (name in counts):
                raise ValueError(f"evaluate.{name} must not be {value}; `--evaluate null` measures nothing.")
        self.measure, self.images, self.specific_images = measure, images, specific_images
        self.sampling_steps, self.guidance_scale = sampling_steps, guidance_scale
        self.lora_weight = lora_weight
        self.batch_size, self.seed, self.cache = batch_size, seed, Path(cache)
        if rivals is not None and not locate(rivals).exists():
            raise FileNotFoundError(
                f"evaluate.rivals: {rivals} is missing; `fairanon table` writes one, null leaves it out."
            )
        self.rivals = None if rivals is None else read_json(locate(rivals), "evaluate.rivals")
        self.stages = stages or {}
        self.seconds: dict[str, float] = {}
        self._held_out_batches: int | None = None
        self.before: dict[str, Estimate | None] = {}
        self._base: Judged | None = None
        self._base_held_out: dict[str, Tensor] = {}
        self._noise: Judged | None = None  # the base model's generic pictures with other noise

    # --- hooks -------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the starting point."""
        self._measure_base(trainer, self.method(pl_module), _data(trainer))
        self._started = time.time()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the trained model, write metrics.json, the grids and the report."""
        self.seconds["train"] = time.time() - self._started
        pl_module.to(trainer.strategy.root_device)  # Lightning has put it back to the CPU by now
        self.finish(trainer, self.method(pl_module), _data(trainer))

    def cut(self) -> None:
        """Cut every count to the least, for a rehearsal: the first batch of each set, two sampling steps."""
        few = max(1, min(self.images, self.batch_size))
        rows = {name: [row for row in self.rows if row.set == name] for name in SETS}
        self.rows = [row for found in rows.values() for row in found[: max(1, self.batch_size // few)]]
        self.images, self.specific_images, self.sampling_steps = few, min(self.specific_images, few), 2
        self._held_out_batches = 1
        self.measure.cut()

    def pictures(self) -> tuple[int, int]:
        """How many pictures are drawn before training and after it."""
        after = len(self._plan(SETS))
        return after + len(self._plan(("generic",))), after

    def check(self, method: DiffusionMethod) -> None:
        """Refuse what could not be measured, before anything is prepared or trained."""
        method.check_use(self.rows, self.guidance_scale, self.lora_weight)

    @staticmethod
    def method(pl_module: LightningModule) -> DiffusionMethod:
        """The module, as a model to draw with."""
        if not isinstance(pl_module, DiffusionMethod):
            raise TypeError(f"evaluate: {type(pl_module).__name__} has no diffusion backbone to sample from.")
        return pl_module

    def _measure_base(self, trainer: Trainer, method: DiffusionMethod, data: LightningDataModule) -> None:
        self.check(method)
        start = time.time()
        self.measure.to(method.device)
        self._base = self.sample_and_judge(trainer, method, "before")
        if any(row.set == "generic" for row in self.rows):
            self._noise = self.sample_and_judge(trainer, method, "noise")
        self._base_held_out = method.held_out(data, start=True, batches=self._held_out_batches)
        self.before = {**self.measure.numbers(self._base, self._noise), **_means(self._base_held_out)}
        self.seconds["evaluate_before"] = time.time() - start

    def finish(
        self, trainer: Trainer, method: DiffusionMethod, data: LightningDataModule, experiment: str | None = None
    ) -> None:
        """Measure ``method`` as it is now against the starting point and write everything."""
        if self._base is None:
            self._measure_base(trainer, method, data)
        assert self._base is not None
        self.measure.to(method.device)
        folder = Path(trainer.default_root_dir)
        start = time.time()
        after = self.sample_and_judge(trainer, method, "after")
        held_out = method.held_out(data, batches=self._held_out_batches)
        self.seconds["evaluate_after"] = time.time() - start
        if not trainer.is_global_zero:
            return
        measured, lost = self.measure.numbers(after, self._noise), _means(held_out)
        measured |= self.measure.against(self._base, after)
        headline = [*lost, *self.measure.headline(list(measured))]
        measured |= lost
        result = {
            "experiment": experiment or folder.parent.name,
            "versions": versions(),
            "judges": self.measure.judges,
            "images_per_prompt": self.images,
            "images": len(after.prompt),
            "headline": headline,
            "before": self.before,
            "after": measured,
            "difference": self.measure.differences(self._base, after),
            "ratio": self.measure.compare(self._base, after) | _loss_ratios(self._base_held_out, held_out),
            "same_noise": self._same_noise(self._base, after),
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
        }
        beside = self.measure.rivals(after)
        if self.rivals is not None:
            beside |= self.rivals["rows"]
            result["rivals_from"] = self.rivals["command"]
        if beside:
            result["rivals"] = beside
        if self.stages:
            result["stages"] = {label: self._stage(where, result) for label, where in self.stages.items()}
        write_json(folder / "metrics.json", result)
        for logger in trainer.loggers:
            logger.log_metrics(
                {f"evaluate/{key}": value["value"] for key, value in measured.items() if value is not None},
                step=trainer.global_step,
            )
        self._write_grids(trainer, folder, self._base, after)
        self.measure.draw(folder, self._base, after)
        write_report(folder)
        print_table(result)
        print(f"report: {folder / 'report.html'}")

    @staticmethod
    def _stage(where: str, result: dict[str, Any]) -> dict[str, Estimate | None]:
        """Numbers of "before", "after" or another run."""
        if where in ("before", "after"):
            return result[where]
        path = Path(where) / "metrics.json"
        if not path.exists():
            raise FileNotFoundError(f"evaluate.stages: {path} is missing; name a finished run's folder.")
        return read_json(path, "evaluate.stages")["after"]

    # --- sampling ----------------------------------------------------------------------------------------

    def _plan(self, sets: tuple[str, ...]) -> list[tuple[int, int]]:
        """(row of the table, number of the picture) of every picture to sample."""
        return [
            (row, number)
            for row, line in enumerate(self.rows)
            if line.set in sets
            for number in range(self.specific_images if line.set == "specific" else self.images)
        ]

    def sample_and_judge(self, trainer: Trainer, method: DiffusionMethod, stage: Stage) -> Judged:
        """Sample and judge every picture of the plan, each rank its share of the chunks.

        Args:
            trainer: Says which rank this is, and the folder of the run.
            method: The model.
            stage: "before" (the frozen starting point), "noise" (likewise, generic prompts, other noise) or "after".
        """
        plan = self._plan(("generic",) if stage == "noise" else SETS)
        seed = self.seed + (stage == "noise")
        digests = {row: self.rows[row].digest() for row, _ in plan}
        recipe = [
            code_version(), self.measure.recipe(), self.sampling_steps, self.guidance_scale, self.batch_size, seed,
            method.backbone.origin(),
            [(self.rows[row].prompt, digests[row], number) for row, number in plan],
        ]  # fmt: skip
        if stage == "after":  # the weights are this run's
            key = content_key(method.weights_digest(), *method.settings_of_use(), self.lora_weight, *recipe)
            folder = Path(trainer.default_root_dir) / "judged" / key
        else:
            folder = self.cache / content_key(*recipe)
        folder.mkdir(parents=True, exist_ok=True)
        chunks = [plan[k : k + self.batch_size] for k in range(0, len(plan), self.batch_size)]
        mine = [k for k in range(len(chunks)) if k % trainer.world_size == trainer.global_rank]
        todo = [k for k in mine if not (folder / f"{k}.safetensors").exists()]
        label = {"before": "measuring before", "after": "measuring after", "noise": "base, other noise"}[stage]
        for k in tqdm(todo, desc=label, unit="batch", disable=not todo or trainer.global_rank > 0):
            self._judge_chunk(method, chunks[k], seed, stage != "after", folder / f"{k}.safetensors")
        trainer.strategy.barrier(f"judged-{stage}")
        return self._read(folder, len(chunks))

    def _judge_chunk(
        self, method: DiffusionMethod, chunk: list[tuple[int, int]], seed: int, start: bool, path: Path
    ) -> None:
        rows = [self.rows[row] for row, _ in chunk]
        keys: list[tuple[Key, ...]] = [(seed, "evaluate", self.rows[row].prompt, number) for row, number in chunk]
        if rows[0].holds("picture"):  # many pictures share a prompt: the key is the row's
            keys = [(seed, "evaluate", row, number) for row, number in chunk]
        pixels = method.pictures(
            rows, keys, steps=self.sampling_steps, guidance_scale=self.guidance_scale, start=start,
            lora_weight=1.0 if start else self.lora_weight,
        )  # fmt: skip
        keep = torch.tensor([number < _THUMBNAILS for _, number in chunk])
        small = _thumbnails(pixels[keep])
        prompt = torch.tensor([row for row, _ in chunk])
        tensors = {"prompt": prompt, "thumbnails": small, "thumbnail_prompt": prompt[keep]}
        tensors |= {f"v.{name}": value for name, value in self.measure.observe(pixels, rows).items()}
        with beside(path) as partial:
            save_file({name: value.contiguous() for name, value in tensors.items()}, partial)

    def _read(self, folder: Path, chunks: int) -> Judged:
        parts: dict[str, list[Tensor]] = {}
        for k in range(chunks):
            path = folder / f"{k}.safetensors"
            try:
                with safe_open(path, "pt") as file:
                    for name in file.keys():  # noqa: SIM118  (not a dictionary)
                        parts.setdefault(name, []).append(file.get_tensor(name))
            except SafetensorError as error:
                raise OSError(f"{path} is damaged ({error}); delete it and run the same command again.") from None
        joined = {name: torch.cat(values) for name, values in parts.items()}
        values = {name.removeprefix("v."): value for name, value in joined.items() if name.startswith("v.")}
        return Judged(self.rows, joined["prompt"], values, joined["thumbnails"], joined["thumbnail_prompt"])

    def _same_noise(self, before: Judged, after: Judged) -> dict[str, Estimate | None]:
        """How alike the generic prompts' kept pictures are before and after, each pair drawn from the same noise."""
        rows = torch.tensor([row for row, line in enumerate(self.rows) if line.set == "generic"])
        chosen = torch.isin(after.thumbnail_prompt, rows)
        if not chosen.any():
            return {}
        found = similarity(picture_pairs(before.thumbnails[chosen], after.thumbnails[chosen]))
        return {f"{name}/generic": value for name, value in found.items()}

    # --- pictures ----------------------------------------------------------------------------------------

    def _shown(self) -> int:
        """Prompts of a set that the grids show: a row each, or several in a row where each has one picture."""
        return 6 * _THUMBNAILS if self.images == 1 else 15

    def _write_grids(self, trainer: Trainer, folder: Path, before: Judged, after: Judged) -> None:
        """One row of samples per prompt, the same prompts, noise and order before and after."""
        lines = {}
        for name in SETS:
            rows = list(dict.fromkeys(row for row, _ in self._plan((name,))))[: self._shown()]
            if not rows:
                continue
            sources = stacked(self.rows[row].picture for row in rows)
            for stage, judged in (("source", None), ("before", before), ("after", after)):
                if judged is not None:
                    pictures = [judged.thumbnails[judged.thumbnail_prompt == row] for row in rows]
                elif sources is not None:
                    pictures = list(_thumbnails(sources)[:, None])
                else:
                    continue
                columns = max(len(part) for part in pictures)
                sheet = grid(torch.cat(pictures), _THUMBNAILS if columns == 1 else columns)
                path = folder / "grids" / f"{name}-{stage}.png"
                path.parent.mkdir(exist_ok=True)
                write_image(sheet, path)
                for logger in trainer.loggers if judged is not None else ():  # nobody's own picture leaves
                    if hasattr(logger, "log_image"):
                        logger.log_image(f"{stage}/{name}", [str(path)])
            lines[name] = [self.rows[row].prompt for row in rows]
        write_json(folder / "grids" / "prompts.json", lines)


def _data(trainer: Trainer) -> LightningDataModule:
    return trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it without declaring it


def _thumbnails(pixels: Tensor) -> Tensor:
    """Pictures no larger than the grids show them."""
    if pixels.shape[-1] <= _THUMBNAIL_SIDE or not len(pixels):
        return pixels
    return F.interpolate(pixels.float(), _THUMBNAIL_SIDE, mode="area").round().to(torch.uint8)


def _means(held_out: dict[str, Tensor]) -> dict[str, Estimate]:
    """Means of held-out numbers with intervals over the samples."""
    return {
        name: mean_interval(values[~values.isnan()], missing=int(values.isnan().sum()))
        for name, values in held_out.items()
        if not values.isnan().all()
    }


def _loss_ratios(before: dict[str, Tensor], after: dict[str, Tensor], repeats: int = 1000) -> dict[str, Estimate]:
    """Held-out losses after divided by before, with intervals from a bootstrap of the samples that both share."""
    result = {}
    for name, new in after.items():
        if not name.startswith("loss/"):
            continue
        both = torch.stack([before[name], new])
        both = both[:, ~both.isnan().any(0)].double()
        count = both.shape[1]
        if not count:
            continue
        draws = torch.randint(count, (repeats, count), generator=torch.Generator().manual_seed(0))
        old, later = (row[draws].mean(1) for row in both)
        estimate = interval(float(both[1].mean() / both[0].mean()), later / old)
        missing = float(len(new) - count)
        result[name] = {**estimate._asdict(), "n": float(count), "missing": missing}
    return result
