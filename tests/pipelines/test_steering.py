"""Steered sampling: each rival against its formula, and no image depends on its neighbours."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fairanon.backbones import Sampling, StableDiffusion, StableDiffusionXL
from fairanon.backbones.adapters import Lora
from fairanon.backbones.base import Conditioning
from fairanon.backbones.random_models import save_random_sdxl, save_random_stable_diffusion
from fairanon.evaluators import TinyAttributes
from fairanon.files import content_key
from fairanon.pipelines.fair_diffusion import FairDiffusion
from fairanon.pipelines.steering import (
    CADS,
    DynamicGuidance,
    IntervalGuidance,
    PromptInjection,
    Steering,
    Step,
    annealed,
    largest_remainders,
    steered,
)
from fairanon.prompts import read_prompts
from fairanon.seeding import keyed_randn
from tests.conftest import REPOSITORY

PROMPTS = ["a photo of a doctor", "a photo of a female nurse with dark skin", "a photo of a tree"]
KEYS = [(1, "evaluate", prompt, number) for number, prompt in enumerate(PROMPTS)]
CLASSES = {
    "gender": {"female": "female ...", "male": "male ..."},
    "tone": {name: f"... with {name} skin" for name in ("pale", "light", "olive", "tan", "brown", "dark")},
}


def injection(**more):
    return PromptInjection(CLASSES, ["doctor", "nurse", "officer"], 12, {"gender": ["woman", "man"]}, **more)


RIVALS = {
    "plain": Steering(), "guidance 1": Steering(1.0), "CADS": CADS(noise=1.0), "official": CADS(0.2, 0.5, official=True),
    "dynamic": DynamicGuidance(), "cosine": DynamicGuidance(schedule="cosine"), "interval": IntervalGuidance(), "injection": injection(),
    "floor 0": DynamicGuidance(floor=0.0), "ungated": injection(gate=False),
    "Fair-Diffusion": FairDiffusion(attributes=CLASSES, subjects=["doctor", "nurse"], images=12, warmup=0.0),
    "Fair-Diffusion, official": FairDiffusion(
        attributes={"gender": CLASSES["gender"]}, subjects=["doctor", "nurse"], images=12, warmup=0.0, official=True
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=["tiny", "sd2", "sdxl"])
def backbone(request, tmp_path_factory):
    if request.param == "tiny":
        return StableDiffusion("tiny", frozen=True)
    folder = tmp_path_factory.mktemp("random") / request.param
    if request.param == "sd2":
        save_random_stable_diffusion(folder, prediction_type="v_prediction")
        return StableDiffusion(str(folder), frozen=True)
    save_random_sdxl(folder)
    return StableDiffusionXL(str(folder), frozen=True)


def test_plain_guidance_is_what_diffusers_draws(backbone):
    for scale in (1.0, 3.0):
        sampling = Sampling(4, scale)
        ours, theirs = steered(backbone, PROMPTS, KEYS, sampling, Steering()), backbone.sample(PROMPTS, KEYS, sampling)
        assert (ours.int() - theirs.int()).abs().max() <= 1, "up to the rounding of a pixel"


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_draws_another_image_that_does_not_depend_on_its_neighbours(backbone, name):
    sampling = Sampling(3, 3.0)
    found = steered(backbone, PROMPTS, KEYS, sampling, RIVALS[name])
    alone = steered(backbone, PROMPTS[:1], KEYS[:1], sampling, RIVALS[name])
    assert (alone.int() - found[:1].int()).abs().max() <= 1, "the U-Net itself adds up batches of other sizes otherwise"
    if name != "plain":
        plain = steered(backbone, PROMPTS, KEYS, sampling, Steering())
        assert (found.int() - plain.int()).abs().max() > 1
        assert name != "injection" or torch.equal(found[1:], plain[1:]), "a gate keeps what names a class, or nobody"


@pytest.mark.parametrize("name", RIVALS)
def test_what_a_rival_adds_is_of_one_image_alone_to_the_last_bit(name):
    y, keys = (
        torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0)),
        [(1, prompt, k) for k, prompt in enumerate(PROMPTS)],
    )
    steering = RIVALS[name]
    for left in (1.0, 0.7, 0.05):
        rows = {}
        for order in ([0, 1, 2], [2, 0, 1], [1]):
            prompt = Conditioning(y[order], pooled=y[order, 0])
            empty = Conditioning(torch.zeros_like(y[order]), pooled=torch.zeros_like(y[order, 0]))
            predict = lambda c: (c.context + c.pooled[:, None])[:, None]
            asked_for = steering.concepts([PROMPTS[k] for k in order], [keys[k] for k in order])
            assert asked_for == [
                [row[0] for row in rows_of]
                for rows_of in zip(*(steering.concepts([PROMPTS[k]], [keys[k]]) for k in order), strict=True)
            ]
            concepts = [Conditioning(3 * y[order], pooled=y[order, 0]), empty] * len(CLASSES)
            here = Step(left, 1 - left, 3.0, prompt, empty, [keys[k] for k in order], predict, concepts)
            for k, row in zip(order, steering.prediction(here), strict=True):
                assert torch.equal(rows.setdefault(k, row), row)
            drawn = steering.prompts([PROMPTS[k] for k in order], [keys[k] for k in order])
            assert drawn == [steering.prompts([PROMPTS[k]], [keys[k]])[0] for k in order]


def step(left, predict, scale=3.0, prompt=None):
    prompt = prompt or Conditioning(torch.full((2, 3, 4), 2.0))
    empty = replace(prompt, context=torch.zeros_like(prompt.context))
    return Step(left, 1 - left, scale, prompt, empty, [(1, "a"), (1, "b")], predict)


def mean(conditioning):
    """A U-Net that predicts its condition's mean, so that guidance can be read off."""
    return conditioning.context.mean((1, 2))[:, None]


