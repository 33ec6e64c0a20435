"""Whole collections of the embedded world: every file is counted, nothing is lost, nothing is called what it is not."""

import io
import json
import shutil
import zipfile
from collections import Counter

import pytest
import torch
from filelock import FileLock
from PIL import Image

from fairanon import places
from fairanon.anonymizer import block, manifest
from fairanon.anonymizer import folder as job
from fairanon.anonymizer.find import Finder
from fairanon.anonymizer.manifest import Journal, Result
from fairanon.anonymizer.photos import Photo
from fairanon.anonymizer.picture import Treatment
from fairanon.anonymizer.request import AnonymizeRequest
from fairanon.cli import main
from fairanon.config.experiments import UserError
from fairanon.imaging import read_image, write_image
from tests.anonymizer.scenes import scene, write_scenes
from tests.anonymizer.test_photos import metadata

TINY = ("--detector", "tiny_detector", "--recognizer", "tiny_embedder_b")


def run(given, out, *words, capsys=None):
    return main(["anonymize", *map(str, given if isinstance(given, list) else [given]), str(out), *TINY, *words])


def lines(out, seconds=False):
    found = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    return found if seconds else [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pictures(out):
    return {name: raw for name, raw in files(out).items() if name.endswith((".png", ".jpg"))}


COUNTS = [k % 6 for k in range(30)]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals") / "in"
    write_scenes(folder, COUNTS)
    (folder / "broken.png").write_bytes((folder / "0" / "scene 1.png").read_bytes()[:700])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("hello")
    return folder


@pytest.fixture(scope="module")
def finished(originals, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "out"
    before = files(originals)
    assert run(originals, out) == 3
    assert files(originals) == before, "originals are only read"
    return out


def test_every_file_is_counted_once(finished, originals):
    rows = lines(finished)
    verdicts = Counter(row["verdict"] for row in rows if row["face"] is None)
    assert verdicts == {"anonymized": 25, "no face": 5, "unreadable": 2}
    assert sum(row["face"] is not None for row in rows) == sum(COUNTS)
    assert len(pictures(finished)) == 30 and not (finished / ".unfinished").exists()
    for row in rows:
        if row["face"] is None and row["result"] is not None:
            assert (finished / row["result"]).exists() and row["publishable"] == (row["verdict"] == "anonymized")
    review = {name for name in pictures(finished) if name.startswith("review/")}
    assert len(review) == 5
    told = (finished / "review.csv").read_text()
    assert told.count("\n") == 8 and "broken.png,unreadable," in told and "no face was found" in told


def test_nothing_unverified_is_among_the_finished(finished):
    verdicts = {}
    for row in lines(finished):
        verdicts.setdefault(row["file"], []).append(row["verdict"])
    for name in pictures(finished):
        if name.startswith("published/"):
            assert (
                set(verdicts[name.removeprefix("published/")]) <= {"anonymized", "covered"}
                and metadata((finished / name).read_bytes()) == []
            )


def test_the_manifest_says_who_judged_and_knows_nobody(finished):
    first = lines(finished)[0]
    judges = first["judges"]
    assert judges["tiny-detector-1"] == {"licence": "Apache-2.0"}
    assert "calibrated at a false-match rate of 0.001" in judges["tiny-embedder-b-1"]["origin"]
    assert first["method"] == "mask" and first["version"] and first["collection"]["faces"] == sum(COUNTS)
    text = (finished / "manifest.jsonl").read_text()
    assert "sha256" not in text and "embedding" not in text


def test_a_second_run_does_nothing(finished, originals, monkeypatch, capsys):
    before, times = files(finished), {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    monkeypatch.setattr(job.Job, "block", None)
    assert run(originals, finished) == 3
    assert files(finished) == before and all(p.stat().st_mtime_ns == t for p, t in times.items() if p.suffix == ".png")
    assert "25 of 32 files may be published" in capsys.readouterr().out


def test_new_files_join_and_other_settings_are_refused(originals, tmp_path, capsys):
    given, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(originals / "0", given)
    assert run(given, out) == 3
    write_image(scene(90, 2), given / "new.png")
    assert run(given, out) == 3
    assert (out / "published" / "new.png").exists() and len(lines(out)) == 10 + 1 + sum(COUNTS[:10]) + 2
    assert run(given, out, "--method", "blur") == 1
    assert "was begun with --method mask, now it is --method blur" in capsys.readouterr().err


def test_two_runs_and_any_number_of_workers_agree(finished, originals, tmp_path):
    out = tmp_path / "out"
    assert run(originals, out, "--workers", "1") == 3
    assert lines(out) == lines(finished) and pictures(out) == pictures(finished)


@pytest.mark.parametrize("method", ["pixelate", pytest.param("blur", marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_everywhere_goes_on_as_one(originals, tmp_path, monkeypatch, method):
    whole, out = tmp_path / "whole", tmp_path / "out"
    words = ("--method", method, "--strength", ".2", "--workers", "2")
    assert run(originals, whole, *words) == 3
    every = {"pixelate": 15, "blur": 4}[method]  # writes from one stop to the next
    stops = iter([*range(1, 30, every), None])
    left = {"writes": next(stops)}

    class KilledError(BaseException):
        """Nothing catches it, as nothing catches a kill."""

    def dying(real):
        def write(*args, **kwargs):
            if left["writes"] is not None:
                left["writes"] -= 1
                if left["writes"] < 0:
                    raise KilledError
            return real(*args, **kwargs)

        return write

    for module, name in (
        (Result, "put"),
        (Journal, "add"),
        (Result, "move"),
        (job, "write_manifest"),
        (job, "write_json"),
        (job, "created"),
        (block, "write_json"),
    ):
        monkeypatch.setattr(module, name, dying(getattr(module, name)))
    kills = 0
    while True:
        try:
            assert run(originals, out, *words) == 3
            break
        except KilledError:
            kills += 1
            assert not (out / "manifest.jsonl").exists() or kills > 5
            left["writes"] = next(stops)
    assert kills >= 28 // every
    assert lines(out) == lines(whole) and pictures(out) == pictures(whole)


def test_a_zip_gives_what_its_folder_gives(originals, tmp_path):
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in files(originals / "0").items():
            archive.writestr(name, raw)
    assert run(path, tmp_path / "zip") == run(originals / "0", tmp_path / "folder") == 3
    assert pictures(tmp_path / "zip") == pictures(tmp_path / "folder")


def test_a_zip_in_which_no_name_can_be_written_ends_with_a_list_for_review(tmp_path):
    path, out = tmp_path / "in.zip", tmp_path / "out"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../a.jpg", b"")
    assert run(path, out) == run(path, out) == 3, "the second time it is known to be ours"
    assert [(line["file"], line["verdict"], line["publishable"]) for line in lines(out)] == [
        ("../a.jpg", "not handled", False)
    ]
    assert "../a.jpg,not handled,its name leads outside," in (out / "review.csv").read_text()
    assert not (out / "published").exists()
    assert run(path, tmp_path / "parts", "--part", "1/2") == 0
    assert run(path, tmp_path / "parts", "--finish") == 3 and lines(tmp_path / "parts") == lines(out)


@pytest.mark.parametrize(("choice", "code"), [("copy", 0), ("skip", 0), ("review", 3)])
def test_pictures_without_a_face_go_where_one_wants(originals, tmp_path, choice, code, capsys):
    given, out = tmp_path / "in", tmp_path / "out"
    given.mkdir()
    for name in ("scene 0.png", "scene 1.png"):
        shutil.copy(originals / "0" / name, given / name)
    assert run(given, out, "--no-face", choice) == code
    places = {"copy": "no-face/scene 0.png", "review": "review/scene 0.png"}
    assert set(pictures(out)) == {"published/scene 1.png", *([places[choice]] if choice in places else [])}
    assert "1 of 2 files may be published" in capsys.readouterr().out
    assert (out / "review.csv").exists() == (code == 3), "nobody has to look at what was skipped"


def test_without_an_attack_nothing_is_called_anonymized(originals, tmp_path):
    out = tmp_path / "out"
    assert run(originals / "0", out, "--skip-attack") == 3
    assert all(name.startswith("review/") for name in pictures(out))
    assert {row["verdict"] for row in lines(out) if row["face"] is None} == {"not attacked", "no face"}


def test_faces_that_stay_keep_a_picture_from_being_published(tmp_path):
    write_image(scene(0, 3), tmp_path / "in" / "three.png")
    assert run(tmp_path / "in", tmp_path / "largest", "--faces", "largest") == 3
    rows = lines(tmp_path / "largest")
    assert rows[0]["reason"] == "2 other faces left as they are"
    assert Counter(row["verdict"] for row in rows[1:]) == {"anonymized": 1, "left as it is": 2}
    assert run(tmp_path / "in", tmp_path / "small", "--min-face", "60") == 3
    assert lines(tmp_path / "small")[0]["reason"] == "3 faces are left as they are"


def test_boxes_of_ones_own_are_taken(tmp_path):
    write_image(scene(0, 2), tmp_path / "a.png")
    rows = [{"file": "a.png", "boxes": [[5, 5, 45, 45]]}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(tmp_path / "b.jsonl", tmp_path / "out", "--boxes", "only")
    face = lines(tmp_path / "out")[1]
    assert face["box"] == [5, 5, 45, 45] and face["score"] == 1 and face["method"] == "mask" and face["covered"] == 1.0
    (picture,) = pictures(tmp_path / "out").values()
    (tmp_path / "x.png").write_bytes(picture)
    assert (torch.tensor(list(Image.open(tmp_path / "x.png").crop((5, 5, 45, 45)).tobytes())) == 127).all()


def test_a_dry_run_replaces_nothing_and_leaves_nothing_for_the_real_one(originals, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(originals / "0", out, "--dry-run") == 0
    said = capsys.readouterr().out
    assert f"{sum(COUNTS[:10])} faces would be hidden in 8 pictures" in said and len(pictures(out)) == 8
    assert run(originals / "0", out, "--preview", "3") == 0
    assert (out / "preview" / "before and after.png").exists() and not (out / "manifest.jsonl").exists()
    assert run(originals / "0", out) == 3
    assert not (out / "preview").exists()
    assert run(originals / "0", out, "--dry-run") == 0 and (out / "preview").exists()
    assert run(originals / "0", out) == 3 and not (out / "preview").exists(), "also when all is done"


def test_options_that_new_faces_use_are_theirs(tmp_path):
    for method in ("ano-face-fair", "id2face"):
        request = AnonymizeRequest(
            (tmp_path,), tmp_path / "out", method=method, checkpoint=tmp_path, keep="eyes", parser="tiny_parser", steps=3,
            cut_scale=2.0, seed=1, batch_size=2, box_scale=1.2,
        )  # fmt: skip
        assert request.keep == "eyes" and not request.redacts
    with pytest.raises(UserError, match="--landmarks: --method ano-face-fair does not use it, only id2face"):
        AnonymizeRequest(
            (tmp_path,), tmp_path / "out", method="ano-face-fair", checkpoint=tmp_path, landmarks="tiny_landmarks"
        )


def test_a_digest_of_the_original_only_if_asked_for(originals, tmp_path):
    run([originals / "0" / "scene 1.png"], tmp_path / "out", "--hashes")
    assert len(lines(tmp_path / "out")[0]["source_sha256"]) == 64


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "id2face"], "--method id2face needs --checkpoint"),
        (
            ["--checkpoint", "x"],
            "--checkpoint: --method mask does not use it, only ano-face-fair, id2face; leave it out",
        ),
        (["--strength", ".9"], "--strength: --method mask does not use it, only pixelate, blur; leave it out"),
        (["--method", "blur", "--steps", "3"], "--steps: --method blur does not use it"),
        (["--keep", "eyes"], "--keep needs --parser"),
        (["--keep", "beard", "--parser", "tiny_parser"], "names 'beard'; the regions are face"),
        (["--prompt", "a face"], "--prompt: --method mask does not use it, only ano-face-fair"),
        (["--strength", "2"], "--strength must be from 0.01 to 1"),
        (["--tries", "0"], "--tries must be from 1 to 100"),
        (["--detector", "nobody"], "--detector: there is no judge 'nobody'"),
        (["--recognizer", "tiny_detector"], "--recognizer: tiny_detector cannot do this"),
        (["--method", "id2face", "--checkpoint", "/nowhere"], "/nowhere is no run's folder"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(originals, tmp_path, capsys, words, said):
    assert main(["anonymize", str(originals), str(tmp_path / "out"), *TINY, *words]) in (1, 2)
    told = capsys.readouterr().err
    assert said in told and told.strip().count("\n") == 0 and "Traceback" not in told
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


def test_eyes_that_stay_are_seen_and_the_attack_decides(tmp_path):
    write_image(scene(0, 3), tmp_path / "in" / "three.png")
    run(tmp_path / "in", tmp_path / "out", "--keep", "eyes,lips", "--parser", "tiny_parser")
    faces = lines(tmp_path / "out")[1:]
    assert all(face["covered"] < 0.99 or face["tries"] > 1 for face in faces)
    assert all(face["distances"] for face in faces)


def test_what_nobody_foresaw_costs_one_picture(originals, tmp_path, monkeypatch, capsys):
    real = Finder.find

    def find(self, pixels):
        if int(pixels.sum()) == broken:
            raise RuntimeError("nobody thought of this")
        return real(self, pixels)

    names = ["scene 1.png", "scene 2.png", "scene 3.png"]
    broken = int(read_image(originals / "0" / names[1], "it").sum())
    monkeypatch.setattr(Finder, "find", find)
    assert run([originals / "0" / name for name in names], tmp_path / "out") == 3
    rows = {row["file"]: row for row in lines(tmp_path / "out") if row["face"] is None}
    assert rows[names[1]]["verdict"] == "failed" and rows[names[1]]["result"] is None
    assert set(pictures(tmp_path / "out")) == {f"published/{names[0]}", f"published/{names[2]}"}
    assert "nobody thought of this" in (tmp_path / "out" / "review.csv").read_text()


def test_an_encoder_that_fails_costs_one_picture_and_a_long_name_is_written(originals, tmp_path, monkeypatch):
    given = tmp_path / "in"
    given.mkdir()
    for name in ("a.png", "🙂" * 62 + ".png"):  # 252 bytes
        shutil.copy(originals / "0" / "scene 1.png", given / name)
    real = Photo.encode

    def encode(self, *args):
        if self is broken[0]:
            raise OSError("encoder error -2")
        return real(self, *args)

    broken = []
    look = Treatment.look_at

    def look_at(self, item):
        picture = look(self, item)
        if item.name == "a.png":
            broken.append(picture.photo)
        return picture

    monkeypatch.setattr(Treatment, "look_at", look_at)
    monkeypatch.setattr(Photo, "encode", encode)
    assert run(given, tmp_path / "out", "--workers", "1") == 3
    rows = {row["file"]: row["verdict"] for row in lines(tmp_path / "out") if row["face"] is None}
    assert rows == {"a.png": "failed", "🙂" * 62 + ".png": "anonymized"}


def test_no_name_is_a_formula_to_a_spreadsheet(tmp_path):
    name = "=HYPERLINK(A1).png"
    write_image(scene(0, 1), tmp_path / "in" / name)
    (tmp_path / "in" / "@broken.png").write_bytes(b"")
    assert run(tmp_path / "in", tmp_path / "out") == 3
    assert f"\n'{name},0," in (tmp_path / "out" / "faces.csv").read_text()
    assert "\n'@broken.png,unreadable," in (tmp_path / "out" / "review.csv").read_text()
    assert (tmp_path / "out" / "published" / name).exists() and lines(tmp_path / "out")[0]["file"] == name


# --- blocks, parts, several processes --------------------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of about eight files, in this process."""
    monkeypatch.setattr(block, "_FILES", 8)


def test_parts_and_a_part_that_was_lost_give_what_one_process_gives(originals, tmp_path, small_blocks, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(originals, whole) == 3
    for part in ("2/3", "3/3", "2/3"):  # a scheduler gives one of them twice
        assert run(originals, out, "--part", part) == 0
        assert not (out / "published").exists() and not (out / "manifest.jsonl").exists()
        assert "nothing is published before the same command with --finish" in capsys.readouterr().out
    assert run(originals, out, "--finish") == 3
    assert lines(out) == lines(whole) and pictures(out) == pictures(whole) and not (out / ".unfinished").exists()
    assert run(originals, out, "--part", "1/3") == 0, "a late one finds nothing to do"
    assert "everything is published already" in capsys.readouterr().out
    assert lines(out) == lines(whole) and not (out / ".unfinished").exists()


def test_blocks_that_others_work_on_are_passed_over_and_said(originals, tmp_path, small_blocks, capsys):
    out = tmp_path / "out"
    assert run(originals, out, "--part", "1/4") == 0
    held = out / ".unfinished" / "blocks" / "000002"
    held.mkdir()
    lock = FileLock(held / ".lock")
    with lock:
        for words in ((), ("--part", "3/4")):
            assert run(originals, out, *words) == 1
            assert "other processes work on 1 block of the collection" in capsys.readouterr().err
        assert len(list(out.rglob("counted.json"))) == 3, "the others are done all the same"
        assert not (out / "published").exists()
    assert run(originals, out, "--finish") == 3


def test_each_file_is_done_by_exactly_one_part(originals, tmp_path, small_blocks):
    out, done = tmp_path / "out", []
    for part in ("1/2", "2/2"):
        before = set((out / ".unfinished" / "files").rglob("*.png")) if out.exists() else set()
        assert run(originals, out, "--part", part) == 0
        done.append({p.name for p in set((out / ".unfinished" / "files").rglob("*.png")) - before})
    assert all(done) and not done[0] & done[1] and len(done[0] | done[1]) == 30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--part", "0/3"), "--part must be K/N with K from 1 to N, for example 3/100, got '0/3'"),
        (("--part", "4/3"), "K from 1 to N"),
        (("--part", "1/2", "--finish"), "give the parts first, then --finish alone"),
        (("--part", "1/2", "--dry-run"), "leave --part and --finish out"),
        (("--finish",), "nothing was begun in"),
        (("--finish", "--preview", "2"), "leave --part and --finish out"),
        (("--engine", "ray:"), "--engine must be here, ray or ray:HOST:PORT, got 'ray:'"),
    ],
)
def test_parts_are_refused_in_a_sentence(originals, tmp_path, words, said, capsys):
    assert run(originals, tmp_path / "out", *words) == (1 if words == ("--finish",) else 2)
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_part_is_refused_while_the_whole_is_published(originals, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(job, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(originals, out)
    assert (out / ".unfinished" / "decided.json").exists()
    assert run(originals, out, "--part", "1/2") == 1
    assert "is being published; give the command without --part" in capsys.readouterr().err
    assert run(originals, out, "--finish") == 3 and not (out / ".unfinished").exists()


def test_files_that_join_are_done_and_those_that_are_gone_are_not_published(originals, tmp_path, small_blocks):
    given, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(originals, given)
    assert run(given, out, "--part", "1/2") == 0 and run(given, out, "--part", "2/2") == 0
    (given / "0" / "scene 1.png").unlink()
    write_image(scene(90, 2), given / "new.png")
    assert run(given, out, "--finish") == 3
    rows = {row["file"]: row for row in lines(out) if row["face"] is None}
    assert rows["new.png"]["publishable"] and (out / "published" / "new.png").exists()
    gone = rows["0/scene 1.png"]
    assert (
        not gone["publishable"]
        and "its original is gone" in gone["reason"]
        and (out / "review" / "0" / "scene 1.png").exists()
    )


def test_a_picture_that_is_lost_emptied_or_exchanged_while_it_waits_is_not_published(originals, tmp_path, capsys):
    out, waiting = tmp_path / "out", tmp_path / "out" / ".unfinished" / "files"
    assert run(originals / "0", out, "--part", "1/1") == 0
    (waiting / "scene 1.png").unlink()
    (waiting / "scene 2.png").write_bytes(b"")
    (waiting / "scene 3.png").write_bytes((originals / "0" / "scene 3.png").read_bytes())
    assert run(originals / "0", out, "--finish") == 3
    rows = {row["file"]: row for row in lines(out) if row["face"] is None}
    for k in (1, 2, 3):
        row = rows[f"scene {k}.png"]
        assert row["verdict"] == "failed" and "its picture is gone or was changed" in row["reason"]
        assert not (out / "published" / f"scene {k}.png").exists()
    assert run(originals / "0", out) == 3, "the same command does them again"
    assert all((out / "published" / f"scene {k}.png").exists() for k in (1, 2, 3))


def test_what_is_published_stays_when_a_kill_comes_last_and_a_file_joins(originals, tmp_path, monkeypatch):
    given, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(originals / "0", given)
    remove = shutil.rmtree
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(
            places.shutil,
            "rmtree",
            lambda path, **_: (_ for _ in ()).throw(KeyboardInterrupt) if path.name == ".unfinished" else remove(path),
        )
        run(given, out)
    before = pictures(out)
    assert (out / "manifest.jsonl").exists() and (out / ".unfinished").exists() and len(before) == 10
    write_image(scene(90, 2), given / "new.png")
    assert run(given, out) == 3 and not (out / ".unfinished").exists()
    assert pictures(out).items() > before.items() and len(pictures(out)) == 11


def test_half_written_files_are_removed(originals, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "settings.json.0123abcd.partial").write_text("{")
    assert run(originals, out) == 3 and not list(out.glob("*.partial"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("blocks.txt", "", "blocks.txt is damaged"),
        ("blocks.txt", "0\n", "blocks.txt is damaged"),
        ("secret", "", "secret is damaged"),
        ("again.json", "{", "again.json"),
        ("decided.json", "", "decided.json"),
        ("blocks/000000/counted.json", "{}", None),
        ("blocks/000000/counted.json", "[1", None),
    ],
)
def test_damaged_notes_are_one_sentence_or_made_again(originals, tmp_path, capsys, monkeypatch, name, text, said):
    monkeypatch.setattr("fairanon.anonymizer.manifest.time.sleep", lambda _: None)
    out = tmp_path / "out"
    assert run(originals / "0", out, "--part", "1/1") == 0
    (out / ".unfinished" / name).write_text(text)
    code, complaint = run(originals / "0", out, "--finish"), capsys.readouterr().err
    if said is None:
        assert code == 3
    else:
        assert code == 1 and said in complaint and "Traceback" not in complaint and not (out / "published").exists()


@pytest.mark.slow
def test_embeddings_are_kept_of_some_blocks_alone_and_made_again(originals, tmp_path, small_blocks, monkeypatch):
    """Everybody who is found at all is hidden again: from memory, and where blocks are forgotten at once."""
    monkeypatch.setattr("fairanon.anonymizer.chance.CHANCE", 2.0)
    monkeypatch.setattr("fairanon.anonymizer.chance.FEWEST", 2)
    seen = Counter()
    for name in ("_recall", "_from"):
        real = getattr(block.Block, name)

        def counted(*arguments, real=real, name=name):
            seen[name] += 1
            return real(*arguments)

        monkeypatch.setattr(block.Block, name, counted)
    out, other = tmp_path / "out", tmp_path / "other"
    words = ("--method", "pixelate", "--strength", ".2")
    assert run(originals, out, *words) == 3
    hidden = seen.pop("_from")
    assert hidden > 0 and not seen, "nobody is attacked again whose faces are in memory"
    monkeypatch.setattr(job, "_REMEMBERED", 0)
    assert run(originals, other, *words) == 3
    assert seen["_from"] == hidden and seen["_recall"] > 0
    assert lines(out) == lines(other) and pictures(out) == pictures(other)


def test_what_was_published_before_a_kill_stays_when_its_original_goes_and_somebodys_file_is_not_touched(
    originals, tmp_path, monkeypatch
):
    given, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(originals / "0", given)
    moved = []
    real = Result.move

    def some(self, source, to):
        if len(moved) == 4:
            raise KeyboardInterrupt
        moved.append(to)
        return real(self, source, to)

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(Result, "move", some)
        run(given, out)
    first = min(path for path in moved if path.parent.name == "published")
    (given / first.name).unlink()
    assert run(given, out) == 3
    rows = {row["file"]: row for row in lines(out) if row["face"] is None}
    assert rows[first.name]["publishable"] and first.exists(), "the whole was tested with it"
    shutil.rmtree(out)
    moved.clear()
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(Result, "move", some)
        run(given, out)
    own = next(path for path in moved if path.parent.name == "published")
    own.write_bytes(b"somebody's own")
    write_image(scene(90, 2), given / "new.png")
    assert run(given, out) == 3
    assert own.read_bytes() == b"somebody's own"
    assert {row["file"]: row for row in lines(out) if row["face"] is None}[own.name]["verdict"] == "failed"


def test_a_kill_between_manifest_and_list_is_made_good(tmp_path, monkeypatch):
    folder, out = tmp_path / "in", tmp_path / "out"
    write_scenes(folder, [1])
    assert run(folder, out) == 0 and not (out / "review.csv").exists()
    (folder / "film.mp4").write_bytes(b"")
    before = (out / "manifest.jsonl").read_bytes()

    def killed(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(manifest, "_write_reviewed", killed)
    with pytest.raises(KeyboardInterrupt):
        run(folder, out)
    assert (out / "manifest.jsonl").read_bytes() == before, "the list comes first"
    assert run(folder, out, "--part", "1/1") == 0 and (out / ".unfinished").exists(), "it is left to --finish"
    (out / "manifest.jsonl.0123abcd.partial").write_text("{")  # what a real kill leaves
    monkeypatch.undo()
    assert run(folder, out) == run(folder, out) == 3
    assert "film.mp4,not handled" in (out / "review.csv").read_text() and not list(out.glob("*.partial"))


@pytest.mark.parametrize("names", [("a.png", "a.png/b.png"), ("a.png/b.png", "a.png")])
def test_a_file_that_has_become_a_folder_costs_that_file(tmp_path, names):
    path, out, raw = tmp_path / "in.zip", tmp_path / "out", io.BytesIO()
    Image.fromarray(scene(0, 2).permute(1, 2, 0).numpy()).save(raw, "PNG")
    for name in names:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, raw.getvalue())
            archive.writestr("z.png", raw.getvalue())
        if name == names[0]:
            assert run(path, out, "--part", "1/1") == 0
    assert run(path, out, "--finish") == 3
    told = {(line["file"], line["verdict"], line["publishable"]) for line in lines(out) if line["face"] is None}
    assert ("z.png", "anonymized", True) in told or ("z.png", "covered", True) in told
    assert not any(publishable for name, _, publishable in told if name.startswith("a.png"))


def test_a_method_that_did_not_hide_is_said(tmp_path, capsys):
    write_scenes(tmp_path / "in", [2])
    run(tmp_path / "in", tmp_path / "out", "--method", "blur", "--strength", "0.02", "--tries", "2")
    assert "2 masked at the last try: the method did not hide them" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["abc", "-1", "0", ""])
def test_a_wrong_limit_of_pixels_is_said_before_anything_is_done(originals, tmp_path, monkeypatch, capsys, value):
    monkeypatch.setenv("FAIRANON_MAX_PIXELS", value)
    assert run(originals, tmp_path / "out") == 1 and not (tmp_path / "out").exists()
    assert "FAIRANON_MAX_PIXELS must be a whole number above 0" in capsys.readouterr().err
