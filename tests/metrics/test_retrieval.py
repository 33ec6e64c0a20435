"""Retrieval against a reference that sorts, and against closed forms."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from fairanon.metrics import IdentityRetrieval
from fairanon.metrics.functional.retrieval import identity_retrieval, retrieve, true_accept_rate
from fairanon.metrics.functional.verification import as_cosines


def embeddings(count, dim=8, seed=0):
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def reference(probes, gallery, people, source):
    """Rank and average precision of each probe, by sorting."""
    ranks, precisions = [], []
    for n, probe in enumerate(probes):
        order = sorted(range(len(gallery)), key=lambda k: -float(probe @ gallery[k]))
        order = [k for k in order if source or k != n]
        hits = [k == n if source else bool(people[k] == people[n]) for k in order]
        places = [place for place, hit in enumerate(hits, 1) if hit]
        ranks.append(places[0])
        precisions.append(sum(k / place for k, place in enumerate(places, 1)) / len(places))
    return ranks, precisions


@pytest.mark.parametrize("source", [True, False])
def test_ranks_and_precision_are_those_of_sorting(source):
    probes, gallery, people = embeddings(60, seed=1), embeddings(60, seed=2), torch.arange(60) % 15
    found = retrieve(probes, gallery, people, source, block=7)
    ranks, precisions = reference(probes, gallery, people, source)
    assert found.ranks.tolist() == ranks and found.gallery == 60 and not found.missing.any()
    torch.testing.assert_close(found.precision, torch.tensor(precisions, dtype=torch.float64))
    assert len(found.genuine) == (60 if source else 60 * 3) and int(found.impostors.sum()) == 60 * 56


def test_an_attacker_who_excludes_finds_whoever_is_just_so_unlike():
    gallery, people = embeddings(200, 16, seed=2), torch.arange(200)
    noise = embeddings(200, 16, seed=1)
    away = F.normalize(noise - (noise * gallery).sum(1, keepdim=True) * gallery, dim=1)  # orthogonal to the own source
    near = (away @ gallery.T).abs()
    place = {}
    for expected in (None, 0.0):
        metric = IdentityRetrieval(false_match_rates=(), expected=expected)
        metric.update(away, gallery, people)
        place[expected] = metric.estimates()
    assert place[0.0]["top1"].value == 1 and place[0.0]["place"].value == 0, "nobody else is exactly that unlike"
    assert near.diagonal().max() < 1e-6 and place[None]["top1"].value < 0.03
    assert 0.4 < place[None]["place"].value < 0.6


def test_an_attacker_who_negates_looks_for_what_is_most_similar_then():
    probes, gallery = embeddings(60, 8, seed=1), embeddings(60, 8, seed=2)
    negating, similar = (
        retrieve(one, gallery, torch.arange(60), expected=expected)
        for one, expected in ((probes, -1.0), (-probes, None))
    )
    assert torch.equal(negating.ranks, similar.ranks) and len(similar.ranks.unique()) > 20


def test_who_cannot_be_judged_counts_as_found():
    probes, gallery = embeddings(40, seed=1), embeddings(40, seed=2)
    probes[3], gallery[5] = float("nan"), float("nan")
    found = retrieve(probes, gallery, torch.arange(40))
    assert found.missing.nonzero().flatten().tolist() == [3, 5] and found.ranks[[3, 5]].tolist() == [1, 1]
    assert found.gallery == 39 and len(found.genuine) == 38
    same = embeddings(1).expand(4, -1)
    assert retrieve(same, same, torch.arange(4)).ranks.tolist() == [1, 1, 1, 1], "a draw is no proof"


def test_random_probes_are_found_by_chance_and_copies_always():
    count = 400
    gallery, people = embeddings(count, 64, seed=2), torch.arange(count)
    for probes, low, high in ((embeddings(count, 64, seed=1), 0.0, 0.02), (gallery, 1.0, 1.0)):
        metric = IdentityRetrieval()
        for rows in torch.arange(count).split(130):
            metric.update(probes[rows], gallery[rows], people[rows])
        result = metric.estimates()
        assert low <= result["top1"].value <= high and result["top1"].n == count
        assert result["chance/top1"].value == pytest.approx(1 / count)
        assert result["chance/top5"].value == pytest.approx(5 / count)
        assert result["gallery"].value == count and low <= result["tar/0.001"].value <= max(high, 0.05)
        assert result["map"].value >= result["top1"].value


def test_the_acceptance_threshold_lets_no_more_impostors_through_than_asked():
    found = retrieve(embeddings(300, seed=1), embeddings(300, seed=2), torch.arange(300))
    share, threshold = true_accept_rate(found, 0.01)
    near = embeddings(300, seed=1) @ embeddings(300, seed=2).T
    off = near[~torch.eye(300, dtype=torch.bool)]
    assert 0.0095 <= float((off >= threshold).float().mean()) <= 0.01
    assert share == pytest.approx(float((near.diagonal() >= threshold).double().mean()))
    assert true_accept_rate(found, 1e-5) is None, "too few pairs"
    missing = dataclasses.replace(found, missing=torch.ones_like(found.missing))
    assert true_accept_rate(missing, 0.01)[0] > share, "who is not seen is accepted"


def test_chance_counts_all_images_of_a_person():
    """Ten photographs of each of 60 people: by noise the person is among the first K as often as is said."""
    count, each = 600, 10
    people = torch.arange(count) // each
    tops, places, said = {1: [], 5: []}, [], {}
    for seed in range(20):
        found = identity_retrieval(
            embeddings(count, 64, 10 + seed), embeddings(count, 64, 50 + seed), people, "identity"
        )
        for k, values in tops.items():
            values.append(found[f"top{k}"].value)
            said[k] = found[f"chance/top{k}"].value
        places.append(found["place"].value)
    assert said[1] == pytest.approx(9 / 599) and 0.07 < said[5] < 0.075
    for k, values in tops.items():
        assert sum(values) / len(values) == pytest.approx(said[k], rel=0.15)
    assert found["chance/place"].value == pytest.approx(590 / 10 / 599)
    assert sum(places) / len(places) == pytest.approx(found["chance/place"].value, rel=0.05)


def test_distances_above_two_do_not_leave_the_histogram():
    """Euclidean recognizers have them: dlib's are below 2, those of unscaled embeddings are not."""
    generator = torch.Generator().manual_seed(0)
    originals = 3 * torch.randn(300, 8, generator=generator)
    for noise, least, most in ((0.9, 0.9, 1.0), (2.5, 0.2, 0.8), (30.0, 0.0, 0.05)):
        results = originals + noise * torch.randn(300, 8, generator=generator)
        found = identity_retrieval(
            *as_cosines(results, originals, "euclidean"), torch.arange(300), false_match_rates=(0.01,)
        )
        apart = torch.cdist(results, originals)
        allowed = apart[~torch.eye(300, dtype=torch.bool)].kthvalue(897).values
        assert allowed > 2 and least <= found["tar/0.01"].value <= most
        assert found["tar/0.01"].value == pytest.approx(float((apart.diagonal() <= allowed).double().mean()), abs=0.01)


