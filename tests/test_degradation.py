import pytest
import torch

from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.degradation import Degradation
from fairanon.evaluators import TinyEmbedder


def people(count):
    drawn = render(draw_scenes(5, range(count), "balanced"), masks=True)
    return drawn.image, drawn.masks[:, :5].bool().any(1, keepdim=True)


def test_only_the_face_changes_and_a_key_names_the_result():
    pictures, masks = people(4)
    degrade = Degradation()
    keys = [(1, "degrade", n) for n in range(4)]
    worse = degrade(pictures, masks, keys)
    assert torch.equal(worse, degrade(pictures, masks, keys)) and worse.dtype == torch.uint8
    assert torch.equal(worse[1:3], degrade(pictures[1:3], masks[1:3], keys[1:3])), "whatever the batch is"
    changed = (worse != pictures).any(1, keepdim=True)
    assert not (changed & ~masks).any() and (changed & masks).sum() > 0.9 * masks.sum()
    assert not torch.equal(worse, degrade(pictures, masks, [(2, "degrade", n) for n in range(4)]))


@pytest.mark.parametrize("degrade, least, most", [
    (Degradation((0.0, 0.0), (1.0, 1.0), (0.0, 0.0), (95, 95)), 0.9, 1.0),
    (Degradation((16.0, 64.0), (128.0, 256.0)), 0.0, 0.6),
])  # fmt: skip
def test_the_stronger_the_less_a_person_is_found_again(degrade, least, most):
    """Not never: hair, ears and neck stay, and the rest of the picture is the same."""
    pictures, masks = people(200)
    worse = degrade(pictures, masks, [(0, n) for n in range(200)])
    judge = TinyEmbedder()
    own = judge.embed(worse)
    near = own.nan_to_num() @ judge.embed(pictures).T
    found = (near.argmax(1) == torch.arange(200)) | own.isnan().any(1)  # no face is no proof
    assert least <= float(found.float().mean()) <= most


def test_wrong_ranges_are_refused():
    with pytest.raises(ValueError, match=r"degradation\.blur"):
        Degradation(blur=(3.0, 1.0))


def test_tint_leaves_nothing_of_the_mean_colour():
    pictures, masks = people(24)
    degrade = Degradation((16.0, 64.0), (128.0, 256.0), tint=(96.0, 224.0))
    keys = [(0, n) for n in range(24)]
    first = degrade(pictures, masks, keys).float()
    darker = degrade((pictures.float() * 0.4).to(torch.uint8), masks, keys).float()

    def mean(x):
        return torch.where(masks, x, torch.nan).flatten(2).nanmean(2)

    assert (mean(first) - mean(darker)).abs().max() < 12, "but for what is cut off at black and white"
    assert (mean(pictures.float()) - mean(pictures.float() * 0.4)).abs().max() > 60
    other = degrade(pictures, masks, [(1, n) for n in range(24)]).float()
    assert (mean(first) - mean(other)).abs().mean() > 20, "another key, another colour"
