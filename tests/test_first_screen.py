"""Five questions, each answered by the first screen alone: what a real browser shows above 900 pixels."""

import json
from pathlib import Path

import pytest

from fairanon.cli import main
from fairanon.report import write_report
from fairanon.report.comparison import write_comparison
from tests.anonymizer.scenes import write_scenes
from tests.browser import CHROMIUM, DRIVER, driven, first_screen

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
    rows = {name: table["rows"][name] for name in ("base", "popalign_tiny", "sft_tiny")}
    page = write_comparison(tmp_path / "table.html", {**table, "rows": rows, "higher_is_better": better})
    seen = first_screen(page)
    assert "sft_tiny LEADS IN 1 OF 3 NUMBERS" in seen and "how uneven tone is, prompt by prompt sft_tiny" in seen
    assert "how uneven gender is, prompt by prompt not shown" in seen


@pytest.mark.parametrize("name", ["popalign_tiny/popalign_tiny-21.json", "measured/id2face_tiny-float32.json"])
def test_a_phone_shows_the_answer_and_nothing_sideways(tmp_path, name):
    seen = first_screen(run_page(tmp_path, name), width=500, height=900)  # Chromium makes no narrower window
    assert ("FAIRER" in seen or "HIDDEN" in seen) and "WIDER THAN THE SCREEN" not in seen


_CONTRASTS = """
const light = (text) => {
  const [r, g, b] = text.match(/[\\d.]+/g).map((one) => { const c = one / 255; return c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; });
  return .2126 * r + .7152 * g + .0722 * b;
};
const behind = (one) => {
  for (let at = one; at; at = at.parentElement) {
    const found = getComputedStyle(at).backgroundColor;
    if (!found.endsWith(", 0)")) return found;
  }
  return "rgb(255, 255, 255)";
};
return [...document.querySelectorAll("body *")].filter((one) => one.offsetWidth && !one.closest("svg")
    && [...one.childNodes].some((part) => part.nodeType === 3 && part.data.trim()))
  .map((one) => {
    const pair = [light(getComputedStyle(one).color), light(behind(one))].sort((a, b) => b - a);
    return [(pair[0] + .05) / (pair[1] + .05), one.textContent.trim().slice(0, 60)];
  }).filter(([contrast]) => contrast < 4.5);
"""
"""Visible texts whose contrast is below what WCAG asks for (level AA)."""


@pytest.mark.skipif(DRIVER is None, reason="needs Debian's package chromium-driver")
def test_pages_can_be_read_in_the_dark_and_on_paper(tmp_path):
    page = run_page(tmp_path, "popalign_tiny/popalign_tiny-21.json")
    driver = driven(tmp_path / "profile")
    try:
        driver.get(page.as_uri())
        grounds = {}
        for scheme in ("light", "dark"):
            wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
            grounds[scheme] = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert driver.execute_script(_CONTRASTS) == [], scheme
        assert grounds["light"] != grounds["dark"]
        sections = "return [...document.querySelectorAll('.tabs > section')].map((one) => one.offsetHeight > 0)"
        assert driver.execute_script(sections).count(True) == 1, "one tab at a time"
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
        shown = driver.execute_script(sections)
        assert len(shown) > 3 and all(shown), "on paper nobody can click"
        assert driver.execute_script(_CONTRASTS) == []
    finally:
        driver.quit()
