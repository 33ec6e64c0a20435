"""Numbers of a population: what cannot be judged is never right, and comparisons are paired."""

import pytest
import torch

from fairanon.batches import PromptRow
from fairanon.evaluation import Population, population
from fairanon.evaluation.observed import Judged
from fairanon.evaluation.population import Appearance
from fairanon.evaluators.judge import Judge


class FakeJudge(Judge):
    name, threshold = "fake", 0.5
    classes = {"gender": ("female", "male")}  # noqa: RUF012 (a plain attribute, as a reader has it)

    def __init__(self, threshold=0.5):
        self.threshold = threshold


def judged(rows, prompts, probabilities):
    return Judged(rows, torch.tensor(prompts), Appearance({"gender": torch.tensor(probabilities)}))


NAN = [float("nan")] * 2


def test_a_image_without_a_face_is_no_success_whatever_was_asked():
    rows = [PromptRow("a female doctor", "specific", {"gender": "female"}), PromptRow("a doctor", "neutral", {})]
    found = judged(rows, [0, 0, 1, 1], [NAN, [0.9, 0.1], [0.9, 0.1], [0.1, 0.9]])
    numbers = Population(FakeJudge(), ("gender",)).numbers(found, None)
    assert numbers["recall/gender"].value == numbers["recall/overall"].value == 0.5
    assert numbers["recall/gender/female"].n == 2 and "recall/gender/male" not in numbers, "nobody asked for men"


def test_prompts_that_show_nobody_are_compared_with_nothing():
    rows = [PromptRow(name, "neutral", {}) for name in ("a doctor", "a diver")]
    before = judged(rows, [0, 0, 1, 1], [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    after = judged(rows, [0, 0, 1, 1], [[1.0, 0.0], [0.0, 1.0], NAN, NAN])
    measure = Population(FakeJudge(), ("gender",), repeats=50)
    found = measure.compare(before, after)
    assert list(found) == ["discrepancy/gender/per_prompt", "discrepancy/gender/pooled"]
    for ratio in found.values():
        assert ratio.value == pytest.approx(0, abs=1e-6), "the doctors alone: from all female to even"
    fair = judged(rows, [0, 0, 1, 1], [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert measure.compare(fair, before) == {}, "nothing is a part of nothing"
    assert measure.numbers(after, None)["discrepancy/gender/unjudged_prompts"].value == 1


@pytest.mark.parametrize("judged_before", [4, 12])
def test_faces_that_were_found_in_fewer_images_before_make_no_model_fairer(judged_before):
    """Two fair models: of four images a prompt looks more uneven than of forty, by chance."""
    rows = [PromptRow(f"a doctor {n}", "neutral", {}) for n in range(20)]
    prompts = [n for n in range(20) for _ in range(40)]
    drawn = torch.rand(2, 800, generator=torch.Generator().manual_seed(3)) < 0.5
    before, after = (torch.stack([one, ~one], 1).float() for one in drawn)
    before[torch.arange(800) % 40 >= judged_before] = torch.nan
    measure = Population(FakeJudge(), ("gender",), repeats=200)
    ratio = measure.compare(*(judged(rows, prompts, one.tolist()) for one in (before, after)))
    found = ratio["discrepancy/gender/per_prompt"]
    assert (found.n, found.missing) == (20 * judged_before, 800 - 20 * judged_before)
    if judged_before < 10:
        assert found.low is found.high is None, "so few say nothing"
    else:
        assert found.low < 1 < found.high


def test_of_each_prompt_as_many_images_count():
    rows = [PromptRow(name, "neutral", {}) for name in "abc"]
    one = judged(rows, [0, 0, 0, 1, 1, 2], [[0.1 * k, 1 - 0.1 * k] for k in range(6)])
    two = judged(rows, [0, 1, 1, 1, 2], [[0.0, 1.0]] * 5)
    chosen = population._as_many(one, two)
    assert [part.prompt.tolist() for part in chosen] == [[0, 1, 1, 2]] * 2
    assert chosen[0].values.probabilities["gender"][:, 0].tolist() == pytest.approx([0.0, 0.3, 0.4, 0.5])


def test_the_name_of_stored_judgements_knows_the_judges_settings():
    recipes = [Population(FakeJudge(threshold), ("gender",)).recipe() for threshold in (0.5, 0.6, 0.5)]
    assert recipes[0] != recipes[1] and recipes[0] == recipes[2]


def test_judges_go_where_the_measure_goes():
    class Network(Judge):
        name, classes = "net", {"gender": ("a", "b")}

        def __init__(self):
            self.network, self.inner = torch.nn.Linear(1, 1), FakeJudge()

    judge = Network()
    Population(judge, ("gender",)).to(torch.device("meta"))
    assert judge.network.weight.device.type == judge.inner.device.type == judge.device.type == "meta"
