"""Numbers of anybody's anonymizer: against independent references, and in the order that one expects."""

import csv
import json
import shutil
import unicodedata

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.metrics import label_ranking_average_precision_score, pairwise_distances
from torch.nn import functional as F

from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.anonymizer.faces import Face
from fairanon.anonymizer.looking import _painted_over
from fairanon.anonymizer.pairs import pair_up, read_labels
from fairanon.anonymizer.scenery import likeness, scenery
from fairanon.anonymizer.stored import usable
from fairanon.cli import main
from fairanon.files import TextError
from fairanon.imaging import read_image, write_image
from fairanon.metrics.functional.estimates import Estimate, as_json, effective, spread_of_shares
from fairanon.metrics.functional.verification import threshold_among
from fairanon.redaction import redact
from fairanon.report import table
from fairanon.report.answer import by_chance, state
from tests.anonymizer.scenes import scene, write_scenes

TINY = ("--detector", "tiny_detector", "--recognizer", "tiny_embedder_b")
NAME = "tiny-embedder-b-1"


def evaluated(capsys, originals, anonymized, out, *words, code=0):
    assert main(["evaluate", str(originals), str(anonymized), "--out", str(out), "--json", *words]) == code
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # NaN and Infinity are no JSON


def stored(folder, metric="cosine", people=500, width=32, per_person=2):
    """Embeddings of people with two images each; a third of the results are near their originals."""
    generator = torch.Generator().manual_seed(0)
    who = torch.arange(people) // per_person
    centre = torch.randn(int(who.max()) + 1, width, generator=generator)
    originals = centre[who] + 0.4 * torch.randn(people, width, generator=generator)
    hidden = torch.randn(people, width, generator=generator)
    near = torch.arange(people) % 3 == 0
    hidden[near] = originals[near] + 0.6 * torch.randn(int(near.sum()), width, generator=generator)
    if metric == "cosine":
        originals, hidden = F.normalize(originals, dim=1), F.normalize(hidden, dim=1)
    else:
        originals, hidden = originals / 10, hidden / 10
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("originals", originals), ("hidden", hidden)):
        save_file({"judge": rows}, folder / f"{name}.safetensors", metadata={"metric judge": metric})
    table = ["original,identity,group", *(f"{k},p{int(w)},{'ab'[int(w) % 2]}" for k, w in enumerate(who))]
    (folder / "table.csv").write_text("\n".join(table))
    return originals, hidden, who


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_retrieval_equals_an_independent_reference(tmp_path, capsys, metric):
    originals, hidden, who = stored(tmp_path, metric)
    words = ("--table", str(tmp_path / "table.csv"))
    found = evaluated(
        capsys, tmp_path / "originals.safetensors", tmp_path / "hidden.safetensors", tmp_path / "e", *words
    )
    after = found["after"]
    apart = pairwise_distances(hidden.numpy(), originals.numpy(), metric=metric)
    near, own = -apart, torch.eye(len(who)).bool().numpy()
    assert after["retrieval/top1/source/judge"]["value"] == pytest.approx((apart.argmin(1) == range(len(who))).mean())
    alike = 1 - (pairwise_distances(originals.numpy(), metric=metric) ** (2 if metric == "euclidean" else 1)) / (
        2 if metric == "euclidean" else 1
    )
    strangers = (who[:, None] != who).numpy()
    random = (alike * strangers).sum(1) / strangers.sum(1)
    assert after["id_similarity/random/judge"]["value"] == pytest.approx(random.mean(), abs=1e-5)
    places = apart.argsort(1)[:, :5]
    assert after["retrieval/top5/source/judge"]["value"] == pytest.approx(
        sum(k in row for k, row in enumerate(places)) / len(who)
    )
    reference = label_ranking_average_precision_score(own, near)
    assert after["retrieval/map/source/judge"]["value"] == pytest.approx(reference, abs=1e-6)
    others = (who[:, None] == who).numpy() & ~own
    without = [
        label_ranking_average_precision_score(others[[k]][:, ~own[k]], near[[k]][:, ~own[k]]) for k in range(len(who))
    ]
    assert after["retrieval/map/identity/judge"]["value"] == pytest.approx(sum(without) / len(who), abs=1e-6)
    threshold = found["thresholds"]["judge"]["value"]
    assert after["anonymization/accuracy/judge"]["value"] == pytest.approx((apart.diagonal() > threshold).mean())
    assert "calibrated at a false-match rate of 0.001 on 31125 pairs" in found["thresholds"]["judge"]["origin"]


