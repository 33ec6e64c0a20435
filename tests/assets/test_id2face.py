"""The weights of ID2Face that come along: people are hidden, what they do is kept, a key names new identities."""

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from data_modules.synthetic_faces import PeopleToAnonymize, Strangers
from data_modules.synthetic_faces.masks import identity_masks
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.backbones import StableDiffusion
from fairanon.backbones.hub import ASSETS
from fairanon.degradation import Degradation
from fairanon.evaluators import TinyAttributes, TinyEmbedder, TinyFeatureMaps, TinyGeometry, TinyRecognizer
from fairanon.methods.id2face import ID2Face
from fairanon.metrics.functional.intervals import mean_interval
from fairanon.metrics.functional.verification import threshold_at
from fairanon.metrics.geometry import geometry_distance
from fairanon.networks.id2face import OrthogonalIdentityMapping
from fairanon.pipelines.collection import shared_identities

pytestmark = pytest.mark.skipif(
    not (ASSETS / "id2face_tiny").exists(), reason="the weights of ID2Face do not come along yet"
)
STEPS = 10


@pytest.fixture(scope="module")
def pipeline():
    """As experiments/id2face_tiny.yaml builds it."""
    module = ID2Face(
        StableDiffusion("tiny"), TinyRecognizer(), TinyFeatureMaps(),
        degradation=Degradation(blur=(16, 64), shrink=(128, 256), tint=(96, 224)),
        mapping=OrthogonalIdentityMapping(rescale=True), appearance=TinyAttributes(), attributes=("tone", "gender"),
        latent=24, hidden=512, tokens=16, heads=4, side=8, bands=5,
    )  # fmt: skip
    with safe_open(ASSETS / "id2face_tiny" / "trained.safetensors", "pt") as file:
        state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118  (not a dictionary)
        module.on_load_checkpoint({"state_dict": state, **file.metadata()})
    module.load_state_dict(state, strict=False)
    with module.pipeline() as found:
        yield found


@pytest.fixture(scope="module")
def people():
    rows = PeopleToAnonymize(96, 0, 0, seed=4711).rows()
    return {name: torch.stack([getattr(row, name) for row in rows]) for name in ("picture", "mask", "landmarks")}


@pytest.fixture(scope="module")
def anonymized(pipeline, people):
    keys = [(1, k) for k in range(96)]
    return pipeline(people["picture"], people["mask"], people["landmarks"], keys, num_inference_steps=STEPS)


def test_nobody_is_found_and_what_they_do_is_kept(people, anonymized):
    judge, geometry, attributes = TinyEmbedder("embedder_b"), TinyGeometry(), TinyAttributes()
    own, source = judge.embed(anonymized), judge.embed(people["picture"])
    assert not own.isnan().any(), "there is still a face"
    near = own @ source.T
    assert (near.argmax(1) == torch.arange(96)).float().mean() <= 0.05
    assert near.diagonal().mean() <= near[~torch.eye(96, dtype=torch.bool)].mean() + 0.1
    new, old = geometry.measure(anonymized), geometry.measure(people["picture"])
    for name in ("landmarks", "pose", "expression"):
        random = geometry_distance(name, old[name].roll(1, 0), old[name]).mean()
        assert geometry_distance(name, new[name], old[name]).mean() < 0.6 * random, name
    before, after = attributes.classify(people["picture"]), attributes.classify(anonymized)
    assert (before["occupation"].argmax(1) == after["occupation"].argmax(1)).float().mean() >= 0.9


def test_appearance_is_redrawn_or_kept(pipeline, people):
    attributes = TinyAttributes()
    before = attributes.classify(people["picture"])
    rates = {}
    for choice in ("redrawn", "kept"):
        pipeline.appearance = choice
        found = pipeline(people["picture"], people["mask"], people["landmarks"], [(2, k) for k in range(96)],
                         num_inference_steps=STEPS)  # fmt: skip
        after = attributes.classify(found)
        rates[choice] = {
            n: float((before[n].argmax(1) == after[n].argmax(1)).float().mean()) for n in ("tone", "gender")
        }
    pipeline.appearance = "redrawn"
    assert rates["redrawn"]["tone"] < 0.4 and rates["redrawn"]["gender"] < 0.7, rates
    assert rates["kept"]["tone"] > 0.7 and rates["kept"]["gender"] > 0.8, rates


def test_a_person_of_a_collection_keeps_one_new_identity_and_another_key_gives_another(pipeline, people):
    judge = TinyEmbedder("embedder_b")
    threshold, _ = threshold_at(torch.cat([judge.embed(part) for part in Strangers(1000).pictures()]))
    scenes = draw_scenes(4711, range(96, 144), "balanced", 96)  # other pictures of the first 48
    drawn = render(scenes, masks=True)
    pictures = torch.cat([people["picture"][:48], drawn.image])
    masks = torch.cat([people["mask"][:48], identity_masks(scenes, drawn)])
    landmarks = torch.cat([people["landmarks"][:48], drawn.landmarks / 64])
    names = [str(k % 48) for k in range(96)]
    latents = pipeline.latents_of(pictures)
    new = []
    for key in (b"first key of two", b"second key of it"):
        control = shared_identities(pipeline, latents, names, key)
        keys = [(3, k) for k in range(96)]
        drawn = pipeline(pictures, masks, landmarks, keys, control, num_inference_steps=STEPS)
        new.append(judge.embed(drawn))
    first, second = new[0][:48], new[0][48:]
    assert (1 - F.cosine_similarity(first, second, dim=1) < threshold).float().mean() >= 0.95
    across = mean_interval((new[0] * new[1]).sum(1))
    strangers = mean_interval((first * first.roll(1, 0)).sum(1))
    assert across["low"] <= strangers["high"], "two keys' faces of one person are as different as two people"