def test_schedules_at_their_ends_and_in_the_middle():
    for left, whole in ((1.0, 0.0), (0.9, 0.0), (0.75, 0.5), (0.6, 1.0), (0.1, 1.0)):
        assert annealed(left, 0.6, 0.9) == pytest.approx(whole)
        for floor in (1.0, 0.0):
            scale = floor + (3 - floor) * whole
            assert DynamicGuidance(floor=floor).prediction(step(left, mean)) == pytest.approx(
                torch.full((2, 1), 2 * scale).numpy()
            )
        cosine = DynamicGuidance(schedule="cosine").prediction(step(left, mean))
        assert cosine == pytest.approx(torch.full((2, 1), 2 * 3 * math.cos(math.pi * (1 - left))).numpy(), abs=1e-5)
        inside = 3 if 0.2 <= left <= 0.8 else 1
        assert torch.equal(IntervalGuidance().prediction(step(left, mean)), torch.full((2, 1), 2.0 * inside))


def test_outside_of_the_interval_the_empty_prompt_is_not_asked():
    asked = []
    predict = lambda conditioning: asked.append(len(conditioning.context)) or mean(conditioning)
    for left in (1.0, 0.5, 0.1):
        IntervalGuidance().prediction(step(left, predict))
    assert asked == [2, 4, 2]


def test_the_end_of_an_interval_that_a_step_meets_belongs_to_it():
    left = []

    class Noted(Steering):
        def prediction(self, step):
            left.append(step.left)
            return step.guided()

    steered(StableDiffusion("tiny", frozen=True), PROMPTS[:1], KEYS[:1], Sampling(15, 1.0), Noted())
    assert 0.2 in left and 0.8 in left and left[0] == 1.0, "three and twelve of fifteen steps"


@pytest.mark.parametrize("rescale", [1.0, 0.5, 0.0])
def test_cads_is_equation_2_image_by_image(rescale):
    y = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0])[:, None, None]
    seen = []
    predict = lambda conditioning: seen.append(conditioning) or mean(conditioning)
    prompt = Conditioning(y, pooled=y[:, 0])
    CADS(noise=0.5, rescale=rescale).prediction(step(0.75, predict, prompt=prompt))
    assert torch.equal(seen[0].context[:2], torch.zeros(2, 3, 4)), "the empty prompt is as it was"
    for name, given, found in (("context", y, seen[0].context[2:]), ("pooled", y[:, 0], seen[0].pooled[2:])):
        for k, key in enumerate("ab"):
            mine = given[k].double().numpy()
            noise = keyed_randn([(1, key, "CADS", "prompt", name, "0.750000")], mine.shape)[0].double().numpy()
            noised = np.sqrt(0.5) * mine + 0.5 * np.sqrt(0.5) * noise
            back = (noised - noised.mean()) / noised.std(ddof=1) * mine.std(ddof=1) + mine.mean()
            np.testing.assert_allclose(found[k], rescale * back + (1 - rescale) * noised, rtol=1e-4, atol=1e-5)
    late = []
    CADS().prediction(step(0.3, lambda conditioning: late.append(conditioning.context) or mean(conditioning)))
    assert torch.equal(late[0][2:], torch.full((2, 3, 4), 2.0)), "late steps see the whole prompt"


def test_popaligns_schedule_runs_backwards():
    y = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    for left, noised in ((1.0, False), (0.05, True)):
        for official in (True, False):
            seen = []
            here = replace(
                step(left, lambda c, seen=seen: seen.append(c.context) or mean(c), prompt=Conditioning(y)),
                empty=Conditioning(-y),
            )
            CADS(official=official).prediction(here)
            assert torch.equal(seen[0][2:], y) != (noised if official else not noised)
            assert torch.equal(seen[0][:2], -y) != (noised and official), "its empty prompt is noised, too"


