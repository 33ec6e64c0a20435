"""Numbers leave here: samples a fixed table of prompts before and after training, judges and measures them."""

from __future__ import annotations

import csv
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fairanon.backbones import Backbone
from fairanon.callbacks.run_record import versions
from fairanon.evaluators.protocols import AttributeClassifier, FeatureNet, PictureSource
from fairanon.imaging import grid, write_image
from fairanon.metrics import AttributeRecall, FairnessDiscrepancy
from fairanon.metrics.distances import frechet_interval, kernel_distance
from fairanon.metrics.functional.discrepancy import interval
from fairanon.metrics.recall import wilson
from fairanon.metrics.similarity import similarity
from fairanon.prepare.base import content_key, write_json
from fairanon.report import plot_shares, print_table, write_report

_log = logging.getLogger(__name__)

Estimate = dict[str, float]
"""value, low, high, n, missing."""

Stage = Literal["before", "noise", "after"]
SETS = ("neutral", "heldout", "specific", "generic")
_THUMBNAILS = 8  # pictures of each prompt that are kept for the grids
_THUMBNAIL_SIDE = 128


@dataclass(frozen=True)
class PromptRow:
    """A line of the prompt table: the prompt, the set it belongs to and the attributes it names."""

    prompt: str
    set: str
    asked: dict[str, str]


def read_prompts(path: Path) -> list[PromptRow]:
    """Read a prompt table.

    Args:
        path: CSV with the columns prompt and set (one of `SETS`); every other column is an attribute, filled
            where the prompt names it.
    """
    if not path.exists():
        raise FileNotFoundError(f"evaluate.prompts: {path} is missing; give a CSV with the columns prompt, set.")
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    if not lines or not {"prompt", "set"} <= set(lines[0]):
        raise ValueError(f"evaluate.prompts: {path} has no rows or lacks one of the columns prompt, set.")
    rows = []
    for line in lines:
        if line["set"] not in SETS:
            raise ValueError(f"evaluate.prompts: {path} has the set {line['set']!r}; accepted are {', '.join(SETS)}.")
        asked = {name: value for name, value in line.items() if name not in ("prompt", "set") and value}
        rows.append(PromptRow(line["prompt"], line["set"], asked))
    return rows


@dataclass
class Judged:
    """Judged samples of one model.

    Attributes:
        prompt: int64 (N,), row of the prompt table.
        probabilities: Per attribute float (N, K).
        features: float (N, D).
        thumbnails: uint8 (T, 3, S, S), the first pictures of each prompt.
        thumbnail_prompt: int64 (T,).
    """

    prompt: Tensor
    probabilities: dict[str, Tensor]
    features: Tensor
    thumbnails: Tensor
    thumbnail_prompt: Tensor