def test_who_is_protected_less_is_said_relative_to_being_recognized_at_all(tmp_path, capsys):
    originals, hidden, who = stored(tmp_path)
    group = who % 2 == 0
    hidden[group] = originals[group]  # nobody in group a is hidden
    save_file({"judge": hidden}, tmp_path / "hidden.safetensors")
    words = ("--table", str(tmp_path / "table.csv"))
    found = evaluated(
        capsys, tmp_path / "originals.safetensors", tmp_path / "hidden.safetensors", tmp_path / "e", *words
    )
    after, threshold = found["after"], found["thresholds"]["judge"]["value"]
    worst = after["anonymization/accuracy/worst/judge"]
    assert after["anonymization/accuracy/a/judge"]["value"] == worst["low"] == 0 and worst["value"] < 0.01
    apart = after["anonymization/accuracy/gap: a < b/judge"]
    assert apart["value"] == pytest.approx(b["value"] if (b := after["anonymization/accuracy/b/judge"]) else 0)
    b, gap = after["anonymization/accuracy/b/judge"], after["anonymization/accuracy/gap/judge"]
    assert gap["value"] == pytest.approx(b["value"], abs=1e-3) and gap["low"] < b["value"] < gap["high"]
    assert gap["low"] > 0.5 and after["anonymization/accuracy/gap_by_chance/judge"]["value"] < 1e-3
    rows = originals[group]
    genuine = 1 - (rows[::2] * rows[1::2]).sum(1)
    clean = float((genuine <= threshold).double().mean())
    assert after["recognized/originals/a/judge"]["value"] == pytest.approx(clean)
    assert after["anonymization/failure_relative/a/judge"]["value"] == pytest.approx(1 / clean)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Originals, blurred ones, masked ones."""
    root = tmp_path_factory.mktemp("pairs")
    write_scenes(root / "originals", [3] * 20)
    for kind, strength in (("blur", 0.3), ("mask", 1.0)):
        for path in sorted((root / "originals").rglob("*.png")):
            image = read_image(path, "it")
            tiles = image.view(3, 2, 64, 3, 64).permute(1, 3, 0, 2, 4).reshape(6, 3, 64, 64)
            faces = torch.zeros(6, 1, 64, 64, dtype=torch.bool)
            faces[:, :, 12:54, 14:50] = True
            hidden = (
                redact(tiles, faces, kind, strength).view(2, 3, 3, 64, 64).permute(2, 0, 3, 1, 4).reshape(3, 128, 192)
            )
            write_image(hidden, root / kind / path.relative_to(root / "originals"))
    return root


@pytest.mark.slow
def test_originals_blur_and_mask_are_in_the_order_that_one_expects(folders, tmp_path, capsys):
    top, accuracy, alike = {}, {}, {}
    for kind in ("originals", "blur", "mask"):
        after = evaluated(capsys, folders / "originals", folders / kind, tmp_path / kind, *TINY)["after"]
        top[kind], accuracy[kind] = after[f"retrieval/top1/source/{NAME}"], after[f"anonymization/accuracy/{NAME}"]
        alike[kind] = after["ssim"]["value"]
    assert top["originals"]["value"] == 1 and accuracy["originals"]["value"] == 0 and top["originals"]["n"] == 60
    assert top["originals"]["low"] > top["blur"]["high"] and top["blur"]["low"] > top["mask"]["high"]
    assert accuracy["mask"]["low"] > accuracy["originals"]["high"]
    assert alike["originals"] > alike["blur"] > alike["mask"]


def test_everything_that_was_asked_for_is_there(folders, tmp_path, capsys):
    words = (
        "--geometry", "tiny_geometry_b", "--features", "tiny_attributes", "--perceptual", "tiny_perceptual",
        "--size", "64", "--cut-scale", "2.76", "--keep-embeddings", "--show-faces", "--workers", "2",
    )  # fmt: skip
    tiny = ("--detector", "tiny_detector", "--recognizer", "tiny_embedder_a,tiny_embedder_b")
    assert (
        main(["evaluate", str(folders / "originals"), str(folders / "blur"), "--out", str(tmp_path), *tiny, *words])
        == 0
    )
    said = capsys.readouterr().out
    assert "tiny-embedder-a-1" in said and "who is found" in said and "what is kept" in said
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["judges"]["recognition"] == "tiny-embedder-a-1 (Apache-2.0), tiny-embedder-b-1 (Apache-2.0)"
    assert found["pairs"] == 20 and found["faces"] == 60 and found["unpaired"] == 0
    for key in (
        "preservation/landmarks",
        "preservation/pose",
        "fid/source",
        "kid/source",
        "ssim",
        "psnr",
        "perceptual",
    ):
        assert found["after"][key]["value"] is not None, key
    assert found["after"]["quality"] is None and "quality" in said and "n/a" in said
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found["before"]) + len(found["after"]) and {row["of"] for row in rows} == {
        "originals",
        "anonymized",
    }
    assert "\\toprule" in (tmp_path / "table.tex").read_text()
    assert "worst cases" in (tmp_path / "report.html").read_text()
    again = evaluated(
        capsys, tmp_path / "originals.safetensors", tmp_path / "anonymized.safetensors", tmp_path / "again"
    )
    stored_ones = [str(tmp_path / f"{name}.safetensors") for name in ("originals", "anonymized")]
    assert main(["evaluate", *stored_ones, "--out", str(tmp_path / "again"), "--show-faces"]) == 1
    assert "--show-faces needs the pictures" in capsys.readouterr().err
    for key in (f"retrieval/top1/source/{NAME}", f"retrieval/map/source/{NAME}"):
        assert again["after"][key] == found["after"][key]


def test_without_being_asked_nobody_is_shown_and_nothing_is_kept(folders, tmp_path):
    assert main(["evaluate", str(folders / "originals"), str(folders / "mask"), "--out", str(tmp_path), *TINY]) == 0
    assert "<img" not in (tmp_path / "report.html").read_text() and not list(tmp_path.glob("*.safetensors"))


def test_an_attacker_who_knows_the_method_compares_with_what_it_makes(folders, tmp_path, capsys):
    words = ("--parrot", str(folders / "blur"))
    after = evaluated(capsys, folders / "originals", folders / "blur", tmp_path, *TINY, *words)["after"]
    parrot, naive = (after[f"retrieval/top1/source{who}/{NAME}"]["value"] for who in ("/parrot", ""))
    assert parrot == 1 > naive, "the same blur of the same face"


def test_labels_are_of_the_largest_face(tmp_path, capsys):
    write_scenes(tmp_path / "in", [2] * 12)
    names = [f"{k // 10}/scene {k}.png" for k in range(12)]
    lines = [f"{name},{'left' if k % 2 else 'right'},p{k % 2}{k // 4}" for k, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("\n".join(["original,group,identity", *lines]))
    words = (*TINY, "--table", str(tmp_path / "t.csv"))
    found = evaluated(capsys, tmp_path / "in", tmp_path / "in", tmp_path / "e", *words)
    assert found["faces"] == 12 and found["after"][f"anonymization/accuracy/left/{NAME}"]["n"] == 6
    assert found["thresholds"][NAME]["origin"].endswith("on 2000 people"), "too few people to calibrate anew"


def test_groups_and_people_are_the_same_however_they_are_written(tmp_path):
    composed, apart = "M\u00fcller", "Mu\u0308ller"
    hidden, wide = "Mü\u200bller", "\uff2düller"
    names = [composed, apart, hidden, wide]
    rows = [f"{k}.png,{name},{name.upper()}" for k, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("\n".join(["original,group,identity", *rows]))
    labels = read_labels(tmp_path / "t.csv")
    assert {labels.of(f"{k}.png") for k in range(4)} == {("müller", "müller")}
    (tmp_path / "t.csv").write_text("original,group,identity\n0.png,a,Anna\n1.png,b,anna\n")
    with pytest.raises(ValueError, match="line 3: 'anna' is in the group 'b' and in another one above"):
        read_labels(tmp_path / "t.csv")


def test_names_pair_whatever_way_their_accents_are_written_and_no_result_is_two_originals(tmp_path):
    for folder, names in (("a", ["e\u0301.png", "0.png", "0.jpg"]), ("b", ["\u00e9.png", "0.png"])):
        for name in names:
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / folder / name)
    (tmp_path / "t.csv").write_text("original\n\u00e9.png\n")
    found = pair_up(tmp_path / "a", tmp_path / "b", read_labels(tmp_path / "t.csv"))
    assert len(found.pairs) == 1 and not found.unknown
    found = pair_up(tmp_path / "a", tmp_path / "b")
    assert [pair.name for pair in found.pairs] == ["0.png", "e\u0301.png"] and found.alone == ["0.jpg"]


def test_files_pair_by_their_paths_whatever_their_endings(tmp_path):
    for folder, names in (("a", ["x/1.png", "2.png", "3.png"]), ("b", ["x/1.jpg", "2.png", "other.png"])):
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / folder / name)
    found = pair_up(tmp_path / "a", tmp_path / "b")
    assert [(pair.name, pair.anonymized.name) for pair in found.pairs] == [("2.png", "2.png"), ("x/1.png", "1.jpg")]
    assert found.alone == ["3.png"]
    (tmp_path / "t.csv").write_text("original,anonymized,group\n./3.png,other.png, Some  Group \n4.png,,\n")
    labels = read_labels(tmp_path / "t.csv")
    found = pair_up(tmp_path / "a", tmp_path / "b", labels)
    assert [(pair.anonymized.name, pair.group) for pair in found.pairs] == [("other.png", "some group")]
    assert (found.alone, found.unknown) == ([], ["4.png"]) and labels.changed == {" Some  Group ": "some group"}
    (tmp_path / "t.csv").write_text("original\n3.png\n./3.png\n")
    with pytest.raises(ValueError, match=r"line 3 names 3.png a second time"):
        read_labels(tmp_path / "t.csv")


def test_what_cannot_be_compared_is_counted(tmp_path, capsys):
    write_scenes(tmp_path / "a", [2, 2, 0, 1])
    write_scenes(tmp_path / "b", [2, 2, 0])
    (tmp_path / "b" / "0" / "scene 1.png").write_bytes(b"broken")
    found = evaluated(capsys, tmp_path / "a", tmp_path / "b", tmp_path / "e", *TINY, code=3)
    assert (found["pairs"], found["faces"], found["unpaired"], found["faceless"], found["unreadable"]) == (
        3,
        2,
        1,
        1,
        1,
    )


def test_results_of_another_size_are_compared_where_the_shape_is_the_same(tmp_path, capsys):
    image = scene(0, 3)
    write_image(image, tmp_path / "a" / "x.png")
    write_image(image.repeat_interleave(2, 1).repeat_interleave(2, 2), tmp_path / "b" / "x.png")
    found = evaluated(capsys, tmp_path / "a", tmp_path / "b", tmp_path / "e", *TINY)
    assert found["faces"] == 3 and found["after"]["ssim"]["value"] > 0.95
    write_image(image[:, :, :100], tmp_path / "b" / "x.png")
    assert main(["evaluate", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "e"), *TINY]) == 1
    assert "nothing can be compared (1 files)" in (said := capsys.readouterr().err) and "another shape" in said


def test_calibrate_writes_what_anonymize_goes_by(tmp_path, capsys):
    write_scenes(tmp_path / "people", [1] * 150, seed=70)
    names = [f"{k // 10}/scene {k}.png" for k in range(150)]
    (tmp_path / "g.csv").write_text("\n".join(["file,group", *(f"{n},{'ab'[k % 2]}" for k, n in enumerate(names))]))
    table = tmp_path / "t.json"
    words = ("--detector", "tiny_detector", "--recognizer", "tiny_embedder_a", "--out", str(table))
    assert main(["calibrate", str(tmp_path / "people"), "--groups", str(tmp_path / "g.csv"), *words]) == 0
    row = json.loads(table.read_text())["tiny-embedder-a-1"]
    assert row["people"] == 150 and row["groups"] == {}, "75 people of a group are too few at one in a thousand"
    write_image(scene(0, 2), tmp_path / "in" / "x.png")
    main(["anonymize", str(tmp_path / "in"), str(tmp_path / "out"), *words[:4], "--thresholds", str(table)])
    first = json.loads((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[0])
    judge = first["judges"]["tiny-embedder-a-1"]
    assert judge["value"] == row["value"] and "on 150 people" in judge["origin"]


def test_one_persons_photographs_are_no_people_to_calibrate_on(tmp_path, capsys):
    """A recognizer of which nobody says a threshold: 24 photographs of one person."""
    same = draw_scenes(3, range(24), "balanced", people=1)
    for k, image in enumerate(render(same).image):
        write_image(image, tmp_path / "one" / f"{k}.png")
    words = ("--detector", "tiny_detector", "--recognizer", "tiny_embedder_a", "--out", str(tmp_path / "t.json"))
    assert main(["calibrate", str(tmp_path / "one"), *words, "--false-match-rate", "0.05"]) == 1
    assert "as photographs of one person are" in capsys.readouterr().err and not (tmp_path / "t.json").exists()


# --- numbers that are what they say ----------------------------------------------------------------------


def test_a_threshold_is_never_calibrated_on_people_whom_nobody_tells_apart(tmp_path, capsys):
    """300 people of two photographs, hidden weakly: their repeats made a threshold at which hardly anybody matches."""
    generator = torch.Generator().manual_seed(0)
    centre = F.normalize(torch.randn(300, 64, generator=generator), dim=1).repeat_interleave(2, 0)
    rows = {
        name: F.normalize(centre + spread * torch.randn(600, 64, generator=generator), dim=1)
        for name, spread in (("originals", 0.05), ("hidden", 0.06))
    }
    for name, tensor in rows.items():
        save_file({"judge": tensor}, tmp_path / f"{name}.safetensors", metadata={"metric judge": "cosine"})
    paths = [str(tmp_path / f"{name}.safetensors") for name in rows]
    words = ["evaluate", *paths, "--out", str(tmp_path / "e"), "--json"]
    assert main(words) == 1
    assert "no threshold is known" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text("\n".join(["original,identity", *(f"{k},p{k // 2}" for k in range(600))]))
    assert main([*words, "--table", str(tmp_path / "t.csv")]) == 0
    assert json.loads(capsys.readouterr().out)["after"]["anonymization/accuracy/judge"]["value"] < 0.01
    assert main([*words, "--calibrate"]) == 1, "who asks for it says that nobody is there twice, and here everybody is"
    assert "less than half of what is usual" in capsys.readouterr().err
    row = {"value": 0.9, "false_match_rate": 1e-3, "people": 200, "pairs": 19900, "missing": 0, "groups": {}}
    (tmp_path / "table.json").write_text(json.dumps({"judge": row}))
    assert main([*words, "--table", str(tmp_path / "t.csv"), "--thresholds", str(tmp_path / "table.json")]) == 0
    assert json.loads(capsys.readouterr().out)["thresholds"]["judge"]["value"] == 0.9, (
        "the user's own table always wins"
    )


def test_random_people_are_other_people(tmp_path, capsys):
    """A folder a person: the next row is the same person."""
    originals, _, _ = stored(tmp_path, people=1500, per_person=10)
    paths = [tmp_path / f"{name}.safetensors" for name in ("originals", "originals")]
    found = evaluated(capsys, *paths, tmp_path / "e", "--table", str(tmp_path / "table.csv"))["after"]
    assert abs(found["id_similarity/random/judge"]["value"]) < 0.02 and found["id_similarity/judge"]["value"] > 0.99
    assert float((originals * originals.roll(1, 0)).sum(1).mean()) > 0.5


def test_equal_groups_are_not_told_apart(tmp_path, capsys):
    """Six groups of 50 people who are protected alike: nearly always 0 is in the interval, and the words say so."""
    rows = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    close = (torch.rand(300, generator=torch.Generator().manual_seed(1)) < 0.1)[:, None]
    hidden = torch.where(close, rows, torch.randn(300, 32, generator=torch.Generator().manual_seed(2)))
    for name, tensor in (("originals", rows), ("hidden", hidden)):
        save_file({"judge": tensor}, tmp_path / f"{name}.safetensors", metadata={"metric judge": "cosine"})
    table = ["original,group,identity", *(f"{k},{'abcdef'[k % 6]},{k}" for k in range(300))]
    (tmp_path / "t.csv").write_text("\n".join(table))
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("originals", "hidden")]
    assert main(["evaluate", *paths, "--table", str(tmp_path / "t.csv"), "--out", str(tmp_path / "e")]) == 0
    said = capsys.readouterr().out
    assert "whether a group is protected less cannot be told" in said
    gap = json.loads((tmp_path / "e" / "metrics.json").read_text())["after"]["anonymization/accuracy/gap/judge"]
    assert gap["low"] == 0 and gap["n"] == 300


def test_labels_are_as_people_write_them(tmp_path, capsys):
    stored(tmp_path, people=6, per_person=1)
    labels = ["Female", "female", " Female", "Male", "male ", ""]
    (tmp_path / "t.csv").write_text(
        "\n".join(["original,group", *(f"{k},{w}" for k, w in enumerate(labels)), "9,male"])
    )
    row = {"value": 0.4, "false_match_rate": 1e-3, "people": 200, "pairs": 19900, "missing": 0, "groups": {}}
    (tmp_path / "table.json").write_text(json.dumps({"judge": row}))
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("originals", "hidden")]
    words = ["--table", str(tmp_path / "t.csv"), "--thresholds", str(tmp_path / "table.json")]
    assert main(["evaluate", *paths, *words, "--out", str(tmp_path / "e")]) == 3
    said = capsys.readouterr().out
    assert "--table names 9, which is not there" in said and "group ' Female' counts as 'female'" in said
    after = json.loads((tmp_path / "e" / "metrics.json").read_text())["after"]
    n = {key: value["n"] for key, value in after.items() if key.startswith("anonymization/accuracy/") and value}
    assert n["anonymization/accuracy/female/judge"] == 3 and n["anonymization/accuracy/male/judge"] == 2
    assert n["anonymization/accuracy/gap/judge"] == 5
    gap = after["anonymization/accuracy/gap/judge"]
    assert gap["low"] == 0 and gap["high"] > 0.5, "five people say nearly nothing"


def test_stored_embeddings_of_any_length_are_compared_by_their_direction(tmp_path, capsys):
    originals, hidden, _ = stored(tmp_path)
    words = ("--table", str(tmp_path / "table.csv"))
    plain = evaluated(capsys, *(tmp_path / f"{n}.safetensors" for n in ("originals", "hidden")), tmp_path / "e", *words)
    hidden = hidden.clone()
    hidden[0], hidden[1], hidden[2] = 0.0, torch.inf, torch.nan
    for name, rows in (("long", 20 * originals), ("odd", 20 * hidden)):
        save_file({"judge": rows}, tmp_path / f"{name}.safetensors", metadata={"metric judge": "cosine"})
    found = evaluated(capsys, *(tmp_path / f"{n}.safetensors" for n in ("long", "odd")), tmp_path / "e2", *words)
    accuracy = {k: one["after"]["anonymization/accuracy/judge"] for k, one in (("plain", plain), ("long", found))}
    assert accuracy["long"]["missing"] == 3 and abs(accuracy["long"]["value"] - accuracy["plain"]["value"]) <= 3 / 500
    assert 0 <= found["after"]["distance/min/judge"]["value"] <= found["after"]["distance/max/judge"]["value"] <= 2


def test_the_group_that_is_named_is_the_one_that_is_worse():
    """One person of a third group says nothing, however few of their images are hidden."""
    hits = [torch.arange(200) < 190, torch.arange(200) < 140, torch.arange(2) < 1]
    found = spread_of_shares(hits, [torch.arange(len(one)) for one in hits])
    assert found.pair == (1, 0) and found.gap.low > 0.1
    single = spread_of_shares([torch.tensor([k % 2 == 0]) for k in range(6)], [torch.tensor([k]) for k in range(6)])
    assert single.pair is None and single.gap.low == 0 and single.gap.high == 1 and single.chance > 0.5


def test_one_person_with_most_of_the_images_is_one_person():
    whose = torch.cat([torch.zeros(200), torch.arange(1, 101)]).long()
    for mostly in (True, False):  # she is hidden always, or never; of the others every second one
        hits = torch.cat([torch.full((200,), mostly), torch.arange(100) % 2 == 0])
        found = Estimate.share_of(hits, whose)
        assert found.low < 0.5 < found.high, "two thirds of the images are one opinion"
    assert Estimate.share_of(torch.ones(300, dtype=torch.bool), whose).low < 0.6
    mean = Estimate.mean(torch.cat([torch.ones(200), torch.zeros(100)]), whose)
    assert mean.low < 0.1


def test_groups_whose_people_have_more_images_each_are_not_called_different():
    """Nine in ten are hidden in both groups: fifty people of one image, five of forty that are nearly all alike."""
    generator = torch.Generator().manual_seed(0)
    told = 0
    for _ in range(100):
        few, own = (torch.rand(n, generator=generator) < 0.9 for n in (5, 200))
        alike = torch.rand(200, generator=generator) < 0.9
        hits = [torch.rand(50, generator=generator) < 0.9, torch.where(alike, few.repeat_interleave(40), own)]
        found = spread_of_shares(hits, [torch.arange(50), torch.arange(200) // 40])
        told += found.chance < 0.05
    assert told <= 8


def test_several_images_of_few_people_say_little():
    two = torch.arange(100) // 50
    for more in (0, 1):
        hits = (torch.arange(100) % 50) < torch.tensor([25, 25 + more])[two]
        found = Estimate.share_of(hits, two)
        assert found.high - found.low > 0.7, "two people"
    assert effective(((torch.arange(150) % 3) == 0).double(), torch.arange(150) // 3) == 50, "each person alike"


def test_a_result_is_covered_only_by_one_colour():
    pixels = (torch.rand(3, 80, 80, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    face = Face((10.0, 10.0, 60.0, 60.0), 0.9)
    for painted, share in (
        (torch.full_like(pixels, 0), 1.0), (torch.full_like(pixels, 200), 1.0), ((pixels * 0.12).to(torch.uint8), 0.5),
        (pixels // 2 + 60, 0.5), (pixels, 0.1),
    ):  # fmt: skip
        found = _painted_over(face, pixels, painted)
        assert found == 1 if share == 1 else found < share, "a face that was darkened can be brightened"
    assert _painted_over(face, torch.full_like(pixels, 90), torch.full_like(pixels, 90)) is None, "nothing was there"


def test_stored_embeddings_that_contradict_each_other_are_refused(tmp_path, capsys):
    originals, hidden, _ = stored(tmp_path, people=20)
    names = {k: json.dumps([f"{(n + k) % 20}.jpg" for n in range(20)]) for k in (0, 1)}
    save_file({"judge": originals}, tmp_path / "a.safetensors", metadata={"names": names[0]})
    save_file({"judge": hidden}, tmp_path / "b.safetensors", metadata={"names": names[1]})
    save_file({}, tmp_path / "empty.safetensors", metadata={"names": "[]"})
    save_file({"judge": originals[:0]}, tmp_path / "none.safetensors")
    for one, other, said in (
        ("a", "b", "do not agree on their names"), ("empty", "empty", "has no embeddings"), ("none", "none", "has no embeddings"),
    ):  # fmt: skip
        paths = [str(tmp_path / f"{name}.safetensors") for name in (one, other)]
        assert main(["evaluate", *paths, "--calibrate", "--out", str(tmp_path / "e")]) == 1
        assert said in capsys.readouterr().err
    tiny = usable(torch.stack([originals[0] * 1e-30, originals[0] * 1e30, originals[0] * 0]), "cosine")
    assert torch.allclose(tiny[:2].norm(dim=1), torch.ones(2), atol=1e-3) and tiny[2].isnan().all()


def test_names_of_stored_embeddings_are_found_in_the_table_however_accents_are_stored(tmp_path, capsys):
    originals, hidden, who = stored(tmp_path, people=60)
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        names = [unicodedata.normalize(form, f"Zoë/{k}.jpg") for k in range(60)]
        for name, rows in (("o", originals), ("h", hidden)):
            about = {"metric judge": "cosine", "published judge": "0.5", "names": json.dumps(names)}
            save_file({"judge": rows}, tmp_path / f"{name}.safetensors", metadata=about)
        lines = [f"{unicodedata.normalize(other, name)},p{int(w)}" for name, w in zip(names, who, strict=True)]
        (tmp_path / "t.csv").write_text("\n".join(["original,identity", *lines]))
        words = (
            tmp_path / "o.safetensors",
            tmp_path / "h.safetensors",
            tmp_path / f"e{form}",
            "--table",
            str(tmp_path / "t.csv"),
        )
        found = evaluated(capsys, *words)
        assert found["unknown"] == 0 and "retrieval/top1/identity/judge" in found["after"]


def test_recognizers_whose_names_end_alike_are_refused(tmp_path, capsys):
    """Of a group "a" and a recognizer "b" the keys end with "a/b"."""
    originals, hidden, _ = stored(tmp_path)
    for name, rows in (("o", originals), ("h", hidden)):
        save_file({"b": rows, "a/b": rows.roll(7, 1)}, tmp_path / f"{name}.safetensors")
    words = ["evaluate", *(str(tmp_path / f"{name}.safetensors") for name in "oh"), "--out", str(tmp_path / "e")]
    assert main([*words, "--table", str(tmp_path / "table.csv")]) == 1
    said = capsys.readouterr().err
    assert (
        "'a/b' and 'b' have names that end alike" in said and "Traceback" not in said and not (tmp_path / "e").exists()
    )


def test_photographs_that_got_one_new_face_count_as_one_guess(tmp_path, capsys):
    """Of 100 people with ten photographs each four got a face that is like their own by chance: no more than guessing may find."""
    generator = torch.Generator().manual_seed(1)
    people = F.normalize(torch.randn(100, 32, generator=generator), dim=1)
    new = people[(torch.arange(100) + 9) % 100].clone()
    new[:4] = people[:4]
    who = torch.arange(1000) // 10
    noise = 0.02 * torch.randn(2, 1000, 32, generator=generator)
    about = {"metric judge": "cosine", "published judge": "0.001"}  # nobody is nearer: it is about ranks
    for name, rows in (("o", people[who] + noise[0]), ("h", new[who] + noise[1])):
        save_file({"judge": F.normalize(rows, dim=1)}, tmp_path / f"{name}.safetensors", metadata=about)
    (tmp_path / "t.csv").write_text("\n".join(["original,identity", *(f"{k},p{int(w)}" for k, w in enumerate(who))]))
    words = ("--table", str(tmp_path / "t.csv"), "--thresholds", str(tmp_path / "thresholds.json"))
    row = {"value": 0.001, "false_match_rate": 1e-3, "people": 200, "pairs": 19900, "missing": 0, "groups": {}}
    (tmp_path / "thresholds.json").write_text(json.dumps({"judge": row}))
    found = evaluated(capsys, tmp_path / "o.safetensors", tmp_path / "h.safetensors", tmp_path / "e", *words)
    top1 = found["after"]["retrieval/top1/identity/judge"]
    chance = found["after"]["retrieval/chance/top1/identity/judge"]["value"]
    assert top1["value"] == pytest.approx(0.04) and top1["draws"] == 100
    alone = {key: value for key, value in top1.items() if key != "draws"}
    key = "retrieval/top1/identity"
    assert by_chance(key, top1, chance) > 0.01 and by_chance(key, alone, chance) < 1e-6


def test_a_leak_of_one_persons_photographs_is_found_by_the_photographs():
    """50 people of 20 photographs; of one of them every photograph leads to itself."""
    whose, found = torch.arange(1000) // 20, torch.arange(1000) < 20
    top1 = as_json({"top1": Estimate.share_of(found, whose)})["top1"]
    assert top1["draws"] == 50 and by_chance("retrieval/top1/source", top1, 1 / 1000) < 1e-10


def test_one_long_album_among_many_people_hides_no_leak():
    """5,000 people of two photographs and one of 530: as many people as ever."""
    whose = torch.cat([torch.arange(5000).repeat_interleave(2), torch.full((530,), 5000)])
    found = as_json({"top1": Estimate.share_of(torch.arange(len(whose)) < 1500, whose)})["top1"]
    assert found["draws"] > 300 and by_chance("retrieval/top1/identity", found, 1 / 5000) < 1e-10
    assert Estimate.share_of(torch.zeros(len(whose), dtype=torch.bool), whose).high < 0.02


def test_an_empty_folder_is_said(tmp_path, capsys):
    for name in "ab":
        (tmp_path / name).mkdir()
    assert main(["evaluate", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "e")]) != 0
    assert "a has no pictures" in capsys.readouterr().err


def test_a_recognizer_that_takes_many_people_for_one_has_no_threshold():
    apart = torch.rand(200, 200, generator=torch.Generator().manual_seed(0)) + 0.5
    assert threshold_among(apart, 1e-3)[1] == 19900
    apart[:20, :20] = 0.25
    with pytest.raises(ValueError, match=r"190 of 19900 pairs are as near as 0\.25"):
        threshold_among(apart, 1e-3)
    assert threshold_among(apart, 0.02)[0] > 0.5


def test_one_picture_has_no_interval_and_is_never_better():
    one = {"value": 0.9311656, "low": None, "high": None, "n": 1, "missing": 0}
    result = {"higher_is_better": {"ssim": True}, "before": {"ssim": one}, "after": {"ssim": {**one, "value": 0.95}}}
    assert state(result, "ssim") == "same"
    assert table.shown(one) == "0.931 [?]"


def test_names_that_slipped_by_one_are_refused(tmp_path, capsys):
    write_scenes(tmp_path / "a", [2] * 12)
    paths = sorted((tmp_path / "a").rglob("*.png"))
    for path, other in zip(paths, [*paths[1:], paths[0]], strict=True):
        (tmp_path / "b" / path.relative_to(tmp_path / "a")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(other, tmp_path / "b" / path.relative_to(tmp_path / "a"))
    words = ["evaluate", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "e"), *TINY]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "show the scene of the picture after them" in said and "--force" in said and not (tmp_path / "e").exists()
    assert main([*words, "--force"]) == 0


@pytest.mark.parametrize("slipped", [False, True])
def test_names_that_slipped_before_one_backdrop_are_refused(slipped, tmp_path, capsys):
    """A photographer's studio: everybody sits before the same wall, and hides a part of it."""
    wall = scene(0, 1)
    for n in range(8):
        for folder, of in (("a", n), ("b", (n + slipped) % 8)):
            picture = wall.clone()
            picture[:, 20:100, 60:130] = scene(20 + of, 1)[:, 20:100, 60:130]
            (tmp_path / folder).mkdir(exist_ok=True)
            write_image(picture, tmp_path / folder / f"{n}.png")
    words = ["evaluate", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "e"), *TINY]
    code, said = main(words), capsys.readouterr().err
    assert ("show the scene of the picture after them, not their own" in said) == slipped
    assert code == 1 if slipped else code in (0, 3)