def test_injection_deals_exactly_the_shares_that_were_asked_for():
    shares = {"gender": {"female": 0.75, "male": 0.25}}
    for steering, wanted in ((injection(), [6, 6]), (injection(shares=shares), [9, 3])):
        keys = [(1, "evaluate", PROMPTS[0], number) for number in range(36)]
        drawn = steering.prompts([PROMPTS[0]] * 36, keys)
        for first in range(0, 36, 12):
            part = drawn[first : first + 12]
            assert [sum(f"a {kind} doctor" in one for one in part) for kind in ("female", "male")] == wanted
            assert set(Counter(one.split(" with ")[1] for one in part).values()) == {2}
        assert drawn[:12] != drawn[12:24], "another order in the next dozen"
        assert steering.prompts([PROMPTS[0]], [keys[7]]) == [drawn[7]]


@pytest.mark.parametrize(
    ("prompt", "gated", "free"),
    [
        ("a photo of a tree", "a photo of a tree", "a photo of a tree"),
        ("a photo of a female nurse with dark skin", "a photo of a female nurse with dark skin", None),
        ("a woman, a doctor", "a woman, a doctor with", None),
        ("an officer in the rain", "a ", None),
        ("the Officer smiles", "the ", None),
        ("a humane doctor", "a humane ", None),
        ("a doctor's hat", "a ", None),
        ("a spin-doctor", "a spin-doctor", "a spin-doctor"),
        ("a woman's doctor", "a woman's doctor with", None),
        ("ten doctors", "ten doctors", "ten doctors"),
    ],
)
def test_the_gate_knows_whole_words(prompt, gated, free):
    (found,) = injection().prompts([prompt], [(1, prompt, 0)])
    assert found.startswith(gated) and ("female" in found or "male" in found) == (
        "female" in prompt
        or prompt in ("an officer in the rain", "the Officer smiles", "a humane doctor", "a doctor's hat")
    )
    (without,) = injection(gate=False).prompts([prompt], [(1, prompt, 0)])
    assert without == free if free is not None else without != prompt


def test_the_gate_takes_several_words_of_a_class_together():
    races = {"race": {"white": "white ...", "middle eastern": "middle eastern ..."}}
    steering = PromptInjection(races, ["doctor"], 2, {"race": ["latino"]})
    beards = PromptInjection({"age": {"old": "old ... with a beard", "young": "young ... with a hat"}}, ["doctor"], 2)
    for prompt, asked in (("an old doctor", False), ("a doctor with a beard", False), ("a doctor with a dog", True)):
        assert bool(beards.asked(prompt, 0)) == asked, prompt
    for prompt, asked in (
        ("a doctor in the middle of a crowd", True), ("a Middle Eastern doctor", False), ("an eastern doctor", True), ("a latino doctor", False),
    ):  # fmt: skip
        assert bool(steering.asked(prompt, 0)) == asked, prompt


def test_the_real_experiment_asks_of_every_occupation_and_nobody_else():
    """PopAlign's hundred occupations, and its experiment's own prompts: neutral ones are asked for classes, the others stay as they are."""
    settings = yaml.safe_load((REPOSITORY / "experiments/popalign_sdxl_rivals.yaml").read_text())["evaluate"][
        "init_args"
    ]["steerings"]
    steering = PromptInjection(**settings["injection"]["init_args"] | {"images": 12})
    for name in ("occupations", "people_eval"):
        for row in read_prompts(Path(f"experiments/prompts/{name}.csv")):
            asked = steering.asked(row.prompt, 0)
            if row.set in ("neutral", "heldout"):
                assert set(asked) == {"gender", "race"}, row.prompt
            elif row.set == "generic":
                assert not asked, row.prompt
            else:
                assert not set(asked) & {key for key, value in row.asked.items() if value}, row.prompt


def test_injection_reaches_the_shares_and_its_gate_keeps_what_prompts_name():
    """On the embedded model, as a judge sees it: half women of a prompt that names nobody; without the gate a prompt for somebody draws others."""
    backbone, judge = StableDiffusion("tiny", frozen=True), TinyAttributes()

    def shown(prompt, steering, **wanted):
        """Of twelve images those that show all the classes."""
        keys = [(1, "evaluate", prompt, number) for number in range(12)]
        seen = judge.classify(steered(backbone, [prompt] * 12, keys, Sampling(10, 1.5), steering))
        right = [seen[name].argmax(1) == judge.classes[name].index(label) for name, label in wanted.items()]
        return int(torch.stack(right).all(0).sum())

    assert shown(PROMPTS[0], Steering(), gender="female") <= 3
    assert abs(shown(PROMPTS[0], injection(), gender="female") - 6) <= 1
    uneven = injection(shares={"gender": {"female": 0.75, "male": 0.25}})
    assert abs(shown(PROMPTS[0], uneven, gender="female") - 9) <= 1
    named = {"gender": "female", "tone": "dark"}
    assert shown(PROMPTS[1], injection(), **named) >= 11 and shown(PROMPTS[1], injection(gate=False), **named) <= 6


