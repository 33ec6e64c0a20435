"""Identity removal on doctored results: whoever is not anonymized must be found, whoever is must not be."""

import dataclasses

import pytest
import torch

from data_modules.synthetic_faces import PeopleToAnonymize
from data_modules.synthetic_faces.renderer import _BACKGROUND, render
from data_modules.synthetic_faces.world import BACKGROUNDS as WALLS
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.evaluation import Engine, Preservation, Retrieval
from fairanon.evaluation.engine import Samples
from fairanon.evaluators import PointRendParser, TinyAttributes, TinyBackground, TinyEmbedder, TinyGeometry
from fairanon.evaluators.tiny import BACKGROUNDS
from fairanon.metrics.anonymity import resemblance, to_others
from fairanon.metrics.functional.geometry_distance import geometry_distance
from fairanon.redaction import redact


def whom(**settings):
    return PeopleToAnonymize(PointRendParser(), TinyGeometry(), **settings).rows()


@pytest.fixture(scope="module")
def people():
    return whom(count=96, attacked=32, draws=8)


def engine(rows, **settings):
    retrieval = Retrieval(TinyEmbedder(), [TinyAttributes()], ("tone", "gender"), ("glasses",), **settings)
    judges = [TinyAttributes(), TinyBackground()]
    kept = Preservation(judges, ("occupation", "background"), ("tone", "gender"), TinyGeometry(), judges[0])
    return Engine(rows, [retrieval, kept])


def observed(subject, pixels):
    return Samples(subject.observe(pixels, subject.rows), len(pixels), torch.empty(0), torch.empty(0))


def measured(subject, pixels):
    return {key: value for one in subject.numbers(observed(subject, pixels)) for key, value in one.items()}


def test_originals_are_all_found_and_nothing_is_lost(people):
    subject = engine(people)
    found = measured(subject, torch.stack([row.image for row in people]))
    assert found["retrieval/top1/source"].value == found["retrieval/top1/source/parrot"].value == 1
    assert found["retrieval/top1/source/excluder"].value == 1, "it expects what it saw"
    assert found["retrieval/top1/identity"].value > 0.8, "another image of the same person"
    assert found["retrieval/top1/identity"].missing == 0, "who cannot be judged counts as found"
    assert found["retrieval/chance/top1/identity"].value == pytest.approx(1 / found["retrieval/gallery/identity"].value)
    others = measured(subject, torch.stack([row.image for row in [*people[1:], people[0]]]))
    assert others["retrieval/top1/identity"].value < 0.2, "another person's image is found by hers, not by this one's"
    assert found["retrieval/gallery/source"].value == 96 and found["retrieval/gallery/source/parrot"].value == 32
    assert found["retrieval/chance/top1/source"].value == pytest.approx(1 / 96)
    assert 1 / 96 < found["retrieval/chance/top1/source/alike"].value < 0.5
    assert found["id_similarity"].value == pytest.approx(1)
    assert found["id_similarity/random"].value < found["id_similarity/random/alike"].value < 0.8
    for name in ("kept/occupation", "kept/background", "kept/tone", "kept/gender", "detection_rate/face"):
        assert found[name].value == 1
    for name in ("landmarks", "pose", "expression", "gaze"):
        assert found[f"preservation/{name}"].value == 0 < found[f"preservation/{name}/random"].value
    assert found["fid/source"].value < 1e-3
    assert found["diversity/similarity"].value == pytest.approx(1)
    assert found["quality"] is None
    headline = [key for one in subject.measures for key in one.headline(list(found))]
    assert set(headline) >= {"retrieval/top1/source", "kept/tone", "preservation/pose"}
    retrieval = subject.measures[0]
    assert retrieval.direction("retrieval/top1/source") is False, "it is the attacker who finds somebody"
    assert retrieval.direction("retrieval/chance/top1/source") is retrieval.direction("id_similarity/random") is None


def test_other_people_in_their_place_are_not_found_and_faces_that_vanish_are_no_success(people):
    subject = engine(people)
    others = torch.stack([row.image for row in whom(count=136, attacked=0, draws=0, seed=9)])
    found = measured(subject, others)
    assert found["retrieval/top1/source"].value < 0.08
    assert found["id_similarity"].value == pytest.approx(found["id_similarity/random"].value, abs=0.1)
    for attacker in ("", "/excluder"):
        assert 0.35 < found[f"retrieval/place/source{attacker}"].value < 0.65
    assert found["kept/occupation"].value < 0.3
    assert found["preservation/pose"].value > 0.5 * found["preservation/pose/random"].value
    nobody = measured(subject, torch.zeros_like(others))
    assert nobody["detection_rate/face"].value == 0
    assert (nobody["retrieval/top1/source"].value, nobody["retrieval/top1/source"].missing) == (1.0, 96)
    assert nobody["kept/tone"].value == 0


