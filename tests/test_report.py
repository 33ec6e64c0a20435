"""Tables of several runs, and the page of one."""

import json

import pytest

from fairanon.report import compare, summarise, table_rows, write_report


def estimate(value, half=0.0):
    return {"value": value, "low": value - half, "high": value + half, "n": 10.0, "missing": 0.0}


def result(hand, moved=0.02):
    return {
        "experiment": "trial",
        "judges": {"detections": "tiny-detector-1"},
        "images_per_prompt": 2,
        "images": 10,
        "headline": ["confidence/hand"],
        "before": {"confidence/hand": estimate(0.5, 0.01), "share/age/old": estimate(0.3)},
        "after": {"confidence/hand": estimate(hand, 0.01), "share/age/old": estimate(0.3 + moved)},
        "ratio": {"discrepancy/gender/per_prompt": estimate(0.4)},
        "seconds": {"train": 1.0},
    }


def test_means_and_ranges_over_seeds():
    rows = summarise({"fair": [result(0.7), result(0.9, 0.04)], "plain": [result(0.6), result(0.6)]})
    assert list(rows) == ["base", "fair", "plain"]
    assert rows["fair"]["confidence/hand"] == {"value": pytest.approx(0.8), "low": 0.7, "high": 0.9, "n": 2.0}
    assert (
        rows["base"]["confidence/hand"]["value"] == 0.5
        and rows["base"]["ratio discrepancy/gender/per_prompt"]["value"] == 1
    )
    assert rows["fair"]["largest share moved"]["value"] == pytest.approx(0.03)
    lines = compare(rows).splitlines()
    assert lines[0] == "|  | confidence/hand | ratio discrepancy/gender/per_prompt | largest share moved |"
    assert lines[3].startswith("| fair | 0.800<br>[0.700, 0.900] | 0.400 |") and "| plain | 0.600 |" in lines[4]


def test_changes_show_the_outermost_ends_and_absent_judges_are_named():
    runs = []
    for value in (0.1, 0.2):
        run = {**result(0.7), "headline": ["confidence/hand", "lpips"], "difference": {"group": estimate(value, 0.05)}}
        runs.append({**run, "before": {**run["before"], "lpips": None}, "after": {**run["after"], "lpips": None}})
    rows = summarise({"fair": runs})
    assert rows["fair"]["change group"] == {"value": pytest.approx(0.15), "low": 0.05, "high": 0.25, "n": 2.0}
    assert rows["base"]["change group"]["high"] == 0 and rows["fair"]["lpips"] is None
    assert "| n/a |" in compare(rows).splitlines()[3]
    lines = {line[0]: line for line in table_rows(runs[0])}
    assert lines["lpips"] == ("lpips", "n/a", "n/a", "", "", "") and lines["confidence/hand"][-1] == "10"


def test_the_page_shows_a_run_beside_its_rivals(tmp_path):
    rows = summarise({"plain": [result(0.6), result(0.65)]})
    content = {**result(0.7), "rivals": rows, "rivals_from": "fairanon table plain --seeds 1,2"}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    page = write_report(tmp_path).read_text()
    assert "beside its rivals" in page and "<td>plain</td><td>0.625<br><small>[0.600, 0.650]</small></td>" in page
    assert "<td>this run</td><td>0.700<br><small>[0.690, 0.710]</small></td>" in page and "--seeds 1,2" in page
    (tmp_path / "metrics.json").write_text(json.dumps(result(0.7)))
    assert "rivals" not in write_report(tmp_path).read_text()
