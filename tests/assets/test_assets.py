import json

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open

from data_modules.synthetic_faces.captions import captions
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.shapes import MASKS
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.assets import judge_errors
from fairanon.assets.__main__ import main
from fairanon.assets.inpainting_model import widen
from fairanon.assets.judge_networks import measure_judges
from fairanon.assets.quality import measure
from fairanon.embedded import embedded
from fairanon.evaluators import PointRendParser, TinyDetector, TinyEmbedder
from tests.conftest import REPOSITORY

BUDGET = {
    "text_to_image": 8.0,
    "inpainting": 8.0,
    "judges": 4.0,
    "later_judges": 1.0,
    "segmenter": 3.0,
    "id2face_tiny": 9.0,
}  # MB


@pytest.mark.parametrize("name", BUDGET)
def test_assets_keep_to_their_budget_in_half_precision(name):
    files = [path for path in embedded(name).rglob("*") if path.is_file()]
    assert 0.5 < sum(path.stat().st_size for path in files) / 1e6 <= BUDGET[name]
    for path in files:
        assert path.suffix in (".safetensors", ".json"), path
        assert path.suffix != ".json" or "_name_or_path" not in path.read_text(), "no paths of anybody's machine"
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                kinds = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118  (not a dictionary)
            assert kinds <= {torch.float16, torch.int64}, (path, kinds)


def test_judges_on_people_they_have_never_seen():
    found = measure_judges(embedded("judges"), count=512)
    for judge in ("attributes", "attributes_b"):
        for name in ("gender", "tone", "occupation", "hands"):
            assert found[f"{judge}/accuracy/{name}"] >= 0.98, (judge, name)
        for name in ("expression", "age"):
            assert found[f"{judge}/accuracy/{name}"] >= 0.95, (judge, name)
    for name in ("embedder_a", "embedder_b"):
        assert found[f"rank1/{name}"] >= 0.95, found
        assert found[f"rank1/{name}/same_gender_and_tone"] >= 0.85, found
    for name in ("geometry", "geometry_b"):
        assert found[f"{name}/landmarks/pixels"] <= 0.6, found
        assert min(found[f"{name}/r2/gaze"]) >= 0.8, found
    assert found["detector/face/recall"] >= 0.98 and found["detector/hand/recall"] >= 0.98


def test_plain_diffusers_loads_and_runs_the_model():
    pipeline = StableDiffusionPipeline.from_pretrained(embedded("text_to_image"))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a photo of a doctor", num_inference_steps=3, output_type="np").images
    assert images.shape == (1, 64, 64, 3) and images.std() > 0.05
    words = pipeline.tokenizer.get_vocab()
    assert all(word in words for text in captions(draw_scenes(0, range(300))) for word in text.split())


@pytest.mark.slow  # the weights stay what they are; others use them
def test_the_model_draws_what_it_is_asked_for():
    """The full measurement on 1,000 samples is ``python -m fairanon.assets.quality``."""
    found = measure(count=168, guidance_scale=1.0)
    assert found["recall/occupation"] >= 0.93 and found["recall/gender"] >= 0.93 and found["recall/tone"] >= 0.87, found
    assert found["discrepancy/gender/per_prompt"] > 0.3, "the base model is unfair"
    assert found["discrepancy/tone/per_prompt"] > 0.4, "likewise"
    assert found["reconstruction/expression"] >= found["original/expression"] - 0.02


@pytest.mark.slow
def test_the_inpainting_model_draws_the_rare_group_badly_and_nobody_as_they_were():
    """The full measurement is ``python -m fairanon.assets.quality --model tiny-inpainting``."""
    found = measure("tiny-inpainting", count=300)
    groups = {name: value for name, value in found.items() if name.startswith("group_accuracy/")}
    rare = groups.pop("group_accuracy/olive")
    assert 0.65 < rare < 0.95 and rare == min(rare, *groups.values()), found
    assert min(groups.values()) >= 0.85 and found["recall/gender"] > 0.95, found
    assert found["anonymization/accuracy"] > 0.97, found


