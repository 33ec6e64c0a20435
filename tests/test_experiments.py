"""Every shipped experiment parses, builds and fits one batch with tiny stand-ins."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from fairanon.cli import main
from fairanon.config import experiments
from fairanon.config.experiments import lineage, resolve
from fairanon.config.settings import FairAnonCLI
from fairanon.prepare.run import preparation
from fairanon.prompts import read_prompts
from fairanon.run import training
from tests.conftest import REPOSITORY
from tests.data_modules.test_human_regions import write_people
from tests.data_modules.test_pick_a_pic import write

NAMES = sorted(path.stem for path in (REPOSITORY / "experiments").glob("[!_]*.yaml"))
EMBEDDED = [name for name in NAMES if "_tiny" in name or "gaussian" in name]
"""The real ones go through whole, as they are shipped, in `tests/test_rehearsal.py`."""


def differs_only(name):
    """Whether a file states only what differs from another experiment of the embedded world."""
    return len(lineage(REPOSITORY / "experiments" / f"{name}.yaml")) > 1


@pytest.mark.parametrize("name", [name for name in EMBEDDED if differs_only(name)])
def test_what_differs_from_another_experiment_is_built(name, tmp_path, monkeypatch):
    """Every class and key of it; what it trains differently its method's tests train."""
    monkeypatch.chdir(REPOSITORY)
    text = "".join(file.read_text() for file in lineage(Path("experiments") / f"{name}.yaml"))
    settings = ["--start_from=null"] if "${run:" in text else []
    if "PeopleToAnonymize" in text:
        settings += [f"--evaluate.prompts.{key}=8" for key in ("count", "attacked", "draws")]
    assert FairAnonCLI(resolve(name, settings=settings).words()).model is not None


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if differs_only(name) else ()) for name in EMBEDDED]
)
def test_it_fits_one_batch(name, preferences, tmp_path, monkeypatch):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    monkeypatch.chdir(tmp_path)
    words = ["train", name, "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--evaluate", "null",
             "--trainer.accelerator", "cpu"]  # fmt: skip
    text = "".join(file.read_text() for file in lineage(Path("experiments") / f"{name}.yaml"))
    small = ["--data.size", "32", "--data.batch_size", "1", "--data.num_workers", "0"]
    if "PopulationPreferences" in text:
        words += ["--data.folder", str(preferences), *small]
    elif "PickAPic" in text:
        write(tmp_path / "pairs", split="validation")
        words += ["--data.folder", str(write(tmp_path / "pairs")), *small]
    elif "MaskedFaces" in text:
        write_people(tmp_path / "people", 4)
        people = json.dumps({"class_path": "data_modules.region_folder.RegionFolder",
                             "init_args": {"folder": str(tmp_path / "people")}})  # fmt: skip
        roles = [role for role in ("instance", "prior", "difference") if f"    {role}:" in text]
        words += [word for role in roles for word in (f"--data.{role}", people)] + small
    elif any(name in text for name in ("SyntheticPeople", "SyntheticParts", "SyntheticIdentities")):
        words += ["--data.batch_size", "2"]
    if "SyntheticIdentities" in text:
        words += ["--model.fit.pairs", "24", "--model.fit.steps", "2"]
    if "${run:" in text:  # its stages are experiments of their own
        words += ["--start_from", "null"]
        monkeypatch.setattr(training, "train_stages", lambda *_: None)
    assert main(words) == 0
    assert list((tmp_path / "runs" / name).glob("*/checkpoints/last.ckpt"))


