"""Attempts to get a visible face published, or to make one file stop a collection."""

import base64
import errno
import json
import os
import random
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from fairanon.anonymizer import picture
from fairanon.anonymizer.attack import Attacker
from fairanon.anonymizer.block import Block
from fairanon.anonymizer.find import Finder
from fairanon.anonymizer.photos import read_photo
from fairanon.anonymizer.register import Register, read_key
from fairanon.anonymizer.sources import Item
from fairanon.cli import main
from fairanon.config.experiments import UserError
from fairanon.evaluators import CenterFaceDetector
from fairanon.imaging import read_image, write_image
from tests.anonymizer import photographs
from tests.anonymizer.scenes import scene
from tests.anonymizer.test_folder import files, lines, pictures, run
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def finder():
    return Finder([CenterFaceDetector()])


def real(given, out, *words):
    return main(["anonymize", str(given), str(out), "--workers", "2", *words])


def heads(out):
    return {row["file"]: row for row in lines(out) if row["face"] is None}


def found_in(path, finder):
    return len(finder.find(read_photo(path.read_bytes(), path.name).pixels))


# --- boxes of one's own ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """Six people, 640 pixels wide, and where the first of them is."""
    folder = tmp_path_factory.mktemp("group")
    photographs.group().resize((640, 443)).save(folder / "t1.jpg", quality=92)
    photographs.astronaut().crop((90, 0, 358, 300)).save(folder / "a.jpg", quality=92)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "a.jpg").transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif, quality=92)
    return folder


BOXES = {
    "one of six": ("t1.jpg", (372, 172, 423, 241), 0, 6),
    "beside an empty line": ("a.jpg", (1, 1, 20, 20), 3, 1),
    "outside": ("a.jpg", (5000, 5000, 5100, 5100), 3, 1),
    "of a copy twice the size": ("a.jpg", (170, 106, 370, 362), 3, 1),
    "one pixel": ("a.jpg", (100, 100, 101, 101), 3, 1),
    "of the file as it lies": ("turned.jpg", (53, 83, 181, 183), 3, 1),
    "of the file upright": ("turned.jpg", (85, 53, 185, 181), 0, 1),
}


@pytest.mark.parametrize("name", BOXES)
def test_boxes_are_added_to_what_is_found_and_odd_ones_are_looked_at(group, tmp_path, name, finder):
    file, box, code, faces = BOXES[name]
    table = group / f"{name}.csv"
    table.write_text(f"file,x0,y0,x1,y1\n{file},{','.join(map(str, box))}\n")
    out = tmp_path / "out"
    assert real(table, out) == code
    row = heads(out)[file]
    hidden = [one for one in lines(out) if one["face"] is not None and one["method"] == "mask"]
    assert len(hidden) >= faces and row["publishable"] == (code == 0)
    assert found_in(out / row["result"], finder) == sum(one["found_again"] for one in hidden), (
        "nobody is seen, published or not"
    )
    if code:
        assert "boxes" in row["reason"]


def test_boxes_alone_leave_the_others_for_somebody_to_look_at(group, tmp_path):
    table = group / "only.csv"
    table.write_text("file,x0,y0,x1,y1\nt1.jpg,372,172,423,241\n")
    assert real(table, tmp_path / "out", "--boxes", "only") == 3
    assert heads(tmp_path / "out")["t1.jpg"]["reason"].startswith("5 other faces left as they are")
    assert not (tmp_path / "out" / "published").exists()


def test_an_empty_list_of_boxes_hides_whom_the_detectors_find(group, tmp_path):
    (group / "none.jsonl").write_text('{"file": "a.jpg", "boxes": []}\n')
    assert real(group / "none.jsonl", tmp_path / "out") == 0 and heads(tmp_path / "out")["a.jpg"]["faces"] >= 1


# --- the result as a whole -------------------------------------------------------------------------------


def test_whoever_is_seen_in_the_result_is_hidden_or_the_picture_is_not_published(tmp_path, monkeypatch):
    """The first search misses everybody but one; the result shows them."""
    write_image(scene(0, 4), tmp_path / "in" / "four.png")
    whole, looks = Finder.find, []

    def find(self, pixels):
        found = whole(self, pixels)
        looks.append(len(found))
        if len(looks) == 1:
            return type(found)(found.boxes[:1], found.scores[:1], found.quarters[:1])
        return found

    monkeypatch.setattr(Finder, "find", find)
    assert run(tmp_path / "in", tmp_path / "out") == 0
    faces = [row for row in lines(tmp_path / "out") if row["face"] is not None]
    assert Counter(row["found_late"] for row in faces) == {False: 1, True: 3}
    assert all(row["verdict"] == "anonymized" for row in faces) and looks[1] >= 3


