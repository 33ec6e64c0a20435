"""What a judge says of images, added up prompt by prompt as they come: nothing here grows with the number of images."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from fairanon.batches import PromptRow
from fairanon.evaluation.observed import Judged
from fairanon.evaluation.portrayal import Portrayed

UNSURE = 0.8
"""A judge that gives no class so much is not sure (aDFT's convention)."""
NEUTRAL = ("neutral", "heldout")
"""Sets of prompts that name no group."""


class Tally:
    """Counts of P prompts. All tensors are float64; an image counts once.

    Args:
        rows: The prompt table.
        classes: Of every attribute that the judge judges.
        names: The attributes that are counted.
        labelled: By attribute the numbers of images of which people said something, among those of prompts that name no group.

    Attributes:
        images: (P,).
        blank: (P,), images that show nothing.
        counts: By attribute (P, K), images of each class.
        unsure: By attribute that is counted (P, K), those of them of which the judge is not sure.
        absent: By attribute that is counted (P,), images that show something, and nobody to be judged.
        joint: By two attributes that are counted (P, K * L), images of two classes at once.
        obeyed: (P,), images that show whatever the prompt asks for of the attributes that are counted.
        rated: By scorer (2, P): images that it rated, and the sum of their scores.
        said: By attribute what was said of the labelled images that were judged: class by number.
    """

    def __init__(
        self,
        rows: Sequence[PromptRow],
        classes: Mapping[str, Sequence[str]],
        names: Sequence[str],
        labelled: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.rows, self.classes, self.names = list(rows), dict(classes), list(names)
        prompts = len(self.rows)
        self.images, self.blank, self.obeyed = torch.zeros(3, prompts, dtype=torch.float64)
        self.counts = {name: self._empty(name) for name in self.classes}
        self.unsure = {name: self._empty(name) for name in self.names}
        self.absent = {name: torch.zeros(prompts, dtype=torch.float64) for name in self.names}
        self.joint = {
            (a, b): torch.zeros(prompts, len(classes[a]) * len(classes[b]), dtype=torch.float64)
            for a, b in combinations(self.names, 2)
        }
        self.rated: dict[str, Tensor] = {}
        self.said: dict[str, dict[int, int]] = {name: {} for name in self.names}
        self._labelled = {name: set(numbers) for name, numbers in (labelled or {}).items()}
        self._neutral = torch.tensor([row.set in NEUTRAL for row in self.rows])
        self._seen_neutral = 0
        self._sums: dict[str, Tensor] = {}
        self.asked = {name: self._asked(name) for name in self.classes}
        """By attribute int64 (P,), the class that each prompt asks for; -1 for none."""

    @classmethod
    def of(cls, judged: Judged[Portrayed], classes: Mapping[str, Sequence[str]]) -> Tally:
        """Everything at once; each attribute is counted."""
        tally = cls(judged.rows, classes, list(classes))
        tally.add(judged)
        return tally

    def only(self, wanted: Tensor) -> Tally:
        """The same counts, as if some prompts alone had images.

        Args:
            wanted: bool (P,).
        """
        part = copy.copy(self)
        part.images = self.images * wanted
        return part

    def _empty(self, name: str) -> Tensor:
        return torch.zeros(len(self.rows), len(self.classes[name]), dtype=torch.float64)

    def _asked(self, name: str) -> Tensor:
        place = {class_name.casefold(): k for k, class_name in enumerate(self.classes[name])}
        sets = (
            ("specific",) if name in self.names else (*NEUTRAL, "specific")
        )  # an occupation is asked for by any prompt
        wanted = [row.asked.get(name) if row.set in sets else None for row in self.rows]
        return torch.tensor(
            [-1 if class_name is None else place.get(class_name, -1) for class_name in wanted], dtype=torch.long
        )

    def add(self, judged: Judged[Portrayed]) -> None:
        """Count some more images; those of prompts that name no group in the order of their numbers."""
        prompt, values = judged.prompt, judged.values
        self._count(self.images, prompt)
        self._count(self.blank, prompt[values.blank])
        predictions, seen = {}, {}
        for name in self.classes:
            rows = values.probabilities[name]
            seen[name], predictions[name] = ~rows.isnan().any(1), rows.nan_to_num(0).argmax(1)
            here = seen[name]
            self._count(self.counts[name], prompt[here], predictions[name][here])
            if name in self.unsure:
                unsure = here & (rows.nan_to_num(0).amax(1) < UNSURE)
                self._count(self.unsure[name], prompt[unsure], predictions[name][unsure])
                self._count(self.absent[name], prompt[~here & ~values.blank])
                if values.features is not None:
                    self._add_features(name, prompt[here], predictions[name][here], values.features[here])
        for (a, b), table in self.joint.items():
            both = seen[a] & seen[b]
            self._count(table, prompt[both], (predictions[a] * len(self.classes[b]) + predictions[b])[both])
        right, any_asked = torch.ones_like(values.blank), torch.zeros_like(values.blank)
        for name in self.names:
            wanted = self.asked[name][prompt]
            any_asked |= wanted >= 0
            right &= (wanted < 0) | (seen[name] & (predictions[name] == wanted))
        self._count(self.obeyed, prompt[right & any_asked])
        for name, scores in values.scores.items():
            rated = ~scores.isnan()
            table = self.rated.setdefault(name, torch.zeros(2, len(self.rows), dtype=torch.float64))
            self._count(table[0], prompt[rated])
            table[1].index_add_(0, prompt[rated], scores[rated].double())
        neutral = self._neutral[prompt]
        numbers = self._seen_neutral + neutral.cumsum(0) - 1
        self._seen_neutral += int(neutral.sum())
        for name, wanted_numbers in self._labelled.items():
            for k in (neutral & seen[name]).nonzero().flatten().tolist():
                if int(numbers[k]) in wanted_numbers:
                    self.said[name][int(numbers[k])] = int(predictions[name][k])

    @staticmethod
    def _count(table: Tensor, prompt: Tensor, column: Tensor | None = None) -> None:
        columns = table.shape[1] if table.dim() > 1 else 1
        places = prompt if column is None else prompt * columns + column
        table.view(-1).add_(torch.bincount(places, minlength=table.numel()))

    def _add_features(self, name: str, prompt: Tensor, predictions: Tensor, features: Tensor) -> None:
        size = len(self.classes[name])
        if name not in self._sums:
            self._sums[name] = torch.zeros(len(self.rows) * size, features.shape[1], dtype=torch.float64)
        self._sums[name].index_add_(0, prompt * size + predictions, F.normalize(features.double(), dim=1))

    def summed(self, name: str) -> Tensor | None:
        """Sums of the features of the images of each prompt and class, of length 1 each: (P, K, D); None without features."""
        sums = self._sums.get(name)
        return None if sums is None else sums.view(len(self.rows), len(self.classes[name]), -1)
