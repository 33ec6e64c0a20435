"""Who is who in a collection, and one new identity for each."""

import pytest
import torch
from torch.nn import functional as F

from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.evaluators import TinyEmbedder
from fairanon.metrics.functional.verification import threshold_at
from fairanon.pipelines.collection import keyed_draws, people_by_likeness


def test_draws_belong_to_key_and_person():
    first, again = (
        keyed_draws(b"k1--------------", ["a", "b"], (64,)),
        keyed_draws(b"k1--------------", ["b", "a"], (64,)),
    )
    other = keyed_draws(b"k2--------------", ["a"], (64,))
    assert torch.equal(first, again.flip(0)) and not torch.equal(first[0], first[1])
    assert F.cosine_similarity(first[0], other[0], dim=0).abs() < 0.5
    many = keyed_draws(b"k---------------", [str(k) for k in range(2000)], (2, 4))
    assert many.mean().abs() < 0.03 and (many.std() - 1).abs() < 0.02
    with pytest.raises(ValueError, match="the key has 5 bytes"):
        keyed_draws(b"short", ["a"], (4,))


def test_likeness_joins_a_persons_images_and_nobody_elses():
    judge = TinyEmbedder("embedder_a")
    strangers = judge.embed(render(draw_scenes(5, range(400), "balanced")).image)
    threshold, _ = threshold_at(strangers)
    images = render(draw_scenes(6, range(120), "balanced", 40)).image  # three images of each of 40 people
    embeddings = torch.cat([judge.embed(images), torch.full((2, 64), torch.nan)])
    called = [f"{k}.jpg" for k in range(122)]
    distances = 1 - embeddings @ embeddings.T
    names = people_by_likeness(called, distances, threshold)
    truth = [k % 40 for k in range(120)]
    joined = [(truth[i] == truth[j]) for i in range(120) for j in range(i) if names[i] == names[j]]
    pairs = 40 * 3
    assert sum(joined) / len(joined) > 0.97, "two people are hardly ever one"
    assert sum(joined) / pairs > 0.5, "a person is mostly one"
    assert names[120] != names[121] and names[120] not in names[:120], "whom nobody sees is somebody by itself"
    assert people_by_likeness(called[:1], distances[:1, :1], threshold) == ["0.jpg"]
    assert all(called.index(name) <= k for k, name in enumerate(names))
