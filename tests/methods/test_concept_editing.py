"""UCE: the edit against a least-squares solve, what a step asks for, and that the weights are those of the numbers."""

import re
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel

from data_modules.prompts_to_draw import PromptsToDraw
from fairanon.backbones import StableDiffusion
from fairanon.backbones.trainable import Lora
from fairanon.batches import PromptBatch
from fairanon.evaluators import TinyAttributes
from fairanon.losses.concept_edit import concept_edit
from fairanon.methods import ConceptEditing
from fairanon.methods.concept_editing import _READERS
from fairanon.prompts import read_prompts, said_of_classes
from tests.conftest import REPOSITORY
from tests.methods.test_preference import trainer

TONES = ("pale", "light", "olive", "tan", "brown", "dark")
ATTRIBUTES = {"gender": {"female": "female", "male": "male"}, "tone": {tone: tone for tone in TONES}}
TABLE = (
    "prompt,specific\n"
    "a photo of a doctor,a photo of a {gender} doctor with {tone} skin\n"
    "a photo of a nurse,a photo of a {gender} nurse with {tone} skin\n"
)
BATCH = PromptBatch([f"0.0.{k}" for k in range(6)], ["a photo of a nurse"] * 6)


def method(folder, table=TABLE, backbone=None, **settings):
    (folder / "prompts.csv").write_text(table)
    backbone = backbone or StableDiffusion("tiny")
    given = {"sampling_steps": 3, "guidance_scale": 1.5, "attributes": ATTRIBUTES} | settings
    return ConceptEditing(backbone, TinyAttributes(faces=False), str(folder / "prompts.csv"), **given).train()


def test_the_edit_is_the_least_squares_solution_for_any_layer():
    draws = np.random.default_rng(0)
    rows, shifts, keep = draws.normal(size=(5, 4)), draws.normal(size=(5, 4)), draws.normal(size=(3, 4))
    before = draws.normal(size=(7, 4))
    matrix = concept_edit(*(torch.tensor(part) for part in (rows, shifts, keep)), preserve=0.3, keep_weight=2.0).numpy()
    asked = np.concatenate([rows, np.sqrt(2.0) * keep, np.sqrt(0.3) * np.eye(4)])
    wanted = np.concatenate([(rows + shifts) @ before.T, np.sqrt(2.0) * keep @ before.T, np.sqrt(0.3) * before.T])
    solved = np.linalg.lstsq(asked, wanted, rcond=None)[0].T
    np.testing.assert_allclose(before @ matrix, solved, rtol=1e-8, atol=1e-10)


def test_nothing_is_asked_nothing_changes_and_what_is_loaded_draws(tmp_path):
    editing = method(tmp_path)
    layer = editing.backbone.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    before = layer.weight.clone()
    editing.edit()
    assert torch.equal(layer.weight, before)
    assert set(editing.state_dict()) == {"strengths.gender", "strengths.tone"}, "a checkpoint holds the numbers alone"
    state = {name: torch.full_like(value, 0.5) for name, value in editing.state_dict().items()}
    state["strengths.gender"][:, 1] = -2.0
    editing.load_state_dict(state, strict=False)
    assert not torch.equal(layer.weight, before)
    changed = layer.weight.clone()
    editing.edit()
    assert torch.equal(layer.weight, changed), "an edit starts from the weights of before"
    rows, directions, keep = editing._read
    shifts = sum(
        torch.einsum("pk,kpld->pld", state[f"strengths.{name}"].double(), directions[name]) for name in directions
    )
    matrix = concept_edit(rows.flatten(0, 1), shifts.flatten(0, 1), keep, 0.5, 1.0)
    torch.testing.assert_close(changed, (before.double() @ matrix).float())
    reference = editing.backbone.trainable.copies["unet"].mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    assert torch.equal(reference.weight, before)


