"""The tabs for new faces and for runs."""

import json
import re

import numpy as np
import pytest

pytest.importorskip("gradio")

from fairanon.app import bias, finished_runs, new_faces
from fairanon.report.beside import page_of_runs


def test_both_models_begin_with_the_same_noise(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRANON_RUNS", str(tmp_path))
    ((name, folder),) = new_faces.models()
    assert name == "popalign_tiny, as it comes with fairanon"
    before, after = new_faces.draw(folder, "a photo of a doctor", 2, seed=3)
    again, _ = new_faces.draw(folder, "a photo of a doctor", 1, seed=3)
    assert len(before) == len(after) == 2 and before[0].size == (256, 256)
    apart = np.abs(np.asarray(before[0], dtype=int) - np.asarray(again[0], dtype=int)).max()
    assert apart <= 2, "an image does not depend on how many are drawn, but for rounding"
    assert (np.asarray(before[0]) != np.asarray(after[0])).any() and (
        np.asarray(before[0]) != np.asarray(before[1])
    ).any()
    with pytest.raises(ValueError, match="Say what is to be drawn"):
        new_faces.draw(folder, " ", 2, 0)


def a_run(root, name, date, value, beta):
    folder = root / name / date
    folder.mkdir(parents=True)
    numbers = {
        "discrepancy/gender/per_prompt": {
            "value": value,
            "low": value - 0.1,
            "high": value + 0.1,
            "n": 30,
            "missing": 0,
        }
    }
    before = {"discrepancy/gender/per_prompt": {"value": 0.56, "low": 0.5, "high": 0.6, "n": 30, "missing": 0}}
    result = {
        "experiment": name, "before": before, "after": numbers, "headline": list(numbers), "ratio": {}, "difference": {},
        "higher_is_better": {"discrepancy/gender/per_prompt": False}, "same_noise": {}, "seconds": {},
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(result))
    (folder / "config.yaml").write_text(f"seed_everything: 0\nmodel: {{init_args: {{beta: {beta}, name: <b>x</b>}}}}\n")
    return folder


def test_runs_stand_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRANON_RUNS", str(tmp_path))
    assert finished_runs.finished() == []
    first, second = (
        a_run(tmp_path, "popalign_tiny", "20260101", 0.2, 30),
        a_run(tmp_path, "sft_tiny", "20260102", 0.4, 7),
    )
    (tmp_path / "sft_tiny" / "latest").symlink_to(second)
    third = a_run(tmp_path, "sft_tiny", "20260103", 0.4, 7)
    (third / "run.json").write_text('{"finished": false}')
    assert [name for name, _ in finished_runs.finished()] == ["sft_tiny 20260102", "popalign_tiny 20260101"]
    page = page_of_runs([first, second])
    assert "0.56 → 0.2" in page or ".56 → .2" in page
    assert "model.init_args.beta" in page and "seed_everything" not in page, "only what differs"
    assert "<b>x</b>" not in page and "http" not in page
    both = page_of_runs([second, third])
    assert "sft_tiny 20260102" in both and "sft_tiny 20260103" in both, "two runs of one experiment are told apart"
    frame = finished_runs.side_by_side([str(first), str(second)])
    assert frame.startswith("<iframe") and frame.count("<iframe") == 1 and "<script" not in frame
    with pytest.raises(ValueError, match="Tick two"):
        finished_runs.side_by_side([str(first)])


def test_intervals_narrow_while_a_model_draws(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRANON_RUNS", str(tmp_path))
    ((_, folder),) = new_faces.models()
    rounds = list(
        bias.counted(folder, "a photo of a pilot\n\na photo of a nurse\na photo of a pilot", 4, 0, reference=True)
    )
    assert len(rounds) == 4 and "4 of 4 images a prompt" in rounds[-1][1] and "nothing can be told" in rounds[0][0]

    def width(page):
        found = re.findall(r"\[([.\d]+), ([.\d]+)\]", page)
        return sum(float(high) - float(low) for low, high in found) / len(found)

    assert width(rounds[-1][1]) < 0.8 * width(rounds[0][1])
    with pytest.raises(ValueError, match="1 to 12 prompts"):
        next(bias.counted(folder, " ", 2, 0, True))