@pytest.mark.parametrize("overlay", sorted(path.stem for path in (REPOSITORY / "experiments/overlays").glob("*.yaml")))
def test_overlays_reach_what_they_are_for(overlay, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    eight = ModuleType("bitsandbytes.optim")
    eight.AdamW8bit = type("AdamW8bit", (torch.optim.AdamW,), {"__module__": "bitsandbytes.optim"})
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", eight)
    assert main(["config", "popalign_sdxl", "--overlay", overlay]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    backbone = found["model"]["init_args"]["backbone"]["init_args"]
    expected = {"cpu": ("dtype", "float32"), "fp16": ("dtype", "float16"), "bf16": ("dtype", "bfloat16")}
    if overlay in expected:
        key, value = expected[overlay]
        assert backbone[key] == value, "one key, trainer.precision, decides"
    if overlay == "adam8bit":
        assert found["model"]["init_args"]["optimizer"]["class_path"] == "bitsandbytes.optim.AdamW8bit"
        assert found["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 5e-7
    if overlay == "ddp":
        assert found["trainer"]["strategy"] == "ddp"


def test_every_experiment_and_preparation_says_what_it_is():
    for path in [
        *(REPOSITORY / "experiments").glob("[!_]*.yaml"),
        *(REPOSITORY / "experiments/prepare").glob("*.yaml"),
    ]:
        first = path.read_text().partition("\n")[0]
        assert first.startswith("# ") and len(first) < 120, path


def test_the_embedded_pairs_are_as_many_as_promised():
    recipe = yaml.safe_load((REPOSITORY / "experiments/prepare/pairs_tiny.yaml").read_text())["prepare"]["init_args"]
    train = [row for row in read_prompts(REPOSITORY / recipe["prompts"]) if row.set != "heldout"]
    assert len({row.prompt for row in train}) >= 200 and len(train) * recipe["best"] * recipe["worst"] >= 4000


def test_preparations_parse():
    for path in sorted(Path(REPOSITORY / "experiments/prepare").glob("*.yaml")):
        given = preparation(path)[1].prepare.init_args
        assert Path(given.folder).name == path.stem, "the data set's folder names its preparation"
        prompts = given.get("prompts")  # a table's path, or the prompts themselves
        assert prompts is None or isinstance(prompts, list) or (REPOSITORY / prompts).exists()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "experiments/sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_sweeps_name_settings_that_exist(path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    sweep = yaml.safe_load(path.read_text())
    program, verb, name, arguments = sweep["command"]
    assert (program, verb, arguments) == ("fairanon", "train", "${args}")
    last = {key: choice["values"][-1] for key, choice in sweep["parameters"].items()}
    assert main(["config", name, *(f"--{key}={value}" for key, value in last.items())]) == 0
    said = capsys.readouterr().out
    for key, value in last.items():
        assert f"{key.rpartition('.')[2]}: {value}\n" in said


def test_a_method_that_takes_anothers_place_keeps_what_both_know(monkeypatch):
    """Also what it only forwards to the class that it extends: the optimizer is the experiment's."""
    monkeypatch.chdir(REPOSITORY)
    ours, theirs = (
        FairAnonCLI(resolve(name).words(), build=False).config.model for name in ("popalign_tiny", "sft_tiny")
    )
    assert ours.class_path != theirs.class_path
    for name in ("optimizer", "lr_scheduler", "caption_dropout", "min_timestep", "micro_batch_size", "seed"):
        assert ours.init_args[name] == theirs.init_args[name], name
    assert theirs.init_args.optimizer.init_args.lr != 1e-3, "not what the class has by itself"


def test_experiments_say_how_long_they_took(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert experiments.minutes("popalign_sdxl") is None
    cells = sorted((experiments.experiments_folder() / "results").glob("*/popalign_tiny-2*.json"))
    kept = sorted(sum(json.loads(cell.read_text())["metrics"]["seconds"].values()) for cell in cells)
    assert len(kept) >= 3 and experiments.minutes("popalign_tiny") == round(kept[len(kept) // 2] / 60)
    run = tmp_path / "runs" / "popalign_tiny" / "20260102-000000"
    older = run.with_name("20260101-000000")
    for folder, seconds in ((run, 119.0), (older, 600.0)):
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"seconds": {"train": 61.0, "evaluate_after": seconds - 61}}))
    assert experiments.minutes("popalign_tiny") == 2, "this machine's own run says it better"
    listed = next(line for line in experiments.described().splitlines() if line.split()[:1] == ["popalign_tiny"])
    assert " here   2 min  " in listed
    for broken in (
        "{",
        '{"seconds": {"train": null}}',
        '{"seconds": {"train": NaN}}',
        '{"seconds": {"train": 0.0, "evaluate_after": 100}}',
    ):
        (run / "metrics.json").write_text(broken)
        assert experiments.minutes("popalign_tiny") is None