@pytest.mark.slow
def test_redactions_are_measured_at_the_strength_of_equal_retrieval(people):
    subject = engine(people, redactions=2)
    pixels = torch.stack([row.image for row in people])
    (retrieval, _), (judged, _) = subject.measures, subject.observe(pixels, people)
    rivals = retrieval.rivals(judged)
    assert list(rivals) == ["blur", "pixelate", "mask", "opaque mask"]
    some = engine([row for row in people if row.set == "people"])
    images, masks = (torch.stack([getattr(row, name) for row in some.rows]) for name in ("image", "mask"))
    opaque = rivals.pop("opaque mask")
    assert torch.equal(opaque.sample(opaque.rows), redact(images, masks, "mask", 1.0))
    for kind, rival in rivals.items():
        strength = rival.numbers["redaction/strength"].value
        drawn = rival.sample(rival.rows)
        assert rival.rows == some.rows and torch.equal(drawn, redact(images, masks, kind, strength))
        chosen, other = (
            measured(some, x)["retrieval/top1/source"].value
            for x in (drawn, redact(images, masks, kind, {0.5: 1.0, 1.0: 0.5}[strength]))
        )
        assert other <= chosen, "everybody was found before: the nearest is the highest"
    assert engine(people, redactions=0).measures[0].rivals(judged) == {}


def test_rows_must_say_who_is_shown(people):
    rows = [dataclasses.replace(people[0], person=None)]
    with pytest.raises(ValueError, match="give every row an image and a person"):
        engine(rows).observe(people[0].image[None], rows)


def test_people_without_another_image_are_left_out_of_the_protocol_that_needs_one(people):
    rows = [dataclasses.replace(row, reference=None) if k % 2 else row for k, row in enumerate(people[:96])]
    pixels = torch.stack([row.image for row in rows])
    found = measured(engine(rows), pixels)
    assert found["retrieval/gallery/source"].value == 96 and found["retrieval/gallery/identity"].value == 48
    nobody = [dataclasses.replace(row, reference=None) for row in rows]
    assert "retrieval/top1/identity" not in measured(engine(nobody), pixels)
    with pytest.raises(ValueError, match="no judge judges 'mood'"):
        Preservation([TinyAttributes()], kept=("mood",))


def test_distances_of_geometry_are_shares_of_the_eyes_distance():
    originals = torch.randn(3, 68, 2)
    originals[:, 45] = originals[:, 36] + torch.tensor([3.0, 4.0])
    moved = originals + torch.tensor([0.6, 0.8])
    torch.testing.assert_close(geometry_distance("landmarks", moved, originals), torch.full((3,), 0.2))
    pose = torch.tensor([[3.0, 4.0, 0.0], [torch.nan, 0.0, 0.0]])
    found = geometry_distance("pose", pose, torch.zeros(2, 3))
    assert found[0] == 5 and found[1].isnan()


def test_walls_are_named_by_the_renderers_colours():
    assert list(BACKGROUNDS) == list(WALLS)
    torch.testing.assert_close(torch.tensor(list(BACKGROUNDS.values())).float(), _BACKGROUND * 255, atol=0.7, rtol=0)
    scenes = draw_scenes(3, range(256), "balanced")
    found = TinyBackground().classify(render(scenes).image)["background"].argmax(1)
    assert (found == scenes.background).float().mean() > 0.99


def test_similarityto_others_needs_no_matrix():
    e = torch.nn.functional.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    e[2] = torch.nan
    kinds = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    found = to_others(e, kinds)
    near = e.double() @ e.double().T
    for row in range(7):
        others = [k for k in range(7) if k != row and kinds[k] == kinds[row] and k != 2]
        if row in (2, 6):
            assert found[row].isnan()
        else:
            torch.testing.assert_close(found[row], near[row, others].mean())


def test_strangers_are_other_people_of_the_same_kind():
    """A person's own other images are no strangers; faces that nobody saw are nobody's."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.nn.functional.normalize(torch.randn(7, 5, generator=generator), dim=1)
    rows[6] = torch.nan
    people, kinds = torch.tensor([0, 0, 1, 2, 2, 3, 4]), torch.tensor([0, 0, 0, 0, 1, 1, 0])
    found = to_others(rows, kinds, people)
    for row in range(6):
        others = [k for k in range(6) if kinds[k] == kinds[row] and people[k] != people[row]]
        expected = float((rows[others].double() @ rows[row].double()).mean())
        assert found[row].item() == pytest.approx(expected, abs=1e-6)
    assert found[6].isnan()
    numbers = resemblance(rows, rows, people)
    assert numbers["id_similarity"].value == pytest.approx(1) and numbers["id_similarity"].missing == 1
    assert numbers["id_similarity/random"].value == pytest.approx(float(to_others(rows, 0 * kinds, people).nanmean()))
