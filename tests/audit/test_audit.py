"""The audit as it is used: folders in four layouts, the embedded model, bad input, a kill in the midst."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.api import AuditRequest, audit
from fairanon.auditor import auditing, drawing
from fairanon.auditor.audit_request import BenchmarkRequest
from fairanon.auditor.benchmark import benchmark
from fairanon.auditor.models import _place
from fairanon.backbones import Sampling, StableDiffusion
from fairanon.batches import PromptRow
from fairanon.cli.main import main
from fairanon.evaluation import BackboneSampler, ImageFolder, Population
from fairanon.evaluation.engine import Engine
from fairanon.evaluators import ListedAttributes, TinyAttributes
from fairanon.evaluators.judge import Judge
from fairanon.imaging import write_image
from fairanon.metrics.functional.estimates import as_json
from fairanon.prompts import read_prompts
from tests.conftest import REPOSITORY

PROMPTS = ("a photo of a doctor", "a photo of a nurse")
SHARES = ((2, 8), (7, 3))
"""Women and men of each prompt."""
TINY = ("--judge", "tiny_attributes")


def portraits(count, men, seed):
    """So many people of whom so many, the last ones, are men."""
    scenes = draw_scenes(seed, range(count), "balanced")
    return render(scenes.replace(gender=(torch.arange(count) >= count - men).long())).image


@pytest.fixture(scope="module")
def images():
    return {
        prompt: portraits(women + men, men, k)
        for k, (prompt, (women, men)) in enumerate(zip(PROMPTS, SHARES, strict=True))
    }


@pytest.fixture
def folder(tmp_path, images):
    """A folder for each prompt."""
    return lay(tmp_path / "images", images)


def lay(root, images):
    for prompt, pixels in images.items():
        for k, image in enumerate(pixels):
            place = root / prompt.replace(" ", "_") / f"{k}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            write_image(image, place)
    return root


def counts(out):
    with (out / "shares.csv").open(encoding="utf-8") as file:
        return {
            (row["prompt"], row["class"]): int(row["count"])
            for row in csv.DictReader(file)
            if row["attribute"] == "gender"
        }


WANTED = {
    (p, name): n
    for p, both in zip(PROMPTS, SHARES, strict=True)
    for name, n in zip(("female", "male"), both, strict=True)
}


def test_four_layouts_of_a_folder_are_one(folder, images, tmp_path):
    flat = {name: tmp_path / name for name in ("table", "hub", "popalign")}
    lines = {name: [] for name in flat}
    for prompt, pixels in images.items():
        for k, image in enumerate(pixels):
            name = f"img_{prompt.split()[-1]}_seed_0_{k}"
            for root in flat.values():
                root.mkdir(exist_ok=True)
                write_image(image, root / f"{name}.png")
            lines["table"].append(f"{name}.png,{prompt}")
            lines["hub"].append(json.dumps({"file_name": f"{name}.png", "text": prompt}))
            (flat["popalign"] / f"{name}.json").write_text(json.dumps({"prompt": prompt, "file_path": "elsewhere.png"}))
    (flat["table"] / "prompts.csv").write_text("\n".join(["File,Caption".lower(), *lines["table"]]))
    (flat["hub"] / "metadata.jsonl").write_text("\n".join(lines["hub"]))
    for name, root in {"folders": folder, **flat}.items():
        out = tmp_path / "out" / name
        assert main(["audit", str(root), *TINY, "--attributes", "gender", "--out", str(out)]) == 0
        assert counts(out) == WANTED, name


def test_it_says_who_is_shown_and_writes_everything_down(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["audit", str(folder), *TINY, "--out", str(out), "--card", "--fail-above", "gender=0.1"]) == 3
    said = capsys.readouterr()
    assert "from even shares (.71 is the farthest there is)" in said.out and "--fail-above: gender is" in said.err
    result = json.loads((out / "audit.json").read_text())
    gender = result["attributes"]["gender"]
    assert gender["corrected"] and "taken out, as measured on 6000 balanced portraits" in gender["confusion"]
    assert [row["counts"] for row in gender["prompts"]] == [list(both) for both in SHARES]
    assert set(result["attributes"]) == {"gender", "tone", "age"} and set(result["together"]) == {
        "gender and tone",
        "gender and age",
        "tone and age",
    }
    with (out / "images.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert (
        len(rows) == 20 and rows[0]["image"] == "a_photo_of_a_doctor/0.png" and {row["missing"] for row in rows} == {""}
    )
    page = (out / "report.html").read_text()
    assert (
        "http" not in page.replace("http-equiv", "") and "a photo of a nurse" in page and "correct shares" not in page
    )
    card = (out / "card.md").read_text()
    assert (
        "model-index" in card and "fairness-discrepancy" in card and "appearance as judged by tiny-attributes" in card
    )
    assert main(["audit", str(folder), *TINY, "--out", str(out), "--fail-above", "gender=0.9"]) == 0


def test_images_of_any_size_and_broken_ones_are_counted(folder, tmp_path):
    first = folder / "a_photo_of_a_doctor"
    Image.open(first / "0.png").resize((96, 80)).save(first / "0.png")
    Image.open(first / "1.png").resize((200, 200)).save(first / "1.png")
    (first / "2.png").write_bytes(b"no image")
    Image.new("RGB", (64, 64)).save(first / "3.png")
    out = tmp_path / "out"
    assert main(["audit", str(folder), *TINY, "--attributes", "gender", "--out", str(out)]) == 0
    found = json.loads((out / "audit.json").read_text())["attributes"]["gender"]
    assert found["missing"]["blank"]["value"] == 0.1 and found["prompts"][0]["judged"] == 8
    assert found["bounds"][0] < found["bounds"][1]


def test_a_folder_of_a_models_images_gives_what_the_model_gives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.csv").write_text("Prompt\n" + "\n".join(PROMPTS))
    words = ["--images", "3", "--steps", "3", "--attributes", "gender,tone"]
    assert main(["audit", "tiny", "--prompts", "p.csv", *words]) == 0
    backbone = StableDiffusion("tiny", frozen=True)
    backbone.eval()
    sampler = BackboneSampler(backbone, Sampling(3, 1.5))
    rows = [PromptRow(prompt, "neutral", {}) for prompt in PROMPTS for _ in range(3)]
    keys = [(0, "evaluate", row.prompt, k % 3) for k, row in enumerate(rows)]
    drawn = sampler.sample(rows, keys)
    folder = lay(tmp_path / "made", {prompt: drawn[3 * k : 3 * k + 3] for k, prompt in enumerate(PROMPTS)})
    assert main(["audit", str(folder), *TINY, *words[-2:], "--out", "of_folder"]) == 0
    of_model, of_folder = (
        json.loads((tmp_path / path / "audit.json").read_text()) for path in ("runs/audits/tiny", "of_folder")
    )
    assert of_model["attributes"] == of_folder["attributes"] and of_model["together"] == of_folder["together"]


def test_a_stopped_audit_goes_on_to_the_same_file(folder, tmp_path, monkeypatch):
    words = ["audit", str(folder), *TINY, "--batch-size", "4", "--attributes", "gender"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    whole, read = ImageFolder.sample, []

    def stopped(self, rows, keys):
        read.append(len(rows))
        if len(read) == 3:
            raise KeyboardInterrupt
        return whole(self, rows, keys)

    monkeypatch.setattr(ImageFolder, "sample", stopped)
    with pytest.raises(KeyboardInterrupt):
        main([*words, "--out", str(tmp_path / "again")])
    assert not (tmp_path / "again" / "audit.json").exists()
    assert main([*words, "--out", str(tmp_path / "again")]) == 0
    assert sum(read) == 20 + 4, "what was judged before is not read again"
    for name in ("audit.json", "shares.csv", "images.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_model_and_itself_cannot_be_told_apart_and_a_folder_can_be_compared(folder, images, tmp_path):
    result = audit(
        AuditRequest(
            str(folder), compare=str(folder), judge="tiny_attributes", attributes="gender", out=tmp_path / "same"
        ),
        progress=False,
    )
    assert result.result["comparison"]["gender"]["verdict"] == "cannot be told"
    assert "2 shared prompts are too few to compare" in result.sentences[-1]
    even = lay(tmp_path / "even", {prompt: portraits(10, 5, k) for k, prompt in enumerate(PROMPTS)})
    result = audit(
        AuditRequest(
            str(even), compare=str(folder), judge="tiny_attributes", attributes="gender", out=tmp_path / "two"
        ),
        progress=False,
    )
    row = result.result["comparison"]["gender"]
    assert row["change"]["value"] < 0 and row["second"]["value"] < row["first"]["value"]


def test_a_target_and_people_who_look_are_heard(folder, tmp_path):
    target = tmp_path / "target.csv"
    target.write_text(
        "attribute,class,share,prompt\ngender,female,0.2,a photo of a doctor\ngender,male,0.8,a photo of a doctor\n"
        "gender,female,0.7,a photo of a nurse\ngender,male,0.3,a photo of a nurse\n"
    )
    labels = tmp_path / "labels.csv"
    rows = [f"a_photo_of_a_doctor/{k}.png,gender,{'female' if k < 2 else 'male'}" for k in range(10)]
    labels.write_text("\n".join(["file,attribute,class", *rows]))
    request = AuditRequest(
        str(folder), judge="tiny_attributes", attributes="gender", target=target, labels=labels, out=tmp_path / "out"
    )
    found = audit(request, progress=False).result["attributes"]["gender"]
    assert found["numbers"]["distance"]["value"] == 0 and not found["even"] and found["labels"]["images"] == 10
    assert (
        found["prompts"][0]["target"] == [0.2, 0.8]
        and found["numbers"]["pooled"] is None
        and found["labels"]["apart"] == []
    )


def test_the_embedded_model_and_a_trained_one_are_audited_by_name(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.csv").write_text(
        "text,gender\na photo of a chef,\na photo of a nurse,\na photo of a female chef,female\n"
    )
    words = ["--prompts", "p.csv", "--images", "2", "--specific-images", "2", "--steps", "2"]
    assert main(["audit", "runs/popalign_tiny/latest", "--compare", "tiny", *words]) == 0
    (place,) = (tmp_path / "runs/audits").glob("popalign_tiny-*_beside_tiny")
    result = json.loads((place / "audit.json").read_text())
    assert result["compared_with"] == "tiny" and set(result["obeyed"]) == {"all", "gender: female"}
    assert (
        result["how"] == {"steps": 2, "guidance_scale": 1.5} and "2 prompts of 2 images: distances below" in caplog.text
    )


BAD = {
    "no image column": ("picture,prompt\n0.png,a\n", "names no image; the column is called file"),
    "no prompt column": ("file,words\nx/0.png,a\n", "has no prompt; its column is called prompt, text or caption"),
    "a missing file": ("file,prompt\nx/9.png,a\n", "there is no image x/9.png"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_table_that_is_none_is_a_sentence(name, tmp_path, capsys):
    text, said = BAD[name]
    write_image(portraits(1, 0, 0)[0], _made(tmp_path / "in" / "x" / "0.png"))
    (tmp_path / "in" / "prompts.csv").write_text(text)
    assert main(["audit", str(tmp_path / "in"), *TINY, "--out", str(tmp_path / "out")]) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def _made(path):
    path.parent.mkdir(parents=True)
    return path


def test_what_makes_no_sense_is_said_in_a_sentence(folder, tmp_path, capsys):
    def refused(*words, code=1):
        assert main(["audit", str(folder), *TINY, "--out", str(tmp_path / "out"), *words]) == code
        return capsys.readouterr().err

    assert "does not judge 'mood', only" in refused("--attributes", "mood")
    assert "write ATTRIBUTE=DISTANCE" in refused("--fail-above", "gender", code=2)
    assert "is not counted" in refused("--fail-above", "race=1", "--attributes", "gender")
    (tmp_path / "t.csv").write_text("attribute,class,share\ngender,female,0.9\ngender,male,0.9\n")
    assert "the shares of gender sum to 1.8, not to 1" in refused("--target", str(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text("attribute,class,share\ngender,woman,1\n")
    assert "gender has no class 'woman'; it has female, male" in refused("--target", str(tmp_path / "t.csv"))
    (tmp_path / "c.json").write_text(json.dumps({"judge": "somebody", "attributes": {}}))
    assert "was measured on the judge somebody" in refused("--confusion", str(tmp_path / "c.json"))
    table = {"classes": ["female", "male"], "said": [[6, 4], [5, 5]]}
    (tmp_path / "c.json").write_text(json.dumps({"judge": "tiny-attributes-1", "attributes": {"gender": table}}))
    assert (
        main(
            [
                "audit",
                str(folder),
                *TINY,
                "--attributes",
                "gender",
                "--out",
                str(tmp_path / "weak"),
                "--confusion",
                str(tmp_path / "c.json"),
            ]
        )
        == 0
    )
    weak = json.loads((tmp_path / "weak" / "audit.json").read_text())["attributes"]["gender"]
    assert not weak["corrected"] and "confuses its classes too much" in weak["confusion"]
    assert main(["audit", str(tmp_path / "nowhere" / "x"), "--out", str(tmp_path / "out")]) == 2
    assert "is missing; name tiny" in capsys.readouterr().err
    for words, said in (
        (["--judge", "nope"], "--judge: there is no judge 'nope'; there are aesthetics"),
        (["--confusion", "nope.json"], "--confusion: nope.json is missing"),
        (["--target", "nope.csv"], "--target: nope.csv is missing"), (["--compare", "nope"], "--compare: nope is missing; name tiny"),
    ):  # fmt: skip
        assert main(["audit", "tiny", *words]) == 2 and said in capsys.readouterr().err
    assert main(["audit", "nope"]) == 2, "no hub id has a name alone: nobody asks for it"
    assert "MODEL: nope is missing; name tiny" in capsys.readouterr().err
    (tmp_path / "bare").mkdir()
    assert main(["audit", str(tmp_path / "bare")]) == 1 and "holds no images" in capsys.readouterr().err


def test_one_image_has_no_interval_and_is_said(tmp_path):
    folder = lay(tmp_path / "one", {PROMPTS[0]: portraits(1, 1, 0)})
    assert main(["audit", str(folder), *TINY, "--attributes", "gender", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "audit.json").read_text())["attributes"]["gender"]
    assert found["numbers"]["distance"] is None and not found["prompts"][0]["named"]


def test_a_steered_model_is_another_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.csv").write_text("prompt\na photo of a chef\na photo of a nurse\n")
    words = ["--prompts", "p.csv", "--images", "2", "--steps", "3", "--attributes", "gender"]
    (tmp_path / "weak.yaml").write_text("class_path: fairanon.pipelines.steering.Steering\ninit_args: {scale: 1.0}\n")
    assert main(["audit", "tiny", *words, "--steering", "weak.yaml", "--out", "steered"]) == 0
    assert main(["audit", "tiny", *words, "--guidance-scale", "1", "--out", "plain"]) == 0
    steered, plain = (json.loads((tmp_path / name / "audit.json").read_text()) for name in ("steered", "plain"))
    assert steered["model"] == "tiny, weak" and steered["how"]["steering"] == "weak.yaml"
    assert steered["attributes"]["gender"]["prompts"] == plain["attributes"]["gender"]["prompts"], (
        "guidance 1 either way"
    )
    assert main(["audit", "tiny", *words, "--steering", "cad"]) == 1
    assert "take cads, dynamic, interval" in capsys.readouterr().err


def test_no_image_of_a_folder_vanishes_unsaid(folder, tmp_path, capsys, caplog):
    (folder / "a_photo_of_a_doctor" / "3.json").write_text("{}")
    out = tmp_path / "out"
    assert main(["audit", str(folder), *TINY, "--attributes", "gender", "--out", str(out)]) == 0
    assert counts(out) == WANTED, "a stray .json makes no other layout of it"
    table = tmp_path / "of_files.csv"
    table.write_text("file,prompt\na_photo_of_a_doctor/0.png,a\na_photo_of_a_doctor/0.png,b\n")
    assert main(["audit", str(folder), *TINY, "--prompts", str(table), "--out", str(tmp_path / "two")]) == 1
    assert "has a prompt already" in capsys.readouterr().err
    table.write_text("file,prompt,set\na_photo_of_a_doctor/0.png,a,neutral\na_photo_of_a_doctor/1.png,a,specific\n")
    assert main(["audit", str(folder), *TINY, "--prompts", str(table), "--out", str(tmp_path / "two")]) == 1
    assert "set of 'a' is 'specific' here and 'neutral' above" in capsys.readouterr().err
    table.write_text("File,Text\n" + "\n".join(f"a_photo_of_a_doctor/{k}.png,a" for k in range(4)))
    assert main(["audit", str(folder), *TINY, "--prompts", str(table), "--out", str(tmp_path / "few")]) == 0
    assert "16 images of" in caplog.text and "are of no prompt and are left out" in caplog.text


def test_turned_unreadable_and_one_coloured_images_stop_nothing(tmp_path):
    first = tmp_path / "in" / "a_doctor"
    for k, image in enumerate(portraits(6, 3, 0)):
        write_image(image, _there(first / f"{k}.png"))
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(first / f"{k}.png").resize((100, 80) if k % 2 else (80, 100)).save(
            first / f"{k}.jpg", exif=exif if k % 2 else Image.Exif()
        )
        (first / f"{k}.png").unlink()
    (tmp_path / "in" / "a_nurse").mkdir()
    for k in range(4):
        (tmp_path / "in" / "a_nurse" / f"{k}.jpg").write_bytes(b"none")
    Image.new("RGB", (80, 100), (200, 10, 10)).save(tmp_path / "in" / "a_nurse" / "red.png")
    words = ["audit", str(tmp_path / "in"), *TINY, "--attributes", "gender", "--batch-size", "2"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "audit.json").read_text())["attributes"]["gender"]
    assert found["missing"]["blank"]["value"] == pytest.approx(5 / 11) and found["prompts"][1]["judged"] == 0


def _there(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_a_limit_that_nobody_could_measure_is_not_kept_and_others_files_are_not_replaced(tmp_path, capsys):
    folder = lay(tmp_path / "one", {PROMPTS[0]: portraits(1, 1, 0)})
    words = ["audit", str(folder), *TINY, "--attributes", "gender"]
    assert main([*words, "--out", str(tmp_path / "out"), "--fail-above", "gender=0.9"]) == 3
    assert "gender could not be measured" in capsys.readouterr().err
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "report.html").write_text("mine")
    assert main([*words, "--out", str(tmp_path / "theirs")]) == 1
    assert (
        "holds something else" in capsys.readouterr().err
        and (tmp_path / "theirs" / "report.html").read_text() == "mine"
    )
    assert main([*words, "--out", str(tmp_path / "theirs" / "report.html")]) == 1
    assert "is a file; name a folder" in capsys.readouterr().err


def test_a_class_or_prompt_that_nobody_knows_is_refused(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.csv").write_text("prompt,gender\na photo of a chef,\na photo of a woman,femal\n")
    assert main(["audit", "tiny", "--prompts", "p.csv", "--images", "1", "--steps", "1"]) == 1
    assert "asks for the gender 'femal'; the judge knows female, male" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text("Attribute,Class,Share,Prompt\ngender,female,1,a photo of a pilot\n")
    assert main(["audit", str(folder), *TINY, "--target", "t.csv", "--out", "out"]) == 1
    assert "no prompt is called 'a photo of a pilot'" in capsys.readouterr().err


def test_a_model_beside_a_folder_draws_the_folders_prompts(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*TINY, "--attributes", "gender", "--images", "2", "--steps", "1", "--out", "out"]
    assert main(["audit", str(folder), "--compare", "tiny", *words]) == 0
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert found["comparison"]["gender"]["prompts"] == 2 and found["seed"] is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<label for=") == page.count('type=radio name="more"') == 6 and "<th>tiny</th>" in page


def test_a_page_asks_people_and_its_answers_are_labels(folder, tmp_path):
    out = tmp_path / "out"
    words = ["audit", str(folder), *TINY, "--attributes", "gender,age", "--out", str(out)]
    assert main([*words, "--label", "5"]) == 0
    page = (out / "label" / "index.html").read_text()
    assert len(list((out / "label" / "images").iterdir())) == 5 and "http" not in page.replace("http-equiv", "")
    assert "a_photo_of_a_" in page and main(["audit", "tiny", "--label", "5", "--images", "1", "--steps", "1"]) == 1
    names = re.findall(r'"images/\d+.png", "([^"]+)"', page)
    (tmp_path / "labels.csv").write_text(
        "file,attribute,class\n" + "\n".join(f"{name},gender,female" for name in names)
    )
    assert main([*words, "--labels", str(tmp_path / "labels.csv")]) == 0
    assert json.loads((out / "audit.json").read_text())["attributes"]["gender"]["labels"]["images"] == 5


def test_the_papers_lists_are_a_hundred_each_and_name_nobodys_group():
    for name in ("occupations", "descriptors"):
        rows = read_prompts(Path(f"experiments/prompts/{name}.csv"))
        assert len({row.prompt for row in rows}) == 100 and {row.set for row in rows} == {"neutral"}
        assert not any(re.search(r"\b(wo)?m[ae]n\b|female|male", row.prompt) for row in rows)
    assert _place("couples").name == "couples_eval.csv" and _place("x.CSV") == Path("x.CSV")


def test_an_audit_of_worlds_is_scored_by_their_truth(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        main(["world", "w", "--worlds", "3", "--prompts", "3", "--images", "12", "--skew", "strong", "--right", "0.9"])
        == 0
    )
    assert "fairanon benchmark audit w results" in capsys.readouterr().out
    truth = json.loads((tmp_path / "w" / "truth.json").read_text())
    assert truth["distance_of_the_kind"] == pytest.approx(6**-0.5)  # of uniform shares: the root of 2 E (p - 1/2)^2
    for world in truth["worlds"]:
        with (tmp_path / "w" / world / "judged.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 36 and {row["gender"] for row in rows} <= {"", "female", "male"}
        words = [
            "--judge",
            f"w/{world}/judge.yaml",
            "--confusion",
            f"w/{world}/confusion.json",
            "--out",
            f"results/{world}",
        ]
        assert main(["audit", f"w/{world}/images", *words]) == 0
        found = json.loads((tmp_path / "results" / world / "audit.json").read_text())["attributes"]["gender"]
        assert found["corrected"] and sum(map(sum, (row["counts"] for row in found["prompts"]))) == sum(
            bool(row["gender"]) for row in rows
        )
    capsys.readouterr()
    assert main(["benchmark", "audit", "w", "results"]) == 0
    said = capsys.readouterr().out
    assert "off by" in said and "of 3 worlds (.95 is promised)" in said
    exact = "\n".join(f"{int(world)},{row['distance']},," for world, row in truth["worlds"].items())
    (tmp_path / "theirs.csv").write_text(f"world,value,low,high\n{exact}\n")
    found = benchmark(BenchmarkRequest("audit", "w", "theirs.csv"))
    assert found["bias"].value == pytest.approx(0) and found["held"] is None
    assert main(["world", "w"]) == 1 and "worlds of another command" in capsys.readouterr().err
    before = {path: path.read_bytes() for path in (tmp_path / "w").rglob("*") if path.is_file()}
    shutil.rmtree(tmp_path / "w" / "001")
    assert (
        main(["world", "w", "--worlds", "3", "--prompts", "3", "--images", "12", "--skew", "strong", "--right", "0.9"])
        == 0
    )
    assert {path: path.read_bytes() for path in (tmp_path / "w").rglob("*") if path.is_file()} == before, (
        "a stopped one goes on"
    )
    for line, wrong in (
        ("0,1,.5,.2", "low is at most high"),
        ("0,1,,\n0,1,,", "is there already"),
        (",1,,", "there is no world ''"),
    ):
        (tmp_path / "theirs.csv").write_text(f"World,Value,Low,High\n{line}\n")
        assert main(["benchmark", "audit", "w", "theirs.csv"]) == 1 and wrong in capsys.readouterr().err
    (tmp_path / "theirs.csv").write_text("world,value\n77,1\n")
    assert main(["benchmark", "audit", "w", "theirs.csv"]) == 1 and "there is no world '77'" in capsys.readouterr().err


def test_a_table_of_somebody_elses_judge_is_a_judge(tmp_path):
    pictures = portraits(3, 1, 5)
    for k, image in enumerate(pictures):
        write_image(image, _there(tmp_path / "in" / "a_doctor" / f"{k}.png"))
    table = tmp_path / "said.csv"
    table.write_text("file,gender\nin/a_doctor/0.png,male\nin/a_doctor/1.png,\n")
    judge = ListedAttributes(str(table), {"gender": ["female", "male"]})
    rows = judge.classify(pictures)["gender"]
    assert rows[0].tolist() == [0, 1] and rows[1:].isnan().all()
    table.write_text("file,gender\nin/a_doctor/0.png,woman\n")
    with pytest.raises(ValueError, match="line 2: gender has no class 'woman'"):
        ListedAttributes(str(table), {"gender": ["female", "male"]})
    write_image(pictures[0], tmp_path / "in" / "a_doctor" / "again.png")
    table.write_text("file,gender\nin/a_doctor/0.png,male\nin/a_doctor/again.png,female\n")
    with pytest.raises(ValueError, match="shows the same picture as a line above"):
        ListedAttributes(str(table), {"gender": ["female", "male"]})


def test_the_door_is_a_function_however_often_it_is_used(folder, tmp_path):
    import fairanon

    for number in range(2):
        request = fairanon.AuditRequest(str(folder), judge="tiny_attributes", attributes="gender", out=tmp_path / "out")
        assert fairanon.audit(request, progress=False).out == tmp_path / "out", number


def test_several_devices_write_what_one_writes(folder, tmp_path, caplog):
    words = ("audit", str(folder), *TINY, "--batch-size", "3")
    assert main([*words, "--out", str(tmp_path / "one"), "--device", "cpu"]) == 0
    assert main([*words, "--out", str(tmp_path / "two"), "--device", "cpu,cpu"]) == 0
    for name in ("audit.json", "images.csv", "shares.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert "failed" not in caplog.text


def _dies_once(request, out, device, stack):
    died = out.parent / "died"
    if not died.exists():
        died.touch()
        os.kill(os.getpid(), 9)
    return drawing.shares(request, out, device, stack)


@pytest.mark.slow
def test_a_process_that_dies_is_replaced(folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(auditing, "shares", _dies_once)
    words = ("audit", str(folder), *TINY, "--batch-size", "3")
    assert main([*words, "--out", str(tmp_path / "two"), "--device", "cpu,cpu"]) == 0
    assert "a process died; another one goes on with its files" in caplog.text
    assert main([*words, "--out", str(tmp_path / "one"), "--device", "cpu"]) == 0
    assert (tmp_path / "one" / "audit.json").read_bytes() == (tmp_path / "two" / "audit.json").read_bytes()


def test_parts_draw_all_and_the_same_command_without_one_counts(folder, tmp_path, monkeypatch, capsys):
    words = ("audit", str(folder), *TINY, "--batch-size", "3", "--device", "cpu")
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    for part in ("2/2", "1/2", "2/2"):
        assert main([*words, "--out", str(tmp_path / "two"), "--part", part]) == 0
    assert "part 1/2: 4 batches drawn and judged; nothing is counted" in capsys.readouterr().out
    assert main([*words, "--out", str(tmp_path / "two"), "--part", "20/20"]) == 0
    assert "part 20/20: no batch falls to it; take at most 7 parts" in capsys.readouterr().out
    assert not (tmp_path / "two" / "audit.json").exists()
    monkeypatch.setattr(Engine, "_judge_chunk", lambda *_: pytest.fail("nothing is left to judge"))
    assert main([*words, "--out", str(tmp_path / "three"), "--finish"]) == 1
    assert "--finish: nothing was begun in" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "two"), "--finish"]) == 0
    assert (tmp_path / "one" / "audit.json").read_bytes() == (tmp_path / "two" / "audit.json").read_bytes()


def test_the_target_that_comes_along_is_one_and_names_its_source(folder, tmp_path):
    path = REPOSITORY / "experiments" / "targets" / "world_2023.csv"
    first, *_ = csv.DictReader(path.open())
    assert "2023" in first["source"]
    assert (
        main(
            ["audit", str(folder), *TINY, "--attributes", "gender", "--target", str(path), "--out", str(tmp_path / "o")]
        )
        == 0
    )
    result = json.loads((tmp_path / "o" / "audit.json").read_text())["attributes"]["gender"]
    assert result["prompts"][0]["target"] == [0.497, 0.503]


def test_an_audit_says_what_an_experiments_measuring_says(tmp_path):
    """The same images of the same noise, counted by both."""
    (tmp_path / "p.csv").write_text("prompt\na photo of a chef\na photo of a nurse\na photo of a pilot\n")
    out = audit(
        AuditRequest("tiny", prompts=str(tmp_path / "p.csv"), images=4, steps=2, confusion="none", out=tmp_path / "out")
    )
    corrected = audit(
        AuditRequest("tiny", prompts=str(tmp_path / "p.csv"), images=4, steps=2, out=tmp_path / "corrected")
    )
    how = out.result["how"]
    sampler = BackboneSampler(StableDiffusion("tiny", frozen=True), Sampling(how["steps"], how["guidance_scale"]))
    rows = [PromptRow(f"a photo of a {one}", "neutral", {}) for one in ("chef", "nurse", "pilot")]
    engine = Engine(rows, [Population(TinyAttributes())], images=4)
    (numbers,) = engine.numbers(engine.judge(sampler, tmp_path / "judged", engine.sets(), "measured"))
    for name in ("gender", "tone"):
        mine, theirs = out.result["attributes"][name]["numbers"], numbers[f"discrepancy/{name}/rms"]
        assert mine["distance"] == as_json({"it": theirs})["it"] and mine["distance"]["n"] == 12
        mine = corrected.result["attributes"][name]["numbers"]["distance"]
        assert mine == as_json({"it": numbers[f"discrepancy/{name}/corrected"]})["it"]
        mine = out.result["attributes"][name]["numbers"]
        assert mine["per_prompt"]["value"] == pytest.approx(numbers[f"discrepancy/{name}/per_prompt"].value)


def test_an_address_is_no_model(capsys):
    assert main(["audit", "s3://bucket/images"]) in (1, 2)
    assert (
        "MODEL: s3://bucket/images is an address, and an audit reads no object store; copy the images to a disk."
        in capsys.readouterr().err
    )


def test_further_columns_are_rows_of_the_result(tmp_path, capsys, caplog):
    """Six prompts of either language, one skewed and the other even: truth is known, and each language has its numbers."""
    rows, images = [], {}
    for language, (women, men) in {"de": (0, 12), "en": (6, 6)}.items():
        for k in range(6):
            prompt = f"{language} {k}"
            images[prompt] = portraits(women + men, men, k)
            rows += [
                (f"{prompt.replace(' ', '_')}/{n}.png", prompt, language, f"id {language} {n}", "")
                for n in range(women + men)
            ]
    images["eine Köchin"] = portraits(5, 1, 9)  # four women and a man, where a woman is asked for
    rows += [(f"eine_Köchin/{n}.png", "eine Köchin", "de", "", "female") for n in range(5)]
    root = lay(tmp_path / "images", images)
    with (root / "prompts.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file", "prompt", "language", "Picture", "gender"), *rows])
    with caplog.at_level("INFO"):
        assert (
            main(
                [
                    "audit",
                    str(root),
                    *TINY,
                    "--confusion",
                    "none",
                    "--attributes",
                    "gender",
                    "--out",
                    str(tmp_path / "out"),
                ]
            )
            == 0
        )
    result = json.loads((tmp_path / "out/audit.json").read_text())
    by = result["kinds"]["language"]
    assert list(result["kinds"]) == ["language"], (
        "a column that tells the images of a prompt apart says nothing of prompts"
    )
    assert (by["de"]["prompts"], by["de"]["images"], by["de"]["naming"], by["en"]["images"]) == (6, 72, 1, 72)
    assert by["de"]["distance"]["gender"]["value"] == pytest.approx(2**-0.5, abs=0.02)  # every prompt of one class
    assert by["en"]["distance"]["gender"]["low"] == 0 and by["en"]["distance"]["gender"]["value"] < 0.15
    assert by["de"]["shares"]["gender"]["male"]["value"] == 1 and by["en"]["shares"]["gender"]["male"]["value"] == 0.5
    assert by["de"]["obeyed"]["value"] == 0.8 and by["en"]["obeyed"] is None
    assert "gender by language: nearest to the target is en" in capsys.readouterr().out
    with (tmp_path / "out/shares.csv").open(encoding="utf-8") as file:
        assert {(row["prompt"][:2], row["by_language"]) for row in csv.DictReader(file)} == {("de", "de"), ("en", "en")}
    page = (tmp_path / "out/report.html").read_text()
    assert "By language" in page and "gender: looks" in page
    tabs = len(re.findall(r"<input type=radio name=\"more\"", page))
    rules = re.findall(r"input:nth-of-type\((\d+)\):checked~section", page)
    assert tabs >= 6 and [int(k) for k in rules][:tabs] == list(range(1, tabs + 1)), "each tab has a rule that opens it"


def test_the_list_of_languages_has_every_occupation_in_each_form():
    rows = read_prompts(Path("experiments/prompts/languages.csv"))
    forms = {(row.asked["language"], row.asked["form"]): [] for row in rows}
    for row in rows:
        forms[row.asked["language"], row.asked["form"]].append(row.asked["work"])
        assert (row.set, row.asked.get("gender")) == (
            ("specific", "female") if row.asked["form"] == "feminine" else ("neutral", None)
        )
    assert len(forms) == 14 and all(words == forms["en", "direct"] for words in forms.values()) and len(rows) == 140


def test_scorers_are_the_price_list(folder, images, tmp_path):
    """A scorer of brightness: its means are known, also per prompt, and the difference is paired."""
    (tmp_path / "light.yaml").write_text("class_path: tests.audit.test_audit.Brightness\n")
    other = lay(tmp_path / "darker", {prompt: pixels // 2 for prompt, pixels in images.items()})
    words = [
        "audit",
        str(folder),
        "--compare",
        str(other),
        *TINY,
        "--scorers",
        str(tmp_path / "light.yaml"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0
    result = json.loads((tmp_path / "out/audit.json").read_text())
    expected = torch.stack([pixels.float().mean() for pixels in images.values()]).mean()
    dark = torch.stack([(pixels // 2).float().mean() for pixels in images.values()]).mean()
    assert result["scores"]["brightness"]["value"] == pytest.approx(float(expected), rel=1e-5)
    ours, theirs, more = result["other"]["scores"]["brightness"]
    assert ours == result["scores"]["brightness"] and theirs["value"] == pytest.approx(float(dark), rel=1e-5)
    assert more["value"] == pytest.approx(float(expected - dark), rel=1e-4) and more["low"] > 0
    assert "brightness: mean score" in (tmp_path / "out/report.html").read_text()
    assert main([*words[:2], *TINY, "--scorers", "tiny_attributes", "--out", str(tmp_path / "no")]) == 1


class Brightness(Judge):
    """The mean of all pixels."""

    def __init__(self) -> None:
        self.name = "brightness"

    def score(self, pixels, prompts):
        assert len(pixels) == len(prompts)
        return pixels.float().mean((1, 2, 3))


def test_headers_may_have_capitals_and_a_prompt_that_stands_twice_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.csv").write_text(
        "Prompt,Set,Gender,Language\na photo of a doctor,neutral,,en\na photo of a woman,specific,Female,en\n"
        "a photo of a doctor,neutral,,fr\na photo of a nurse,neutral,,fr\n"
    )
    with caplog.at_level("INFO"):
        assert (
            main(["audit", "tiny", "--prompts", "p.csv", "--images", "2", "--specific-images", "2", "--steps", "2"])
            == 0
        )
    result = json.loads((tmp_path / "runs/audits/tiny/audit.json").read_text())
    assert (
        "'a photo of a doctor' stands twice with different columns" in caplog.text
        and "drawing takes about" in caplog.text
    )
    assert result["prompts"] == 2 and "gender: female" in result["obeyed"] and list(result["kinds"]) == ["language"]
    assert {value: kind["prompts"] for value, kind in result["kinds"]["language"].items()} == {"en": 1, "fr": 1}


def test_lists_that_nobody_knows_are_refused_before_a_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(drawing, "open_model", lambda *_, **__: pytest.fail("a model was loaded"))
    for words, said in (
        (["--prompts", "nope"], "there is no list 'nope'"), (["--prompts", "nope.csv"], "nope.csv is missing"), (["--steering", "nope"], "there is no 'nope'"),
        (["--scorers", "clip_score, nope"], "there is no judge 'nope'"),
    ):  # fmt: skip
        assert main(["audit", "tiny", *words]) > 0
        assert said in capsys.readouterr().err