def test_a_few_names_that_slipped_are_left_out_and_said(tmp_path, capsys):
    wall = scene(0, 1)
    for n in range(9):
        for folder, of in (("a", n), ("b", {4: 5, 5: 4}.get(n, n))):
            picture = wall.clone()
            picture[:, 20:100, 60:130] = scene(20 + of, 1)[:, 20:100, 60:130]
            (tmp_path / folder).mkdir(exist_ok=True)
            write_image(picture, tmp_path / folder / f"{n}.png")
    words = ["evaluate", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "e"), *TINY]
    assert main(words) == 3
    said = capsys.readouterr().out
    for n in range(9):
        assert (f"{n}.png: its result shows the scene of the picture before or after it" in said) == (n in (4, 5))


def test_what_lies_outside_of_faces_tells_a_picture():
    picture, other = scene(0, 2), scene(1, 2)
    box = torch.tensor([[10.0, 10.0, 50.0, 55.0]])
    found = [likeness(scenery(picture, two, box)) for two in (picture, other, torch.full_like(picture, 9))]
    assert found[0] == pytest.approx(1) and found[1] < 0.7 and found[2] == 0
    everything = torch.tensor([[0.0, 0.0, 192.0, 128.0]])
    assert likeness(scenery(picture, picture, everything)) is None, "faces are all there is"