def test_a_face_in_the_corner_of_another_ones_ellipse_is_hidden_too(tmp_path, monkeypatch, finder):
    """The first search misses it; what is hidden round the other face is a rectangle with free corners."""
    small = photographs.group().crop((444, 246, 592, 436)).resize((46, 60))
    sheet = Image.new("RGB", (1000, 1000), (120, 130, 120))
    sheet.paste(photographs.astronaut().resize((804, 900)), (100, 50))
    sheet.save(tmp_path / "a.png")
    assert real(tmp_path / "a.png", tmp_path / "probe", "--method", "pixelate") == 0
    x0, y0, *_ = next(row["region"] for row in lines(tmp_path / "probe") if row["face"] is not None)
    sheet.paste(small, (x0 + 2, y0 + 2))
    sheet.save(tmp_path / "a.png")
    whole, looks = Finder.find, []

    def find(self, pixels):
        found = whole(self, pixels)
        looks.append(len(found))
        large = (found.boxes[:, 2] - found.boxes[:, 0] > 150) | torch.tensor(len(looks) > 1)
        return type(found)(found.boxes[large], found.scores[large], found.quarters[large])

    monkeypatch.setattr(Finder, "find", find)
    code = real(tmp_path / "a.png", tmp_path / "out", "--method", "pixelate")
    faces = [row for row in lines(tmp_path / "out") if row["face"] is not None]
    assert code == 3 or any(row["found_late"] and row["method"] for row in faces)


def test_who_stays_visible_keeps_a_picture_from_being_published(tmp_path, monkeypatch):
    write_image(scene(0, 2), tmp_path / "in" / "two.png")
    monkeypatch.setattr(picture, "_is_of", lambda box, face: False)  # as if nothing that is found were hidden
    monkeypatch.setattr(Finder, "find", _always(Finder.find))
    assert run(tmp_path / "in", tmp_path / "out") == 3
    assert "faces are found in the result that are not hidden" in heads(tmp_path / "out")["two.png"]["reason"]


def _always(whole):
    def find(self, pixels):
        found = whole(self, pixels)
        if len(found):
            return found
        corner = torch.tensor([[2.0, 2, 12, 12]])
        return type(found)(corner, torch.tensor([0.9]), torch.tensor([0]))

    return find