def test_a_class_direction_is_the_difference_that_its_word_makes(tmp_path):
    editing = method(tmp_path)
    rows, directions, keep = editing._embeddings()
    for name, count in (("gender", 2), ("tone", 6)):
        assert directions[name].shape == (count, *rows.shape)
        torch.testing.assert_close(directions[name].sum(0), torch.zeros_like(rows), atol=1e-4, rtol=0)
    texts = [f"a photo of a {gender} nurse with {tone} skin" for gender in ("female", "male") for tone in TONES]
    context = editing.backbone.encode_prompts(texts).context.double()
    end = 9  # the beginning, "a photo of a female nurse with pale", and then "skin"
    by_hand = context[:6, end:].mean(0) - context[:, end:].mean(0)
    by_hand = by_hand[: rows.shape[1]]
    direction = directions["gender"][0, 1]
    torch.testing.assert_close(direction / direction.norm(), by_hand / by_hand.norm(), atol=1e-5, rtol=1e-4)
    for direction in directions.values():
        assert float(direction.norm(dim=-1).mean()) == pytest.approx(0.1 * float(rows.norm(dim=-1).mean()))
    assert len(keep) == 2 * 12 * (end + 1), "all tokens of all prompts that name classes, but the first"
    bare = editing.backbone.encode_prompts(["a photo of a nurse"]).context[0].double()
    torch.testing.assert_close(rows[1], bare[5 : 5 + rows.shape[1]])


def test_prompts_that_are_kept_are_read_as_before(tmp_path):
    """Trees are read more as before where a list says so; however long its prompts are, the same tokens are edited."""
    trees = "a photo of a tree and a house and a car and a photo of a tree and a house"
    (tmp_path / "keep.csv").write_text(f"prompt\n{trees}\n")
    changes = []
    for keep in (None, str(tmp_path / "keep.csv")):
        editing = method(tmp_path, keep=keep, keep_weight=50.0)
        rows, _, kept = editing._embeddings()
        with torch.no_grad():
            editing.strengths["gender"].fill_(0.0)[:, 0] = 5.0
        editing.edit()
        layer, before = editing._before[0]
        context = editing.backbone.encode_prompts([trees]).context[0, 1:18]
        changes.append((float(((layer.weight - before) @ context.T).norm()), rows.shape, len(kept)))
    (without, shape, few), (with_list, again, more) = changes
    assert with_list < without / 3 and shape == again and more > few, changes


def test_a_step_asks_for_what_is_missing(tmp_path):
    editing = method(tmp_path, tolerance=0.0)
    value, logs = editing.loss(BATCH)
    value.backward()
    keys = [(0, "train", key) for key in BATCH.keys]
    judged = editing.judge.classify(editing.backbone.sample(BATCH.prompts, keys, editing.sampling))
    for name, classes in ATTRIBUTES.items():
        seen = torch.bincount(judged[name].argmax(1), minlength=len(classes)) / 6
        missing = 1 / len(classes) - seen
        torch.testing.assert_close(editing.strengths[name].grad[1], -missing)
        assert not editing.strengths[name].grad[0].any(), "the other prompt was not drawn"
        assert float(logs[f"apart/{name}"]) == pytest.approx(float(missing.abs().max()))
    near = method(tmp_path, tolerance=0.99)
    near.loss(BATCH)[0].backward()
    assert not near.strengths["gender"].grad.any()


def test_steps_bring_the_shares_nearer(tmp_path):
    """The base draws nearly all nurses female; a few steps draw men, too."""
    editing = method(
        tmp_path, attributes={"gender": ATTRIBUTES["gender"]}, table=TABLE.replace(" with {tone} skin", "")
    )
    optimizer = torch.optim.SGD([editing.strengths["gender"]], lr=1.0)
    apart = []
    for step in range(6):
        batch = PromptBatch([f"0.{step}.{k}" for k in range(12)], ["a photo of a nurse"] * 12)
        optimizer.zero_grad()
        value, logs = editing.loss(batch)
        value.backward()
        optimizer.step()
        editing.on_train_batch_end()
        apart.append(float(logs["apart/gender"]))
    assert apart[0] >= 0.25 and min(apart[1:]) <= apart[0] / 2, apart