def test_half_of_the_files_missing_is_said_first(tmp_path, capsys):
    write_scenes(tmp_path / "a", [2] * 6)
    write_scenes(tmp_path / "b", [2] * 6)
    for path in sorted((tmp_path / "b").rglob("*.png"))[::2]:
        path.unlink()
    assert main(["evaluate", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "e"), *TINY]) == 3
    assert capsys.readouterr().out.startswith("3 files left out")


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_anonymize_and_evaluate_give_one_verdict(count, tmp_path, capsys):
    """The same faces, whichever of the two looks at them; also of recognizers that have no say, and of obscured faces."""
    write_scenes(tmp_path / "in", [3, 2, 1, 3, 2, 3, 3, 2][: min(count, 8)] * max(1, count // 8))
    for method, strength in (("mask", ()), ("blur", ("--strength", "0.3")), ("pixelate", ("--strength", "0.3"))):
        out = tmp_path / method
        words = [str(tmp_path / "in"), str(out), "--method", method, *strength, *TINY]
        assert main(["anonymize", *words]) in (0, 3)
        capsys.readouterr()
        lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
        done = {line["file"] for line in lines if line["face"] is None and line["publishable"]}
        said = {(one["file"], tuple(one["box"])): one for one in lines if one["face"] is not None}
        assert main(["evaluate", str(tmp_path / "in"), str(out), "--out", str(tmp_path / "e"), *TINY]) in (0, 3)
        with (tmp_path / "e" / "faces.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) >= 8 and {row["file"] for row in rows} == done
        for row in rows:
            face = said[row["file"], tuple(float(row[k]) for k in ("x0", "y0", "x1", "y1"))]
            assert row["verdict"] == face["verdict"], row
            assert float(row[f"distance {NAME}"]) == pytest.approx(face["distances"][NAME], abs=2e-4), (
                "restored in the same ways"
            )


def test_a_few_wrong_pairs_are_left_out_and_said(tmp_path, capsys):
    write_scenes(tmp_path / "a", [2] * 6)
    write_scenes(tmp_path / "b", [2] * 6)
    write_image(scene(40, 2), tmp_path / "b" / "0" / "scene 3.png")
    words = ["evaluate", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "e"), *TINY]
    assert main(words) == 3
    said = capsys.readouterr().out
    assert "0/scene 3.png and its result share nothing outside of the faces" in said
    found = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert found["verdicts"] == {"recognized": 10} and len(found["left_out"]) == 1
    assert main([*words, "--force"]) == 0
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["faces"] == 12


@pytest.mark.parametrize(
    "line",
    ["5", "null", "{}", '{"file": "0/scene 0.png", "face": 0}',
     '{"file": "0/scene 0.png", "face": 0, "box": 5, "method": "mask", "verdict": "x"}',
     '{"file": "0/scene 0.png", "face": 0, "box": [1, 2, 3, 4], "region": [9, 9, 1, 1], "method": "blur", "verdict": "x"}',
     '{"file": "0/scene 0.png", "face": 0, "box": [1, 2, 3, 4], "strength": -1, "method": "blur", "verdict": "x"}'],
)  # fmt: skip
def test_a_manifest_that_is_none_is_one_sentence(tmp_path, capsys, line):
    write_scenes(tmp_path / "a", [2])
    write_scenes(tmp_path / "b", [2])
    (tmp_path / "b" / "manifest.jsonl").write_text(line + "\n")
    words = ["evaluate", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "e"), *TINY]
    assert main(words) in (1, 2)
    assert "manifest.jsonl: entry 1" in (said := capsys.readouterr().err) and said.count("\n") == 1
    (tmp_path / "b" / "manifest.jsonl").rename(tmp_path / "manifest.jsonl")
    assert main(words) == 0, "beside other folders lies a file of somebody else's"


def test_nobodys_files_are_replaced(tmp_path, capsys):
    stored(tmp_path / "s")
    paths = [str(tmp_path / "s" / f"{name}.safetensors") for name in ("originals", "hidden")]
    before = (tmp_path / "s" / "table.csv").read_text()
    words = ["evaluate", *paths, "--table", str(tmp_path / "s" / "table.csv"), "--out"]
    assert main([*words, str(tmp_path / "s")]) in (1, 2)
    assert "table.csv is of something else" in capsys.readouterr().err
    assert (tmp_path / "s" / "table.csv").read_text() == before
    for _ in range(2):
        assert main([*words, str(tmp_path / "e")]) == 0
    write_scenes(tmp_path / "a", [1])
    assert main(["evaluate", str(tmp_path / "a"), str(tmp_path / "a"), "--out", str(tmp_path / "a"), *TINY]) in (1, 2)
    assert "name a folder apart from the pictures" in capsys.readouterr().err


def test_what_cannot_be_a_group_or_a_threshold_is_refused(tmp_path, capsys):
    originals, hidden, _ = stored(tmp_path, people=8, per_person=1)
    (tmp_path / "t.csv").write_text("original,group\n0,Worst\n")
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("originals", "hidden")]
    assert main(["evaluate", *paths, "--table", str(tmp_path / "t.csv"), "--out", str(tmp_path / "e")]) in (1, 2)
    assert "line 2: a group cannot be called 'Worst'" in capsys.readouterr().err
    for metadata, said in (
        ({"published judge": "nan"}, "is no distance above 0"), ({"metric judge": "hamming"}, "metric 'hamming' is not known"),
        ({"names": "5"}, "must be a JSON list"),
    ):  # fmt: skip
        save_file({"judge": originals}, tmp_path / "o.safetensors", metadata=metadata)
        save_file({"judge": hidden}, tmp_path / "h.safetensors")
        odd = [str(tmp_path / f"{name}.safetensors") for name in ("o", "h")]
        assert main(["evaluate", *odd, "--out", str(tmp_path / "e")]) == 1
        assert said in capsys.readouterr().err


