"""An experiment's evaluation: a model before and after training, on the same prompts and noise."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from fairanon.backbones import Sampling
from fairanon.batches import PromptRow, stacked
from fairanon.config.experiments import locate
from fairanon.config.runs import versions
from fairanon.evaluation.engine import THUMBNAILS, Engine, Ranks, Samples, thumbnails
from fairanon.evaluation.measure import Measure, Rival
from fairanon.evaluation.observed import Judged
from fairanon.evaluation.samplers import MethodSampler, SteeredSampler
from fairanon.files import read_json, write_json
from fairanon.imaging import grid, write_image
from fairanon.methods.base import DiffusionMethod
from fairanon.metrics.functional.estimates import Estimate, Estimates, as_json
from fairanon.metrics.functional.similarity import image_pairs, similarity
from fairanon.pipelines.steering import Steering, refuse_what_cannot_be_steered
from fairanon.progress import progress_bar
from fairanon.prompts import SETS, read_prompts
from fairanon.protocols import PromptSource
from fairanon.report import print_table, write_first_page, write_report

_log = logging.getLogger(__name__)
_LOOKS = 8
"""Prompts of a look."""
_HELD_OUT = {"loss": False, "reward_accuracy": True}
"""Whether higher is better for what methods say of held-out data."""


@dataclass(frozen=True)
class Look:
    """What a model draws in the midst of its training.

    Attributes:
        step: How far it has come.
        images: uint8 (N, 3, H, W).
        captions: Their prompts.
        numbers: What can be said of so few, as metrics.json has it.
        columns: Images of a prompt.
    """

    step: int
    images: Tensor
    captions: list[str]
    numbers: dict[str, Any]
    columns: int


class Evaluation:
    """Measures a model before and after training on the same prompts and seeds.

    Args:
        prompts: Prompt table, see `read_prompts`, or a data set's own prompts.
        measures: What is judged and measured; they stand beside one another.
        images: Images per prompt.
        specific_images: Images per prompt of the set "specific".
        sampling_steps: DPM-Solver++ steps.
        guidance_scale: 1 is no guidance.
        lora_weight: How strongly trained adapters act.
        batch_size: Images sampled at once.
        seed: Of the starting noise.
        rivals: A table's JSON file that the report shows beside this run; None shows nothing.
        stages: Rows of a table in the report: for each label "before", "after" (this run) or another run's folder.
        cache: Folder of judged images of base models.
        steerings: Other ways to draw with the reference, by the names of their rows in the report, see
            `fairanon.pipelines.steering`; on the same prompts and noise.
        looks: Images of each of the first prompts that are drawn whenever training validates; 0 draws none.
    """

    def __init__(
        self,
        prompts: str | PromptSource,
        measures: list[Measure],  # type: ignore[type-arg]  # whatever each observes
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
        steerings: dict[str, Steering] | None = None,
        looks: int = 4,
    ) -> None:
        rows = read_prompts(Path(prompts)) if isinstance(prompts, str) else prompts.rows()
        if not rows:
            raise ValueError("evaluate.prompts: there is not one; `--evaluate null` measures nothing.")
        counts = {"images": images, "sampling_steps": sampling_steps, "batch_size": batch_size}
        for name, value in {**counts, "specific_images": specific_images, "looks": looks}.items():
            if value < (name in counts):
                raise ValueError(f"evaluate.{name} must not be {value}; `--evaluate null` measures nothing.")
        for measure in measures:
            if not any(row.set in measure.sets for row in rows):
                raise ValueError(
                    f"evaluate.measures: {type(measure).__name__} looks at the sets {', '.join(measure.sets)}, and none of "
                    "the prompts belongs to them."
                )
        self.engine = Engine(rows, measures, images, specific_images, batch_size, seed)
        self.sampling_steps, self.guidance_scale, self.lora_weight = sampling_steps, guidance_scale, lora_weight
        self.cache = Path(cache)
        if rivals is not None and not locate(rivals).exists():
            raise FileNotFoundError(
                f"evaluate.rivals: {rivals} is missing; `fairanon table` writes one, null leaves it out."
            )
        self.rivals = None if rivals is None else read_json(locate(rivals), "evaluate.rivals")
        self.stages, self.steerings = stages or {}, steerings or {}
        if "base" in self.steerings:
            raise ValueError("evaluate.steerings: base is the row without any; take another name.")
        self.looks = looks
        self.seconds: dict[str, float] = {}
        self._held_out_batches: int | None = None
        self._before: Samples | None = None
        self._noise: Samples | None = None  # the base model's images of `Measure.other_noise`
        self._held_out_before: dict[str, Tensor] = {}
        self._numbers_before: Estimates = {}
        self._beside: dict[str, Estimates] = {}

    def shorten(self) -> None:
        """Cut every count to its minimum, for a rehearsal: the first batch of each set, two sampling steps."""
        engine = self.engine
        few = max(1, min(engine.images, engine.batch_size))
        rows = {name: [row for row in engine.rows if row.set == name] for name in SETS}
        engine.rows = [row for set_rows in rows.values() for row in set_rows[: max(1, engine.batch_size // few)]]
        engine.images, engine.specific_images, self.sampling_steps = few, min(engine.specific_images, few), 2
        self._held_out_batches = 1
        self.looks = min(self.looks, 1)
        for measure in engine.measures:
            measure.shorten()

    def counts(self) -> tuple[int, int]:
        """How many images are drawn before training and after it."""
        after = len(self.engine.plan(self.engine.sets()))
        return after + len(self.engine.plan(self.engine.sets(lambda measure: measure.other_noise))), after

    def check(self, method: DiffusionMethod) -> None:
        """Refuse what could not be measured, before anything is prepared or trained."""
        method.check_use(self.engine.rows, self.sampling())
        if self.steerings:
            refuse_what_cannot_be_steered(method.backbone)

    def sampling(self, reference: bool = False) -> Sampling:
        """How images are sampled; adapters have no part in the reference."""
        weight = 1.0 if reference else self.lora_weight
        return Sampling(self.sampling_steps, self.guidance_scale, reference, weight)

    def sampler(self, method: DiffusionMethod, reference: bool = False) -> MethodSampler:
        """How images of a method's model are drawn; ``reference``: of its reference."""
        return MethodSampler(method, self.sampling(reference))

    def measure_base(self, method: DiffusionMethod, data: LightningDataModule | None, ranks: Ranks) -> None:
        """Measure the reference."""
        self.check(method)
        start = time.time()
        self.engine.ranks = ranks
        sampler = self.sampler(method, reference=True)
        self._before = self.engine.judge(sampler, self.cache, self.engine.sets(), "measuring before")
        if others := self.engine.sets(lambda measure: measure.other_noise):
            self._noise = self.engine.judge(sampler, self.cache, others, "base, other noise", other_noise=True)
        self._held_out_before = held_out(method, data, True, self._held_out_batches, ranks.rank > 0)
        numbers = self.engine.numbers(self._before, self._noise)  # what they refuse is said before training
        self._numbers_before = {key: value for estimates in numbers for key, value in estimates.items()}
        self._beside = self._steered(method)  # now: a training may free the reference
        self.seconds["evaluate_before"] = time.time() - start

    @property
    def shows_people(self) -> bool:
        """Whether images are made of photographs, or of what was taken from one: then they are somebody's."""
        return any(
            row.holds(name) for row in self.engine.rows for name in ("image", "control", "reference", "landmarks")
        )

    def before(self) -> dict[str, Any]:
        """The reference's numbers, as metrics.json has them; {} before they are measured."""
        return as_json(self._numbers_before | _means(self._held_out_before))

    def look_plan(self) -> list[tuple[int, int]]:
        """The images of a look, as `Engine.plan` has them: the first of the first prompts."""
        few = self.engine.plan(self.engine.sets()[:1])
        rows = list(dict.fromkeys(row for row, _ in few))[:_LOOKS]
        return [(row, number) for row, number in few if row in rows and number < self.looks]

    def look_at(self, method: DiffusionMethod, step: int) -> Look | None:
        """A few images of the model as it is, of the same prompts and noise each time; nothing is kept of training's own.

        Args:
            method: In training.
            step: It has come so far.

        Returns:
            None if none are wanted.
        """
        plan = self.look_plan()
        if not plan:
            return None
        training = method.training
        method.eval()
        try:
            with torch.no_grad():
                pixels, judged = self.engine.look(self.sampler(method), plan)
        except torch.OutOfMemoryError:
            _log.warning("the memory is too small to look at images in the midst of the training: no more looks")
            self.looks = 0
            return None
        finally:
            method.train(training)
        numbers = {
            key: value
            for measure, judgement in zip(self.engine.measures, judged, strict=True)
            if judgement
            for key, value in measure.quick(judgement).items()
        }
        captions = [self.engine.rows[row].prompt for row, _ in plan]
        return Look(step, pixels, captions, as_json(numbers), max(1, min(self.looks, self.engine.images)))

    def first_page(self, folder: Path, experiment: str) -> Path:
        """What the reference scored, on a page that the report replaces when there is one."""
        assert self._before is not None
        pairs = self._pairs(self._before, self._before)
        numbers = self.before()
        shares = [{**row, "before": None} for measure, old, new in pairs for row in measure.shares(old, new)]
        return write_first_page(folder, experiment, numbers, shares)

    def finish(
        self, method: DiffusionMethod, data: LightningDataModule | None, folder: Path, experiment: str, ranks: Ranks
    ) -> dict[str, Any]:
        """Measure ``method`` as it is now against the reference, and write metrics.json, grids, figures and report.

        Args:
            method: What was trained; of one that never trains the reference is everything.
            data: Has held-out data.
            folder: Of the run.
            experiment: Its name.
            ranks: The first one writes.

        Returns:
            The content of metrics.json; nothing on other ranks.
        """
        if self._before is None:
            self.measure_base(method, data, ranks)
        before = self._before
        assert before is not None
        start = time.time()
        after, lost = before, self._held_out_before
        if method.trains:
            judged = folder / "judged"
            after = self.engine.judge(self.sampler(method), judged, self.engine.sets(), "measuring after")
            lost = held_out(method, data, False, self._held_out_batches, ranks.rank > 0)
        self.seconds["evaluate_after"] = time.time() - start
        if ranks.rank:
            return {}
        result = self._result(before, after, lost, experiment)
        write_json(folder / "metrics.json", result)
        self._write_grids(folder, before, after)
        for measure, old, new in self._pairs(before, after):
            measure.plot(folder, old, new)
        print_table(result, write_report(folder))
        return result

    # --- numbers -----------------------------------------------------------------------------------------

    def _pairs(self, before: Samples, after: Samples) -> list[tuple[Measure[Any], Judged[Any], Judged[Any]]]:
        """Each measure with what it observed."""
        return [
            (measure, old, new)
            for measure, old, new in zip(self.engine.measures, before.judged, after.judged, strict=True)
            if old is not None and new is not None
        ]

    def draw(self, method: DiffusionMethod, folder: Path, ranks: Ranks) -> int:
        """Sample and judge one share of all images that `finish` counts, and count nothing.

        Args:
            method: What was trained.
            folder: Of the run.
            ranks: Which share.

        Returns:
            The most shares in which each has a batch.
        """
        self.check(method)
        engine = self.engine
        engine.ranks = ranks
        base = self.sampler(method, reference=True)
        drawn = [engine.draw(base, self.cache, engine.sets(), "measuring before")]
        if others := engine.sets(lambda measure: measure.other_noise):
            drawn.append(engine.draw(base, self.cache, others, "base, other noise", other_noise=True))
        for name, sampler in self._samplers_beside(method).items():
            drawn.append(engine.draw(sampler, self.cache, engine.sets(), name))
        if method.trains:
            drawn.append(engine.draw(self.sampler(method), folder / "judged", engine.sets(), "measuring after"))
        return max(entry.chunks for entry in drawn)

    def _samplers_beside(self, method: DiffusionMethod) -> dict[str, SteeredSampler]:
        """Other ways to draw with the reference, if there are any: their own and the plain one."""
        if not self.steerings:
            return {}
        sampling = self.sampling(reference=True)
        ways = {"base": Steering(), **self.steerings}
        return {name: SteeredSampler(MethodSampler(method, sampling), steering) for name, steering in ways.items()}

    def _steered(self, method: DiffusionMethod) -> dict[str, Estimates]:
        """Numbers of the reference, and of the ways to steer it, with the seconds that an image takes."""
        results: dict[str, Estimates] = {}
        engine = self.engine
        for name, sampler in self._samplers_beside(method).items():
            samples = engine.judge(sampler, self.cache, engine.sets(), name)
            results[name] = {
                key: value for estimates in engine.numbers(samples, self._noise) for key, value in estimates.items()
            }
            results[name]["seconds_per_image"] = engine.timed(sampler)
        return results

    def _result(
        self,
        before: Samples,
        after: Samples,
        held_out: Mapping[str, Tensor],
        experiment: str,
    ) -> dict[str, Any]:
        engine, pairs, lost = self.engine, self._pairs(before, after), _means(held_out)
        numbers = [
            estimates
            for estimates, judged in zip(engine.numbers(after, self._noise), after.judged, strict=True)
            if judged
        ]
        measured, headline, better, judges = Estimates(), list(lost), dict[str, bool](), dict[str, str]()
        for (measure, old, new), estimates in zip(pairs, numbers, strict=True):
            estimates |= measure.against(old, new)
            headline += measure.headline(list(estimates))
            better |= {key: way for key in estimates if (way := measure.direction(key)) is not None}
            measured |= estimates
            for what, name in measure.judges.items():
                judges[what] = name if judges.get(what, name) == name else f"{judges[what]}+{name}"
        better |= {key: _HELD_OUT[kind] for key in lost if (kind := key.partition("/")[0]) in _HELD_OUT}
        result: dict[str, Any] = {
            "experiment": experiment,
            "date": datetime.now().astimezone().isoformat(" ", "minutes"),
            "versions": versions(),
            "judges": judges,
            "images_per_prompt": engine.images,
            "images": after.count,
            "headline": [*headline, *(["seconds_per_image"] if self._beside else [])],
            "higher_is_better": better,
            "before": self.before(),
            "after": as_json(measured | lost),
            "difference": as_json(_together(measure.differences(old, new) for measure, old, new in pairs)),
            "ratio": as_json(
                _together(measure.compare(old, new) for measure, old, new in pairs)
                | _loss_ratios(self._held_out_before, held_out)
            ),
            "same_noise": as_json(self._same_noise(before, after)),
            "shares": [row for measure, old, new in pairs for row in measure.shares(old, new)],
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
        }
        beside = {name: as_json(estimates) for name, estimates in {**self._rivals(after), **self._beside}.items()}
        if self.rivals is not None:
            own = {"this run's base" if name == "base" else name: numbers for name, numbers in beside.items()}
            beside = {**self.rivals["rows"], **own}
            result["rivals_from"] = self.rivals["command"]
        if beside:
            result["rivals"] = beside
        if self.stages:
            result["stages"] = {label: _stage(where, result) for label, where in self.stages.items()}
        return result

    def _rivals(self, after: Samples) -> dict[str, Estimates]:
        """Numbers of whatever the measures know as another way, see `Measure.rivals`."""
        results: dict[str, Estimates] = {}
        for measure, judged in zip(self.engine.measures, after.judged, strict=True):
            for name, rival in ({} if judged is None else measure.rivals(judged)).items():
                size = self.engine.batch_size
                parts = [rival.rows[first : first + size] for first in range(0, len(rival.rows), size)]
                progress = progress_bar(parts, desc=name, unit="batch", leave=False)
                observed = [self._look(rival, rows) for rows in progress]
                joined = [_joined(rival.rows, list(column), size) for column in zip(*observed, strict=True)]
                numbers = self.engine.numbers(Samples(joined, len(rival.rows), torch.empty(0), torch.empty(0)))
                results[name] = {
                    key: value for estimates in numbers for key, value in estimates.items()
                } | rival.numbers
        return results

    def _look(self, rival: Rival, rows: list[PromptRow]) -> list[Judged[Any] | None]:
        """What each measure says of a rival's images; the rows' own are not kept."""
        held = [row.loaded() for row in rows]
        judged = self.engine.observe(rival.sample(held), held)
        return [None if judgement is None else Judged(rows, judgement.prompt, judgement.values) for judgement in judged]

    def _same_noise(self, before: Samples, after: Samples) -> Estimates:
        """How alike the generic prompts' kept images are before and after, each pair drawn from the same noise."""
        rows = torch.tensor([row for row, line in enumerate(self.engine.rows) if line.set == "generic"])
        chosen = torch.isin(after.thumbnail_prompt, rows)
        if not chosen.any():
            return {}
        estimates = similarity(image_pairs(before.thumbnails[chosen], after.thumbnails[chosen]))
        return {f"{name}/generic": value for name, value in estimates.items()}

    # --- grids -------------------------------------------------------------------------------------------

    def _shown(self) -> int:
        """Prompts of a set that the grids show: a row each, or several in a row where each has one image."""
        return 6 * THUMBNAILS if self.engine.images == 1 else 15

    def _write_grids(self, folder: Path, before: Samples, after: Samples) -> None:
        """One row of samples per prompt, the same prompts, noise and order before and after."""
        lines = {}
        for name in self.engine.sets():
            rows = list(dict.fromkeys(row for row, _ in self.engine.plan((name,))))[: self._shown()]
            if not rows:
                continue
            sources = stacked(self.engine.rows[row].loaded().image for row in rows)
            sheets: dict[str, Sequence[Tensor]] = {
                stage: [samples.thumbnails[samples.thumbnail_prompt == row] for row in rows]
                for stage, samples in (("before", before), ("after", after))
            }
            if sources is not None:
                sheets["source"] = list(thumbnails(sources)[:, None])
            for stage, images in sheets.items():
                columns = max(len(part) for part in images)
                path = folder / "grids" / f"{name}-{stage}.png"
                path.parent.mkdir(exist_ok=True)
                write_image(grid(torch.cat(list(images)), THUMBNAILS if columns == 1 else columns), path)
            lines[name] = [self.engine.rows[row].prompt for row in rows]
        write_json(folder / "grids" / "prompts.json", lines)