def collage(size=160):
    """Known and unknown faces: upright, lying, upside down, dark with noise, behind lines."""
    face = photographs.astronaut().crop((120, 0, 330, 210)).resize((size, size))
    other = photographs.group().crop((375, 205, 665, 495)).resize((size, size))
    noise = Image.effect_noise((size, size), 80).convert("RGB")
    tiles = [face, other.rotate(90), face.rotate(180), Image.blend(face, noise, 0.4).point(lambda v: v * 0.6), other]
    sheet = Image.new("RGB", (3 * size, 2 * size), (110, 120, 110))
    for k, tile in enumerate(tiles):
        sheet.paste(tile, (k % 3 * size, k // 3 * size))
    return sheet


def test_no_published_file_shows_a_face_that_was_not_hidden(tmp_path, finder):
    """The promise of docs/anonymize.md, looked at once more from outside."""
    (tmp_path / "in").mkdir()
    collage().save(tmp_path / "in" / "collage.jpg", quality=92)
    photographs.write("group", tmp_path / "in")
    photographs.write("overlap", tmp_path / "in")
    assert real(tmp_path / "in", tmp_path / "out") == 0
    rows = lines(tmp_path / "out")
    assert heads(tmp_path / "out")["collage.jpg"]["faces"] >= 5
    for name in heads(tmp_path / "out"):
        path = tmp_path / "out" / "published" / name
        pixels = read_photo(path.read_bytes(), name).pixels
        hidden = torch.tensor([row["box"] for row in rows if row["file"] == name and row["face"] is not None])
        for box in finder.find(pixels).boxes:
            shared = (
                (torch.minimum(box[2:], hidden[:, 2:]) - torch.maximum(box[:2], hidden[:, :2])).clamp_min(0).prod(1)
            )
            assert float((shared / (box[2:] - box[:2]).prod()).max()) > 0.3, (name, box)


# --- what changes, and what is ours ----------------------------------------------------------------------


def test_a_source_that_changes_while_the_collection_runs_is_looked_at_anew(tmp_path, monkeypatch):
    """Before the second round every picture is turned upside down: the old boxes hide nobody in it."""
    given = tmp_path / "in"
    for k in range(12):
        write_image(scene(k, 5), given / f"{k:02d}.png")
    monkeypatch.setattr("fairanon.anonymizer.chance.CHANCE", 2.0)  # everybody who is found at all is hidden again
    before = Block._hide_again

    def turn(self, *args):
        for path in given.iterdir():
            write_image(read_image(path, path.name).flip(1), path)
        return before(self, *args)

    monkeypatch.setattr(Block, "_hide_again", turn)
    looked = []
    again = Block._anew
    monkeypatch.setattr(Block, "_anew", lambda self, item: looked.append(item.name) or again(self, item))
    run(given, tmp_path / "out")
    assert looked, "some were hidden again"
    for name in looked:
        for row in (one for one in lines(tmp_path / "out") if one["file"] == name and one["face"] is not None):
            shown = read_image(next(p for p in (tmp_path / "out").rglob(name)), name)
            x0, y0, x1, y1 = (round(v) for v in row["box"])
            assert (shown[:, y0:y1, x0:x1].float() - 127).abs().mean() < 4
    assert "secret" not in str(files(tmp_path / "out").keys())


def test_a_source_that_is_gone_meanwhile_leaves_nothing_published(tmp_path, monkeypatch):
    given = tmp_path / "in"
    for k in range(12):
        write_image(scene(k, 5), given / f"{k:02d}.png")
    monkeypatch.setattr("fairanon.anonymizer.chance.CHANCE", 2.0)
    before = Block._hide_again

    def gone(self, *args):
        for path in given.iterdir():
            path.unlink()
        return before(self, *args)

    monkeypatch.setattr(Block, "_hide_again", gone)
    assert run(given, tmp_path / "out") == 3
    rows = heads(tmp_path / "out")
    assert len(rows) == 12 and any(row["verdict"] == "unreadable" for row in rows.values())
    assert all((row["result"] is None) == (row["verdict"] == "unreadable") for row in rows.values())
    assert all(str(tmp_path) not in row["reason"] for row in rows.values()), "no folder's name in what is handed on"


def test_names_of_ours_are_anybodys(tmp_path):
    given, out = tmp_path / "in", tmp_path / "out"
    for k, name in enumerate(
        ("preview.png", "dry-run/a.png", "review/b.png", "settings.json/c.png", "published/d.png")
    ):
        write_image(scene(k, 2), given / name)
    assert run(given, out) == 0 and len(pictures(out)) == 5
    write_image(scene(9, 2), given / "new.png")
    assert run(given, out) == 0 and len(pictures(out)) == 6
    assert run(given, out, "--preview", "1") == 0 and run(given, out) == 0 and len(pictures(out)) == 6


def test_a_link_out_of_the_result_replaces_nothing(tmp_path, capsys):
    given, out = tmp_path / "in", tmp_path / "out"
    write_image(scene(0, 2), given / "deep" / "a.png")
    before = files(given)
    out.mkdir()
    (out / "published").symlink_to(given)
    assert run(given, out) == 1 and "holds other files (published)" in capsys.readouterr().err
    (out / "published").unlink()
    (out / "published").mkdir()
    (out / "published" / "deep").symlink_to(given / "deep")
    assert run(given, out) == 1 and "holds other files (published)" in capsys.readouterr().err
    (out / "published" / "deep").unlink()
    (out / "published").rmdir()
    write_image(scene(1, 2), given / "b.png")
    assert run(given, out) == 0
    (out / "published" / "new").symlink_to(given)
    write_image(scene(2, 2), given / "new" / "er" / "c.png")
    before = files(given)
    assert run(given, out) == 3 and heads(out)["new/er/c.png"]["verdict"] == "failed"
    assert files(given) == before and not (given / "er").exists()


def test_what_we_did_not_write_stays(tmp_path):
    given, out = tmp_path / "in", tmp_path / "out"
    write_image(scene(0, 2), given / "a.png")
    assert run(given, out) == 0
    (out / "published" / "mine.png").write_bytes(b"edited by hand")
    write_image(scene(1, 2), given / "mine.png")
    assert run(given, out) == 3
    row = heads(out)["mine.png"]
    assert row["verdict"] == "failed" and "is not ours and stays" in row["reason"]
    assert (out / "published" / "mine.png").read_bytes() == b"edited by hand"
    (out / "published" / "mine.png").unlink()
    assert run(given, out) == 0 and heads(out)["mine.png"]["publishable"]


def test_two_folders_of_one_name_are_two(tmp_path, capsys):
    for name in "ab":
        write_image(scene(ord(name), 2), tmp_path / name / "photos" / "IMG_1.png")
    assert run(tmp_path / "a" / "photos", tmp_path / "out") == 0
    assert run(tmp_path / "b" / "photos", tmp_path / "out") == 1
    assert "was begun with other photographs" in capsys.readouterr().err


# --- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"caf\xe9.png", "family\u0085summer.png".encode(), "two\u2028lines.png".encode(),
                                  "two\u2029lines.png".encode(), b"a\nb.png", b"n" * 251 + b".png"])  # fmt: skip
