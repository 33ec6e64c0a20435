"""ITI-GEN: what trains, what an image is asked with, and that the exported tokens are diffusers' own."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from fairanon.backbones import Sampling, StableDiffusion
from fairanon.batches import PreferenceBatch, PromptRow
from fairanon.config.experiments import UserError
from fairanon.evaluators.open_clip import OpenClip
from fairanon.losses.joint_directions import joint_directions
from fairanon.methods import InclusiveTokens

ATTRIBUTES = {"gender": {"female": "female", "male": "male"}, "tone": {"pale": "pale", "dark": "dark"}}
CAPTIONS = ["a photo of a doctor", "a photo of a nurse"]
PROMPTS = ["a photo of a female doctor with pale skin", "a photo of a male nurse with dark skin"]


def method(**settings):
    backbone = StableDiffusion("tiny", train_text_encoder=True)
    given = {"attributes": ATTRIBUTES, "subjects": ["doctor", "nurse"], "images": 4, "tokens": 2} | settings
    return InclusiveTokens(backbone, **given).train()


def batch():
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return PreferenceBatch(["0.0", "1.0"], images, images, CAPTIONS, PROMPTS)


def filled(learned):
    with torch.no_grad():
        learned.vocabulary.new.normal_(generator=torch.Generator().manual_seed(1))
    return learned


def test_tokens_alone_train_and_only_those_of_the_classes_that_are_shown():
    learned = filled(method())
    assert [name for name, p in learned.named_parameters() if p.requires_grad] == [
        "backbone.text_encoder.embeddings.token_embedding.new"
    ]
    value, _ = learned.loss(batch())
    value.backward()
    assert all(p.grad is None for p in learned.parameters() if not p.requires_grad)
    rows = learned.vocabulary.new.grad.abs().sum(1)
    assert learned.words["gender", "male"] == ["<male>", "<male>_1"] and len(rows) == 8 and bool((rows > 0).all())
    learned.vocabulary.new.grad = None
    one = PreferenceBatch(["0.0"], batch().winners[:1], batch().losers[:1], CAPTIONS[:1], PROMPTS[:1])
    learned.loss(one)[0].backward()
    assert (learned.vocabulary.new.grad.abs().sum(1) > 0).tolist() == [
        True,
        True,
        False,
        False,
        True,
        True,
        False,
        False,
    ]


def test_the_loss_is_the_denoising_loss_of_the_prompt_with_tokens():
    learned = filled(method())
    value, _ = learned.loss(batch())
    said = [
        "a photo of a doctor <female> <female>_1 <pale> <pale>_1",
        "a photo of a nurse <male> <male>_1 <dark> <dark>_1",
    ]
    x = learned.noised(learned.latents(batch().winners, batch().keys), batch().keys, said)
    error = learned.backbone.predict(x.noisy, x.timesteps, x.condition) - x.target
    assert torch.equal(value, error.square().mean())
    plain = learned.backbone.encode_prompts(CAPTIONS).context
    reference = StableDiffusion("tiny", frozen=True).encode_prompts(CAPTIONS).context
    torch.testing.assert_close(plain, reference)  # prompts without tokens are read as before
    with pytest.raises(ValueError, match="does not say of which prompts the winners are"):
        learned.loss(PreferenceBatch(["0.0"], batch().winners[:1], batch().losers[:1], CAPTIONS[:1]))


def test_images_are_dealt_classes_and_prompts_that_name_one_or_nobody_are_drawn_as_before():
    learned = filled(method()).eval()
    rows = [
        PromptRow(CAPTIONS[0], "neutral", {}),
        PromptRow("a photo of a female doctor with dark skin", "specific", {}),
        PromptRow("a photo of a tree", "generic", {}),
    ]
    keys = [(0, row.prompt, number) for number, row in enumerate(rows)]
    sampling = Sampling(2, 1.5)
    drawn, before = (learned.images(rows, keys, one) for one in (sampling, Sampling(2, 1.5, reference=True)))
    assert (drawn[0].int() - before[0].int()).abs().max() > 5
    assert torch.equal(drawn[1:], before[1:])
    dealt = learned.deal.asked(CAPTIONS[0], 0)
    with_tokens = learned.deal.with_classes(CAPTIONS[0], dealt)
    assert with_tokens == " ".join(
        [CAPTIONS[0], *learned.words["gender", dealt["gender"]], *learned.words["tone", dealt["tone"]]]
    )
    assert learned.settings_of_use() != method(images=8).settings_of_use()


def test_what_is_exported_draws_the_same_in_diffusers(tmp_path):
    learned = filled(method()).eval()
    assert learned.export_weights(tmp_path, "tokens") == tmp_path / "tokens"
    assert {path.stem for path in (tmp_path / "tokens").iterdir()} == {"female", "male", "pale", "dark"}
    learned.export_pipeline(tmp_path / "whole", "tokens")
    assert isinstance(learned.vocabulary.new, torch.nn.Parameter), "the training goes on with its own"
    words = "a photo of a doctor <female> <female>_1 <dark> <dark>_1"
    ours = learned.backbone.encode_prompts([words]).context
    whole = StableDiffusion(str(tmp_path / "whole"), frozen=True)
    torch.testing.assert_close(whole.encode_prompts([words]).context, ours)
    pipeline = StableDiffusionPipeline(
        **StableDiffusion("tiny", frozen=True).build_pipeline().components, requires_safety_checker=False
    )
    for label in ("female", "dark"):
        pipeline.load_textual_inversion(str(tmp_path / "tokens" / f"{label}.safetensors"), token=f"<{label}>")
    theirs, _ = pipeline.encode_prompt("a photo of a doctor <female> <dark>", "cpu", 1, False)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_holds_the_tokens_and_gives_them_back():
    learned, other = filled(method()), method()
    other.load_state_dict(learned.state_dict(), strict=False)
    assert torch.equal(other.vocabulary.new, learned.vocabulary.new) and len(learned.state_dict()) == 1


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="set train_text_encoder to true"):
        InclusiveTokens(StableDiffusion("tiny"), ATTRIBUTES, ["doctor"], 4)
    with pytest.raises(ValueError, match=r"model\.tokens must be at least 1"):
        method(tokens=0)
    with pytest.raises(ValueError, match="light must be named by one word, got 'light brown'"):
        method(attributes={"tone": {"light": "light brown", "brown": "brown"}})
    with pytest.raises(ValueError, match=r"model\.tokens: .* is too long for the text encoder"):
        method(tokens=12).loss(batch())
    with pytest.raises(ValueError, match="two classes have one name"):
        method(attributes={"gender": {"dark": "male"}, "tone": {"dark": "dark"}})


@pytest.fixture
def joint():
    """A random CLIP whose text encoder is as wide as the embedded model's."""
    from open_clip.factory import _MODEL_CONFIGS

    _MODEL_CONFIGS["fairanon-joint"] = {
        "embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 100, "width": 64, "heads": 2, "layers": 1},
    }  # fmt: skip
    torch.manual_seed(0)
    clip = OpenClip("fairanon-joint", None)
    clip.model.token_embedding = torch.nn.Embedding.from_pretrained(
        StableDiffusion("tiny", frozen=True).text_encoder.get_input_embeddings().weight.detach().half()
    )
    return clip