def test_a_mistake_in_the_command_is_said_in_one_sentence(tmp_path, capsys):
    stored(tmp_path / "s", people=8, per_person=1)
    write_scenes(tmp_path / "a", [1])
    doubled = tmp_path / "t.csv"
    doubled.write_text("original,group,group\n1.png,a,b\n")
    pictures, rows = [str(tmp_path / "a")] * 2, str(tmp_path / "s" / "originals.safetensors")
    for words, said in (
        ([rows, str(tmp_path / "a")], "originals.safetensors is stored embeddings and the other is not"),
        ([*pictures, "--table", str(doubled)], "has the column group twice"),
        ([*pictures, *TINY, "--geometry", "tiny_geometry_b"], "faces of 64 pixels; add --size 64"),
        (
            [*pictures, *TINY, "--geometry", "tiny_parser"],
            "--geometry: tiny_parser cannot do this, it has no `measure`",
        ),
        ([*pictures, *TINY, "--features", "tiny_attributes,tiny_attributes"], "--features takes one judge, got 2"),
        ([*pictures, "--detector", "dlib"], "--detector: dlib cannot do this"),
    ):
        assert main(["evaluate", *words, "--out", str(tmp_path / "e")]) in (1, 2)
        assert said in (err := capsys.readouterr().err) and err.count("\n") == 1
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("offset", [0.0, 100.0, 1000.0])
def test_a_leak_is_seen_however_far_from_the_origin_embeddings_lie(tmp_path, capsys, offset):
    rows = offset + 0.05 * torch.randn(300, 128, generator=torch.Generator().manual_seed(0))
    for name in ("a", "b"):
        save_file({"judge": rows}, tmp_path / f"{name}.safetensors", metadata={"metric judge": "euclidean"})
    found = evaluated(capsys, tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "e", "--calibrate")
    assert found["after"]["retrieval/top1/source/judge"]["value"] == 1.0
    assert found["after"]["id_similarity/judge"]["value"] == pytest.approx(1.0, abs=1e-3)


