"""Fair-Diffusion: its guidance against a loop over numbers, its gate, and on the embedded model the shares it asks for."""

from collections import Counter

import numpy as np
import pytest
import torch

from fairanon.backbones import Sampling, StableDiffusion
from fairanon.backbones.base import Conditioning
from fairanon.evaluators import TinyAttributes
from fairanon.pipelines.fair_diffusion import FairDiffusion
from fairanon.pipelines.steering import Steering, Step, steered

GENDER = {"gender": {"female": "female ...", "male": "male ..."}}
TONE = {"tone": {name: f"... with {name} skin" for name in ("pale", "olive", "dark")}}
PROMPTS = ["a photo of a doctor", "a photo of a female nurse", "a photo of a tree"]
KEYS = [(1, "evaluate", prompt, number) for number, prompt in enumerate(PROMPTS)]


def fair(attributes=GENDER, images=12, **more):
    dealt = {"attributes": attributes, "subjects": ["doctor", "nurse"], "images": images}
    return FairDiffusion(**dealt, named={"gender": ["woman", "man"]}, **more)


def kept(direction, strength, threshold):
    """Channel by channel and image by image, by sorting."""
    direction = strength * direction
    for image in direction:
        for channel in image:
            flat = np.sort(np.abs(channel).ravel())
            place = threshold * (len(flat) - 1)
            low = int(np.floor(place))
            least = flat[low] + (place - low) * (flat[min(low + 1, len(flat) - 1)] - flat[low])
            channel[np.abs(channel) < least] = 0
    return direction


@pytest.mark.parametrize("official", [False, True])
def test_its_guidance_is_the_formula(official):
    steering = fair({**GENDER, **TONE}, threshold=0.6, warmup=0.5, momentum=0.5, decay=0.6, official=official)
    draws = np.random.default_rng(0)
    follows = np.zeros((2, 3, 4, 4))
    memory = {}
    for left in (1.0, 0.75, 0.5, 0.25):
        without, prompt, *concepts = draws.normal(size=(6, 2, 3, 4, 4))
        rows = torch.tensor(np.concatenate([without, prompt, *concepts]))
        marks = [Conditioning(torch.zeros(2, 1)) for _ in range(6)]
        step = Step(left, 1 - left, 3.0, marks[1], marks[0], KEYS[:2], lambda _, rows=rows: rows, marks[2:], memory)
        found = steering.prediction(step).numpy()
        edit = np.zeros_like(without)
        for towards, away in ((concepts[0], concepts[1]), (concepts[2], concepts[3])):
            if official:
                edit += kept(towards - without, 4, 0.6) - kept(away - without, 4, 0.6)
            else:
                edit += kept(towards - away, 4, 0.6)
        edit += 0.5 * follows
        follows = 0.6 * follows + 0.4 * edit
        wanted = without + 3 * (prompt - without) + (edit if left <= 0.5 else 0)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_what_is_asked_for_is_dealt_and_the_gate_asks_for_nothing():
    for official, nothing, others in (
        (False, "a photo of a person", None),
        (True, "", {"female": "male", "male": "female"}),
    ):
        steering = fair({**GENDER, **TONE}, official=official)
        assert steering.prompts(PROMPTS, KEYS) == PROMPTS
        gender, not_gender, tone, not_tone = steering.concepts(PROMPTS, KEYS)
        drawn = steering.dealt("gender", PROMPTS[0], 0)
        assert gender == [f"a photo of a {drawn} person", nothing, nothing], (
            "a nurse is female already, a tree is nobody"
        )
        assert not_gender[0] == (f"a photo of a {others[drawn]} person" if others else nothing)
        assert not_gender[1:] == [nothing] * 2
        assert (
            tone[0] == f"a photo of a person with {steering.dealt('tone', PROMPTS[0], 0)} skin" and tone[2] == nothing
        )
        assert tone[1] == f"a photo of a person with {steering.dealt('tone', PROMPTS[1], 1)} skin"
        assert not_tone == [nothing] * 3, "of three classes none is the other one"
    twelve = fair().concepts([PROMPTS[0]] * 12, [(1, "evaluate", PROMPTS[0], number) for number in range(12)])[0]
    assert set(Counter(twelve).values()) == {6}


def test_no_image_depends_on_its_neighbours_and_the_gate_keeps_images():
    backbone, sampling = StableDiffusion("tiny", frozen=True), Sampling(4, 1.5)
    steering = fair(threshold=0.5)
    together = steered(backbone, PROMPTS, KEYS, sampling, steering)
    turned = steered(backbone, PROMPTS[::-1], KEYS[::-1], sampling, steering)
    assert torch.equal(turned.flip(0), together)
    plain = steered(backbone, PROMPTS, KEYS, sampling, Steering())
    assert (together[0].int() - plain[0].int()).abs().max() > 5
    everybody = steering.concepts(["a photo of a person"], [(1, "evaluate", "a photo of a person", 0)])
    assert everybody == [["a photo of a person"]] * 2, "who is no subject is left alone, as by prompt injection"
    assert (together[1:].int() - plain[1:].int()).abs().max() <= 1, "batches of other sizes round otherwise"


def test_on_the_embedded_model_it_draws_half_women():
    """The base draws few women among doctors; pushed, each image shows the class that it was dealt."""
    backbone, judge = StableDiffusion("tiny", frozen=True), TinyAttributes()
    keys = [(1, "evaluate", PROMPTS[0], number) for number in range(12)]
    steering = fair(threshold=0.5)
    asked = [steering.asked(PROMPTS[0], number)["gender"] for number in range(12)]
    right = {}
    for name, one in (("plain", Steering()), ("pushed", steering)):
        images = steered(backbone, PROMPTS[:1] * 12, keys, Sampling(10, 1.5), one)
        seen = judge.classify(images)["gender"].argmax(1).tolist()
        right[name] = sum(judge.classes["gender"][k] == wanted for k, wanted in zip(seen, asked, strict=True))
    assert right["pushed"] >= 11 and right["plain"] <= 9


def test_settings_that_make_no_sense_are_sentences():
    assert (
        fair(bare="a photo of a person.").concepts(PROMPTS[:1], KEYS[:1])[0][0].startswith("a photo of a ")
        and fair(bare="x.").somebody == "x"
    )
    with pytest.raises(ValueError, match="bare must be a prompt"):
        fair(bare=" ")
    with pytest.raises(ValueError, match="threshold and warmup must be at least 0"):
        fair(threshold=1.0)
