"""What a measure is: it judges each image once and turns judgements into numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch
from torch import Tensor

from fairanon.batches import PromptRow
from fairanon.evaluation.observed import Judged, Observed, R
from fairanon.evaluators.judge import Judge, jsonable, to_device
from fairanon.metrics.functional.estimates import Estimate, Estimates
from fairanon.prompts import SETS
from fairanon.protocols import ImageSource

_BASELINES = {"floor", "random", "chance", "strangers", "threshold", "gallery", "place", "unjudged_prompts"}
"""Parts of the keys of numbers that nobody wants higher or lower: what others are compared with."""


@dataclass
class Rival:
    """Another way to do what the trained model does.

    Attributes:
        rows: On which prompts.
        sample: Images of some of them, uint8 (n, 3, H, W).
        numbers: What else is to be said of it.
    """

    rows: list[PromptRow]
    sample: Callable[[list[PromptRow]], Tensor]
    numbers: Estimates = field(default_factory=dict)


class FewImages:
    """The first images of a set.

    Args:
        source: The set.
        count: About how many; a verification threshold wants 142.
    """

    def __init__(self, source: ImageSource, count: int = 160) -> None:
        self.source, self.count = source, count

    def images(self) -> Iterator[Tensor]:
        """See `ImageSource`."""
        seen = 0
        for part in self.source.images():
            yield part
            seen += len(part)
            if seen >= self.count:
                return


class Measure(ABC, Generic[R]):
    """Judges images and measures a model by them.

    Attributes:
        record: What `observe` returns.
        sets: Sets of prompts whose images it looks at, those of them that there are.
        other_noise: Those of which it also wants the base model's images from other noise.
        higher_is_better: By the first part of a number's key; what is missing has no direction.
        judges: Who judges what, by name and version; recorded beside the numbers.
        settings: Whatever else than the judges `observe` depends on.
    """

    record: ClassVar[type[Observed]]
    sets: tuple[str, ...] = SETS
    other_noise: tuple[str, ...] = ()
    higher_is_better: ClassVar[dict[str, bool]] = {}
    judges: dict[str, str]
    settings: tuple[Any, ...] = ()

    def to(self, device: torch.device) -> None:
        """Put every judge on a device: the one of the process that measures."""
        to_device(vars(self), device)

    def shorten(self) -> None:
        """Read a few images of each reference set only, for a rehearsal."""
        for name, value in list(vars(self).items()):
            if hasattr(value, "images"):
                setattr(self, name, FewImages(value))

    def recipe(self) -> list[Any]:
        """What `observe` depends on: names stored judgements."""
        judges = {name: value for name, value in vars(self).items() if isinstance(value, (Judge, list))}
        return [type(self).__name__, self.judges, self.settings, jsonable(judges)]

    def direction(self, key: str) -> bool | None:
        """Whether higher is better for one of its numbers; None where that cannot be said."""
        parts = key.split("/")
        return None if _BASELINES & set(parts) else self.higher_is_better.get(parts[0])

    @abstractmethod
    def observe(self, pixels: Tensor, rows: list[PromptRow]) -> R:
        """Judge images uint8 (N, 3, H, W) of N prompts; what is returned is kept instead of the images."""

    @abstractmethod
    def numbers(self, judged: Judged[R], noise: Judged[R] | None) -> Estimates:
        """Every number of one model, None where its judge is absent; keys are metric/attribute/variant.

        Args:
            judged: Its images.
            noise: The base model's images of ``other_noise``; None if there are none.
        """

    def quick(self, judged: Judged[R]) -> Estimates:
        """What can be said of a few images in the midst of a training, at no cost."""
        return {}

    @abstractmethod
    def headline(self, keys: list[str]) -> list[str]:
        """Those of the measured keys that a table of experiments shows."""

    def compare(self, before: Judged[R], after: Judged[R]) -> dict[str, Estimate]:
        """Ratios after / before, with paired intervals, where they are of interest."""
        return {}

    def differences(self, before: Judged[R], after: Judged[R]) -> dict[str, Estimate]:
        """Differences after - before, with paired intervals, where they are of interest."""
        return {}

    def against(self, before: Judged[R], after: Judged[R]) -> dict[str, Estimate]:
        """Numbers of the trained model that need both, such as win rates."""
        return {}

    def rivals(self, after: Judged[R]) -> dict[str, Rival]:
        """Other ways to do what the trained model does, on the same prompts."""
        return {}

    def shares(self, before: Judged[R], after: Judged[R]) -> list[dict[str, Any]]:
        """Who is drawn: a row for each attribute, prompt ("" is all of them) and class.

        Each has "attribute", "prompt", "class", "ideal" (the share that it should have) and the estimates "before" and "after"
        as metrics.json has them.
        """
        return []

    def plot(self, folder: Path, before: Judged[R], after: Judged[R]) -> None:  # not every measure has one
        """Write figures beside the numbers."""
