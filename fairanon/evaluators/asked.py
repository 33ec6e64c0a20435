"""Rates images by whether they show what their prompts ask for."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fairanon.evaluators.judge import Judge
from fairanon.prompts import read_prompts
from fairanon.protocols import AttributeClassifier


class AskedAttributes(Judge):
    """Share of the asked attributes that are judged right, times the judge's mean confidence in them.

    What cannot be judged without a face counts as wrong, with no confidence.

    Args:
        judge: Judges attributes.
        prompts: Prompt table that says what each prompt asks for, see `read_prompts`.
    """

    def __init__(self, judge: AttributeClassifier, prompts: str) -> None:
        self.name = f"asked-{judge.name}"
        self.judge = judge
        self.asked = {row.prompt: row.asked for row in read_prompts(Path(prompts), "scorer.prompts")}

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """See `Scorer`: float32 (N,) in [0, 1]."""
        judged = self.judge.classify(pixels)
        scores = []
        for row, prompt in enumerate(prompts):
            right, sure = [], []
            for name, value in self.asked[prompt].items():
                shares = judged[name][row].nan_to_num(0.0)
                place = self.judge.classes[name].index(value)
                right.append(float(shares[place] > 0 and shares.argmax() == place))
                sure.append(float(shares[place]))
            scores.append(sum(right) * sum(sure) / len(right) ** 2)
        return torch.tensor(scores)
