import pytest
import torch

from data_modules.synthetic_faces.identities import PeopleToAnonymize, SyntheticIdentities
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.shapes import MASKS, PARTS
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.batches import IdentityBatch
from fairanon.evaluators import PointRendParser, TinyEmbedder, TinyGeometry


def test_a_pair_shows_one_person_twice():
    data = SyntheticIdentities(batch_size=64, people=300)
    batch = next(iter(data.train_dataloader()))
    judge = TinyEmbedder()
    near = judge.embed(batch.images) @ judge.embed(batch.references).T
    assert (near.argmax(1) == torch.arange(64)).float().mean() > 0.9, "who it is"
    assert not torch.equal(batch.images, batch.references) and len(set(batch.keys)) == 64
    pixels = TinyGeometry().landmarks(batch.images)
    assert (
        (batch.landmarks * 64 - pixels).abs().mean() < 1.5 and batch.landmarks.min() >= 0 and batch.landmarks.max() <= 1
    )
    inside = batch.masks[
        torch.arange(64), 0, (batch.landmarks[:, 30, 1] * 64).long(), (batch.landmarks[:, 30, 0] * 64).long()
    ]
    assert inside.float().mean() > 0.9, "the tip of the nose is in the face"
    again = next(iter(SyntheticIdentities(batch_size=64, people=300).train_dataloader()))
    assert torch.equal(again.references, batch.references)
    face = next(iter(SyntheticIdentities(batch_size=64, people=300, region="face").train_dataloader()))
    assert torch.equal(face.images, batch.images) and not (face.masks & ~batch.masks).any()
    assert face.masks.sum() < 0.7 * batch.masks.sum()
    with pytest.raises(ValueError, match="names 'beard'"):
        SyntheticIdentities(region="beard")
    alone = next(iter(SyntheticIdentities(batch_size=4, people=300, paired=False).train_dataloader()))
    assert torch.equal(alone.images, alone.references)


def test_validation_people_are_others_and_there_once():
    data = SyntheticIdentities(batch_size=16, people=100, val_people=40)
    keys = [key for batch in data.val_dataloader() for key in batch.keys]
    assert keys == [f"{k}.0" for k in range(40)]


def test_images_without_a_face_are_refused():
    images, landmarks = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.rand(2, 68, 2)
    masks = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    IdentityBatch(["a", "b"], images, images, masks, landmarks)
    masks[1] = False
    with pytest.raises(ValueError, match="b has no mask"):
        IdentityBatch(["a", "b"], images, images, masks, landmarks)
    with pytest.raises(ValueError, match="a has no landmarks"):
        IdentityBatch(["a"], images[:1], images[:1], masks[:1], landmarks[:1] * float("nan"))
    with pytest.raises(ValueError, match="landmarks must be float"):
        IdentityBatch(["a"], images[:1], images[:1], masks[:1], landmarks[:1, :5])


def whom(count=6, **settings):
    return PeopleToAnonymize(PointRendParser(), TinyGeometry(), count=count, **settings).rows()


def test_whom_to_anonymize_comes_with_attackers_and_many_draws():
    rows = whom(attacked=2, draws=3)
    assert [row.set for row in rows] == ["people"] * 6 + ["attacker"] * 2 + ["diverse"] * 3
    assert [row.person for row in rows] == ["0", "1", "2", "3", "4", "5", "0", "1", "0", "0", "0"]
    judge = TinyEmbedder()
    images, references = (torch.stack([getattr(r, n) for r in rows[:6]]) for n in ("image", "reference"))
    assert (judge.embed(images) * judge.embed(references)).sum(1).mean() > 0.8
    with pytest.raises(ValueError, match="attacked"):
        whom(count=2, attacked=3)


def test_masks_and_landmarks_are_found_and_who_is_not_found_is_left_out(caplog):
    rows = whom(attacked=0, draws=0)
    drawn = render(draw_scenes(4700, range(6), "balanced", 6), masks=True)
    for k, row in enumerate(rows):
        person = drawn.masks[k, [MASKS.index(name) for name in PARTS]].bool().any(0)
        assert (row.mask[0] & person).sum() > 0.9 * (row.mask[0] | person).sum()
        assert (row.landmarks * 64 - drawn.landmarks[k]).abs().mean() < 1

    class Blind(TinyGeometry):
        def landmarks(self, pixels):
            points = super().landmarks(pixels)
            points[1] = torch.nan
            return points

    with caplog.at_level("INFO"):
        rows = PeopleToAnonymize(PointRendParser(), Blind(), count=4, attacked=2, draws=0).rows()
    assert [row.person for row in rows] == ["0", "2", "3", "0", "2"]
    assert "1 people without a face" in caplog.text
