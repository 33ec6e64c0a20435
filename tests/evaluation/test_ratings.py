"""Scores and win rates against a count by hand."""

import pytest
import torch

from fairanon.batches import PromptRow
from fairanon.evaluation import Engine, Ratings, RegionQuality
from fairanon.evaluation.engine import Samples
from fairanon.evaluation.observed import Judged
from fairanon.protocols import Detections
from fairanon.report import compare, summarise


class Red:
    name = "red-2"

    def score(self, pixels, prompts):
        return pixels[:, 0].float().mean((1, 2)) + torch.tensor([len(text) for text in prompts])


class Nobody:
    name, kinds = "nobody-1", ("face",)

    def detect(self, pixels):
        return [{"face": Detections(torch.empty(0, 4), torch.empty(0))} for _ in pixels]


ROWS = [PromptRow(text, "people", {}) for text in ("a", "bb", "ccc", "d")]


def judged(measure, *reds):
    pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    pixels[:, 0] = torch.tensor(reds, dtype=torch.uint8).view(4, 1, 1)
    return Judged(ROWS, torch.arange(4), measure.observe(pixels, ROWS))


def test_scores_are_means_and_ties_are_half_a_win():
    measure = Ratings([Red()])
    before, after = judged(measure, 10, 10, 10, 10), judged(measure, 20, 10, 5, 30)
    assert measure.numbers(before, None)["score/red-2"].value == 10 + 7 / 4
    assert measure.against(before, after)["win_rate/red-2"].value == (1 + 0.5 + 0 + 1) / 4
    assert measure.judges["red-2"] == "red-2"


def test_images_of_one_prompt_are_one_opinion():
    measure = Ratings([Red()])
    pixels = [torch.zeros(40, 3, 8, 8, dtype=torch.uint8) for _ in range(2)]
    pixels[1][:20, 0] = 9  # of two of four prompts, each of ten images, the new one is liked better
    rows = [ROWS[k // 10] for k in range(40)]
    before, after = (Judged(ROWS, torch.arange(40) // 10, measure.observe(one, rows)) for one in pixels)
    won = measure.against(before, after)["win_rate/red-2"]
    assert won.value == 0.75 and won.low < 0.5, "of two prompts nobody knows"
    gained = measure.differences(before, after)["score/red-2"]
    assert gained.value == 4.5 and gained.low < 0 < gained.high


def test_measures_stand_beside_one_another():
    engine = Engine(ROWS, [Ratings([Red()]), RegionQuality(Nobody())])
    observed = engine.observe(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), ROWS)
    scores, regions = engine.numbers(Samples(observed, 4, torch.empty(0), torch.empty(0)))
    assert scores["score/red-2"].value == 7 / 4 and regions["detection_rate/face"].value == 0
    engine.measures[1] = Ratings([Red()])
    with pytest.raises(ValueError, match="two of them measure score/red-2"):
        engine.numbers(Samples(observed[:1] * 2, 4, torch.empty(0), torch.empty(0)))


def test_a_table_shows_what_the_base_cannot_have():
    one = {"value": 0.5, "low": 0.5, "high": 0.5, "n": 1.0, "missing": 0.0}
    run = {
        "headline": ["score", "win_rate"],
        "before": {"score": one},
        "after": {"score": one, "win_rate": one},
        "seconds": {"train": 1.0},
    }
    lines = compare(summarise({"simpo": [{**run, "ratio": {}}]})).splitlines()
    assert lines[0] == "|  | score | win_rate |" and lines[2] == "| base | 0.500 | n/a |"
