import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jsonargparse
import pytest
import torch
import yaml
from filelock import FileLock, Timeout
from safetensors.torch import load_file

from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.cli import main
from fairanon.config import runs
from fairanon.config.experiments import UserError, own
from fairanon.imaging import write_image
from fairanon.prepare.run import preparations, prepare_for
from fairanon.report.answer import Answer
from fairanon.report.table import summarise
from fairanon.run import training
from tests.conftest import REPOSITORY
from tests.data_modules.test_human_regions import write_people


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder like a checkout's root: experiments are there, runs and data will be."""
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quick(preferences, steps=4):
    """A training of seconds: few steps, few images, every image counts as a face."""
    return ["train", "popalign_tiny", "--data.folder", str(preferences), "--data.batch_size", "2",
            "--trainer.max_steps", str(steps), "--trainer.val_check_interval", "1000000", "--checkpoint_every", "2",
            "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false",
            "--evaluate.images", "2", "--evaluate.specific_images", "0", "--evaluate.sampling_steps", "1",
            "--evaluate.measures.judge.init_args.faces", "false",
            "--evaluate.measures.reference.init_args.count", "150"]  # fmt: skip


def test_help_needs_no_torch_and_no_time():
    code = "import sys, fairanon.cli as c; c.main(['--help']); assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "usage: fairanon" in done.stdout, done.stderr
    module = subprocess.run([sys.executable, "-m", "fairanon", "--help"], capture_output=True, text=True, check=False)
    assert module.stdout == done.stdout