def test_in_a_joint_space_the_loss_is_the_official_one(joint):
    """Put together by loops from the texts that each term speaks of; the gradient reaches the tokens alone."""
    learned = filled(method(joint=joint))
    value, logs = learned.loss(batch())
    value.backward()
    assert all(p.grad is None for p in learned.parameters() if not p.requires_grad) and bool(
        (learned.vocabulary.new.grad != 0).any()
    )
    pictures = joint.of(batch().winners.float() / 255)

    def embedded(text):
        words = learned.backbone.tokenizer(
            [text], padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids[0]
        end = words.tolist().index(learned.backbone.tokenizer.eos_token_id)
        return learned.backbone.encode_prompts([text]).context[0, end] @ joint.model.text_projection

    said = {
        "gender": [f"{CAPTIONS[n]} {{}} {tone}" for n, tone in enumerate(("<pale> <pale>_1", "<dark> <dark>_1"))],
        "tone": [f"{CAPTIONS[n]} {gender} {{}}" for n, gender in enumerate(("<female> <female>_1", "<male> <male>_1"))],
    }
    for name, classes in (("gender", ("female", "male")), ("tone", ("pale", "dark"))):
        texts = [[embedded(text.format(f"<{label}> <{label}>_1")) for label in classes] for text in said[name]]
        image_step = pictures[0] - pictures[1]  # the first image shows the first class of either attribute
        text_step = (texts[0][0] + texts[1][0]) / 2 - (texts[0][1] + texts[1][1]) / 2
        torch.testing.assert_close(
            logs[f"directions/{name}"], 1 - torch.cosine_similarity(image_step, text_step, dim=0)
        )
        lacking = [
            (0.8 - torch.cosine_similarity(text, embedded(CAPTIONS[n]), dim=0)).clamp_min(0)
            for n in range(2)
            for text in texts[n]
        ]
        torch.testing.assert_close(logs[f"consistency/{name}"], torch.stack(lacking).mean())
    torch.testing.assert_close(value, torch.stack(list(logs.values())).sum())


def test_tokens_learn_to_point_where_the_images_do(joint):
    learned = method(joint=joint, tokens=1)
    optimizer, losses = torch.optim.Adam([learned.vocabulary.new], lr=0.05), []
    for _ in range(60):
        optimizer.zero_grad()
        value, logs = learned.loss(batch())
        value.backward()
        optimizer.step()
        losses.append(float(logs["directions/gender"] + logs["directions/tone"]))
    assert losses[0] == pytest.approx(2) and losses[-1] < 1.4 and learned.vocabulary.new.isfinite().all()


def test_a_joint_space_of_another_text_encoder_is_refused(joint):
    learned = method(joint=joint)
    learned.on_fit_start()
    joint.model.token_embedding.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="its text encoder is not the backbone's"):
        learned.on_fit_start()  # as wide, and of other weights
    joint.model.text_projection = torch.nn.Parameter(torch.zeros(32, 16))
    with pytest.raises(ValueError, match="its text encoder is not the backbone's"):
        method(joint=joint)


def test_a_class_that_no_image_shows_has_no_direction():
    images, texts = torch.eye(3), torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0))
    assert joint_directions(images, torch.tensor([1, 1, -1]), texts) == 0
    labels = torch.tensor([0, 2, -1])
    step, said = images[0] - images[1], texts[:, 0].mean(0) - texts[:, 2].mean(0)
    torch.testing.assert_close(joint_directions(images, labels, texts), 1 - torch.cosine_similarity(step, said, dim=0))
    three = joint_directions(images, torch.tensor([0, 1, 2]), texts)
    pairs = [(0, 1), (0, 2), (1, 2)]
    terms = [
        1 - torch.cosine_similarity(images[a] - images[b], texts[:, a].mean(0) - texts[:, b].mean(0), dim=0)
        for a, b in pairs
    ]
    torch.testing.assert_close(three, torch.stack(terms).sum() / 2)