def test_the_inpainting_model_starts_as_the_text_to_image_model():
    start = UNet2DConditionModel.from_pretrained(embedded("text_to_image", "unet")).float()
    x, context = torch.randn(2, 17, 16, 16), torch.randn(2, 16, start.config.cross_attention_dim)
    with torch.no_grad():
        a, b = (net(y, torch.tensor([1, 999]), context).sample for net, y in ((start, x[:, :8]), (widen(start), x)))
    torch.testing.assert_close(a, b)


def test_the_segmenter_finds_every_region():
    scenes = draw_scenes(4502, range(256), "balanced")
    drawn = render(scenes, masks=True)
    found = PointRendParser().parse(drawn.image)
    assert drawn.masks is not None
    overlaps = {}
    for name, mask in found.items():
        parts = MASKS[:5] if name == "face" else (name,)
        truth = drawn.masks[:, [MASKS.index(part) for part in parts]].bool().any(1, keepdim=True)
        overlaps[name] = float((mask & truth).sum() / (mask | truth).sum())
    assert sum(overlaps.values()) / len(overlaps) >= 0.92 and min(overlaps.values()) >= 0.8, overlaps


def test_the_detector_places_faces_and_hands_and_ignores_the_rest():
    scenes = draw_scenes(77, range(32), "balanced").replace(hands=torch.arange(32) % 2 == 0)
    drawn = render(scenes, masks=True)
    for n, found in enumerate(TinyDetector().detect(drawn.image)):
        assert len(found["face"].scores) == 1 and len(found["hand"].scores) == (2 if n % 2 == 0 else 0)
        rows, columns = drawn.masks[n, :5].amax(0).nonzero(as_tuple=True)
        box = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        assert (found["face"].boxes[0] - box).abs().max() < 5
    nobody = render(scenes.replace(subject=torch.ones(32, dtype=torch.long))).image
    assert not any(len(found["face"].scores) for found in TinyDetector().detect(nobody))
    embeddings = TinyEmbedder().embed(nobody)
    assert embeddings.isnan().all(), "no face, no embedding"


@pytest.mark.slow
def test_everything_can_be_rebuilt_from_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    monkeypatch.chdir(tmp_path)
    words = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--share", "0.0004", "--threads", "2"]
    main(words)
    found = json.loads(capsys.readouterr().out.partition("}\n")[0] + "}")
    assert set(found) >= {"attributes_b/accuracy/gender", "rank1/embedder_b", "geometry_b/landmarks/pixels"}
    for name in BUDGET:
        shipped = {path.relative_to(embedded()) for path in embedded(name).rglob("*") if path.is_file()}
        rebuilt = {
            path.relative_to(tmp_path / "out") for path in (tmp_path / "out" / name).rglob("*") if path.is_file()
        }
        assert rebuilt == shipped
    stamp = (tmp_path / "work" / "autoencoder.safetensors").stat().st_mtime_ns
    main([*words, "--only", "text_to_image"])
    assert (tmp_path / "work" / "autoencoder.safetensors").stat().st_mtime_ns == stamp, "finished work is not repeated"


@pytest.mark.parametrize("judge", judge_errors.JUDGES)
def test_the_judges_confusion_is_of_this_judge_and_comes_from_its_command(judge):
    kept, fresh = json.loads(judge_errors.place(judge).read_text()), judge_errors.confusion(judge, 500)
    assert kept["judge"] == fresh["judge"] and kept["made_by"] == "python -m fairanon.assets.judge_errors"
    for name, row in fresh["attributes"].items():
        table = kept["attributes"][name]
        assert table["classes"] == row["classes"]
        ours, again = (torch.tensor(one["said"]).double() for one in (table, row))
        assert (ours / ours.sum(1, keepdim=True) - again / again.sum(1, keepdim=True)).abs().max() < 0.03