def test_any_name_goes_through_and_the_manifest_can_be_read_again(tmp_path, name, capsys):
    given = tmp_path / "in"
    write_image(scene(0, 2), given / "ok.png")
    write_image(scene(1, 2), given / "x.png")
    os.rename(given / "x.png", os.path.join(os.fsencode(given), name))
    (given / "broken.png").write_bytes(b"")
    for _ in range(2):
        assert run(given, tmp_path / "out") == 3
    assert len(heads(tmp_path / "out")) == 3 and len(pictures(tmp_path / "out")) == 2
    assert main(["evaluate", str(given), str(tmp_path / "out"), "--detector", "tiny_detector", "--recognizer",
                 "tiny_embedder_b", "--out", str(tmp_path / "evaluation")]) == 3  # fmt: skip


def test_whatever_lies_there_costs_itself_and_is_listed(tmp_path):
    given = tmp_path / "in"
    write_image(scene(0, 2), given / "a.png")
    (given / "VID.mp4").write_bytes(b"film")
    (given / "raw.CR2").write_bytes(b"raw")
    (given / ".DS_Store").write_bytes(b"")
    (given / "captions.txt").write_text("hello")
    os.mkfifo(given / "pipe.png")
    (given / "zero.png").symlink_to("/dev/zero")
    (given / "nowhere.png").symlink_to(given / "gone.png")
    Image.new("L", (65_535, 1)).save(given / "wide.png")
    Image.new("L", (1, 65_535)).save(given / "tall.png")
    for _ in range(2):
        assert run(given, tmp_path / "out") == 3
    told = (tmp_path / "out" / "review.csv").read_text()
    for name in ("VID.mp4", "raw.CR2", "pipe.png", "zero.png", "nowhere.png", "wide.png", "tall.png"):
        assert f"\n{name}," in told, name
    assert "DS_Store" not in told and "captions" not in told and "bug of fairanon" not in told
    (given / "VID.mp4").unlink()
    run(given, tmp_path / "out")
    assert "VID.mp4" not in (tmp_path / "out" / "review.csv").read_text()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_of_odd_names_costs_those_alone(tmp_path):
    write_image(scene(0, 2), tmp_path / "a.png")
    raw = (tmp_path / "a.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name in ("c.png", "c.png/b.png", "n" * 300 + ".png", "../up.png", "manifest.jsonl/a.png", "."):
            archive.writestr(zipfile.ZipInfo(name), raw)
    assert run(tmp_path / "in.zip", tmp_path / "out") == 3
    assert set(pictures(tmp_path / "out")) == {"published/c.png", "published/manifest.jsonl/a.png"}
    assert Counter(row["verdict"] for row in heads(tmp_path / "out").values())["not handled"] == 4


# --- thresholds, options, judges -------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "said"), [
    (["--detector-threshold", "5"], "--detector-threshold must be from 0.01 to 0.99"), (["--detector-threshold", "-1"], "--detector-threshold"),
    (["--detector-threshold", "nan"], "--detector-threshold"), (["--strength", "nan"], "--strength"), (["--box-scale", "inf"], "--box-scale"),
    (["--box-scale", "nan"], "--box-scale"), (["--min-face", "nan"], "--min-face"), (["--min-face", "inf"], "--min-face"),
    (["--workers", "0"], "--workers"), (["--jpeg-quality", "101"], "--jpeg-quality"), (["--key-scope", "everywhere"], "--key-scope"),
    (["--device", "gpu"], "--device gpu: this machine has no CUDA devices; take cpu"),
    (["--device", "cuda:0"], "--device cuda:0: this machine"), (["--device", "mps"], "--device: 'mps' is no device"),
])  # fmt: skip
def test_options_that_make_no_sense_are_refused_by_name(tmp_path, capsys, words, said):
    write_image(scene(0, 2), tmp_path / "in" / "a.png")
    assert run(tmp_path / "in", tmp_path / "out", *words) in (1, 2)
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told and "insightface" not in told and not (tmp_path / "out").exists()


