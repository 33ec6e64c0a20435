"""People who are named stay, or are hidden alone; who is unsure is hidden."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageEnhance

from fairanon.anonymizer.attack import Threshold
from fairanon.anonymizer.faces import Face, Seen
from fairanon.anonymizer.named import POSSIBLE, SURE, NamedPeople
from fairanon.anonymizer.verdicts import KEPT
from fairanon.cli import main
from fairanon.imaging import write_image
from tests.anonymizer import photographs
from tests.anonymizer.scenes import scene
from tests.anonymizer.test_folder import TINY, lines, pictures


def reference(folder):
    """One of the six people of the group, in another rendition: cut out, darker, smaller, tilted by a few degrees."""
    folder.mkdir()
    person = (
        photographs.group().crop((680, 280, 910, 560)).rotate(5, Image.Resampling.BICUBIC, fillcolor=(120, 110, 100))
    )
    ImageEnhance.Brightness(person).enhance(0.8).resize((190, 232)).save(folder / "her.jpg", quality=85)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("named")
    (root / "in").mkdir()
    photographs.group().crop((420, 30, 1260, 520)).save(root / "in" / "group.png")
    photographs.astronaut().save(root / "in" / "astronaut.png")
    reference(root / "her")
    return root


def run(place, out, *words):
    code = main(["anonymize", str(place / "in"), str(out), "--fast", "--workers", "2", *words])
    return code, [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def at_her(row):
    return row["box"][0] > 300 and row["box"][2] < 450


def test_everybody_but_one_is_hidden(place, tmp_path, capsys):
    code, rows = run(place, tmp_path / "out", "--keep-person", str(place / "her"))
    files = {row["file"]: row for row in rows if row["face"] is None}
    assert (
        code == 0
        and files["group.png"]["verdict"] == KEPT
        and files["astronaut.png"]["verdict"] in ("anonymized", "covered")
    )
    faces = [row for row in rows if row["face"] is not None and row["file"] == "group.png"]
    (kept,) = [row for row in faces if row["verdict"] == KEPT]
    assert at_her(kept) and len(faces) >= 4 and {row["verdict"] for row in faces} <= {KEPT, "anonymized", "covered"}
    x0, y0, x1, y1 = (round(value) for value in kept["box"])
    before, after = (
        Image.open(path / "group.png").convert("RGB").crop((x0, y0, x1, y1))
        for path in (place / "in", tmp_path / "out" / "published")
    )
    assert before.tobytes() == after.tobytes()
    said = capsys.readouterr().out
    assert (
        "1 face stays visible in the published files" in said
        and files["group.png"]["settings"]["keep_person"] == "1 photograph"
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert "READY AS ASKED: 1 FACE VISIBLE" in page and str(place) not in page


def test_one_alone_is_hidden(place, tmp_path):
    code, rows = run(place, tmp_path / "out", "--only-person", str(place / "her"))
    faces = [row for row in rows if row["face"] is not None]
    (hers,) = [row for row in faces if row["file"] == "group.png" and at_her(row)]
    assert code == 0 and hers["verdict"] == "anonymized"
    kept = [row for row in faces if row["verdict"] == KEPT]
    assert len(kept) >= 3 and all(row["publishable"] for row in rows if row["face"] is None)


@pytest.mark.parametrize(
    ("distances", "kept", "only"),
    [
        ((SURE - 0.01, SURE - 0.01), False, True),
        ((SURE - 0.01, SURE + 0.01), True, True),  # one recognizer is unsure
        ((SURE - 0.01, None), True, True),  # one sees nobody
        ((1.1, 1.1), True, True),
        ((POSSIBLE + 0.01, POSSIBLE + 0.01), True, False),
        ((POSSIBLE + 0.01, POSSIBLE - 0.01), True, True),
        ((POSSIBLE + 0.01, None), True, True),
        ((None, None), True, True),
    ],
)
def test_who_is_unsure_is_hidden(distances, kept, only):
    names = ("a", "b")
    attacker = SimpleNamespace(
        matchers=[SimpleNamespace(name=name, metric="euclidean") for name in names],
        thresholds={"a": Threshold(0.6, ""), "b": Threshold(4.0, "")}, look=lambda face, pixels: None,
    )  # fmt: skip
    face = Face((0, 0, 9, 9), 0.9)
    for name, ratio in zip(names, distances, strict=True):
        limit = attacker.thresholds[name].value
        if ratio is not None:
            face.seen[name] = Seen(None, torch.tensor([ratio * limit, 0.0]), empty=2 * limit)
    face.seen.setdefault("b", Seen(None, torch.zeros(2), empty=0.1))  # to a recognizer as good as an empty image
    for keep, wanted in ((True, kept), (False, only)):
        named = NamedPeople.__new__(NamedPeople)
        named.keep, named.attacker = keep, attacker
        named._people = {name: torch.tensor([[0.0, 0.0], [90.0, 90.0]]) for name in names}
        assert named.hides(face, torch.zeros(3, 9, 9)) == wanted


def test_photographs_that_name_nobody_are_refused(tmp_path, capsys):
    write_image(scene(0, 1), tmp_path / "in" / "one.png")
    (tmp_path / "empty").mkdir()
    write_image(scene(1, 0), tmp_path / "nobody" / "trees.png")
    write_image(scene(2, 3), tmp_path / "several" / "three.png")
    (tmp_path / "broken").mkdir()
    write_image(scene(3, 1, columns=1, rows=1), tmp_path / "odd" / "one.png")
    (tmp_path / "odd" / "film.mp4").write_bytes(b"")
    (tmp_path / "broken" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    for folder, said in (
        ("empty", "empty holds no photograph"), ("nobody", "nobody/trees.png; take another"),
        ("several", "three.png shows several people"), ("broken", "b.png"), ("odd", "film.mp4 shows nobody"),
    ):  # fmt: skip
        words = [
            "anonymize",
            str(tmp_path / "in"),
            str(tmp_path / "out"),
            *TINY,
            "--keep-person",
            str(tmp_path / folder),
        ]
        assert main(words) in (1, 2) and said in (told := capsys.readouterr().err) and not (tmp_path / "out").exists()
        assert "\nfairanon: --keep-person" in f"\n{told}", "not behind a bar"
    words = ["anonymize", str(tmp_path / "in"), str(tmp_path / "out"), *TINY]
    assert main([*words, "--keep-person", "a", "--only-person", "b"]) in (1, 2)
    assert "give one of them" in capsys.readouterr().err
    assert main([*words, "--keep-person", str(tmp_path / "in"), "--skip-attack"]) in (1, 2)


def test_a_box_of_ones_own_is_hidden_whoever_is_named(tmp_path):
    write_image(scene(0, 1), tmp_path / "a.png")
    found = lines_after(tmp_path, tmp_path / "a.png", "first")
    box = next(row["box"] for row in found if row["face"] is not None)
    (tmp_path / "person").mkdir()
    (tmp_path / "person" / "a.png").write_bytes((tmp_path / "a.png").read_bytes())
    rows = lines_after(tmp_path, tmp_path / "a.png", "kept", "--keep-person", str(tmp_path / "person"))
    assert {row["verdict"] for row in rows} == {KEPT}
    (tmp_path / "b.jsonl").write_text(json.dumps({"file": "a.png", "boxes": [box]}))
    rows = lines_after(tmp_path, tmp_path / "b.jsonl", "own", "--keep-person", str(tmp_path / "person"))
    assert KEPT not in {row["verdict"] for row in rows} and rows[0]["publishable"]


def test_faces_that_a_table_names_stay(tmp_path, capsys):
    write_image(scene(0, 3), tmp_path / "a.png")
    faces = [row for row in lines_after(tmp_path, tmp_path / "a.png", "first") if row["face"] is not None]
    near = [value + 2 for value in faces[0]["box"]]
    table = tmp_path / "keep.jsonl"
    table.write_text(json.dumps({"file": "a.png", "keep": [near]}))
    rows = lines_after(tmp_path, table, "kept")
    stay = {tuple(row["box"]): row["verdict"] for row in rows if row["face"] is not None}
    assert stay.pop(tuple(faces[0]["box"])) == KEPT and set(stay.values()) == {"anonymized"} and len(stay) == 2
    assert rows[0]["verdict"] == KEPT and rows[0]["publishable"]
    table.write_text(json.dumps({"file": "a.png", "keep": [faces[1]["box"]]}))
    assert main(["anonymize", str(table), str(tmp_path / "kept"), *TINY]) == 1
    assert "the boxes of a.png are others" in capsys.readouterr().err
    table.write_text(json.dumps({"file": "a.png", "keep": faces[1]["box"]}))
    assert main(["anonymize", str(table), str(tmp_path / "wrong"), *TINY]) in (1, 2)
    assert "a box is x0, y0, x1, y1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("boxes", "why"),
    [
        ([[0, 0, 190, 120]], "keep: 0 faces are found for its 1 boxes"),
        ([[400, 300, 440, 340]], "keep: boxes outside of its 192 x 128 pixels (1)"),
        ([[1, 1, 4, 4]], "keep: boxes smaller than any face (1)"),
    ],
)
def test_a_box_of_nobody_may_be_anothers_and_is_looked_at(boxes, why, tmp_path):
    write_image(scene(0, 2), tmp_path / "a.png")
    (tmp_path / "keep.jsonl").write_text(json.dumps({"file": "a.png", "keep": boxes}))
    assert main(["anonymize", str(tmp_path / "keep.jsonl"), str(tmp_path / "out"), *TINY]) == 3
    rows = lines(tmp_path / "out")
    assert why in rows[0]["reason"] and not rows[0]["publishable"] and KEPT not in {row["verdict"] for row in rows}


def test_a_table_that_says_its_pictures_size_hides_what_no_detector_finds(tmp_path, capsys):
    write_image(scene(0, 0), tmp_path / "a.png")
    table = tmp_path / "t.jsonl"
    for size, code, why in (([192, 128], 0, ""), ([384, 256], 3, "boxes for 384 x 256 pixels, and it has 192 x 128")):
        table.write_text(json.dumps({"file": "a.png", "boxes": [[5, 5, 45, 45]], "size": size}))
        assert main(["anonymize", str(table), str(tmp_path / f"out{code}"), *TINY]) == code
        rows = lines(tmp_path / f"out{code}")
        assert rows[0]["reason"] == why and rows[1]["covered"] == 1.0
    table.write_text(json.dumps({"file": "a.png", "boxes": [], "size": [192]}))
    assert main(["anonymize", str(table), str(tmp_path / "no"), *TINY]) in (1, 2)
    assert "size must be [width, height] in pixels" in capsys.readouterr().err


def test_a_choice_that_changes_after_a_kill_counts(tmp_path, monkeypatch):
    write_image(scene(0, 2), tmp_path / "a.png")
    write_image(scene(1, 1), tmp_path / "b.png")
    box = next(row["box"] for row in lines_after(tmp_path, tmp_path / "a.png", "first") if row["face"] is not None)
    table, out = tmp_path / "t.jsonl", tmp_path / "out"

    def asked(keep):
        table.write_text(json.dumps({"file": "a.png", "keep": keep}) + "\n" + json.dumps({"file": "b.png"}))
        return main(["anonymize", str(table), str(out), *TINY])

    with monkeypatch.context() as killed:
        killed.setattr(
            "os.sync", lambda: (_ for _ in ()).throw(KeyboardInterrupt) if (out / "published").exists() else None
        )
        with pytest.raises(KeyboardInterrupt):
            asked([box])
    assert (out / "published" / "a.png").exists(), "the kill came late"
    assert asked([]) == 0 and KEPT not in {row["verdict"] for row in lines(out)}
    (tmp_path / "first" / "published" / "a.png").rename(tmp_path / "hidden.png")
    assert (out / "published" / "a.png").read_bytes() == (tmp_path / "hidden.png").read_bytes()


def test_without_an_attack_a_face_that_stays_is_looked_at(tmp_path):
    write_image(scene(0, 1), tmp_path / "a.png")
    box = next(row["box"] for row in lines_after(tmp_path, tmp_path / "a.png", "first") if row["face"] is not None)
    (tmp_path / "t.jsonl").write_text(json.dumps({"file": "a.png", "keep": [box]}))
    assert main(["anonymize", str(tmp_path / "t.jsonl"), str(tmp_path / "out"), *TINY, "--skip-attack"]) == 3
    assert lines(tmp_path / "out")[0]["reason"] == "not attacked (--skip-attack)"


def test_a_collection_goes_on_with_the_same_people_alone(tmp_path, capsys):
    write_image(scene(0, 2), tmp_path / "in" / "1.png")
    for name, number in (("a", 5), ("b", 6)):
        write_image(scene(number, 1, columns=1, rows=1), tmp_path / name / "who.png")
    words = ["anonymize", str(tmp_path / "in"), str(tmp_path / "out"), *TINY, "--keep-person"]
    assert main([*words, str(tmp_path / "a")]) == 0
    write_image(scene(1, 2), tmp_path / "in" / "2.png")
    capsys.readouterr()
    assert main([*words, str(tmp_path / "b")]) == 1
    assert "was begun with other photographs of people" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "a")]) == 0 and len(pictures(tmp_path / "out")) == 2
    said = "".join((tmp_path / "out" / name).read_text() for name in ("manifest.jsonl", "report.html"))
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["people"] not in said


def lines_after(root, given, out, *words):
    assert main(["anonymize", str(given), str(root / out), *TINY, *words]) == 0
    return lines(root / out)
