"""What a whole experiment will take, from the times of its rehearsal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import jsonargparse

from fairanon.run.footprint import GIB


@dataclass
class Stage:
    """What took how long.

    Attributes:
        name: What it is.
        seconds: How long.
        host: Peak memory of the process so far, GiB.
        gpu: Peak memory of the GPU, GiB.
    """

    name: str
    seconds: float
    host: float
    gpu: float


@dataclass(eq=False)
class Times:
    """What a rehearsal measured.

    Attributes:
        stages: What took how long.
        steps: Seconds of each optimizer step.
        validations: Seconds of each validation batch.
        drawing: Seconds of a batch: drawing it, each sampling step of that, judging it.
        planned: Of the whole experiment: images measured before and after, sampling steps, images of a batch.
        look: Images that are drawn whenever training validates.
        ranks: Processes that draw at once.
    """

    stages: list[Stage] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    validations: list[float] = field(default_factory=list)
    drawing: tuple[float, float, float] | None = None
    planned: tuple[tuple[int, int], int, int] = ((0, 0), 0, 1)
    look: int = 0
    ranks: int = 1


def report_times(times: Times, config: jsonargparse.Namespace, drawn: int, looking: float, stored: int) -> None:
    """Print what a rehearsal took and what the whole will; arguments as `forecast`, and bytes that it writes."""
    print(f"\n{'stage':34} {'seconds':>8} {'host GiB':>9} {'GPU GiB':>8}")
    for stage in times.stages:
        print(f"{stage.name:34} {stage.seconds:8.1f} {stage.host:9.1f} {stage.gpu:8.1f}")
    totals = forecast(times, config, drawn, looking)
    print("\nthe whole experiment will take about")
    for what, value in totals.items():
        print(f"  {what:34} {value}")
    peak = max(stage.gpu for stage in times.stages)
    print(f"  {'GPU memory':34} {f'{peak:.1f} GiB, the most of any stage' if peak else 'none: it ran on the CPU'}")
    print(f"  {'disk':34} {stored / GIB:.2f} GiB (what is prepared, two checkpoints, the trained weights)")


def forecast(times: Times, config: jsonargparse.Namespace, drawn: int, looking: float) -> dict[str, str]:
    """What the full run takes, from the rehearsal's times.

    Args:
        times: Of the rehearsal.
        config: The experiment's resolved configuration.
        drawn: Images that preparations draw.
        looking: Seconds that preparations look at images that are there.

    Returns:
        Lines of a table.
    """
    trainer = config.trainer
    steps, micro = max(0, int(trainer.max_steps)), int(trainer.accumulate_grad_batches or 1)
    training = steps * _usual(times.steps)
    interval, limit = trainer.val_check_interval, trainer.limit_val_batches
    looks = 0
    if steps and isinstance(interval, int) and isinstance(limit, int):
        looks = steps * micro // interval if limit else 0
        training += looks * limit * _usual(times.validations)
    preparing, measuring, images = looking, 0.0, f"{drawn} to prepare"
    if times.drawing is not None:
        (before, after), sampling, batch = times.planned
        fixed, step, judging = times.drawing
        chunk = fixed + sampling * step + judging
        training += looks * math.ceil(times.look / batch) * chunk
        measuring = (math.ceil(before / batch) + math.ceil(after / batch)) * chunk / times.ranks
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