def test_a_table_that_calls_everybody_somebody_else_is_refused(group, tmp_path, capsys):
    row = {"value": 0.05, "false_match_rate": 1e-3, "people": 200, "pairs": 19900, "missing": 0, "groups": {}}
    (tmp_path / "t.json").write_text(json.dumps({"dlib-resnet-20.0.1": row}))
    assert real(group / "a.jpg", tmp_path / "out", "--thresholds", str(tmp_path / "t.json")) == 1
    assert "must be at least 0.3, half of the usual one" in capsys.readouterr().err
    (tmp_path / "t.json").write_text(json.dumps({"dlib-resnet-20.0.1": {**row, "value": 0.5}}))
    assert real(group / "a.jpg", tmp_path / "out", "--thresholds", str(tmp_path / "t.json")) == 0
    assert "below the usual 0.6" in capsys.readouterr().out and "below the usual" in str(
        lines(tmp_path / "out")[0]["judges"]
    )


def test_a_judge_of_the_drawn_world_is_refused_on_photographs(group, tmp_path, capsys):
    assert real(group / "a.jpg", tmp_path / "out", "--recognizer", "tiny_embedder_a") == 1
    assert "is a judge of the drawn world and knows nothing of photographs: a.jpg is one" in capsys.readouterr().err
    face = photographs.astronaut().crop((170, 60, 280, 160))
    plain = Image.new("RGB", (600, 600), (120, 130, 120))
    plain.paste(face, (200, 200))
    for name, sheet in (
        ("plain", plain), ("enlarged", face.resize((660, 600))), ("blurred", photographs.astronaut().filter(ImageFilter.GaussianBlur(8))),
        ("dark", photographs.astronaut().point(lambda value: value * 0.15)),
    ):  # fmt: skip
        sheet.save(tmp_path / f"{name}.png")
        out = tmp_path / f"out {name}"
        assert real(tmp_path / f"{name}.png", out, "--recognizer", "tiny_embedder_a") == 1, name
        assert not (out / "published").exists()


def test_a_small_face_that_is_left_is_looked_at(group, tmp_path):
    assert real(group / "a.jpg", tmp_path / "out", "--min-face", "200", "--no-face", "copy") == 3
    assert heads(tmp_path / "out")["a.jpg"]["verdict"] == "not anonymized"
    assert not (tmp_path / "out" / "published").exists() and not (tmp_path / "out" / "no-face").exists()


def test_the_last_lines_say_what_was_hidden_attacked_and_not_testable(group, tmp_path, capsys):
    assert real(group / "t1.jpg", tmp_path / "out", "--method", "pixelate") == 0
    said = capsys.readouterr().out
    assert "1 of 1 files may be published" in said and "faces hidden (" in said and "obscured" in said
    assert "attacked; the one most like its original has the distance" in said and "published by its authors" in said
    assert "obscured is not anonymized" in said and "was not made: it takes 50 hidden faces" in said
    row = heads(tmp_path / "out")["t1.jpg"]
    assert row["verdict"] == "obscured" and row["publishable"] and "input" not in row


def test_what_a_simple_restoration_brings_back_is_strengthened(group, tmp_path):
    """At the strength of .1 the face is found by the recognizer once its pixels are smoothed."""
    words = ("--method", "pixelate", "--strength", ".1", "--tries", "1")
    assert real(group / "a.jpg", tmp_path / "once", *words) == 3
    (first,) = [row for row in lines(tmp_path / "once") if row["face"] is not None and row["score"] > 0.5]
    assert first["verdict"] == "recognized"
    assert real(group / "a.jpg", tmp_path / "out", *words[:-2]) == 0
    (last,) = [row for row in lines(tmp_path / "out") if row["face"] is not None and row["score"] > 0.5]
    assert last["tries"] > 1 and min(last["distances"].values()) > 0.6


def test_a_face_that_nobody_could_attack_is_covered_and_counted_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Attacker, "meet", lambda self, picture: [setattr(f, "met", True) for f in picture.asked])
    write_image(scene(0, 3), tmp_path / "in" / "a.png")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert (
        "3 faces hidden (3 covered), 0 attacked, 3 not testable: no recognizer could compare them"
        in capsys.readouterr().out
    )
    assert heads(tmp_path / "out")["a.png"]["verdict"] == "covered"


def test_names_keep_their_order_in_time_and_the_day_if_asked(tmp_path):
    given = tmp_path / "in"
    for k, moment in enumerate((1_400_000_000, 1_500_000_000, 1_300_000_000)):
        write_image(scene(k, 2), given / f"{k}.png")
        os.utime(given / f"{k}.png", (moment, moment))
    run(given, tmp_path / "new")
    times = [(tmp_path / "new" / "published" / f"{k}.png").stat().st_mtime for k in range(3)]
    assert times == sorted(times) and len(set(times)) == 3 and times[0] > 1_600_000_000
    run(given, tmp_path / "day", "--keep-date")
    for k in range(3):
        old, new = (path.stat().st_mtime for path in (given / f"{k}.png", tmp_path / "day" / "published" / f"{k}.png"))
        assert abs(old - new) < 86_400 and old != new


