"""The protocol of a collection and the page of an evaluation: what their first screen says is what happened."""

import csv
import json
import os
import re
import time

import pytest

from fairanon.anonymizer.collection_page import foreign_page, write_page
from fairanon.anonymizer.manifest import Tally, read_manifest, write_manifest
from fairanon.anonymizer.verdicts import HIDDEN
from fairanon.cli import main
from fairanon.report.evaluated import _HIDDEN, evaluated
from tests.anonymizer.scenes import write_scenes

TINY = ("--detector", "tiny_detector", "--recognizer", "tiny_embedder_b")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    place = tmp_path_factory.mktemp("page")
    write_scenes(place / "in", [2, 0, 3])
    assert main(["anonymize", str(place / "in"), str(place / "out"), "--method", "mask", *TINY]) == 3
    return place


def text(page):
    """What a person reads: no tags, no styles, no pictures."""
    body = re.sub(r"(?s)<style>.*?</style>", "", page.read_text())
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


def test_the_first_screen_says_how_many_were_hidden_how_near_they_are_and_what_waits(result):
    first = text(result / "out" / "report.html").partition("To be looked at")[0]
    assert "1 FILE TO BE LOOKED AT" in first and "2 of 3 files may be published. 5 faces hidden" in first
    assert "faces hidden 5 of 5" in first and "files to be looked at 1" in first and "could not be tested 0" in first
    assert "two faces match up to 0.17:" in first and "the test of the whole collection was not made" in first
    lines = [json.loads(line) for line in (result / "out" / "manifest.jsonl").read_text().splitlines()]
    nearest = min(v for line in lines if line["face"] is not None for v in line["distances"].values())
    assert f"smallest distance to an original (tiny-embedder-b-1) {nearest:.3g}" in first


def test_what_waits_for_eyes_is_named_and_not_shown(result):
    page = (result / "out" / "report.html").read_text()
    assert "0/scene 1.png" in text(result / "out" / "report.html") and page.count("<img") == 2, "results alone"
    assert "scene 1.png, anonymized" not in page and "http" not in page