def test_words_for_nobody_are_no_person_and_no_group_and_columns_have_any_capitals(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("original,Group,IDENTITY\na.png,old,p1\nb.png,Unknown,nan\nc.png,-,p2\n")
    found = read_labels(table)
    assert [found.of(f"{name}.png") for name in "abc"] == [("old", "p1"), (None, None), (None, "p2")]
    assert dict(found.unsaid) == {"unknown": 1, "nan": 1, "-": 1} and not found.changed
    table.write_text("original,group\na.png,skin: dark\nb.png,N/A\n")
    assert read_labels(table).of("a.png")[0] == "skin: dark" and read_labels(table).of("b.png")[0] is None
    table.write_text("original,group\na.png,gap: x\n")
    with pytest.raises(TextError, match="a group cannot be called 'gap: x'"):
        read_labels(table)


def test_a_group_that_nobody_could_judge_is_said_to_be_that(tmp_path, capsys):
    generator = torch.Generator().manual_seed(1)
    first, second = (F.normalize(torch.randn(400, 64, generator=generator), dim=1) for _ in range(2))
    second[:60] = torch.nan
    for name, rows in (("a", first), ("b", second)):
        save_file({"judge": rows}, tmp_path / f"{name}.safetensors", metadata={"metric judge": "cosine"})
    lines = ["original,group", *(f"{k},{'one' if k < 200 else 'other'}" for k in range(400))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    words = [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--table", str(tmp_path / "t.csv")]
    assert main(["evaluate", *words, "--calibrate", "--out", str(tmp_path / "e")]) in (0, 3)
    assert "60 faces of one could not be judged and count as not protected" in " ".join(capsys.readouterr().out.split())