def test_a_quality_can_be_asked_for(tmp_path):
    (tmp_path / "in").mkdir()
    photographs.astronaut().save(tmp_path / "in" / "a.jpg", quality=92)
    assert real(tmp_path / "in", tmp_path / "out", "--jpeg-quality", "30") == 0
    assert (tmp_path / "out" / "published" / "a.jpg").stat().st_size < 0.5 * (tmp_path / "in" / "a.jpg").stat().st_size


# --- keys ------------------------------------------------------------------------------------------------


GOOD = [random.Random(4).randbytes(32), b"9f86d081884c7d659a2feaa0c55ad015", b"kM3xV9qLw2RtY7bN5cZ8pQ4sH6jD1fGa"]


@pytest.mark.parametrize("key", GOOD)
def test_a_key_that_nobody_guesses_is_taken(tmp_path, key):
    (tmp_path / "key").write_bytes(key + b"\n")
    assert len(read_key(tmp_path / "key")) >= 16


def test_random_keys_of_every_spelling_are_taken(tmp_path):
    generator, refused = random.Random(7), Counter()
    spellings = {
        "32 bytes": bytes, "16 bytes": lambda raw: raw[:16], "hex": lambda raw: raw.hex().encode() + b"\n",
        "16 in hex": lambda raw: raw[:16].hex().encode(), "base 64": lambda raw: base64.b64encode(raw) + b"\n",
        "16 in base 64": lambda raw: base64.b64encode(raw[:16]), "for addresses": base64.urlsafe_b64encode,
    }  # fmt: skip
    for _ in range(500):
        raw = generator.randbytes(32)
        for name, spelled in spellings.items():
            (tmp_path / "key").write_bytes(spelled(raw))
            try:
                read_key(tmp_path / "key")
            except ValueError:
                refused[name] += 1
    assert max(refused.values(), default=0) <= 2, refused


@pytest.mark.parametrize("key", [
    b"short", bytes(32), b"\xff" * 32, b"abcdefgh" * 4, b"12345678901234567890", bytes(range(32)), b"correct horse battery",
    b"passwordpassword1", b"0" * 64, b"Password1Password2Password3", b"Summer2024Winter2025Spring2026",
    "Straßenbahnhaltestelle am Rathaus".encode(), "우리집 강아지 이름은 초코입니다".encode(), b"0123456789abcdef0123456789abcdef", b"TheQuickBrownFoxJumps1", b"\x01\x02" * 16,
])  # fmt: skip
def test_a_key_that_is_soon_guessed_is_refused(tmp_path, key):
    (tmp_path / "key").write_bytes(key)
    with pytest.raises(ValueError, match=r"--key-file: .*head -c 32 /dev/urandom"):
        read_key(tmp_path / "key")


def test_the_register_knows_people_and_says_nothing_without_the_key(tmp_path):
    first = Register(tmp_path / "people.jsonl", GOOD[0])
    anna, bert = first.name("a.jpg#0"), first.name("b.jpg#0")
    controls = {anna: torch.arange(4.0), bert: torch.ones(4)}
    first.add({"a.jpg#0": anna, "a.jpg#1": bert, "c.jpg#0": anna, "caf\udce9.jpg#0": bert}, controls)
    again = Register(tmp_path / "people.jsonl", GOOD[0])
    assert [again.person(face) for face in ("a.jpg#0", "c.jpg#0", "caf\udce9.jpg#0", "new#0")] == [
        anna,
        anna,
        bert,
        None,
    ]
    assert torch.equal(again.control(anna), torch.arange(4.0)) and again.control("0" * 32) is None
    rows = [json.loads(line) for line in (tmp_path / "people.jsonl").read_text().splitlines()]
    values = [row["person"] for row in rows if "person" in row] + [row["as"] for row in rows if "as" in row]
    assert len(set(values)) == len(values), "one person's faces cannot be told from two people's"
    text = (tmp_path / "people.jsonl").read_text()
    assert anna not in text and "a.jpg" not in text and torch.ones(4).numpy().tobytes().hex() not in text
    with pytest.raises(ValueError, match="begun with another key"):
        Register(tmp_path / "people.jsonl", GOOD[1])
    assert Register(tmp_path / "other.jsonl", GOOD[0]).name("a.jpg#0") != anna, "another collection, other people"
    everywhere = [Register(tmp_path / f"{k}.jsonl", GOOD[0], "everywhere").name("a.jpg#0") for k in range(2)]
    assert everywhere[0] == everywhere[1] != anna


