import pytest
import torch

from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.shapes import MASKS
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.degradation import Degradation, IdentityMask
from fairanon.evaluators import TinyEmbedder

TINY = IdentityMask(half_width=0.328, up=0.336, down=0.344)
PARSED = IdentityMask("parsed", grow=0)


def people(count):
    drawn = render(draw_scenes(5, range(count), "balanced"), masks=True)
    return drawn.image, drawn.masks[:, :5].bool().any(1, keepdim=True), drawn.landmarks / 64


@pytest.mark.parametrize("kind", ["remove", "paper"])
def test_only_the_mask_changes_and_a_key_names_the_result(kind):
    images, masks, landmarks = people(4)
    degrade = Degradation(kind, PARSED)
    keys = [(1, "degrade", n) for n in range(4)]
    worse, hidden = degrade(images, masks, landmarks, keys)
    assert torch.equal(hidden, masks) and worse.dtype == torch.uint8
    assert torch.equal(worse, degrade(images, masks, landmarks, keys)[0])
    part = degrade(images[1:3], masks[1:3], landmarks[1:3], keys[1:3])[0]
    assert torch.equal(worse[1:3], part), "whatever the batch is"
    changed = (worse != images).any(1, keepdim=True)
    assert not (changed & ~masks).any() and (changed & masks).sum() > 0.9 * masks.sum()
    other = degrade(images, masks, landmarks, [(2, "degrade", n) for n in range(4)])[0]
    assert torch.equal(worse, other) == (kind == "remove"), "nothing is random about what is gone"


@pytest.mark.parametrize("degrade, least, most", [
    (Degradation("paper", PARSED, (0.0, 0.0), (1.0, 1.0), (0.0, 0.0), (95, 95)), 0.9, 1.0),
    (Degradation("paper", PARSED, (16.0, 64.0), (128.0, 256.0)), 0.0, 0.6),
    (Degradation("remove", TINY), 0.0, 0.0),
])  # fmt: skip
def test_the_stronger_the_less_a_person_is_found_again(degrade, least, most):
    """The person's own outline, hair and neck tell who it is however strong the blur; nothing is left of a whole head."""
    images, masks, landmarks = people(200)
    worse, _ = degrade(images, masks, landmarks, [(0, n) for n in range(200)])
    judge = TinyEmbedder()
    own = judge.embed(worse)
    near = own.nan_to_num() @ judge.embed(images).T
    found = (near.argmax(1) == torch.arange(200)) & ~own.isnan().any(1)
    assert least <= float(found.float().mean()) <= most


def test_one_shape_hides_everybody():
    """Every pixel of skin and hair lies in it (hands apart, which a parser finds), and its outline tells nothing."""
    drawn = render(draw_scenes(12, range(1000), "balanced"), masks=True)
    nothing = torch.zeros(1000, 1, 64, 64, dtype=torch.bool)
    hidden = TINY(nothing, drawn.landmarks / 64)
    parts = [MASKS.index(name) for name in ("face", "eyes", "brows", "nose", "lips", "hair", "neck", "ears")]
    shown = drawn.masks[:, parts].bool().any(1, keepdim=True)
    assert (shown & hidden).sum() > 0.999 * shown.sum()
    sizes = hidden.flatten(1).sum(1).double()
    assert sizes.std() < 0.05 * sizes.mean(), "but for what the border cuts off"


def test_a_parsed_mask_grows_and_a_generic_one_takes_in_what_is_seen_outside():
    masks = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    masks[..., 60, 3] = True
    landmarks = people(1)[2]
    grown = IdentityMask("parsed", grow=16)(masks, landmarks)  # 2 of 64
    assert grown.sum() == grown[..., 58:63, 1:6].sum() > 9
    both = IdentityMask("generic", grow=16)(masks, landmarks)
    assert torch.equal(both & ~IdentityMask("generic", grow=16)(masks & False, landmarks), grown)


def test_wrong_ranges_are_refused():
    with pytest.raises(ValueError, match=r"degradation\.blur"):
        Degradation(blur=(3.0, 1.0))
    with pytest.raises(ValueError, match=r"degradation\.mask"):
        IdentityMask(up=0.0)
