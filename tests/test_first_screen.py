"""Five questions, each answered by the first screen alone: what a real browser shows above 900 pixels."""

import json
from pathlib import Path

import pytest

from fairanon.cli import main
from fairanon.report import write_report
from fairanon.report.comparison import write_comparison
from tests.anonymizer.scenes import write_scenes
from tests.browser import CHROMIUM, first_screen

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")
TINY = ("--detector", "tiny_detector", "--recognizer", "tiny_embedder_b")
KEPT = Path("experiments/results")


def run_page(folder, name):
    (folder / "metrics.json").write_text(json.dumps(json.loads((KEPT / name).read_text())["metrics"]))
    return write_report(folder)


def test_did_it_become_fairer(tmp_path):
    seen = first_screen(run_page(tmp_path, "popalign_tiny/popalign_tiny-21.json"))
    assert seen.startswith("popalign_tiny") and "FAIRER" in seen and "how uneven gender is .56 → .21" in seen
    assert "after/before .38 [.26, .51]" in seen and "a fair model would score .08" in seen


def test_what_became_worse(tmp_path):
    seen = first_screen(run_page(tmp_path, "popalign_tiny/dpo_tiny-21.json"))
    assert (
        "what should stay 5 of 6 moved neutral +.19" in seen
        and ".997 → .979 worse" in seen
        and "PARTLY FAIRER, BUT OBEYS LESS" in seen
    )


def test_how_many_were_hidden(tmp_path):
    write_scenes(tmp_path / "in", [2, 0, 3])
    assert main(["anonymize", str(tmp_path / "in"), str(tmp_path / "out"), *TINY]) == 3
    seen = first_screen(tmp_path / "out" / "report.html")
    assert "faces hidden 5 of 5" in seen and "1 FILE TO BE LOOKED AT" in seen and "two faces match up to" in seen


def test_who_is_found(tmp_path):
    write_scenes(tmp_path / "in", [1, 1])
    write_scenes(tmp_path / "other", [1, 1])
    words = ["evaluate", str(tmp_path / "in"), str(tmp_path / "other"), "--out", str(tmp_path / "e"), "--size", "64"]
    assert main([*words, *TINY]) == 0
    seen = first_screen(tmp_path / "e" / "report.html")
    assert "2 OF 2 FACES RECOGNIZED" in seen and "0/scene 0.png" in seen and "0/scene 1.png" in seen


def test_which_model_is_better(tmp_path):
    table = json.loads((KEPT / "popalign_tiny.json").read_text())
    better = {"discrepancy/gender/per_prompt": False, "discrepancy/tone/per_prompt": False, "recall/overall": True}
    seen = first_screen(write_comparison(tmp_path / "table.html", {**table, "higher_is_better": better}))
    assert "sft_tiny LEADS IN 1 OF 3 NUMBERS" in seen and "how uneven tone is, prompt by prompt sft_tiny" in seen
    assert "how uneven gender is, prompt by prompt not shown" in seen


@pytest.mark.parametrize("name", ["popalign_tiny/popalign_tiny-21.json", "measured/id2face_tiny-float32.json"])
def test_a_phone_shows_the_answer_and_nothing_sideways(tmp_path, name):
    seen = first_screen(run_page(tmp_path, name), width=500, height=900)  # Chromium makes no narrower window
    assert ("FAIRER" in seen or "HIDDEN" in seen) and "WIDER THAN THE SCREEN" not in seen