def test_people_stay_who_they_are_when_pictures_are_added(tmp_path):
    """With an earlier name, and more of the same person: what was drawn for them before is drawn again."""
    from data_modules.synthetic_faces.renderer import render
    from data_modules.synthetic_faces.world import draw_scenes
    from fairanon.anonymizer.faces import Face, Picture
    from fairanon.anonymizer.photos import Photo
    from fairanon.anonymizer.register import who_is_who
    from fairanon.evaluators import TinyDetector, TinyEmbedder
    from fairanon.imaging import Square

    class Chooser:
        size = 64

        def latents(self, cuts):
            return cuts.float().mean((2, 3))

        def identities(self, latents, people, key):
            return latents + 1

    images = render(draw_scenes(9, range(6), "balanced")).image

    def picture_of(name, image):
        box = tuple(TinyDetector().detect(image[None])[0]["face"].boxes[0].tolist())
        return Picture(name, Photo(image, "PNG", False, {}), [Face(box, 1.0)])

    def told(pictures, file="people.jsonl", **people):
        square = lambda pixels, face: Square(32.0, 32.0, 64.0)
        register = Register(tmp_path / file, GOOD[0])
        return who_is_who(pictures, square, Chooser(), TinyEmbedder("embedder_b"), 0.05, GOOD[0], register, people)

    pictures_of = [picture_of(f"m{k}.png", image) for k, image in enumerate(images)]
    before = told(pictures_of)
    assert len(set(before.names.values())) == 6
    brighter = (images[2].int() + 3).clamp(0, 255).to(torch.uint8)
    after = told([picture_of("a0.png", brighter), *pictures_of])
    assert {place: after.names[place] for place in before.names} == before.names
    assert after.names["a0.png", 0] == before.names["m2.png", 0]
    for person in set(before.names.values()):
        assert torch.equal(after.controls[person], before.controls[person])
    said = told(pictures_of, "others.jsonl", **{"m2.png": "ann", "m3.png": "ann"}).names
    assert said["m2.png", 0] == said["m3.png", 0] and len(set(said.values())) == 5, "a table says who is who"
    more = [*pictures_of, picture_of("m9.png", images[0].flip(2))]
    same = {"m2.png": "ann", "m3.png": "ann"}
    grown = told(more, "others.jsonl", **same, **{"m9.png": "ann"}).names
    assert grown["m9.png", 0] == said["m2.png", 0], "a table may grow"
    for other in ({"m2.png": "ann", "m3.png": "bob"}, {**same, "m4.png": "ann"}):
        with pytest.raises(
            UserError, match=r"--people: of m\d\.png and m\d\.png it says otherwise than an earlier run"
        ):
            told(pictures_of, "others.jsonl", **other)


def test_a_table_of_people_says_one_person_for_each_file_that_is_there(tmp_path):
    from fairanon.anonymizer.anonymizing import _told_people

    table = tmp_path / "people.csv"
    table.write_text("file,person\n a.png , Ann  B \nb.png,Ann B\n")
    assert _told_people(table, ["a.png", "b.png", "c.png"]) == {"a.png": "Ann B", "b.png": "Ann B"}
    assert _told_people(None, ["a.png"]) == {}
    for rows, said in (
        ("x.png,Ann", "line 2 names x.png, which is not there"),
        ("a.png,", "line 2 does not say one person for a.png"),
        ("a.png,Ann\na.png,Bob", "line 3 does not say one person for a.png"),
    ):
        table.write_text(f"file,person\n{rows}\n")
        with pytest.raises(UserError, match=said):
            _told_people(table, ["a.png"])


def test_reasons_name_no_folder():
    with pytest.raises(OSError, match=r"^a\.jpg cannot be read \(No such file or directory\)$"):
        Item("a.jpg", Path("/home/jane.doe/Clinic")).read()


