"""The weights of ID2Face that come along: people are hidden, what they do is kept, a key names new identities."""

import pytest
import torch

from data_modules.synthetic_faces import PeopleToAnonymize, Strangers
from fairanon.embedded import embedded
from fairanon.evaluators import PointRendParser, TinyAttributes, TinyEmbedder, TinyGeometry
from fairanon.imaging import combine_regions
from fairanon.methods.load import load_run
from fairanon.metrics.functional.estimates import Estimate
from fairanon.metrics.functional.geometry_distance import geometry_distance
from fairanon.metrics.functional.verification import threshold_at
from fairanon.pipelines.collection import keyed_draws

pytestmark = pytest.mark.skipif(
    not embedded("id2face_tiny").exists(), reason="the weights of ID2Face do not come along yet"
)
STEPS = 10


@pytest.fixture(scope="module")
def pipeline():
    """As experiments/id2face_tiny.yaml builds it."""
    module = load_run("runs/id2face_tiny/latest")
    with module.pipeline() as found:
        yield found


def whom(count, **settings):
    rows = PeopleToAnonymize(PointRendParser(), TinyGeometry(), count=count, attacked=0, draws=0, **settings).rows()
    return {
        name: torch.stack([getattr(row, name) for row in rows]) for name in ("image", "mask", "landmarks", "reference")
    }


def exactly():
    """The pipeline computes in half precision, judges do not."""
    return torch.autocast("cpu", enabled=False)


@pytest.fixture(scope="module")
def people():
    return whom(64, seed=4711)


@pytest.fixture(scope="module")
def anonymized(pipeline, people):
    keys = [(1, k) for k in range(64)]
    return pipeline(people["image"], people["mask"], people["landmarks"], keys, num_inference_steps=STEPS)


def test_nobody_is_found_and_what_they_do_is_kept(people, anonymized):
    judge, geometry, attributes = TinyEmbedder("embedder_b"), TinyGeometry("geometry_b"), TinyAttributes()
    own, source = judge.embed(anonymized), judge.embed(people["image"])
    assert not own.isnan().any(), "there is still a face"
    near = own @ source.T
    assert (near.argmax(1) == torch.arange(64)).float().mean() <= 0.05
    assert near.diagonal().mean() <= near[~torch.eye(64, dtype=torch.bool)].mean() + 0.1
    new, old = geometry.measure(anonymized), geometry.measure(people["image"])
    for name in ("landmarks", "pose", "expression"):
        random = geometry_distance(name, old[name].roll(1, 0), old[name]).mean()
        assert geometry_distance(name, new[name], old[name]).mean() < 0.3 * random, name
    before, after = attributes.classify(people["image"]), attributes.classify(anonymized)
    for name in ("occupation", "glasses"):
        assert (before[name].argmax(1) == after[name].argmax(1)).float().mean() >= 0.95, name


@pytest.mark.slow
def test_appearance_is_redrawn_or_kept(pipeline, people, anonymized):
    attributes = TinyAttributes()
    before = attributes.classify(people["image"])
    pipeline.appearance = "kept"
    kept = pipeline(people["image"], people["mask"], people["landmarks"], [(2, k) for k in range(64)],
                    num_inference_steps=STEPS)  # fmt: skip
    pipeline.appearance = "redrawn"
    rates = {}
    for choice, found in (("redrawn", anonymized), ("kept", kept)):
        after = attributes.classify(found)
        rates[choice] = {
            n: float((before[n].argmax(1) == after[n].argmax(1)).float().mean()) for n in ("tone", "gender")
        }
    assert rates["redrawn"]["tone"] < 0.4 and rates["redrawn"]["gender"] < 0.7, rates
    assert rates["kept"]["tone"] > 0.55 and rates["kept"]["gender"] > 0.9, rates


@pytest.mark.slow
def test_a_person_of_a_collection_keeps_one_new_identity_and_another_key_gives_another(pipeline, people):
    judge = TinyEmbedder("embedder_b")
    images = torch.cat([people["image"][:20], people["reference"][:20]])
    parser, geometry = PointRendParser(), TinyGeometry()
    masks = combine_regions(parser.parse(images), "face+hair+left_hand+right_hand")
    landmarks = geometry.landmarks(images) / 64
    names = [str(k) for k in range(20)]
    latents = pipeline.latents_of(images).view(2, 20, -1).mean(0)
    new = []
    for key in (b"first key of two", b"second key of it"):
        control = pipeline.identities(latents, keyed_draws(key, names, pipeline.draws_shape)).repeat(2, 1)
        keys = [(3, k) for k in range(40)]
        drawn = pipeline(images, masks, landmarks, keys, control, num_inference_steps=STEPS)
        with exactly():
            new.append(judge.embed(drawn))
    first, second = new[0][:20], new[0][20:]
    real = judge.embed(images)
    threshold, _ = threshold_at(torch.cat([judge.embed(part) for part in Strangers(1000).images()]))
    for name, (one, other) in (("new faces", (first, second)), ("real ones", (real[:20], real[20:]))):
        alike = (1 - (one * other).sum(1) < threshold).float().mean()
        nearest = ((one @ other.T).argmax(1) == torch.arange(20)).float().mean()
        print(
            f"{name} of one person: {alike:.2f} match at a false-match rate of .001, {nearest:.2f} are each other's nearest"
        )
    near = (first @ second.T).argmax(1) == torch.arange(20)
    assert near.float().mean() >= 0.9, "nobody else's new face is as similar"
    assert (first * second).sum(1).mean() > 0.8
    across = Estimate.mean((new[0] * new[1]).sum(1))
    strangers = Estimate.mean((first * first.roll(1, 0)).sum(1))
    assert across.low <= strangers.high, "two keys' faces of one person are as different as two people"