class Evaluate(Callback):
    """Measures the model before and after training on the same prompts and seeds.

    Every picture is judged as soon as it is sampled; judged chunks are files named by everything they depend on,
    so the base model is measured once for all experiments and a killed evaluation goes on where it was.

    Args:
        prompts: Prompt table, see `read_prompts`.
        judge: Judges attributes and computes features.
        attributes: Whose fairness is measured.
        unchanged: Attributes whose shares training should not move.
        subject: Attribute that says whether the picture shows what was asked ("alignment"); None leaves it out.
        images: Pictures per prompt of the sets neutral, heldout and generic.
        specific_images: Pictures per identity-specific prompt.
        reference: Balanced pictures for the Fréchet distance; None leaves it out.
        target: Ideal shares of an attribute's classes other than uniform.
        sampling_steps: DPM-Solver++ steps.
        guidance_scale: 1 is no guidance.
        batch_size: Pictures sampled at once.
        repeats: Bootstrap repeats.
        seed: Names the starting noise.
        cache: Folder of judged samples.
    """

    def __init__(
        self,
        prompts: str,
        judge: AttributeClassifier,
        attributes: tuple[str, ...] = ("gender", "tone"),
        unchanged: tuple[str, ...] = (),
        subject: str | None = None,
        images: int = 100,
        specific_images: int = 10,
        reference: PictureSource | None = None,
        target: dict[str, dict[str, float]] | None = None,
        sampling_steps: int = 15,
        guidance_scale: float = 5.0,
        batch_size: int = 32,
        repeats: int = 1000,
        seed: int = 0,
        cache: str = "runs/.judged",
    ) -> None:
        self.rows = read_prompts(Path(prompts))
        for name in (*attributes, *unchanged, *([subject] if subject else [])):
            if name not in judge.classes:
                raise ValueError(f"evaluate: {judge.name} does not judge {name!r}, only {', '.join(judge.classes)}.")
        self.judge, self.attributes, self.unchanged, self.subject = judge, attributes, unchanged, subject
        self.images, self.specific_images, self.reference = images, specific_images, reference
        self.target = target or {}
        self.sampling_steps, self.guidance_scale = sampling_steps, guidance_scale
        self.batch_size, self.repeats, self.seed, self.cache = batch_size, repeats, seed, Path(cache)
        self.seconds: dict[str, float] = {}
        self.before: dict[str, Estimate] = {}
        self._base: Judged | None = None
        self._noise: Judged | None = None  # the base model's generic pictures with other noise

    # --- hooks -------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the starting point."""
        self._measure_base(trainer, self._backbone(pl_module))
        self._started = time.time()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the trained model, write metrics.json, the grids and the report."""
        self.seconds["train"] = time.time() - self._started
        self.finish(trainer, self._backbone(pl_module))

    @staticmethod
    def _backbone(pl_module: LightningModule) -> Backbone:
        if not isinstance(pl_module.backbone, Backbone):
            raise TypeError(f"evaluate: {type(pl_module).__name__} has no diffusion backbone to sample from.")
        return pl_module.backbone

    def _measure_base(self, trainer: Trainer, backbone: Backbone) -> None:
        start = time.time()
        self._base = self.sample_and_judge(trainer, backbone, "before")
        if any(row.set == "generic" for row in self.rows):
            self._noise = self.sample_and_judge(trainer, backbone, "noise")
        self.seconds["evaluate_before"] = time.time() - start
        self.before = self.measure(self._base)

    def finish(self, trainer: Trainer, backbone: Backbone, experiment: str | None = None) -> None:
        """Measure ``backbone`` as it is now against the starting point and write everything."""
        if self._base is None:
            self._measure_base(trainer, backbone)
        assert self._base is not None
        folder = Path(trainer.default_root_dir)
        start = time.time()
        after = self.sample_and_judge(trainer, backbone, "after")
        self.seconds["evaluate_after"] = time.time() - start
        if not trainer.is_global_zero:
            return
        measured = self.measure(after)
        result = {
            "experiment": experiment or folder.parent.name,
            "versions": versions(),
            "judges": {"attributes": self.judge.name},
            "images_per_prompt": self.images,
            "before": self.before,
            "after": measured,
            "ratio": self.ratios(self._base, after),
            "same_noise": self._same_noise(self._base, after),
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
        }
        write_json(folder / "metrics.json", result)
        for logger in trainer.loggers:
            logger.log_metrics(
                {f"evaluate/{key}": value["value"] for key, value in measured.items()}, step=trainer.global_step
            )
        self._write_grids(trainer, folder, self._base, after)
        self._write_shares(folder, self._base, after)
        write_report(folder)
        print_table(result)
        print(f"report: {folder / 'report.html'}")

    # --- sampling ----------------------------------------------------------------------------------------

    def _plan(self, sets: tuple[str, ...]) -> list[tuple[int, int]]:
        """(row of the table, number of the picture) of every picture to sample."""
        return [
            (row, number)
            for row, line in enumerate(self.rows)
            if line.set in sets
            for number in range(self.specific_images if line.set == "specific" else self.images)
        ]

    def sample_and_judge(self, trainer: Trainer, backbone: Backbone, stage: Stage) -> Judged:
        """Sample and judge every picture of the plan, each rank its share of the chunks.

        Args:
            trainer: Says which rank this is, and the folder of the run.
            backbone: The model.
            stage: "before" (the frozen starting point), "noise" (likewise, generic prompts, other noise) or "after".
        """
        plan = self._plan(("generic",) if stage == "noise" else SETS)
        seed = self.seed + (stage == "noise")
        recipe = [
            self.judge.name, self.sampling_steps, self.guidance_scale, self.batch_size, seed,
            [(self.rows[row].prompt, number) for row, number in plan],
        ]  # fmt: skip
        if stage == "after":  # the weights are this run's
            folder = Path(trainer.default_root_dir) / "judged" / content_key(trainer.global_step, *recipe)
        else:
            folder = self.cache / content_key(backbone.fingerprint(), *recipe)
        folder.mkdir(parents=True, exist_ok=True)
        chunks = [plan[k : k + self.batch_size] for k in range(0, len(plan), self.batch_size)]
        mine = [k for k in range(len(chunks)) if k % trainer.world_size == trainer.global_rank]
        todo = [k for k in mine if not (folder / f"{k}.safetensors").exists()]
        label = {"before": "measuring before", "after": "measuring after", "noise": "base, other noise"}[stage]
        for k in tqdm(todo, desc=label, unit="batch", disable=not todo or trainer.global_rank > 0):
            self._judge_chunk(backbone, chunks[k], seed, stage != "after", folder / f"{k}.safetensors")
        trainer.strategy.barrier(f"judged-{stage}")
        return self._read(folder, len(chunks))

    def _judge_chunk(
        self, backbone: Backbone, chunk: list[tuple[int, int]], seed: int, start: bool, path: Path
    ) -> None:
        pixels = backbone.sample(
            [self.rows[row].prompt for row, _ in chunk],
            [(seed, "evaluate", self.rows[row].prompt, number) for row, number in chunk],
            steps=self.sampling_steps,
            guidance_scale=self.guidance_scale,
            start=start,
        )
        keep = torch.tensor([number < _THUMBNAILS for _, number in chunk])
        small = pixels[keep]
        if pixels.shape[-1] > _THUMBNAIL_SIDE and len(small):
            small = F.interpolate(small.float(), _THUMBNAIL_SIDE, mode="area").round().to(torch.uint8)
        prompt = torch.tensor([row for row, _ in chunk])
        tensors = {"prompt": prompt, "thumbnails": small, "thumbnail_prompt": prompt[keep]}
        tensors |= {f"p.{name}": value.contiguous() for name, value in self.judge.classify(pixels).items()}
        if isinstance(self.judge, FeatureNet):
            tensors["features"] = self.judge.features(pixels)
        temporary = path.with_suffix(".partial")
        save_file(tensors, temporary)
        temporary.replace(path)

    @staticmethod
    def _read(folder: Path, chunks: int) -> Judged:
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
        return Judged(
            joined["prompt"],
            {name[2:]: value for name, value in joined.items() if name.startswith("p.")},
            joined.get("features", torch.empty(len(joined["prompt"]), 0)),
            joined["thumbnails"],
            joined["thumbnail_prompt"],
        )

    # --- numbers -----------------------------------------------------------------------------------------

    def _in(self, judged: Judged, *sets: str) -> Tensor:
        rows = torch.tensor([row for row, line in enumerate(self.rows) if line.set in sets])
        return torch.isin(judged.prompt, rows)

    def _discrepancy(self, judged: Judged, attribute: str, *sets: str) -> FairnessDiscrepancy:
        classes = self.judge.classes[attribute]
        shares = self.target.get(attribute)
        metric = FairnessDiscrepancy(
            len(classes), None if shares is None else tuple(shares[name] for name in classes), self.repeats
        )
        chosen = self._in(judged, *sets)
        metric.update(judged.probabilities[attribute][chosen], judged.prompt[chosen])
        return metric

    def measure(self, judged: Judged) -> dict[str, Estimate]:
        """Every number of one model; keys are metric/attribute/variant."""
        result: dict[str, Estimate] = {}
        for attribute in self.attributes:
            for name, value in self._discrepancy(judged, attribute, "neutral").compute().items():
                result[f"discrepancy/{attribute}/{name}"] = value
            if any(line.set == "heldout" for line in self.rows):
                result[f"discrepancy/{attribute}/heldout"] = self._discrepancy(judged, attribute, "heldout").compute()[
                    "per_prompt"
                ]
        result |= self._recalls(judged)
        neutral = self._in(judged, "neutral")
        for attribute in self.unchanged:
            rows = judged.probabilities[attribute][neutral]
            seen = rows[~rows.isnan().any(1)]
            for k, name in enumerate(self.judge.classes[attribute]):
                hits = int((seen.argmax(1) == k).sum())
                low, high = wilson(hits, max(1, len(seen)))
                result[f"share/{attribute}/{name}"] = {
                    "value": hits / max(1, len(seen)), "low": low, "high": high,
                    "n": float(len(rows)), "missing": float(len(rows) - len(seen)),
                }  # fmt: skip
        if self.reference is not None and judged.features.shape[1]:
            reference = self._reference_features()
            result["fid/balanced"] = frechet_interval(judged.features[neutral], reference)
            result["kid/balanced"] = kernel_distance(judged.features[neutral], reference)
        generic = self._in(judged, "generic")
        if self._noise is not None and judged.features.shape[1] and generic.any():
            result["fid/generic"] = frechet_interval(judged.features[generic], self._noise.features)
        return result

    def _reference_features(self) -> Tensor:
        if not hasattr(self, "_reference"):
            assert self.reference is not None and isinstance(self.judge, FeatureNet)
            self._reference = self.judge.features(self.reference.pictures())
        return self._reference

    def _recalls(self, judged: Judged) -> dict[str, Estimate]:
        """Recall of each asked attribute on the specific prompts, and of all fairness attributes together."""
        result: dict[str, Estimate] = {}
        specific = self._in(judged, "specific")
        prompts = judged.prompt[specific].tolist()
        together = torch.ones(len(prompts), dtype=torch.bool)
        for attribute in dict.fromkeys((*self.attributes, *([self.subject] if self.subject else []))):
            classes = self.judge.classes[attribute]
            asked = [self.rows[row].asked.get(attribute) for row in prompts]
            named = torch.tensor([value is not None for value in asked], dtype=torch.bool)
            if not named.any():
                continue
            rows = judged.probabilities[attribute][specific][named]
            numbers = torch.tensor([classes.index(value) for value in asked if value is not None])
            metric = AttributeRecall()
            metric.update(rows, numbers)
            result[f"recall/{attribute}"] = metric.compute()
            if attribute in self.attributes:
                together[named] &= rows.nan_to_num(-1.0).argmax(1) == numbers
        if result:
            both = AttributeRecall()
            both.update(F.one_hot(together.long(), 2).float(), torch.ones(len(together), dtype=torch.long))
            result["recall/overall"] = both.compute()
        if self.subject is not None:
            rows = judged.probabilities[self.subject]
            classes = self.judge.classes[self.subject]
            asked = [self.rows[row].asked.get(self.subject) for row in judged.prompt.tolist()]
            named = torch.tensor([value is not None for value in asked])
            numbers = torch.tensor([classes.index(value) for value in asked if value is not None])
            confidence = rows[named].gather(1, numbers[:, None])[:, 0]
            half = 1.96 * float(confidence.std()) / len(confidence) ** 0.5
            mean = float(confidence.mean())
            result[f"alignment/{self.subject}"] = {
                "value": mean, "low": mean - half, "high": mean + half, "n": float(len(confidence)), "missing": 0.0
            }  # fmt: skip
        return result

    def ratios(self, before: Judged, after: Judged) -> dict[str, Estimate]:
        """Discrepancy after divided by before, with an interval from a bootstrap paired over prompts."""
        result = {}
        for attribute in self.attributes:
            for name, sets in (("per_prompt", "neutral"), ("heldout", "heldout")):
                if not any(line.set == sets for line in self.rows):
                    continue
                old, new = (self._discrepancy(judged, attribute, sets) for judged in (before, after))
                value = new.compute()["per_prompt"]["value"] / old.compute()["per_prompt"]["value"]
                estimate = interval(value, new.bootstrap() / old.bootstrap())
                count = float(self._in(after, sets).sum())
                result[f"discrepancy/{attribute}/{name}"] = {**estimate._asdict(), "n": count, "missing": 0.0}
        return result

    def _same_noise(self, before: Judged, after: Judged) -> dict[str, Estimate | None]:
        """How alike the generic prompts' kept pictures are before and after, each pair drawn from the same noise."""
        rows = torch.tensor([row for row, line in enumerate(self.rows) if line.set == "generic"])
        chosen = torch.isin(after.thumbnail_prompt, rows)
        if not chosen.any():
            return {}
        found = similarity(before.thumbnails[chosen], after.thumbnails[chosen], self.repeats)
        return {f"{name}/generic": value for name, value in found.items()}

    # --- pictures ----------------------------------------------------------------------------------------

    def _write_grids(self, trainer: Trainer, folder: Path, before: Judged, after: Judged) -> None:
        """One row of samples per prompt, the same prompts, noise and order before and after."""
        for name in SETS:
            rows = [row for row, line in enumerate(self.rows) if line.set == name][:15]
            if not rows:
                continue
            for stage, judged in (("before", before), ("after", after)):
                pictures = [judged.thumbnails[judged.thumbnail_prompt == row] for row in rows]
                columns = max(len(part) for part in pictures)
                sheet = grid(torch.cat(pictures), columns)
                path = folder / "grids" / f"{name}-{stage}.png"
                path.parent.mkdir(exist_ok=True)
                write_image(sheet, path)
                for logger in trainer.loggers:
                    if hasattr(logger, "log_image"):
                        logger.log_image(f"{stage}/{name}", [str(path)])
        lines = {name: [line.prompt for line in self.rows if line.set == name][:15] for name in SETS}
        (folder / "grids" / "prompts.json").write_text(json.dumps({k: v for k, v in lines.items() if v}, indent=2))

    def _write_shares(self, folder: Path, before: Judged, after: Judged) -> None:
        """The picture beside the discrepancies: who is drawn for each neutral prompt."""
        rows = [row for row, line in enumerate(self.rows) if line.set in ("neutral", "heldout")][:20]

        def shares(judged: Judged, attribute: str) -> list[list[float]]:
            result = []
            for row in rows:
                found = judged.probabilities[attribute][judged.prompt == row]
                labels = found[~found.isnan().any(1)].argmax(1)
                counts = torch.bincount(labels, minlength=len(self.judge.classes[attribute]))
                result.append((counts / max(1, len(labels))).tolist())
            return result

        classes = {name: self.judge.classes[name] for name in self.attributes}
        ideal = {
            name: [self.target.get(name, {}).get(value, 1 / len(values)) for value in values]
            for name, values in classes.items()
        }
        both = {name: (shares(before, name), shares(after, name)) for name in self.attributes}
        names = [self.rows[row].prompt + " (held out)" * (self.rows[row].set == "heldout") for row in rows]
        plot_shares(folder / "shares.png", names, classes, both, ideal)
