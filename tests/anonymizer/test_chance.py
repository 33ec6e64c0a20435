"""Whether a collection is found more often than by chance, against closed forms."""

import math
from collections import Counter

import pytest
import torch
from scipy.stats import binom

from fairanon.anonymizer.attack import Threshold
from fairanon.anonymizer.chance import Draw, against_chance, at_least, compare
from fairanon.anonymizer.faces import Face, Seen
from fairanon.imaging import Square
from tests.anonymizer.test_attack import Colour


@pytest.mark.parametrize("hits", [0, 1, 3, 8])
def test_chance_is_a_binomial_distribution(hits):
    count, matcher = 60, Colour()
    where = torch.arange(count).float()[:, None] * torch.tensor([10.0, 0.0, 0.0])
    faces = []
    for k in range(count):
        near = where[k] if k < hits else where[(k + 1) % count if k < count - 1 else hits]
        faces.append(
            Face((0, 0, 1, 1), 1.0, seen={"colour": Seen(Square(0, 0, 1), where[k], 99, near)}, verdict="anonymized")
        )
    thresholds = {"colour": Threshold(5.0, "")}
    found = against_chance([compare(faces, [matcher], thresholds)])
    tail = 1 - sum(math.comb(count, k) * (1 / count) ** k * (1 - 1 / count) ** (count - k) for k in range(hits))
    assert found.found == {"colour": hits, "colour, the same person": hits}
    assert found.probability["colour"] == pytest.approx(tail, rel=5e-3)
    assert found.hits == (tuple((0, k) for k in range(hits)) if tail < 0.01 else ()) and (hits < 8) == (
        found.hits == ()
    )
    assert against_chance([compare(faces[:49], [matcher], thresholds)]).record() == "not testable"


