"""Numbers of anybody's anonymizer: against independent references, and in the order that one expects."""

import csv
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.metrics import label_ranking_average_precision_score, pairwise_distances
from torch.nn import functional as F

from fairanon.anonymize.evidence import pair_up
from fairanon.cli import main
from fairanon.imaging import read_image, write_image
from fairanon.redaction import redact
from tests.anonymize.scenes import scene, write_scenes

TINY = ("--detector", "tiny_detector", "--recognizer", "tiny_embedder_b")
NAME = "tiny-embedder-b-1"


def evaluated(capsys, originals, anonymized, out, *words):
    assert main(["evaluate", str(originals), str(anonymized), "--out", str(out), "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


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
    assert (
        after["anonymization/accuracy/a/judge"]["value"] == 0
        and after["anonymization/accuracy/worst: a/judge"]["value"] == 0
    )
    b = after["anonymization/accuracy/b/judge"]
    assert after["anonymization/accuracy/gap/judge"]["value"] == pytest.approx(b["value"])
    assert (
        after["anonymization/accuracy/gap/judge"]["low"]
        < b["value"]
        < after["anonymization/accuracy/gap/judge"]["high"]
    )
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
    lines = [f"{name},{'left' if k % 2 else 'right'},p{k // 2}" for k, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("\n".join(["original,group,identity", *lines]))
    words = (*TINY, "--table", str(tmp_path / "t.csv"))
    found = evaluated(capsys, tmp_path / "in", tmp_path / "in", tmp_path / "e", *words)
    assert found["faces"] == 12 and found["after"][f"anonymization/accuracy/left/{NAME}"]["n"] == 6
    assert found["thresholds"][NAME]["origin"].endswith("on 2000 people"), "too few people to calibrate anew"


def test_files_pair_by_their_paths_whatever_their_endings(tmp_path):
    for folder, names in (("a", ["x/1.png", "2.png", "3.png"]), ("b", ["x/1.jpg", "2.png", "other.png"])):
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / folder / name)
    pairs, unpaired = pair_up(tmp_path / "a", tmp_path / "b")
    assert [(pair.name, pair.anonymized.name) for pair in pairs] == [("2.png", "2.png"), ("x/1.png", "1.jpg")]
    assert unpaired == ["3.png"]
    (tmp_path / "t.csv").write_text("original,anonymized,group\n3.png,other.png,g\n")
    pairs, unpaired = pair_up(tmp_path / "a", tmp_path / "b", tmp_path / "t.csv")
    assert [(pair.anonymized.name, pair.group) for pair in pairs] == [("other.png", "g")] and unpaired == []
    (tmp_path / "t.csv").write_text("original\n4.png\n")
    with pytest.raises(ValueError, match=r"line 2 names 4.png, which is not in"):
        pair_up(tmp_path / "a", tmp_path / "b", tmp_path / "t.csv")


def test_what_cannot_be_compared_is_counted(tmp_path, capsys):
    write_scenes(tmp_path / "a", [2, 2, 0, 1])
    write_scenes(tmp_path / "b", [2, 2, 0])
    (tmp_path / "b" / "0" / "scene 1.png").write_bytes(b"broken")
    found = evaluated(capsys, tmp_path / "a", tmp_path / "b", tmp_path / "e", *TINY)
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
    assert "no face was found" in capsys.readouterr().err


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