def held_out(
    method: DiffusionMethod,
    data: LightningDataModule | None,
    reference: bool = False,
    batches: int | None = None,
    quiet: bool = False,
) -> dict[str, Tensor]:
    """What a method says of held-out data, if it says anything.

    Args:
        method: One with a ``held_out``, see `DiffusionMethod`, or without.
        data: Whose validation data.
        reference: Of the reference instead of the trained model.
        batches: The first so many; None is all.
        quiet: Without a progress bar.

    Returns:
        For each number, by its key in metrics.json, one value per sample: float32 (N,), NaN where a sample does not have it.
    """
    observe = getattr(method, "held_out", None)
    if observe is None or data is None:
        return {}
    data.setup("validate")
    training = method.training
    method.eval()
    loader = itertools.islice(data.val_dataloader(), batches)
    progress = progress_bar(
        loader, desc=f"held-out data {'before' if reference else 'after'}", unit="batch", disable=quiet
    )
    with torch.no_grad():
        parts = [observe(batch.to(method.device), reference) for batch in progress]
    method.train(training)
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]} if parts else {}


def _together(parts: Iterable[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    return {key: value for part in parts for key, value in part.items()}


def _joined(rows: list[Any], parts: list[Judged[Any] | None], size: int) -> Judged[Any] | None:
    """What one measure said of batches of ``size`` rows, as if it had seen all of them."""
    pairs = [(k * size + part.prompt, part.values) for k, part in enumerate(parts) if part is not None]
    if not pairs:
        return None
    values = [part for _, part in pairs]
    return Judged(rows, torch.cat([prompt for prompt, _ in pairs]), type(values[0]).join(values))


def _stage(where: str, result: Mapping[str, Any]) -> Any:
    """Numbers of "before", "after" or another run."""
    if where in ("before", "after"):
        return result[where]
    path = Path(where) / "metrics.json"
    if not path.exists():
        raise FileNotFoundError(f"evaluate.stages: {path} is missing; name a finished run's folder.")
    return read_json(path, "evaluate.stages")["after"]


def _means(held_out: Mapping[str, Tensor]) -> dict[str, Estimate]:
    """Means of held-out numbers with intervals over the samples."""
    return {name: Estimate.mean(values) for name, values in held_out.items() if not values.isnan().all()}


def _loss_ratios(before: Mapping[str, Tensor], after: Mapping[str, Tensor], repeats: int = 1000) -> dict[str, Estimate]:
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
        ratio = float(both[1].mean() / both[0].mean())
        result[name] = Estimate.bootstrap(ratio, later / old, count, len(new) - count)
    return result