def test_in_an_album_any_photograph_of_the_person_is_a_hit():
    """50 people of 4 photographs: every result is nearest to *another* photograph of the same person."""
    matcher, thresholds = Colour(), {"colour": Threshold(5.0, "")}
    where = torch.arange(50).float().repeat_interleave(4)[:, None] * torch.tensor([20.0, 0.0, 0.0])
    where[:, 1] = torch.arange(4).float().repeat(50)
    found = {}
    for shift, name in ((1, "the same person"), (8, "somebody else")):
        faces = []
        for k in range(200):
            near = where[(k // 4 * 4 + (k + 1) % 4 + 4 * (shift // 4)) % 200]
            faces.append(Face((0, 0, 1, 1), 1.0, seen={"colour": Seen(Square(0, 0, 1), where[k], 99, near)}))
        found[name] = against_chance([compare(faces, [matcher], thresholds)])
    key = "colour, the same person"
    assert (
        found["the same person"].hits == tuple((0, k) for k in range(200))
        and found["the same person"].probability[key] < 1e-9
    )
    assert found["the same person"].found["colour"] == 0, "nobody is found by their own photograph"
    assert found["somebody else"].hits == () and found["somebody else"].probability[key] == 1


def test_where_all_originals_show_one_person_each_photograph_is_looked_for():
    matcher = Colour()
    where = torch.arange(60).float()[:, None] * torch.tensor([0.01, 0.0, 0.0])
    faces = [Face((0, 0, 1, 1), 1.0, seen={"colour": Seen(Square(0, 0, 1), row, 99, row)}) for row in where]
    found = against_chance([compare(faces, [matcher], {"colour": Threshold(5.0, "")})])
    assert found.hits == tuple((0, k) for k in range(60)) and found.probability["colour, the same person"] == 1


def test_blocks_are_added_up_and_thin_ones_do_not_count():
    matcher, thresholds = Colour(), {"colour": Threshold(5.0, "")}
    where = torch.arange(80).float()[:, None] * torch.tensor([10.0, 0.0, 0.0])

    def faces(first, last, found):
        return [
            Face(
                (0, 0, 1, 1),
                1.0,
                seen={
                    "colour": Seen(
                        Square(0, 0, 1),
                        where[k],
                        99,
                        where[k if k - first < found else first + (k + 1 - first) % (last - first)],
                    )
                },
            )
            for k in range(first, last)
        ]

    parts = [faces(0, 30, 4), faces(30, 71, 5), faces(71, 80, 9)]
    found = against_chance([compare(part, [matcher], thresholds) for part in parts])
    assert found.faces == 71 and found.blocks == 2 and found.found["colour"] == 9, (
        "nine faces of a thin block do not count"
    )
    tail = torch.zeros(72, dtype=torch.float64)
    tail[0] = 1.0
    for chance in [1 / 30] * 30 + [1 / 41] * 41:
        tail[1:] = tail[1:] * (1 - chance) + tail[:-1] * chance
        tail[0] *= 1 - chance
    assert found.probability["colour"] == pytest.approx(float(tail[9:].sum()), rel=5e-3)
    assert found.hits == (*((0, k) for k in range(4)), *((1, k) for k in range(5)))
    stay = faces(0, 30, 4)
    for face in stay[20:]:
        face.asked = False
    assert compare(stay, [matcher], thresholds)["colour"].draws == {Draw(1 / 20, 1): 20}, (
        "faces that stay are no originals of anybody's"
    )


def test_very_many_draws_are_counted_exactly_too():
    for hits in (18_000, 18_112, 18_262):
        found = at_least(hits, {(0.3, 1): 60_000})
        assert found == pytest.approx(float(binom.sf(hits - 1, 60_000, 0.3)), rel=1e-6)


@pytest.mark.parametrize("photographs", [1, 4])
def test_a_person_who_got_one_new_face_is_found_once_by_chance(photographs):
    """Of 50 people with four photographs each three are met by chance, and with them all twelve photographs."""
    matcher, thresholds = Colour(), {"colour": Threshold(5.0, "")}
    where = torch.arange(50).float().repeat_interleave(4)[:, None] * torch.tensor([40.0, 0.0, 0.0])
    where[:, 1] = torch.arange(4).float().repeat(50)
    faces = []
    for k in range(200):
        person = k // 4 if k // 4 < 3 else (k // 4 + 7) % 50
        new = where[4 * person].clone()
        new[2] = 10.0 * (k % photographs)  # one new face for all, or one for each
        faces.append(Face((0, 0, 1, 1), 1.0, seen={"colour": Seen(Square(0, 0, 1), where[k], 99, new)}))
    found = against_chance([compare(faces, [matcher], thresholds)])
    draws = {1: (50, 4), 4: (200, 1)}[photographs]
    tail = float(binom.sf(12 // draws[1] - 1, draws[0], 4 / 200))
    assert found.found["colour, the same person"] == 12
    assert found.probability["colour, the same person"] == pytest.approx(tail, rel=5e-3)
    assert (tail < 0.01) == bool(found.hits) == (photographs == 4), "independent faces would hardly meet so many"


@pytest.mark.parametrize("key", [True, False])
def test_one_new_face_is_found_once_by_chance_in_however_many_blocks_it_is(key):
    """A key gives each person one new face, and a person's photographs lie in all blocks."""
    matcher, thresholds = Colour(), {"colour": Threshold(5.0, "")}
    blocks = []
    for block in range(5):
        where = torch.arange(40).float().repeat_interleave(4)[:, None] * torch.tensor([40.0, 0.0, 0.0])
        where[:, 1] = torch.arange(4).float().repeat(40)
        faces = []
        for k in range(160):
            person = k // 4 if k // 4 < 3 else (k // 4 + 7) % 40  # three people are met, the same in each block
            new = where[4 * person].clone()
            new[2] = float(block)
            faces.append(Face((0, 0, 1, 1), 1.0, seen={"colour": Seen(Square(0, 0, 1), where[k], 99, new)}))
        names = [f"person {k // 4}" for k in range(160)] if key else []
        blocks.append(compare(faces, [matcher], thresholds, names))
    found = against_chance(blocks)
    tail = float(binom.sf(2, 40, 1 / 40)) if key else float(binom.sf(14, 200, 1 / 40))
    assert found.found["colour, the same person"] == 60 and found.faces == 800
    assert found.probability["colour, the same person"] == pytest.approx(tail, rel=5e-3)
    assert bool(found.hits) == (not key)


def test_with_a_key_photographs_that_leak_one_by_one_are_seen_too():
    """40 people with ten photographs each in one block, one new face a person; of a tenth of them the original is published."""
    matcher, thresholds = Colour(), {"colour": Threshold(15.0, "")}
    where = torch.arange(40).float().repeat_interleave(10)[:, None] * torch.tensor([40.0, 0.0, 0.0])
    where[:, 1] = torch.arange(10).float().repeat(40)
    names = [f"person {k // 10}" for k in range(400)]

    def faces(leaks):
        rows = []
        for k in range(400):
            person = (k // 10 + 7) % 40 if k // 10 else 0  # one person is met by chance
            new = where[k].clone() if k in leaks else where[10 * person] + torch.tensor([0.0, 0.0, 5.0])
            rows.append(Face((0, 0, 1, 1), 1.0, seen={"colour": Seen(Square(0, 0, 1), where[k], 99, new)}))
        return rows

    nothing = against_chance([compare(faces(()), [matcher], thresholds, names)])
    assert nothing.hits == () and nothing.found == {"colour": 1, "colour, the same person": 10}
    leaking = against_chance([compare(faces(range(15, 400, 10)), [matcher], thresholds, names)])
    assert leaking.found["colour"] == 40
    draws = [1 / 10] * 49  # ten of the one who is met, and each leak among the ten photographs of its person
    assert leaking.probability["colour"] == pytest.approx(float(binom.sf(39, len(draws), 0.1)), rel=5e-3)
    assert len(leaking.hits) >= 40


def test_draws_of_several_hits_are_added_up_as_they_come():
    generator = torch.Generator().manual_seed(0)
    chances, many = torch.rand(9, generator=generator).double(), torch.randint(1, 5, (9,), generator=generator)
    chances[7:], many[7:] = chances[6], many[6]  # three of one kind
    draws = Counter(zip(chances.tolist(), many.tolist(), strict=True))
    exactly = torch.zeros(60, dtype=torch.float64)
    for drawn in range(512):
        hit = torch.tensor([drawn >> k & 1 for k in range(9)])
        exactly[int((hit * many).sum())] += torch.where(hit.bool(), chances, 1 - chances).prod()
    for hits in range(30):
        assert at_least(hits, draws) == pytest.approx(float(exactly[hits:].sum()), abs=1e-12)
