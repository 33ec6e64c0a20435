"""The numbers of anonymized images against a count by hand."""

import pytest
import torch
from torch.nn import functional as F

from fairanon.batches import PromptRow
from fairanon.evaluation import Anonymization
from fairanon.evaluation.anonymization import Anonymized
from fairanon.evaluation.observed import Judged

MASK = torch.ones(1, 16, 16, dtype=torch.bool)


class Judge:
    """Red is group "r", green group "g"; black shows no face."""

    name, classes = "colours-1", {"race": ("r", "g"), "gender": ("w", "m")}

    def classify(self, pixels):
        mean = pixels.float().mean((2, 3))
        shares = torch.stack([mean[:, 0], mean[:, 1]], 1) / mean[:, :2].sum(1, keepdim=True)
        return {"race": shares, "gender": torch.tensor([[0.2, 0.8]]).repeat(len(pixels), 1)}


class Embedder:
    name = "colours-2"

    def embed(self, pixels):
        return F.normalize(pixels.float().mean((2, 3)), dim=1) / (pixels.sum((1, 2, 3)) > 0)[:, None]


class Strangers:
    def images(self):
        yield torch.randint(0, 256, (300, 3, 1, 1), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def image(*colour):
    return torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16).contiguous()


def measure(**settings):
    return Anonymization(Judge(), Embedder(), Strangers(), false_match_rate=0.01, **settings)


ROWS = [
    PromptRow("a face", "people", {"race": race, "gender": "m"}, image=image(200, 10, 10), mask=MASK)
    for race in ("r", "r", "g", "g")
]


def judged(*colours):
    values = measure().observe(torch.stack([image(*colour) for colour in colours]), ROWS)
    return Judged(ROWS, torch.arange(4), values)


def test_every_number_by_hand():
    values = judged((200, 10, 10), (0, 200, 0), (0, 0, 0), (20, 200, 20))
    assert values.values.distance.isnan().tolist() == [False, False, True, False]
    found = measure().numbers(values, None)
    assert found["group_accuracy/r"].value == 0.5 and found["group_accuracy/g"].value == 0.5
    assert found["group_accuracy/g"].missing == 1 and found["recall/gender"].value == 1.0
    assert found["anonymization/accuracy"].value == 0.5, "the first is the source, the third shows no face"
    assert found["anonymization/accuracy"].missing == 1 and found["distance/min"].value == pytest.approx(0, abs=1e-6)
    assert 0 < found["anonymization/threshold"].value < 0.2 and found["anonymization/threshold"].n > 40_000
    assert found["psnr"].value < 20 and "fid/source" not in found and found["lpips"] is None
    assert "anonymization/threshold" not in measure().headline(list(found))


def test_people_who_look_alike_have_thresholds_of_their_own():
    one, alike = measure(), measure(alike=("race",))
    known = alike.thresholds()
    assert set(known) == {(), ("r",), ("g",)} and known[()] == one.thresholds()[()]
    assert max(known[("r",)][0], known[("g",)][0]) < known[()][0], "closer people, smaller distances"
    middle = (known[("r",)][0] + known[()][0]) / 2
    values = judged((200, 10, 10), (0, 200, 0), (0, 0, 0), (20, 200, 20))
    values.values.distance = torch.tensor([middle, 1.0, 1.0, 1.0])
    assert one.numbers(values, None)["anonymization/accuracy"].value == 0.75
    found = alike.numbers(values, None)
    assert found["anonymization/accuracy"].value == 1.0
    assert found["anonymization/accuracy/one_threshold"].value == 0.75
    assert found["anonymization/threshold"].low == pytest.approx(min(known[("r",)][0], known[("g",)][0]))
    assert not [key for key in alike.headline(list(found)) if "threshold/" in key]


def test_changes_are_paired():
    before = judged((0, 200, 0), (200, 10, 10), (0, 200, 0), (200, 10, 10))
    after = judged((200, 10, 10), (200, 10, 10), (0, 200, 0), (200, 10, 10))
    change = measure().differences(before, after)
    assert change["group_accuracy/r"].value == 0.5 and change["group_accuracy/overall"].value == 0.25
    assert (change["group_accuracy/g"].low, change["group_accuracy/g"].high) == (0.0, 0.0)


def test_what_is_not_judged_is_refused():
    with pytest.raises(ValueError, match="does not judge 'tone', only race, gender"):
        measure(group="tone")
    with pytest.raises(ValueError, match="give every row one"):
        measure().observe(image(1, 1, 1)[None], [PromptRow("a", "people", {})])
    odd = Judged(
        [PromptRow("a", "people", {"race": "x", "gender": "m"})],
        torch.zeros(1, dtype=torch.long),
        Anonymized({}, torch.zeros(1)),
    )
    with pytest.raises(ValueError, match="race 'x' is not one of r, g"):
        measure().numbers(odd, None)


def test_a_distance_of_ones_own_stands_beside_the_others():
    class Brightness:
        name = "brightness-1"

        def distance(self, pixels, others):
            return (pixels.float() - others.float()).mean((1, 2, 3)).abs()

    with_distance = measure(perceptual=Brightness())
    pixels = torch.stack([image(200, 10, 10)] * 3 + [image(200, 10, 40)])
    seen = Judged(ROWS, torch.arange(4), with_distance.observe(pixels, ROWS))
    assert with_distance.numbers(seen, None)["perceptual/brightness"].value == 2.5
    assert with_distance.judges["perceptual"] == "brightness-1" and "perceptual" not in measure().judges


def test_features_and_clip_compare_with_the_source():
    class Colours:
        name = "clip-3"

        def features(self, pixels):
            return pixels.float().mean((2, 3))

    with_nets = measure(features=Colours(), clip=Colours())
    pixels = torch.stack([image(200, 10, 10)] * 2 + [image(100, 110, 10)] * 2)
    seen = Judged(ROWS, torch.arange(4), with_nets.observe(pixels, ROWS))
    found = with_nets.numbers(seen, None)
    source, other = torch.tensor([200.0, 10, 10]), torch.tensor([100.0, 110, 10])
    assert found["clip_i/clip"].value == pytest.approx((1 + float(F.cosine_similarity(source, other, dim=0))) / 2)
    # means (150, 60, 10) and (200, 10, 10), covariance of rank one against none: |mean difference|^2 + trace
    trace = 2 * (4 / 3) * 50.0**2
    assert found["fid/source"].value == pytest.approx(2 * 50.0**2 + trace, rel=1e-3)
    assert with_nets.judges["features"] == with_nets.judges["clip_i"] == "clip-3"