VERBS = ("train", "rehearse", "fit", "config", "table", "measure", "export", "report", "prepare", "experiments")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_of_its_own(verb, capsys):
    assert main([verb, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: fairanon {verb} ") and "-h, --help" in said


def test_settings_may_stand_before_a_name_and_what_is_old_says_where_it_went(workplace, capsys):
    assert main(["config", "--model.beta", "123", "--overlay=cpu", "popalign_tiny"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert found["model"]["init_args"]["beta"] == 123.0 and found["trainer"]["accelerator"] == "cpu"
    for words, said in (
        (["evaluate", "runs/x"], "a run is measured by `fairanon measure RUN`"),
        (["report", "runs/x", "--model.beta", "3"], "unknown: --model.beta=3; `fairanon report --help`"),
        (["table", "popalign_tiny", "--seeds", "a"], "seeds are numbers with commas"),
    ):
        assert main(words) == 2
        assert said in (told := capsys.readouterr().err) and told.count("\n") == 1


def test_one_seed_sets_all(workplace, capsys):
    assert main(["config", "popalign_tiny", "--seed", "7"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert [found["seed_everything"], found["model"]["init_args"]["seed"], found["data"]["init_args"]["seed"]] == [
        7
    ] * 3
    assert found["evaluate"]["init_args"]["seed"] == 1, "measuring has the same noise in every run"
    assert main(["train", "popalign_gaussian", "--seed", "7", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["seed"] == 7


def test_training_goes_on_from_a_given_checkpoint(workplace, preferences, capsys):
    words = [*quick(preferences, steps=2), "--evaluate", "null"]
    assert main(words) == 0
    last = next((workplace / "runs/popalign_tiny").glob("2*/checkpoints/last.ckpt"))
    assert main([*words, "--trainer.max_steps", "3", "--ckpt_path", str(last)]) == 0
    (other,) = [path for path in (workplace / "runs/popalign_tiny").glob("2*") if path not in last.parents]
    assert torch.load(other / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    rows = list(csv.DictReader((other / "metrics.csv").open()))
    assert [row["step"] for row in rows if row["train/loss"]] == ["2"], "the first two steps are not repeated"
    assert main([*words, "--ckpt_path", str(last)]) == 1
    assert "is of step 2, trainer.max_steps is 2; raise it" in capsys.readouterr().err
    assert main([*words, "--ckpt_path", "nowhere.ckpt"]) == 1
    assert "ckpt_path: nowhere.ckpt is missing" in capsys.readouterr().err


def test_a_run_is_of_the_code_that_can_change_its_numbers(tmp_path):
    for package in ("fairanon", "data_modules"):
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("*.safetensors"))

    def digest(name, added):
        with (tmp_path / "fairanon" / name).open("a") as file:
            file.write(added)
        runs.code_version.cache_clear()
        return runs.code_version(tmp_path)

    before = runs.code_version(tmp_path)
    assert before == runs.code_version()
    for name in runs.WITHOUT_NUMBERS:
        path = tmp_path / "fairanon" / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), "what is named is there"
    for name in ("report/page.py", "cli/main.py", "run/rehearsal.py"):
        assert digest(name, "another = 'style'\n") == before
    assert digest("losses/preference_losses.py", "# a comment\n\n\n'''And a text.'''\n") == before
    assert digest("losses/preference_losses.py", "another = 'loss'\n") != before
    runs.code_version.cache_clear()


def test_a_second_run_of_one_process_has_a_folder_of_its_own(workplace, capsys):
    with runs.run_folder("popalign_tiny", "a", fresh=False) as (first, _), pytest.raises(Timeout):
        FileLock(first / ".lock").acquire(blocking=False)
    (first / "checkpoints").mkdir()
    (first / "checkpoints/last.ckpt").touch()
    capsys.readouterr()
    with runs.run_folder("popalign_tiny", "a", fresh=True) as (fresh, _):
        assert fresh != first and not capsys.readouterr().out
    with runs.run_folder("popalign_tiny", "b", fresh=False) as (other, checkpoint):
        assert other not in (first, fresh) and checkpoint is None
        said = capsys.readouterr().out
        assert said == (
            f"not going on with the unfinished run {first}: it has other settings. To go on with it all the same, add "
            f"--ckpt_path {first}/checkpoints/last.ckpt\n"
        )
    (fresh / "run.json").unlink()
    with runs.run_folder("popalign_tiny", "a", fresh=False) as (again, checkpoint):
        assert again == first and checkpoint == first / "checkpoints/last.ckpt"
    assert "FAIRANON_RUN" not in os.environ


def test_unknown_experiment_lists_them_and_exits_2(workplace, capsys):
    assert main(["train", "popalign_tinny"]) == 2
    said = capsys.readouterr().err
    assert "there is no experiment 'popalign_tinny' (did you mean popalign_tiny" in said
    assert main(["dance"]) == 2
    assert main(["train", "popalign_tiny", "--overlay", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--model.betta", "3"], ["betta"]),
        (["--model.beta", "much"], ["beta", "much"]),
        (["--trainer.max_epoch", "3"], ["max_epoch"]),
        (["--model.backbone.init_args.dtype", "float64"], ["dtype", "float32", "bfloat16", "float16"]),
        (["--model.alpha", "2"], ["alpha", "[0, 1]", "2"]),
        (["--data.folder", "nowhere"], ["data.folder", "nowhere", "fairanon prepare"]),
        (["--model.backbone.init_args.model", "./none"], ["model.backbone.model", "./none"]),
    ],
)
def test_a_users_mistake_is_one_message_that_names_the_key(workplace, capsys, words, parts):
    code = main(["train", "popalign_tiny", "--data.folder", "never_prepared", *words])
    said = capsys.readouterr().err.rpartition("fairanon: ")[2]
    assert code in (1, 2)
    for part in parts:
        assert part in said, said
    assert "Traceback" not in said and len(said) < 900, said


def test_config_prints_the_resolved_configuration(workplace, capsys):
    assert main(["config", "popalign_tiny", "--model.beta", "123"]) == 0
    text = capsys.readouterr().out
    assert "beta: 123.0" in text and "gradient_clip_val: 1.0" in text and str(Path.home()) not in text


def test_an_experiment_that_extends_another_changes_only_what_it_says(workplace, capsys):
    texts = []
    for name in ("popalign_sdxl", "popalign_sdxl_dpo"):
        assert main(["config", name]) == 0, "no weights are needed to print a configuration"
        texts.append(capsys.readouterr().out.splitlines())
    changed = [line.strip() for line in texts[1] if line not in texts[0]]
    assert changed == [
        "unet: mhdang/dpo-sdxl-text2image-v1",
        "folder: data/preferences_sdxl_dpo",
        "extends: popalign_sdxl",
        "- preferences_sdxl_dpo",
    ]
    own = workplace / "own.yaml"
    own.write_text("extends: popalign_tinny\n")
    assert main(["fit", "-c", str(own)]) == 2
    assert "own.yaml: extends names 'popalign_tinny'" in capsys.readouterr().err


def test_a_run_leaves_everything_and_is_not_touched_again(workplace, preferences, capsys):
    assert main(quick(preferences)) == 0
    said = capsys.readouterr().out
    assert "discrepancy/gender/per_prompt" in said and "report.html" in said
    latest = workplace / "runs" / "popalign_tiny" / "latest"
    for name in ("config.yaml", "versions.json", "metrics.json", "metrics.csv", "curves.png", "report.html",
                 "checkpoints/last.ckpt", "grids/neutral-before.png", "grids/neutral-after.png", "README.md"):  # fmt: skip
        assert (latest / name).stat().st_size > 0, name
    assert (latest / "lora.safetensors").exists() or (latest / "unet" / "config.json").exists()
    page = (latest / "report.html").read_text()
    assert "base64," in page and 'src="grids' not in page and "http://" not in page
    metrics = json.loads((latest / "metrics.json").read_text())
    assert set(metrics["before"]) == set(metrics["after"]) and set(metrics["seconds"]) >= {"train", "evaluate_after"}
    assert set(metrics["after"]["discrepancy/gender/per_prompt"]) == {"value", "low", "high", "n", "missing"}
    assert not list(workplace.rglob("*.partial"))
    first = latest.resolve()
    ours = [
        path for path in first.rglob("*") if path.is_file() and "wandb" not in path.parts
    ]  # it may still be closing
    stamps = {path: path.stat().st_mtime_ns for path in ours}
    time.sleep(1.1)
    assert main([*quick(preferences), "--trainer.max_steps", "1", "--evaluate", "null"]) == 0
    assert latest.resolve() != first and stamps == {path: path.stat().st_mtime_ns for path in ours}
    text = (first / "config.yaml").read_text()
    with runs.run_folder("popalign_tiny", text, fresh=False) as (new, checkpoint):
        assert new != first and checkpoint is None, "a finished run is never continued"


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_where_an_uninterrupted_one_does(workplace, preferences):
    words = quick(preferences, steps=20)
    command = [sys.executable, "-m", "fairanon", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    runs, deadline = workplace / "runs" / "popalign_tiny", time.time() + 240
    while not list(runs.glob("*/checkpoints/last.ckpt")):
        assert process.poll() is None and time.time() < deadline, "no checkpoint appeared"
        time.sleep(0.05)
    (folder,) = runs.glob("2*")
    with pytest.raises(Timeout):
        FileLock(folder / ".lock").acquire(blocking=False)  # nobody else can work on a run that is alive
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "metrics.json").exists()
    (folder / "checkpoints" / "last.ckpt.12345678.partial").write_bytes(b"half")  # as a kill in the midst of it leaves
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "going on with the unfinished run" in done.stdout and not list(folder.rglob("*.partial"))
    assert [path.name for path in runs.glob("2*")] == [folder.name] and (folder / "metrics.json").exists()
    whole = subprocess.run([*command, "--fresh"], env=environment, capture_output=True, check=False, timeout=400)
    assert whole.returncode == 0
    (other,) = [path for path in runs.glob("2*") if path.name != folder.name]

    import torch

    first, second = (
        torch.load(p / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for p in (folder, other)
    )
    assert all(torch.equal(first[name], second[name]) for name in second)

    def logged(path: Path) -> list[tuple[str, str, str]]:
        with (path / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [(row["step"], row["train/loss"], row["train/mu"]) for row in rows if row["train/loss"]]

    assert logged(folder) == logged(other) and len(logged(other)) == 20, "the curve of the first part is kept"


def test_a_run_that_another_process_works_on_is_left_alone(tmp_path):
    with FileLock(tmp_path / ".lock"):  # noqa: SIM117  (the lock must be held first)
        with pytest.raises(ValueError, match="is being worked on by another process; wait for it"):
            runs.claim(tmp_path)
    with runs.working_on(tmp_path):
        assert not FileLock(tmp_path / ".lock").is_locked


@pytest.mark.slow
def test_a_table_trains_only_the_cells_that_are_missing(workplace, preferences, capsys):
    words = quick(preferences)[2:]
    assert main(["table", "popalign_tiny", "--seeds", "11", *words]) == 0
    (first,) = (workplace / "runs" / "popalign_tiny").glob("2*")
    assert "seed_everything: 11" in (first / "config.yaml").read_text()
    capsys.readouterr()
    assert main(["table", "popalign_tiny", "--seeds", "11,12", *words]) == 0
    said = capsys.readouterr().out
    assert "popalign_tiny, seed 12" in said and "seed 11" not in said
    rows = [line for line in said.splitlines() if line.startswith("|")]
    assert rows[2].startswith("| base |") and rows[3].startswith("| popalign_tiny |")
    assert len({row.count("|") for row in rows}) == 1 and "over 2 seeds" in said
    table = json.loads((workplace / "runs" / "table-popalign_tiny.json").read_text())
    assert list(table["rows"]) == ["base", "popalign_tiny"] and "--seeds 11,12" in table["command"]
    for k in range(4):  # somebody else's images are a row
        place = workplace / "theirs" / ("a_photo_of_a_doctor", "a_photo_of_a_nurse")[k % 2] / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_image(torch.full((3, 64, 64), 60 * k, dtype=torch.uint8), place)
    for _ in range(2):  # kept cells need no run
        assert main(["table", "popalign_tiny", "--seeds", "11", "--cells", "cells", "--beside", "theirs", *words]) == 0
        page = (workplace / "runs" / "table-popalign_tiny.html").read_text()
        shutil.rmtree(workplace / "runs")
    said = capsys.readouterr().out
    assert "| theirs |" in said and "theirs" in page
    assert "training" not in said and (workplace / "cells" / "popalign_tiny-11.json").exists()
    assert main(["table", "popalign_tiny"]) == 2
    assert "--seeds" in capsys.readouterr().err


def test_kept_cells_are_neither_written_over_nor_believed_unseen(workplace, capsys):
    kept = REPOSITORY / "experiments/results/rivals/sft_tiny-21.json"
    cell = workplace / "cells" / "sft_tiny-21.json"
    cell.parent.mkdir()
    content = json.loads(kept.read_text())
    words = ["--evaluate.images", "20", "--evaluate.specific_images", "2", "--cells", "cells"]
    table = ["table", "sft_tiny", "--overlay", "second_judge", "--seeds", "21", *words]
    for damaged, said in (
        ([], "holds no numbers of sft_tiny; take it away"),
        ({**content, "metrics": {**content["metrics"], "experiment": "dpo_tiny"}}, "holds no numbers of sft_tiny"),
        ({**content, "metrics": {}}, "holds no numbers of sft_tiny"),
        ({**content, "world": "another"}, "is of other settings or another embedded world"),
    ):
        cell.write_text(text := json.dumps(damaged))
        assert main(table) == 1 and said in capsys.readouterr().err and cell.read_text() == text
    shutil.copy(kept, cell)
    assert main([*table, "--trainer.max_steps", "2"]) == 1
    assert "is of other settings" in capsys.readouterr().err and cell.read_text() == kept.read_text()
    assert main(table) == 0 and "| sft_tiny |" in capsys.readouterr().out


def test_a_full_disk_is_one_sentence(workplace, preferences, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fairanon.evaluation.engine.save_file", full)
    assert main(quick(preferences)) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the disk is full: " in said and "safetensors could not be written" in said
    assert not list(workplace.rglob("metrics.json"))


@pytest.mark.parametrize("name", ["fairhuman_tiny", pytest.param("fairhuman_tiny_controlnet", marks=pytest.mark.slow)])
def test_fairhuman_from_training_to_a_pipeline(workplace, capsys, name):
    small = ["--data.batch_size", "2", "--data.val_count", "4", "--trainer.max_steps", "2", "--checkpoint_every", "1",
             "--trainer.log_every_n_steps", "1",
             "--trainer.enable_progress_bar", "false", "--evaluate.prompts.init_args.count", "6",
             "--evaluate.sampling_steps", "1",
             "--evaluate.measures.reference.init_args.count", "150"]  # fmt: skip
    assert main(["train", name, *small]) == 0
    said = capsys.readouterr().out
    folder = workplace / "runs" / name / "latest"
    result = json.loads((folder / "metrics.json").read_text())
    keys = {f"loss/val/{k}" for k in ("global", "face", "hand")} | {
        "confidence/hand",
        "detection_rate/face",
        "fid/whole",
    }
    assert len(set(result["headline"])) == len(result["headline"]) and "loss/val/hand" in result["headline"]
    assert keys <= set(result["after"]) == set(result["before"]) and "detection_rate/hand" in said
    assert result["judges"] == {"detections": "tiny-detector-1", "features": "tiny-attributes-1"}
    assert all(result["before"][f"loss/val/{k}"] != result["after"][f"loss/val/{k}"] for k in ("global", "face"))
    assert (folder / "report.html").exists() and (folder / "grids" / "people-after.png").exists()
    with (folder / "metrics.csv").open() as file:
        logged = set(next(csv.reader(file)))
    assert {"train/loss/global", "train/weight/global", "train/gradient_norm", "train/solver/regularised"} <= logged
    exported = main(["export", str(folder), "pipeline", "--weight", "0.3"])
    if name == "fairhuman_tiny":
        assert exported == 0 and (workplace / "pipeline" / "model_index.json").exists()
        assert "ratio loss/val/hand" in summarise({name: [result]})[name]
    else:
        assert exported == 1 and "a control network is no pipeline" in capsys.readouterr().err
        assert (folder / "controlnet" / "config.json").exists()


def test_regions_of_a_plain_folder_by_the_preparations_name(workplace, capsys):
    (workplace / "holiday").mkdir()
    for n, image in enumerate(render(draw_scenes(3, range(2), "balanced")).image):
        write_image(image, workplace / "holiday" / f"{n}.png")
    detector = ["--prepare.init_args.detector", "fairanon.evaluators.TinyDetector"]
    assert main(["prepare", "regions", "holiday", *detector, "--prepare.init_args.folder", "out"]) == 0
    assert "2 face" in capsys.readouterr().out and len((workplace / "out/metadata.jsonl").read_text().splitlines()) == 2
    assert main(["prepare", "regions", "nowhere", *detector, "--prepare.init_args.folder", "out2"]) == 1
    assert "nowhere is missing" in capsys.readouterr().err and not (workplace / "out2").exists()
    assert main(["prepare", "dance"]) == 2
    assert "preferences_tiny" in capsys.readouterr().err


def test_stages_get_the_seeds_and_overlays_and_the_family_everything(workplace, monkeypatch, capsys):
    started = []
    monkeypatch.setattr("fairanon.run.training._run", lambda command: started.append(command[4:]))
    found = iter([None, workplace, None, None])  # the first stage finishes, the second does not
    monkeypatch.setattr("fairanon.run.training.find_run", lambda *_, finished: next(found))
    words = ["--overlay", "cpu", "--data.batch_size", "2", "--seed", "11", "--fresh", "--log", "none"]
    assert main(["train", "ano_face_fair_tiny", *words]) == 1
    assert "ano_face_fair_tiny_diff did not finish" in capsys.readouterr().err
    assert started == [
        [name, "--log", "none", "--overlay", "cpu", "--data.batch_size=2", "--seed=11"]
        for name in ("ano_face_fair_tiny_ffe", "ano_face_fair_tiny_diff")
    ]
    started.clear()
    monkeypatch.setattr("fairanon.run.training.find_run", lambda *_, finished: None)
    (workplace / "own").mkdir()
    file = workplace / "own" / "own.yaml"
    file.write_text("folder: ${run:simpo_tiny}\n")
    with pytest.raises(UserError, match="simpo_tiny did not finish"):
        training.train_stages(own([str(file)], ["cpu"], ["--data.batch_size=2", "--seed=11"]))
    assert started == [["simpo_tiny", "--log", "wandb", "--overlay", "cpu", "--seed=11"]]


@pytest.mark.slow
def test_a_chain_of_experiments_is_one_command(tmp_path, monkeypatch, capsys):
    """Configurations A to D of Ano-Face-Fair, two steps each."""
    shutil.copytree(REPOSITORY / "experiments", tmp_path / "experiments")
    for path in (tmp_path / "experiments").rglob("*.yaml"):
        text = re.sub(r"(max_steps|T_max): \d\d+", r"\1: 2", path.read_text())
        text = re.sub(r"(sampling_steps|images|specific_images): \d+", r"\1: 1", text)
        text = re.sub(r"count: (?!1000|4000)\d+", "count: 4", text)  # references and strangers must be many
        text = text.replace("samples: 12", "samples: 4").replace("best: 5", "best: 2").replace("worst: 4", "worst: 2")
        path.write_text(text.replace("  val_check_interval: 50\n", "  val_check_interval: 2\n"))
    table = (tmp_path / "experiments" / "prompts" / "tiny_pairs.csv").read_text().splitlines()
    (tmp_path / "experiments" / "prompts" / "tiny_pairs.csv").write_text("\n".join([*table[:41], *table[-10:]]))
    monkeypatch.chdir(tmp_path)
    assert main(["train", "ano_face_fair_tiny"]) == 0
    said = capsys.readouterr().out
    names = ("ano_face_fair_tiny_ffe", "ano_face_fair_tiny_diff", "simpo_tiny", "ano_face_fair_tiny")
    runs = {name: (tmp_path / "runs" / name / "latest").resolve() for name in names}
    found = {name: json.loads((folder / "metrics.json").read_text()) for name, folder in runs.items()}
    whole, stages = found["ano_face_fair_tiny"], found["ano_face_fair_tiny"]["stages"]
    assert [label[0] for label in stages] == ["A", "B", "C", "D"] and "training simpo_tiny" in said
    assert list(stages.values()) == [whole["before"], *(found[name]["after"] for name in names[:2]), whole["after"]]
    assert found[names[0]]["before"] == whole["before"], "every configuration is compared with the same base"
    assert "Stages" in (runs["ano_face_fair_tiny"] / "report.html").read_text()
    assert (runs["ano_face_fair_tiny"] / "grids" / "people-source.png").exists()

    weights = {name: load_file(next((runs[name] / "unet").glob("*.safetensors"))) for name in (names[1], names[3])}
    lora = load_file(runs["simpo_tiny"] / "lora.safetensors")
    key = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    up, down = (lora[f"unet.{key}.lora.{side}.weight"] for side in ("up", "down"))
    expected = weights[names[1]][f"{key}.weight"] + 0.5 * up @ down
    torch.testing.assert_close(weights[names[3]][f"{key}.weight"], expected, rtol=1e-4, atol=1e-6)

    assert main(["train", "ano_face_fair_tiny", "--fresh"]) == 0
    assert all(len(list((tmp_path / "runs" / name).glob("2*"))) == 1 + (name == names[3]) for name in names)


def test_what_is_prepared_stays_and_is_not_built_again(workplace, monkeypatch, capsys):
    (workplace / "holiday").mkdir()
    write_image(render(draw_scenes(3, range(1))).image[0], workplace / "holiday" / "0.png")
    words = ["prepare", "regions", "holiday", "--prepare.init_args.detector", "fairanon.evaluators.TinyDetector"]
    assert main(words) == 0 and (workplace / "data/regions/prepared.json").exists()
    monkeypatch.setattr("fairanon.prepare.RegionMasks.make", lambda self: pytest.fail("made again"))
    monkeypatch.setattr("fairanon.evaluators.TinyDetector.__init__", lambda *_, **__: pytest.fail("built again"))
    assert main(words) == 0 and "data/regions is prepared" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    write_image(render(draw_scenes(4, range(1))).image[0], workplace / "holiday" / "1.png")
    assert main(words) == 0, "another image is another matter"
    assert len((workplace / "data/regions/metadata.jsonl").read_text().splitlines()) == 2


def test_a_training_leaves_finished_folders_alone_whoever_made_them(workplace, monkeypatch):
    write_people(workplace / "data" / "regions", 4)  # the official layout: nobody prepared it here
    before = (workplace / "data/regions/metadata.jsonl").read_text()
    started = []
    monkeypatch.setattr("fairanon.prepare.RegionMasks.make", lambda self: started.append(self.folder))
    config = jsonargparse.Namespace(
        data={"folder": "data/regions"},
        evaluate=None,
        prepare=["regions"],
        trainer=jsonargparse.Namespace(accelerator="cpu"),
    )
    prepare_for(config)
    assert not started and (workplace / "data/regions/metadata.jsonl").read_text() == before
    unnamed = jsonargparse.Namespace(data={"folder": "data/regions"}, evaluate=None, prepare=[])
    assert preparations(unnamed) == {}, "a folder's name alone names no preparation"
    assert (
        main(["prepare", "regions", "holiday", "--prepare.init_args.detector", "fairanon.evaluators.TinyDetector"]) == 1
    )
    assert (workplace / "data/regions/metadata.jsonl").read_text() == before, "not even asked to, of other images"


def test_a_small_disk_is_said_before_anything_starts(workplace, preferences, monkeypatch, capsys):
    usage = SimpleNamespace(free=10_000)
    monkeypatch.setattr("fairanon.run.missing.shutil.disk_usage", lambda _: usage)
    assert main(quick(preferences)) == 1
    assert "GiB free; a checkpoint, the next one beside it" in capsys.readouterr().err
    assert not list((workplace / "runs").glob("popalign_tiny/*"))


@pytest.mark.slow
def test_the_demo_draws_both_models_and_says_when_the_adapters_were_trained(workplace, capsys):
    assert main(["demo", "--images", "2"]) == 0
    said = capsys.readouterr().out
    assert "trained in 300 steps on 2026-" in said and "Nothing is trained now." in said
    (page,) = (workplace / "runs" / "popalign_tiny" / "shipped").glob("measure-*/report.html")
    assert str(page.relative_to(workplace)) in said and "Who is drawn" in page.read_text()
    metrics = json.loads((page.parent / "metrics.json").read_text())
    assert metrics["before"]["discrepancy/gender/per_prompt"] != metrics["after"]["discrepancy/gender/per_prompt"]


_COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _shtab_fairanon 2>/dev/null; echo "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_shell_completes_verbs_options_and_experiments(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "fairanon.bash"
    script.write_text(capsys.readouterr().out)
    for words, found in (
        ("tr", "train"), ("anonymize --meth", "--method"), ("anonymize --method b", "blur"),
        ("train popalign_tiny --overlay bf", "bf16"), ("anonymize --recognizer dl", "dlib"), ("train --log tens", "tensorboard"),
        ("prepare preferences_sdxl_c", "preferences_sdxl_couples"),
        ("train popalign_tiny_p", "popalign_tiny_paper"), ("table popalign_tiny sft_t", "sft_tiny"),
    ):  # fmt: skip
        command = ["bash", "-c", _COMPLETE, "bash", str(script), "fairanon", *words.split()]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == [found], words
    for shell in ("zsh", "tcsh"):
        assert main(["completion", shell]) == 0
        assert "anonymize" in capsys.readouterr().out


def test_colour_is_for_terminals_and_for_those_who_want_it(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    found = Answer("FAIRER", "better", "It fell.")
    assert found.lines(terminal=True) == ["\033[1;32mFAIRER.\033[0m It fell."]
    assert found.lines(terminal=False) == ["FAIRER. It fell."]
    monkeypatch.setenv("NO_COLOR", "1")
    assert found.lines(terminal=True) == ["FAIRER. It fell."]


@pytest.mark.parametrize("seeds", ["0,0", "1,2,1"])
def test_a_seed_counts_once(seeds, capsys):
    assert main(["table", "popalign_tiny", "sft_tiny", "--seeds", seeds]) == 2
    assert f"{seeds[0]} is named twice" in capsys.readouterr().err