def test_faces_are_a_table_too(result):
    with (result / "out" / "faces.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 and {row["verdict"] for row in rows} <= {"anonymized", "covered"}
    assert all(float(row["distance tiny-embedder-b-1"]) > 0.1698 for row in rows if row["distance tiny-embedder-b-1"])


def test_the_same_command_leaves_the_page_and_a_lost_one_comes_back(result):
    page = result / "out" / "report.html"
    stamp = page.stat().st_mtime_ns
    words = ["anonymize", str(result / "in"), str(result / "out"), "--method", "mask", *TINY]
    time.sleep(0.01)
    assert main(words) == 3 and page.stat().st_mtime_ns == stamp
    page.unlink()
    assert main(words) == 3 and page.exists()


def test_somebodys_own_page_and_table_stay(tmp_path, capsys):
    write_scenes(tmp_path / "in", [1])
    words = ["anonymize", str(tmp_path / "in"), str(tmp_path / "out"), *TINY]
    assert main(words) == 0
    page, faces = tmp_path / "out" / "report.html", tmp_path / "out" / "faces.csv"
    ours = page.read_text()
    for path in (page, faces):
        path.unlink()
        path.write_text("somebody's own")
        write_scenes(tmp_path / "in", [1, 2])
        assert main(words) == 1 and path.read_text() == "somebody's own"
        assert f"{path.name} is not ours; move it away" in capsys.readouterr().err
        path.unlink()
        assert main(words) == 0 and path.exists()
    assert page.read_text() != ours and "3 faces hidden" in text(page), "of the manifest as it is now"


def test_a_stranger_among_the_published_is_said_and_never_shown(tmp_path):
    write_scenes(tmp_path / "in", [1, 1])
    words = ["anonymize", str(tmp_path / "in"), str(tmp_path / "out"), *TINY]
    assert main(words) == 0
    page, published = tmp_path / "out" / "report.html", tmp_path / "out" / "published" / "0"
    assert page.read_text().count("<img") == 2
    (published / "holiday.png").write_bytes((tmp_path / "in" / "0" / "scene 0.png").read_bytes())
    assert main(words) == 3
    assert (
        "MOVE 1 FILE AWAY" in text(page)
        and "published/0/holiday.png" in text(page)
        and page.read_text().count("<img") == 2
    )
    (published / "holiday.png").replace(published / "scene 0.png")  # an original in the place of its result
    os.utime(published / "scene 0.png", (time.time() + 9, time.time() + 9))
    assert main(words) == 0 and "READY" in text(page) and page.read_text().count("<img") == 1


def test_what_was_left_visible_not_attacked_or_moved_away_is_said(tmp_path):
    write_scenes(tmp_path / "in", [3])
    for name, words in (("largest", ["--faces", "largest"]), ("skip", ["--skip-attack"])):
        assert main(["anonymize", str(tmp_path / "in"), str(tmp_path / name), *TINY, *words]) == 3
    assert "faces left as they are 2" in text(tmp_path / "largest" / "report.html")
    skipped = text(tmp_path / "skip" / "report.html")
    assert "not attacked 3" in skipped and "could not be tested 0" in skipped
    assert main(["anonymize", str(tmp_path / "in"), str(tmp_path / "out"), "--method", "blur", *TINY]) == 0
    assert "READY AS ASKED: " in text(tmp_path / "out" / "report.html")
    (tmp_path / "out" / "published").rename(tmp_path / "elsewhere")
    (tmp_path / "out" / "report.html").unlink()
    assert main(["anonymize", str(tmp_path / "in"), str(tmp_path / "out"), "--method", "blur", *TINY]) == 0
    assert "<img" not in (tmp_path / "out" / "report.html").read_text()


def test_names_cannot_write_into_the_page(tmp_path):
    line = {
        "file": "<script>x</script>.png", "face": None, "verdict": "failed", "reason": "<b>", "result": None, "method": "mask",
        "publishable": False, "faces": 0,
    }  # fmt: skip
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    write_page(tmp_path, Tally.of([line]), {"method": "mask", "version": "1", "settings": {}, "judges": {}})
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;x" in page


def measured(verdicts, top1=0.0, low=0.0, chance=0.01):
    numbers = {"value": top1, "low": low, "high": top1 + 0.1, "n": 100, "missing": 0}
    return {
        "verdicts": verdicts, "faces": sum(verdicts.values()), "pairs": 9, "thresholds": {"j": {"value": 0.5, "origin": "told"}},
        "left_out": [], "unpaired": 0, "unknown": 0, "faceless": 0, "unreadable": 0,
        "after": {"anonymization/accuracy/j": numbers, "retrieval/top1/source/j": numbers, "retrieval/chance/top1/source/j": {**numbers, "value": chance}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "word", "state"),
    [
        (
            {**measured({"anonymized": 100}), "left_out": ["a.jpg is unreadable"]},
            "NOBODY RECOGNIZED IN WHAT WAS LOOKED AT",
            "same",
        ),
        (measured({"anonymized": 90, "recognized": 10}), "10 OF 100 FACES RECOGNIZED", "worse"),
        (measured({"anonymized": 99, "cannot be judged": 1}), "1 OF 100 FACES NOT SHOWN TO BE HIDDEN", "worse"),
        (measured({"anonymized": 100}, 0.2, 0.15), "FOUND MORE OFTEN THAN BY GUESSING", "worse"),
        ({**measured({"anonymized": 100}), "faceless": 3}, "NOBODY RECOGNIZED IN WHAT WAS LOOKED AT", "same"),
        ({**measured({"anonymized": 100}), "thresholds": {}}, "CANNOT BE TOLD", "same"),
        (measured({"anonymized": 60, "covered": 40}, 0.02, 0.005), "NOBODY RECOGNIZED", "better"),
        (measured({}), "NO FACES", "same"),
    ],
)
def test_an_evaluation_is_called_good_only_if_nobody_is_found(content, word, state):
    found = evaluated(content)
    assert (found.word, found.state) == (word, state)


def test_both_rooms_mean_the_same_by_hidden(tmp_path):
    assert _HIDDEN == HIDDEN
    (tmp_path / "report.html").mkdir()
    assert foreign_page(tmp_path) == "report.html", "a folder of that name is not ours either"


def test_an_evaluation_names_the_faces_that_are_found(result, tmp_path, capsys):
    shown = ["evaluate", str(result / "in"), str(result / "in2"), "--size", "64", *TINY, "--out", str(tmp_path / "e")]
    write_scenes(result / "in2", [2, 0, 3])
    assert main(shown) == 0
    said = capsys.readouterr().out
    assert said.startswith("5 OF 5 FACES RECOGNIZED.") and "recognized: 0/scene 0.png, face at " in said
    page = text(tmp_path / "e" / "report.html")
    assert "5 OF 5 FACES RECOGNIZED" in page and page.index("Faces that are not hidden") < page.index("who is found")
    assert len(json.loads((tmp_path / "e" / "metrics.json").read_text())["open"]) == 5


def test_a_large_collection_has_its_first_rows_on_the_page_and_all_in_the_tables(tmp_path):
    def lines():
        for k in range(1200):
            name = f"{(k * 7) % 1200:04}.png"
            result = f"published/{name}" if k % 2 else f"review/{name}"
            yield {
                "file": name, "face": None, "verdict": "anonymized", "reason": "", "method": "mask", "result": result,
                "publishable": bool(k % 2), "faces": 1,
            }  # fmt: skip
            yield {
                "file": name, "face": 0, "verdict": "anonymized", "method": "mask", "strength": None, "box": [0, 0, 9, 9],
                "distances": {"j": 1 + k / 1200},
            }  # fmt: skip

    write_manifest(tmp_path, lines())
    rows = list(read_manifest(tmp_path))
    assert [row["file"] for row in rows if row["face"] is None] == [f"{k:04}.png" for k in range(1200)]
    tally = Tally.of(rows)
    assert tally.files == {"finished": 600, "review": 600} and tally.nearest == {"j": 1.0} and tally.attacked == 1200
    about = {
        "method": "mask",
        "version": "1",
        "settings": {},
        "judges": {"j": {"licence": "", "value": 0.5, "origin": ""}},
    }
    write_page(tmp_path, tally, about)
    said = text(tmp_path / "report.html")
    assert "The first 500; all are in review.csv." in said and "The first 500 of 1200; all are in faces.csv." in said
    for name, count in (("review.csv", 600), ("faces.csv", 1200)):
        with (tmp_path / name).open(newline="") as file:
            found = [row["file"] for row in csv.DictReader(file)]
        assert len(found) == count and found == sorted(found)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "faces.csv",
        "manifest.jsonl",
        "report.html",
        "review.csv",
    ]
