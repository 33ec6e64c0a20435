"""A folder of images is measured by an experiment's measures, whoever drew them."""

import csv
import json
import re

import pytest
import torch

from data_modules.synthetic_faces.people_images import PeoplePrompts
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.api import MeasureRequest, measure
from fairanon.cli.main import main
from fairanon.evaluation import RegionQuality
from fairanon.evaluation.observed import Judged
from fairanon.evaluators import TinyAttributes, TinyDetector
from fairanon.imaging import write_image
from fairanon.metrics.functional.estimates import as_json


@pytest.fixture
def people(tmp_path, monkeypatch):
    """Twelve drawn people, some of whom show their hands, and a table that says how many hands were asked for."""
    monkeypatch.chdir(tmp_path)
    rows = PeoplePrompts(12).rows()
    images = torch.cat(list(PeoplePrompts(12).images()))
    (tmp_path / "drawn").mkdir()
    with (tmp_path / "drawn/prompts.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "prompt", "face", "hand"])
        for k, (row, image) in enumerate(zip(rows, images, strict=True)):
            write_image(image, tmp_path / f"drawn/{k}.png")
            table.writerow([f"{k}.png", f"{row.prompt} {k}", row.asked["face"], row.asked["hand"]])
    return rows, images


def test_regions_are_those_of_the_measure_itself(people, tmp_path, capsys):
    rows, images = people
    assert main(["measure", "drawn", "--like", "fairhuman_tiny", "--evaluate.batch_size", "5"]) == 0
    said = capsys.readouterr().out
    (path,) = (tmp_path / "runs/measured").glob("drawn-*/fairhuman_tiny/metrics.json")
    result = json.loads(path.read_text())
    quality = RegionQuality(
        TinyDetector(), TinyAttributes(faces=False), PeoplePrompts(1000, seed=4103), {"face": 1, "hand": 2}
    )
    expected = as_json(quality.numbers(Judged(rows, torch.arange(12), quality.observe(images, rows)), None))
    assert result["after"].keys() == expected.keys() and result["images"] == 12 and result["judges"] == quality.judges
    for key, number in expected.items():
        assert result["after"][key]["value"] == pytest.approx(number["value"], rel=1e-4), key
    assert "drawn: 12 images of 12 prompts, measured like fairhuman_tiny" in said and "confidence/hand" in said
    assert not [path for path in (tmp_path / "drawn").iterdir() if path.suffix not in (".png", ".csv")], (
        "nothing is written among the images"
    )


def test_prompts_are_of_the_sets_that_the_experiment_says(tmp_path, monkeypatch, caplog):
    """Even people of two prompts that name nobody, and a prompt for a woman whose images obey in half of the cases."""
    monkeypatch.chdir(tmp_path)
    wanted = {
        "a photo of a doctor": (4, 4),
        "a photo of a nurse": (4, 4),
        "a photo of a female doctor with dark skin": (4, 4),
    }
    for k, (prompt, (women, men)) in enumerate(wanted.items()):
        scenes = draw_scenes(k, range(women + men), "balanced")
        images = render(scenes.replace(gender=(torch.arange(women + men) >= women).long())).image
        for n, image in enumerate(images):
            place = tmp_path / "theirs" / prompt.replace(" ", "_") / f"{n}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            write_image(image, place)
    out = measure(MeasureRequest(tmp_path / "theirs", ["--evaluate.batch_size=8"], "popalign_tiny"))
    after = json.loads((out.folder / "metrics.json").read_text())["after"]
    assert after["discrepancy/gender/per_prompt"]["value"] == pytest.approx(0, abs=1e-6)
    assert after["discrepancy/gender/per_prompt"]["n"] == 16 and after["recall/gender"]["value"] == 0.5


def test_what_is_no_folder_of_images_is_said_before_anything_is_trained(people, tmp_path, capsys):
    assert main(["table", "fairhuman_tiny", "--seeds", "1", "--beside", "nowhere"]) == 1
    assert "--beside: nowhere is no folder of images" in capsys.readouterr().err
    assert not (tmp_path / "runs/fairhuman_tiny").exists()


@pytest.mark.parametrize(("words", "said"), [
    ([], "name the experiment whose measures"), (["--like", "popalign_gaussian"], "measures nothing"),
    (["--like", "nobody"], "there is no experiment 'nobody'"), (["--like", "popalign_tiny", "--part", "1/2"], "one process looks at them"),
])  # fmt: skip
def test_what_cannot_be_measured_is_a_sentence(people, words, said, capsys):
    assert main(["measure", "drawn", *words]) > 0
    assert said in capsys.readouterr().err


def test_what_a_table_of_the_folder_asks_for_is_checked_before_anything_is_judged(people, tmp_path, capsys):
    table = (tmp_path / "drawn/prompts.csv").read_text()
    (tmp_path / "drawn/prompts.csv").write_text(re.sub(r",\d$", ",two", table, count=1, flags=re.MULTILINE))
    assert main(["measure", "drawn", "--like", "fairhuman_tiny"]) == 1
    assert "asks for 'two' of hand; how many is a number" in capsys.readouterr().err
    (tmp_path / "drawn/prompts.csv").write_text("file,prompt,gender\n0.png,a photo of somebody,woman\n")
    assert main(["measure", "drawn", "--like", "popalign_tiny"]) == 1
    assert "asks for the gender 'woman'; the judge knows female, male" in capsys.readouterr().err
    assert main(["measure", "drawn", "--like", "popalign_tiny", "--device", "nowhere"]) > 0
    assert "bug" not in capsys.readouterr().err


def test_one_image_has_no_distance_and_its_numbers_no_page(people, tmp_path, capsys):
    (tmp_path / "drawn/prompts.csv").write_text("file,prompt\n0.png,a photo of somebody\n")
    assert main(["measure", "drawn", "--like", "popalign_tiny"]) == 0
    (folder,) = (tmp_path / "runs/measured").glob("drawn-*/popalign_tiny")
    assert "fid/balanced" not in json.loads((folder / "metrics.json").read_text())["after"]
    assert main(["report", str(folder)]) == 1 and "which have no page" in capsys.readouterr().err


def test_a_json_that_is_missing_beside_one_image_is_said(people, tmp_path, capsys):
    (tmp_path / "drawn/prompts.csv").unlink()
    for k in range(11):
        (tmp_path / f"drawn/{k}.json").write_text('{"prompt": "a photo of somebody"}')
    assert main(["measure", "drawn", "--like", "popalign_tiny"]) == 1
    assert "has a .json beside most images and none beside 11.png" in capsys.readouterr().err


def test_a_row_of_a_table_has_a_name_of_its_own(people, tmp_path, capsys):
    (tmp_path / "popalign_tiny").mkdir()
    write_image(torch.zeros(3, 64, 64, dtype=torch.uint8), tmp_path / "popalign_tiny/0.png")
    assert main(["table", "popalign_tiny", "--seeds", "1", "--beside", "popalign_tiny"]) == 1
    assert "there is a row popalign_tiny already" in capsys.readouterr().err
    assert main(["measure", "missing", "--like", "popalign_tiny"]) == 1
    assert "missing is missing; name a folder of images" in capsys.readouterr().err


def test_a_runs_options_are_not_a_folders(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("seed_everything: 0\n")
    assert main(["measure", str(tmp_path / "run"), "--like", "popalign_tiny"]) == 1
    assert "is no folder of images" in capsys.readouterr().err


def two_kinds(folder, side=64):
    """Four women and four men, named w0.png, ..., m3.png."""
    folder.mkdir()
    scenes = draw_scenes(5, range(8), "balanced")
    images = render(scenes.replace(gender=(torch.arange(8) >= 4).long())).image
    for k, image in enumerate(images):
        larger = image.repeat_interleave(side // 64, 1).repeat_interleave(side // 64, 2)
        write_image(larger, folder / f"{'wm'[k // 4]}{k % 4}.png")


def said_of(tmp_path, name, prompts, *lines):
    """A table of prompts for the two kinds."""
    (tmp_path / name).write_text("\n".join([f"file,{','.join(prompts)}", *lines]) + "\n")
    return ["--prompts", name]


def measured(tmp_path, folder, *words):
    assert main(["measure", folder, "--like", "popalign_tiny", *words]) == 0
    newest = max(
        (tmp_path / "runs/measured").glob(f"{folder}-*/popalign_tiny/metrics.json"), key=lambda p: p.stat().st_mtime_ns
    )
    return json.loads(newest.read_text())["after"]


def test_a_corrected_table_is_judged_anew_and_leaves_the_first_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two_kinds(tmp_path / "s")
    for name, first, second in (("right.csv", "female", "male"), ("wrong.csv", "male", "female")):
        lines = [
            f"{kind}{k}.png,somebody {asked},{asked}" for kind, asked in (("w", first), ("m", second)) for k in range(4)
        ]
        words = said_of(tmp_path, name, ("prompt", "gender"), *lines)
        assert measured(tmp_path, "s", *words)["recall/gender"]["value"] == (name == "right.csv")
    assert len(list((tmp_path / "runs/measured").glob("s-*/popalign_tiny/metrics.json"))) == 2
    lines = [
        f"{kind}{k}.png,somebody {asked},{asked}" for kind, asked in (("w", "female"), ("m", "male")) for k in range(4)
    ]
    words = said_of(tmp_path, "wrong.csv", ("prompt", "gender"), *lines)
    assert measured(tmp_path, "s", *words)["recall/gender"]["value"] == 1, "the same file, corrected"


def test_images_of_any_size_are_judged_in_the_judges_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"{kind}{k}.png,a photo of a doctor" for kind in "wm" for k in range(4)]
    words = said_of(tmp_path, "p.csv", ("prompt",), *lines)
    two_kinds(tmp_path / "small")
    two_kinds(tmp_path / "large", 256)
    small, large = (measured(tmp_path, name, *words) for name in ("small", "large"))
    for key in ("discrepancy/gender/per_prompt", "discrepancy/tone/per_prompt", "alignment/occupation"):
        assert large[key]["value"] == pytest.approx(small[key]["value"], abs=0.02), key


def test_a_file_that_cannot_be_read_and_a_cell_that_is_blank_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    two_kinds(tmp_path / "s")
    lines = [f"w{k}.png,somebody,{'female' if k else ''}" for k in range(4)]
    assert (
        main(["measure", "s", "--like", "popalign_tiny", *said_of(tmp_path, "p.csv", ("prompt", "gender"), *lines)])
        == 1
    )
    assert "gender of 'somebody' is 'female' here and '' above" in capsys.readouterr().err
    (tmp_path / "s/w2.png").write_bytes(b"")
    lines = [f"w{k}.png,somebody" for k in range(4)]
    assert main(["measure", "s", "--like", "popalign_tiny", *said_of(tmp_path, "p.csv", ("prompt",), *lines)]) == 1
    assert re.search(r"w2\.png.*; mend it, or take it out of s", capsys.readouterr().err)


def test_a_prompt_that_asks_for_no_group_has_no_recall(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two_kinds(tmp_path / "s")
    lines = [f"w{k}.png,a photo of a doctor,specific,doctor," for k in range(4)]
    lines += [f"m{k}.png,a photo of a woman,specific,,female" for k in range(4)]
    words = said_of(tmp_path, "p.csv", ("prompt", "set", "occupation", "gender"), *lines)
    assert measured(tmp_path, "s", *words)["recall/overall"]["value"] == 0