def test_a_full_disk_is_named_by_its_folder_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    write_image(scene(0, 2), tmp_path / "in" / "a.png")
    real_open, full = Path.open, [True]

    def opened(self, mode="r", *args, **kwargs):
        if full[0] and "journal" in self.name and "a" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_open(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    assert run(tmp_path / "in", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert f"the disk is full ({tmp_path / 'out'}" in said and "make room" in said and "bug" not in said
    full[0] = False
    assert run(tmp_path / "in", tmp_path / "out") == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_share_without_locks_works_and_is_said(tmp_path, monkeypatch, caplog, number):
    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    write_image(scene(0, 2), tmp_path / "in" / "a.png")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert "knows no locks" in caplog.text


def test_a_folder_beside_itself_and_names_that_macos_writes_otherwise(tmp_path, capsys):
    import unicodedata

    names = [unicodedata.normalize(form, "Zoë é") for form in ("NFC", "NFD")]
    assert names[0] != names[1]
    write_image(scene(0, 2), tmp_path / "in" / f"{names[0]}.png")
    write_image(scene(0, 2), tmp_path / "other" / f"{names[1]}.png")
    words = ("--detector", "tiny_detector", "--recognizer", "tiny_embedder_b", "--out", str(tmp_path / "e"))
    assert main(["evaluate", str(tmp_path / "in"), str(tmp_path / "other"), *words]) == 0
    assert main(["evaluate", str(tmp_path / "in"), str(tmp_path / "in"), *words]) == 0
    assert "ANONYMIZED is ORIGINALS itself" in capsys.readouterr().out


def test_terminals_and_notebooks_that_know_other_letters(tmp_path):
    write_image(scene(0, 2), tmp_path / "in" / "사진 🙂.png")
    (tmp_path / "in" / "영화.mp4").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-m", "fairanon", "anonymize", "in", "결과", "--detector", "tiny_detector", "--recognizer",
         "tiny_embedder_b"],
        cwd=tmp_path, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "cp1252", "MPLBACKEND": "module://no.such.backend"},
    )  # fmt: skip
    assert done.returncode == 3 and b"1 of 2 files" in done.stdout and b"Traceback" not in done.stderr
    piped = subprocess.run(
        f"{sys.executable} -m fairanon experiments | head -2", shell=True, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, cwd=REPOSITORY,
    )  # fmt: skip
    assert piped.stdout.count("\n") == 2 and not piped.stderr


def test_boxes_that_change_after_a_picture_was_finished_are_noticed(tmp_path, capsys):
    write_image(scene(0, 2), tmp_path / "a.png")
    table = tmp_path / "b.csv"
    table.write_text("file,x0,y0,x1,y1\na.png,5,5,45,45\n")
    run(table, tmp_path / "out")
    table.write_text("file,x0,y0,x1,y1\na.png,5,5,45,45\na.png,70,70,90,90\n")
    assert run(table, tmp_path / "out") == 1
    assert "the boxes of a.png are others than when it was finished" in capsys.readouterr().err


def test_two_files_of_one_name_are_one_every_time(tmp_path):
    write_image(scene(0, 2), tmp_path / "1" / "a.png")
    write_image(scene(1, 2), tmp_path / "2" / "a.png")
    for _ in range(3):
        assert run([tmp_path / "1" / "a.png", tmp_path / "2" / "a.png"], tmp_path / "out") == 3
        assert heads(tmp_path / "out")["a.png"]["verdict"] in ("anonymized", "not handled")
        assert set(pictures(tmp_path / "out")) == {"published/a.png"}
    write_image(scene(2, 2), tmp_path / "3" / "b.png")
    assert run([tmp_path / "1" / "a.png", tmp_path / "3" / "b.png"], tmp_path / "out") == 1


def test_a_folder_with_somebodys_files_is_not_ours(tmp_path, capsys):
    write_image(scene(0, 2), tmp_path / "in" / "a.png")
    for name in ("preview/wedding.png", "review.csv", "manifest.jsonl", "published/mine.png"):
        out = tmp_path / f"out of {name.replace('/', ' ')}"
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("mine")
        assert run(tmp_path / "in", out) == 1 and "holds other files" in capsys.readouterr().err
        assert (out / name).read_text() == "mine"
    assert run(tmp_path / "in", tmp_path / "out") == 0
    (tmp_path / "out" / "published" / "mine.png").write_text("mine")
    assert run(tmp_path / "in", tmp_path / "out") == 3
    assert "1 file there not written by fairanon (published/mine.png)" in (said := capsys.readouterr().out)
    assert "review.csv" not in said, "there is none"


def test_the_results_own_folder_is_no_input(tmp_path):
    write_image(scene(0, 2), tmp_path / "in" / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert run(tmp_path / "in", tmp_path / "out") == 3 and len(pictures(tmp_path / "out")) == 1
    assert heads(tmp_path / "out")["link/published/a.png"]["reason"] == "it lies in OUT"


def test_a_small_face_in_a_picture_of_middle_size_is_found(finder):
    face = photographs.astronaut().crop((165, 43, 285, 190)).resize((24, 29), Image.Resampling.LANCZOS)
    for width in (1400, 2100, 2600, 3060):
        strip = Image.new("RGB", (width, 300), (90, 110, 90))
        strip.paste(face, (width - 150, 120))
        pixels = torch.from_numpy(np.array(strip)).permute(2, 0, 1)
        assert any(width - 160 < box[0] < width - 120 for box in finder.find(pixels).boxes.tolist()), width