def test_shares_that_do_not_divide_are_dealt_as_near_as_can_be():
    generator = torch.Generator().manual_seed(0)
    drawn = [largest_remainders([1 / 3] * 3, 10, generator) for _ in range(300)]
    assert all(sum(one) == 10 and set(one) == {3, 4} for one in drawn)
    assert all(80 < sum(one[k] == 4 for one in drawn) < 120 for k in range(3)), "who gets the odd one is drawn"


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"tau1 must be below tau2, both between 0 and 1, got 0.9 and 0.6"):
        CADS(0.9, 0.6)
    with pytest.raises(ValueError, match="must sum to 1"):
        injection(shares={"gender": {"female": 0.9, "male": 0.3}})
    with pytest.raises(ValueError, match="stands"):
        PromptInjection({"gender": {"female": "woman", "male": "man"}}, ["doctor"], 2)


def test_the_order_of_classes_names_stored_judgements():
    turned = PromptInjection(
        {name: dict(reversed(classes.items())) for name, classes in CLASSES.items()},
        ["doctor", "nurse", "officer"],
        12,
        {"gender": ["woman", "man"]},
    )
    assert content_key(injection().origin()) != content_key(turned.origin())
    assert content_key(injection().origin()) == content_key(injection().origin())


def test_the_reference_of_a_model_that_trains_stays_the_reference():
    base = StableDiffusion("tiny", frozen=True)
    sampling = Sampling(2, 2.0, reference=True)
    wanted = steered(base, PROMPTS, KEYS, sampling, CADS())
    for settings in ({}, {"lora": Lora(rank=2)}):
        model = StableDiffusion("tiny", **settings)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.05
        assert (steered(model, PROMPTS, KEYS, sampling, CADS()).int() - wanted.int()).abs().max() <= 1
        assert (
            steered(model, PROMPTS, KEYS, replace(sampling, reference=False), CADS()).int() - wanted.int()
        ).abs().max() > 5


def test_half_precision_of_a_constant_embedding_is_a_number():
    prompt = Conditioning(torch.full((2, 3, 4), 2.0, dtype=torch.float16))
    found = CADS(noise=0.0).prediction(step(0.75, mean, prompt=prompt))
    assert found.isfinite().all()


GENDER = {"attributes": {"gender": {"female": "female ...", "male": "male ..."}}, "subjects": ["doctor"], "images": 4}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Steering(math.nan), "scale must be a number, got nan"),
        (lambda: DynamicGuidance(floor=math.inf), "floor must be a number"),
        (lambda: DynamicGuidance(floor=0.0, schedule="cosine"), "the cosine takes no tau1, tau2 or floor"),
        (lambda: CADS(noise=math.nan), "noise must not be negative"),
        (lambda: CADS(rescale=5.0), "rescale be 0 to 1"),
        (lambda: IntervalGuidance(0.9, 0.2), "low must be below high"),
        (lambda: PromptInjection(**GENDER | {"images": 0}), "images must be at least 1"),
        (lambda: PromptInjection(**GENDER | {"subjects": ["Doctor"]}), "single words in small letters, got 'Doctor'"),
        (lambda: PromptInjection(**GENDER | {"subjects": ["photo of a doctor"]}), "single words"),
        (lambda: PromptInjection(**GENDER | {"subjects": []}), "subjects are single words"),
        (lambda: PromptInjection(**GENDER | {"attributes": {}}), "attributes has to name some"),
        (
            lambda: PromptInjection(**GENDER | {"attributes": {"gender": {"female": "female ..."}}}),
            "at least two classes",
        ),
        (lambda: PromptInjection(**GENDER, shares={"gendre": {}}), "'gendre' is none of the attributes gender"),
        (lambda: PromptInjection(**GENDER, named={"gendre": []}), "'gendre' is none of"),
        (lambda: PromptInjection(**GENDER, shares={"gender": {"female": math.nan, "male": 0.5}}), "must sum to 1"),
        (lambda: FairDiffusion(**GENDER, strength=math.nan), "strength, momentum and decay must be numbers"),
    ],
)
def test_settings_without_an_effect_or_a_meaning_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
