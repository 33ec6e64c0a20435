"""Every real experiment goes through as it is shipped, on random models of the true architectures."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from fairanon.cli import main
from fairanon.config.experiments import lineage
from tests import real_world
from tests.conftest import REPOSITORY

REAL = sorted(path.stem for path in (REPOSITORY / "experiments").glob("[!_]*.yaml")
              if not re.search(r"_tiny|gaussian", path.stem))  # fmt: skip
EVERY_TIME = ("popalign_sdxl",)
"""Of the method and the backbone that most people begin with; the rest in `make test-all`, where ID2Face's judges of full size take minutes."""


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    (root / "cache").mkdir()
    real_world.write_models(root / "cache")
    real_world.write_judges(root / "models")
    real_world.write_data(root / "data")
    return root


def replaced(name):
    """What is smaller than shipped: image sizes and counts, nothing else. A test says so."""
    given = merged(name)
    draws = "PromptsToDraw" in str(given["data"])  # the model's own images, at its own size
    words = ["--data.size", "64"] if given["data"] and not draws else []  # a model that is measured alone has none
    given["data"] = given["data"] or {"class_path": "", "init_args": {}}
    if "HumanRegions" in given["data"]["class_path"]:
        words += ["--data.minimum", "64", "--data.val_count", "2"]
    if "num_workers" in given["data"]["init_args"] or "Pairs" in given["data"]["class_path"]:
        words += ["--data.num_workers", "0"]
    prompts = given["evaluate"]["init_args"]["prompts"]
    if isinstance(prompts, dict) and "PickAPic" not in prompts["class_path"]:
        words += ["--evaluate.prompts.size", "64", "--evaluate.prompts.count", "8"]
    if "PeopleToAnonymize" in str(prompts):
        words += ["--evaluate.prompts.attacked", "4", "--evaluate.prompts.draws", "8"]
    if "strangers" in str(given["evaluate"]["init_args"]["measures"]):
        words += ["--evaluate.measures.strangers.init_args.size", "64"]
    if given["trainer"].get("devices", 1) != 1:
        words += ["--trainer.devices", "1", "--trainer.strategy", "auto"]  # two ranks have a test of their own
    return words


def merged(name):
    whole = {}
    for path in lineage(REPOSITORY / "experiments" / f"{name}.yaml"):
        whole = merge(whole, yaml.safe_load(path.read_text()))
    return whole


def merge(a, b):
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return b
    return {key: merge(a[key], b[key]) if key in a and key in b else b.get(key, a.get(key)) for key in {**a, **b}}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in EVERY_TIME else pytest.mark.slow) for n in REAL])
def test_it_goes_through_as_shipped(name, shared, tmp_path, monkeypatch, capsys):
    real_world.move_in(tmp_path, shared, monkeypatch)
    half = ["--overlay", "bf16"] if merged(name)["trainer"].get("precision") == "16-mixed" else []
    assert main(["rehearse", name, *half, *replaced(name)]) == 0, capsys.readouterr().err[-3000:]
    said = capsys.readouterr().out
    assert "nothing is missing" in said and "the whole experiment will take about" in said
    assert not list((tmp_path / "runs").glob("*")), "nothing of it is left, least of all a run"


def run(words, place):
    return subprocess.run(
        [sys.executable, "-m", "fairanon", *words], cwd=place, capture_output=True, text=True, timeout=900, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overlay"),
    [
        *(
            (name, "ddp")
            for name in ("popalign_tiny", "fairhuman_tiny", "simpo_tiny", "ano_face_fair_tiny_ffe", "id2face_tiny")
        ),
        ("popalign_tiny", "shard"),
        ("simpo_tiny", "shard"),
    ],
)
def test_two_ranks_rehearse_every_method(name, overlay, tmp_path):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    ranks = ["--overlay", overlay, "--trainer.accelerator", "cpu", "--trainer.devices", "2"]
    done = run(["rehearse", name, *ranks], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the whole experiment will take about" in done.stdout
    assert not [path for path in (tmp_path / "runs").glob("*") if not path.name.startswith(".")]


def test_everything_that_is_missing_is_said_at_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for verb in ("rehearse", "train"):
        assert main([verb, "fairhuman_sdxl_lora"]) == 1
        said = capsys.readouterr().err
        for part in ("stabilityai/stable-diffusion-xl-base-1.0", "madebyollin/sdxl-vae-fp16-fix", "mediapipe",
                     "data/mole/captions.jsonl", "missing or wrong ("):  # fmt: skip
            assert part in said, (part, said)
        assert "Traceback" not in said and len(said.splitlines()) == len(set(said.splitlines()))
        assert not (tmp_path / "runs" / "fairhuman_sdxl_lora").exists()


def test_a_value_that_makes_no_sense_is_said_before_anything_is_prepared(tmp_path, monkeypatch, capsys):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "popalign_tiny", "--data.batch_size", "0"]) == 1
    assert "batch_size must be at least 1" in capsys.readouterr().err and not (tmp_path / "data").exists()


def test_a_loss_that_cannot_be_scaled_is_refused_with_what_to_do(tmp_path, monkeypatch, capsys):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    assert main(["train", "simpo_sd21"]) == 1
    said = capsys.readouterr().err
    assert "16-mixed needs a GPU" in said and "--overlay bf16" in said and len(said.splitlines()) == 1
    half = ["--overlay", "bf16", "--model.backbone.init_args.dtype", "float16"]
    assert main(["train", "simpo_sd21", *half]) == 1
    assert "float16 loses small gradients unless the loss is scaled" in capsys.readouterr().err


def test_nothing_else_than_sizes_and_counts_is_replaced():
    allowed = {"size", "minimum", "val_count", "num_workers", "count", "attacked", "draws", "devices", "strategy"}
    for name in REAL:
        given = [word.rpartition(".")[2] for word in replaced(name) if word.startswith("--")]
        assert set(given) <= allowed, name
