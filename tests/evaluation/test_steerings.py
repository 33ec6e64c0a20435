"""Rivals that train nothing, as the experiment ships them: each is a row on the same prompts and noise."""

import json

import pytest
import yaml

from fairanon.cli import main
from tests.conftest import REPOSITORY

PROMPTS = """prompt,set,occupation,gender,tone,age
a photo of a doctor,neutral,doctor,,,
a photo of a nurse,neutral,nurse,,,
a photo of a female doctor with dark skin,specific,doctor,female,dark,
a photo of a tree,generic,,,,
"""


@pytest.mark.slow
def test_every_rival_is_a_row_and_a_second_time_nothing_is_drawn_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.csv").write_text(PROMPTS)
    words = [
        "train", "popalign_tiny_rivals", "--evaluate.prompts", "prompts.csv", "--evaluate.images", "4",
        "--evaluate.specific_images", "2", "--evaluate.sampling_steps", "2",
    ]  # fmt: skip
    assert main(words) == 0
    result = json.loads((tmp_path / "runs" / "popalign_tiny_rivals" / "latest" / "metrics.json").read_text())
    rows = result["rivals"]
    steerings = yaml.safe_load((REPOSITORY / "experiments/popalign_tiny_rivals.yaml").read_text())["evaluate"][
        "init_args"
    ]["steerings"]
    assert list(rows) == ["base", *steerings]
    key = "discrepancy/gender/per_prompt"
    assert rows["base"][key]["value"] == pytest.approx(result["before"][key]["value"], abs=1e-3)
    assert all(row["seconds_per_image"]["value"] > 0 for row in rows.values())
    assert "seconds_per_image" in result["headline"]
    page = (tmp_path / "runs" / "popalign_tiny_rivals" / "latest" / "report.html").read_text()
    assert "injection without a gate" in page and "seconds that an image takes" in page
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / ".judged").rglob("*.safetensors")}
    assert len(stored) == 3 + len(steerings), "the base twice, the base from other noise, and each rival"
    assert main([*words, "--fresh"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / ".judged").rglob("*.safetensors")} == stored


def test_models_that_do_not_draw_from_prompts_are_refused_before_anything(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    steering = '{"plain": {"class_path": "fairanon.pipelines.steering.Steering"}}'
    assert main(["train", "ano_face_fair_tiny_dreambooth", "--evaluate.steerings", steering, "--prepare", "[]"]) == 1
    assert "evaluate.steerings: they draw with text-to-image models" in capsys.readouterr().err
