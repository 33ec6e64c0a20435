"""Fair-Diffusion (Friedrich et al. 2023): each image is pushed towards a class while it is drawn (semantic guidance, Brack et al. 2023)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fairanon.pipelines.steering import PromptInjection, Step, together
from fairanon.seeding import Key


class FairDiffusion(PromptInjection):
    """Guidance towards a class of each attribute, with classes and gate of `PromptInjection`; the prompts stay.

    Added to plain guidance is e + momentum v, where e is the sum over the attributes of s (towards - away), of which the largest
    positions of each channel are kept, and v follows e: v <- beta v + (1 - beta) (e + momentum v). An image that the gate keeps
    as it is gets nothing added. Each attribute takes two more predictions a step.

    Args:
        bare: A prompt for somebody, who is its last word; with a class put into it, it is what images are pushed towards.
        strength: How strongly a class acts (s).
        threshold: Share of the positions of each channel that are not touched.
        warmup: Share of the steps after which it begins.
        momentum: How much of v is added.
        decay: How slowly v follows (beta).
        official: If true, as the authors' script has it: towards a class from the empty prompt, and of two classes away from the
            other one, each with its own positions. With more than two classes the prompt's own subject is lost. If false, each
            class is compared with ``bare``.
        dealt: See `PromptInjection`.
    """

    def __init__(
        self,
        bare: str = "a photo of a person",
        strength: float = 4.0,
        threshold: float = 0.95,
        warmup: float = 0.1,
        momentum: float = 0.5,
        decay: float = 0.6,
        official: bool = False,
        **dealt: Any,
    ) -> None:
        super().__init__(**dealt)
        if not all(map(math.isfinite, (strength, momentum, decay))):
            raise ValueError("evaluate.steerings: strength, momentum and decay must be numbers.")
        words = re.findall(r"\w+", bare)
        if not words:
            raise ValueError("evaluate.steerings: bare must be a prompt; its last word is who is drawn.")
        self.somebody = words[-1].lower()
        if not (0 <= threshold < 1 and 0 <= warmup < 1):
            raise ValueError(
                f"evaluate.steerings: threshold and warmup must be at least 0 and below 1, got {threshold} and {warmup}."
            )
        self.bare, self.strength, self.threshold, self.warmup = bare, strength, threshold, warmup
        self.momentum, self.decay, self.official = momentum, decay, official

    def prompts(self, prompts: Sequence[str], keys: Sequence[Sequence[Key]]) -> list[str]:
        """See `Steering`: as they are."""
        return list(prompts)

    def concepts(self, prompts: Sequence[str], keys: Sequence[Sequence[Key]]) -> list[list[str]]:
        """See `Steering`: for each attribute towards what, and away from what; the same where nothing is to be added."""
        asked = [self.asked(prompt, int(key[-1])) for prompt, key in zip(prompts, keys, strict=True)]
        somebody = PromptInjection(self.attributes, [self.somebody], self.images)
        texts = []
        for name, classes in self.attributes.items():
            towards, away = [], []
            for wanted in asked:
                others = [label for label in classes if label != wanted.get(name)]
                nothing = "" if self.official else self.bare
                paired = self.official and len(classes) == 2
                towards.append(somebody.with_classes(self.bare, {name: wanted[name]}) if name in wanted else nothing)
                away.append(
                    somebody.with_classes(self.bare, {name: others[0]}) if name in wanted and paired else nothing
                )
            texts += [towards, away]
        return texts

    def prediction(self, step: Step) -> Tensor:
        """See `Steering`."""
        parts = [step.empty, step.prompt, *step.concepts]
        without, with_prompt, *concepts = step.predict(together(*parts)).chunk(len(parts))
        edit = torch.zeros_like(without)
        for towards, away in zip(concepts[::2], concepts[1::2], strict=True):
            if self.official:
                edit += self._strongest(towards - without) - self._strongest(away - without)
            else:
                edit += self._strongest(towards - away)
        follows = step.memory.get("follows", torch.zeros_like(edit))
        edit += self.momentum * follows
        step.memory["follows"] = self.decay * follows + (1 - self.decay) * edit
        guided = without + step.scale * (with_prompt - without)
        return guided + edit if step.left <= 1 - self.warmup + 1e-9 else guided

    def _strongest(self, direction: Tensor) -> Tensor:
        """The direction, where it is strongest: float (B, C, h, w)."""
        direction = self.strength * direction
        sizes = direction.abs()
        least = sizes.flatten(2).quantile(self.threshold, dim=2)[..., None, None]
        return torch.where(sizes >= least, direction, 0.0)