def test_a_run_that_goes_on_equals_an_uninterrupted_one_and_exports_its_edit(tmp_path):
    def data():
        return PromptsToDraw(str(tmp_path / "prompts.csv"), images=3)

    settings = {"optimizer": partial(torch.optim.SGD, lr=2.5), "sampling_steps": 2}
    whole, first, second = (method(tmp_path, **settings) for _ in range(3))
    trainer(tmp_path / "a", 4).fit(whole, data())
    part = trainer(tmp_path / "b", 2)
    part.fit(first, data())
    part.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path / "c", 4).fit(second, data(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for name, value in whole.state_dict().items():
        assert value.abs().sum() > 0 and torch.equal(value, second.state_dict()[name]), name
    for (layer, before), (other, _) in zip(whole._before, second._before, strict=True):
        assert torch.equal(layer.weight, other.weight) and not torch.equal(layer.weight, before)
    path = whole.export_weights(tmp_path / "out", "uce")
    exported = UNet2DConditionModel.from_pretrained(path)
    for name, layer in whole.backbone.unet.named_modules():
        if name.endswith(_READERS):
            assert torch.equal(exported.get_submodule(name).weight, layer.weight)
    weaker = method(tmp_path, preserve=0.05, **settings)
    weaker.load_state_dict(whole.state_dict(), strict=False)
    assert weaker.weights_digest() == whole.weights_digest() and weaker.settings_of_use() != whole.settings_of_use()


def test_what_cannot_be_is_refused(tmp_path):
    for settings, said in (
        ({"preserve": 0.0}, "preserve must be above 0"),
        ({"attributes": {"gender": {"male": "male", "female": "female"}}}, "in its order: female, male"),
        ({"attributes": {"height": {"tall": "tall"}}}, "nothing of it"),
        ({"shares": {"gender": {"female": 1.0}}}, "must be a share of each of female, male"),
        ({"table": "prompt\na photo of a nurse\n"}, "has no column 'specific'"),
        ({"table": "prompt,specific\na nurse,a {gender} nurse\n"}, "has no placeholder {tone}"),
        ({"backbone": StableDiffusion("tiny", lora=Lora(rank=2))}, "set lora and control to null"),
    ):
        with pytest.raises(ValueError, match=said):
            method(tmp_path, **settings)
    long = TABLE + "a photo of a nurse,a photo of " + "a nurse and " * 9 + "a {gender} nurse with {tone} skin\n"
    with pytest.raises(ValueError, match="is too long for the text encoder"):
        method(tmp_path, table=long).edit()
    alike = {"gender": ATTRIBUTES["gender"], "tone": ATTRIBUTES["tone"] | {"light": "zzz", "olive": "qqq"}}
    with pytest.raises(ValueError, match="reads the classes of tone alike"):
        method(tmp_path, attributes=alike).edit()
    with pytest.raises(ValueError, match="'a tree' is not among"):
        method(tmp_path).loss(PromptBatch(["0.0.0"], ["a tree"]))


def test_what_the_real_experiment_edits_is_the_person():
    """A prompt is read otherwise from its last word on: that word has to name who is seen."""
    settings = yaml.safe_load((REPOSITORY / "experiments/popalign_sd15_uce.yaml").read_text())
    given = settings["model"]["init_args"]
    assert given["prompts"] == "${data.init_args.prompts}"
    edited = dict(said_of_classes(REPOSITORY / settings["data"]["init_args"]["prompts"], "model", given["attributes"]))
    measured = read_prompts(REPOSITORY / "experiments/prompts/people_eval.csv")
    assert {row.prompt for row in measured if row.set == "neutral"} <= set(edited)
    for prompt, specific in edited.items():
        who = re.fullmatch(r"best quality, a realistic photo of an? ([\w -]+)", prompt)[1]
        assert specific == f"best quality, a realistic photo of a {{race}} {{gender}} {who}"
        assert not re.search(r"\b(in|at|on|with|of|outdoors)\b", who), "an occupation, and no scenery behind it"