@pytest.mark.parametrize("times", [1.0, 4.0, 20.0])
def test_the_share_of_accepted_pairs_does_not_depend_on_the_length_of_embeddings(times):
    generator = torch.Generator().manual_seed(1)
    originals = times * 3 * torch.randn(300, 8, generator=generator)
    results = originals + times * 1.2 * torch.randn(300, 8, generator=generator)
    originals[0] *= 20  # somebody far away from all
    apart = torch.cdist(results, originals)
    allowed = apart[~torch.eye(300, dtype=torch.bool)].kthvalue(897).values
    found = identity_retrieval(
        *as_cosines(results, originals, "euclidean"), torch.arange(300), false_match_rates=(0.01,)
    )
    assert found["tar/0.01"].value == pytest.approx(float((apart.diagonal() <= allowed).double().mean()), abs=0.01)


def test_several_images_of_one_person_are_no_independent_proof():
    people = torch.arange(200) // 10
    gallery = embeddings(200, 64, seed=2)
    probes = torch.where((people % 2 == 0)[:, None], gallery, embeddings(200, 64, seed=1))
    several = identity_retrieval(probes, gallery, people)["top1"]
    single = identity_retrieval(probes, gallery, torch.arange(200))["top1"]
    assert several.value == single.value
    assert several.high - several.low > 2.5 * (single.high - single.low), "ten people were found, not a hundred"
