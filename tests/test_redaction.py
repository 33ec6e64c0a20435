import pytest
import torch

from fairanon.redaction import REDACTIONS, redact


def scene():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 32, 48), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(2, 1, 32, 48, dtype=torch.bool)
    masks[:, :, 8:24, 8:40] = True
    return images, masks


@pytest.mark.parametrize("kind", REDACTIONS)
def test_only_the_face_changes_and_more_with_strength(kind):
    images, masks = scene()
    assert torch.equal(redact(images, masks, kind, 0.0), images)
    spreads = []
    for strength in (0.25, 0.5, 1.0):
        found = redact(images, masks, kind, strength)
        assert found.dtype == torch.uint8
        outside = ~masks.expand_as(images)
        assert torch.equal(found[outside], images[outside])
        spreads.append(found[:, :, 8:24, 8:40].float().std((2, 3)).mean())
    assert spreads[0] > spreads[1] > spreads[2]
    assert spreads[2] < 20


def test_full_strength_leaves_what_it_says():
    images, masks = scene()
    assert (redact(images, masks, "mask", 1.0)[masks.expand_as(images)] == 127).all()
    blocks = redact(images, torch.ones_like(masks), "pixelate", 1.0)
    assert torch.equal(blocks[..., :16, :16], blocks[..., :1, :1].expand(-1, -1, 16, 16))
    with pytest.raises(ValueError, match="strength must be in"):
        redact(images, masks, "blur", 1.5)
