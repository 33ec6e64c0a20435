"""What W&B is told, read back from the file of an offline run, for each of the four methods."""

import base64
import hashlib
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import wandb
from lightning.pytorch.loggers import WandbLogger
from safetensors.torch import load_file

from fairanon.callbacks import dashboard
from fairanon.callbacks.dashboard import Dashboard, Described
from fairanon.cli import main
from fairanon.config.experiments import UserError
from fairanon.methods.base import NonFiniteLossError
from fairanon.run import views
from fairanon.run.loggers import LOG, _wandb_loggers
from fairanon.run.train_request import TrainRequest
from tests.conftest import REPOSITORY, write_preferences
from tests.wandb_files import read

COMMON = ["--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false", "--data.batch_size", "2",
          "--evaluate.sampling_steps", "1"]  # fmt: skip
POPALIGN = [*COMMON, "--data.folder", "pairs", "--trainer.max_steps", "4", "--trainer.val_check_interval", "2",
            "--trainer.limit_val_batches", "1", "--evaluate.images", "2", "--evaluate.specific_images", "0",
            "--evaluate.measures.judge.init_args.faces", "false", "--evaluate.measures.reference.init_args.count", "150"]  # fmt: skip
FAIRHUMAN = [*COMMON, "--data.val_count", "4", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2",
             "--evaluate.prompts.init_args.count", "6", "--evaluate.measures.reference.init_args.count", "150"]  # fmt: skip
ANO = [*COMMON, "--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "1",
       "--evaluate.prompts.init_args.count", "2", "--evaluate.measures.strangers.init_args.count", "300",
       "--evaluate.measures.alike", "[]"]  # fmt: skip
ID2FACE = [*COMMON, "--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "1",
           "--model.fit.pairs", "96", "--model.fit.steps", "2", "--evaluate.prompts.init_args.count", "48",
           "--evaluate.prompts.init_args.attacked", "8", "--evaluate.prompts.init_args.draws", "4"]  # fmt: skip


def digest(path):
    """As W&B notes it."""
    return base64.b64encode(hashlib.md5(path.read_bytes()).digest()).decode()


METHODS = {
    "popalign_tiny": (POPALIGN, "discrepancy/gender/per_prompt", "answer/discrepancy/gender"),
    "fairhuman_tiny": (FAIRHUMAN, "loss/val/hand", "answer/loss/val/hand"),
    "ano_face_fair_tiny_ffe": (ANO, "group_accuracy/overall", "answer/group_accuracy/overall"),
    "id2face_tiny_no_region": (ID2FACE, "retrieval/top1/source", "answer/retrieval/top1/source"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "popalign_tiny" else pytest.mark.slow) for name in METHODS]
)
def test_everything_that_a_dashboard_needs_is_there(name, tmp_path, monkeypatch):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    write_preferences(tmp_path / "pairs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()  # it has read the environment once
    words, key, head = METHODS[name]
    assert main(["train", name, *words, "--log-images"]) == 0
    wandb.teardown()
    folder = (tmp_path / "runs" / name / "latest").resolve()
    result, found = json.loads((folder / "metrics.json").read_text()), read(folder)
    run = found.run
    assert run.display_name == f"{name} · seed 0" + (" · pairs 96 · steps 2" if "--model.fit.pairs" in words else "")
    assert (
        run.run_group.startswith(f"{name}-") and run.job_type == "train" and "embedded world" in run.tags and run.notes
    )
    assert found.config["model"]["init_args"]["backbone"]["class_path"] and found.config["run"]["experiment"] == name
    assert any(f"before/{key}" in row for row in found.history), "the base's numbers, before anything is trained"
    first = next(k for k, row in enumerate(found.history) if f"before/{key}" in row)
    assert not any("train/loss" in row for row in found.history[:first])
    assert found.summary[f"{head}/after"] == pytest.approx(result["after"][key]["value"])
    assert {"answer/word", "answer/sentence"} <= set(found.summary) and found.summary["progress/stage"] == "finished"
    assert {"train/lr", "progress/seconds_per_step", "progress/minutes_left", f"evaluate/{key}"} <= found.names()
    looks = [row for row in found.history if "look/count" in row]
    validates = (folder / "looks").exists()  # not every method has held-out data
    assert validates is bool(looks) and (validates or name == "ano_face_fair_tiny_ffe")
    assert all(len(look["look/captions"]) == look["look/count"] for look in looks)
    assert all(f" · step {look['trainer/global_step']}" in look["look/captions"][0] for look in looks)
    assert "tables/images/path" in found.names() and (not result["shares"] or "tables/shares/path" in found.names())
    assert ("tables/prompts/path" in found.names()) is (name == "popalign_tiny"), (
        "the others show a source, or no row for each prompt"
    )
    kinds = {one.type: [part.path for part in one.manifest.contents] for one in found.artifacts}
    sources = list((folder / "grids").glob("*-source.png"))
    assert set(kinds["report"]) == {"metrics.json", *([] if sources else ["report.html"])}, (
        "no page that shows originals"
    )
    sent = {part.digest for one in found.artifacts for part in one.manifest.contents if part.path.endswith(".png")}
    assert sent and digest(next((folder / "grids").glob("*-after.png"))) in sent
    assert not any(digest(path) in sent for path in sources), "originals stay here"
    about = json.loads(next(one.metadata for one in found.artifacts if one.type == "report"))
    assert (
        about["experiment"] == name and about["folder"] == folder.name and about["code"] == result["versions"]["code"]
    )
    if (folder / "lora.safetensors").exists():
        assert set(kinds["model"]) == {"lora.safetensors", "README.md", "config.yaml"}
    assert found.alerts[-1].text == found.summary["answer/sentence"]
    logged, summary, settings = views.shown(found.config["run"]["method"])
    wanted = {key for key in logged if validates or not key.startswith(("val/", "look"))}
    assert wanted <= {*found.names(), *({"look"} if looks else ())}, wanted - found.names()
    assert summary <= set(found.summary), summary - set(found.summary)
    assert all(name.rpartition(".")[2] in found.config["model"]["init_args"] for name in settings)
    listed = (REPOSITORY / "docs" / "dashboard.md").read_text()
    for one in found.names():
        head = one.split("/")[0]
        assert one.startswith("_") or f"`{head}" in listed, f"docs/dashboard.md does not list {one}"


@pytest.mark.slow
def test_what_is_made_of_photographs_stays_here_unless_somebody_asks(tmp_path, monkeypatch):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    assert main(["train", "ano_face_fair_tiny_ffe", *ANO]) == 0
    wandb.teardown()
    folder = (tmp_path / "runs" / "ano_face_fair_tiny_ffe" / "latest").resolve()
    found = read(folder)
    assert "model" not in {one.type for one in found.artifacts}, "weights remember faces"
    assert "look/count" not in found.names() and not {"tables/images/path", "tables/prompts/path"} & found.names()
    assert not list(folder.glob("wandb/**/media/**/*.png"))
    assert [part.path for one in found.artifacts if one.type == "report" for part in one.manifest.contents] == [
        "metrics.json"
    ]


def test_other_loggers_and_none(tmp_path, monkeypatch):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    write_preferences(tmp_path / "pairs")
    pairs = zip(POPALIGN[::2], POPALIGN[1::2], strict=True)
    words = [word for name, value in pairs if not name.startswith("--evaluate") for word in (name, value)]
    monkeypatch.chdir(tmp_path)
    assert main(["train", "popalign_tiny", *words, "--evaluate", "null", "--log", "none"]) == 0
    assert LOG not in os.environ
    folder = (tmp_path / "runs" / "popalign_tiny" / "latest").resolve()
    assert (folder / "metrics.csv").exists() and not (folder / "wandb").exists()
    assert not re.search("progress/|train/lr", (folder / "metrics.csv").read_text().splitlines()[0]), (
        "equal for equal runs"
    )
    with pytest.raises(UserError, match="--log: none stands alone"):
        TrainRequest("popalign_tiny", log="none,wandb")
    with pytest.raises(UserError, match="--log: there is no 'mlflow'; choose one of wandb, tensorboard, none"):
        TrainRequest("popalign_tiny", log="wandb,mlflow")
    assert Path(folder / "looks").exists() is False


def test_a_wandb_that_breaks_is_said_once_and_the_training_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    (logger,) = _wandb_loggers(tmp_path, Described())

    def broken(*_, **__):
        raise OSError(28, "no space left")

    monkeypatch.setattr(WandbLogger, "log_metrics", broken)
    logger.log_metrics({"a": 1.0})
    logger.log_metrics({"a": 2.0})
    logger.log_hyperparams({"b": 1})
    logger.finalize("success")
    said = [record.message for record in caplog.records if "goes on without it" in record.message]
    assert len(said) == 1 and "no space left" in said[0]
    monkeypatch.undo()
    wandb.finish()
    wandb.teardown()


@pytest.mark.parametrize(
    ("world", "people", "asked", "goes"),
    [("embedded world", False, False, True), ("embedded world", True, False, False), ("real world", False, False, False),
     ("real world", True, True, True)],
)  # fmt: skip
def test_weights_that_learnt_from_real_people_go_only_where_somebody_asks(
    tmp_path, monkeypatch, world, people, asked, goes
):
    (tmp_path / "lora.safetensors").write_bytes(b"")
    sent = []
    monkeypatch.setattr(dashboard, "_evaluate", lambda _: SimpleNamespace(shows_people=people))
    monkeypatch.setattr(dashboard, "_of", lambda *_: ["logger"])
    monkeypatch.setattr(Dashboard, "_hand_over", staticmethod(lambda *arguments: sent.append(arguments)))
    Dashboard(Described(tags=("FairHuman", world), log_images=asked)).hand_over(
        SimpleNamespace(default_root_dir=tmp_path)
    )
    assert bool(sent) is goes


def test_tensorboard_gets_numbers_looks_and_grids(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    write_preferences(tmp_path / "pairs")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "popalign_tiny", *POPALIGN, "--log", "tensorboard"]) == 0
    folder = (tmp_path / "runs" / "popalign_tiny" / "latest").resolve()
    assert not (folder / "wandb").exists() and (folder / "metrics.csv").exists()
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    numbers, pictures = set(found.Tags()["scalars"]), found.Tags()["images"]
    key = "discrepancy/gender/per_prompt"
    assert {
        f"before/{key}",
        f"evaluate/{key}",
        f"look/{key}",
        "train/loss",
        "train/lr",
        "progress/minutes_left",
    } <= numbers
    (last,) = found.Scalars(f"evaluate/{key}")
    after = json.loads((folder / "metrics.json").read_text())["after"][key]
    assert last.value == pytest.approx(after["value"], abs=1e-6) and last.step == 4
    shown = {name.partition("/")[0] for name in pictures}
    assert shown == {"look", "grids"} and [one.step for one in found.Images("look")] == [2, 4], pictures
    (grid,) = found.Images("grids/neutral-after")
    assert grid.width > 64 and grid.height > 64


@pytest.mark.parametrize(
    ("change", "titles"),
    [
        ({}, ["no difference shown"]),
        ({"recall/overall": 0.9}, ["recall fell", "no difference shown"]),
        ({"share/age/old": 0.5}, ["a share that should stay moved", "no difference shown"]),
    ],
)
def test_an_alert_is_sent_for_what_somebody_must_know(monkeypatch, change, titles):
    def number(value):
        return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 100, "missing": 0}

    before = {"discrepancy/gender/per_prompt": 0.5, "recall/overall": 0.99, "share/age/old": 0.3}
    stages = [{key: number(value) for key, value in numbers.items()} for numbers in (before, before | change)]
    result = {"before": stages[0], "after": stages[1], "headline": list(before), "seconds": {"train": 1.0},
              "higher_is_better": {"discrepancy/gender/per_prompt": False, "recall/overall": True}}  # fmt: skip
    sent = []
    logger = SimpleNamespace(experiment=SimpleNamespace(alert=lambda title, text: sent.append((title, text))))
    monkeypatch.setattr(dashboard, "_of", lambda *_: [logger])
    board = Dashboard(Described())
    board._alert_of(SimpleNamespace(), result)
    said = [title for title, _ in sent]
    assert said == titles and all(text for _, text in sent)
    board.on_exception(SimpleNamespace(), None, NonFiniteLossError("the loss is nan at step 7"))
    assert sent[-1] == ("the loss is no number", "the loss is nan at step 7")
    board.on_exception(SimpleNamespace(), None, KeyboardInterrupt())
    assert len(sent) == len(said) + 1, "a user who stops a run knows it"


def test_a_run_says_which_models_it_builds_on(tmp_path, monkeypatch):
    used = []
    settings = SimpleNamespace(define_metric=lambda *_, **__: None, summary={}, use_artifact=used.append)
    logger = SimpleNamespace(log_hyperparams=lambda _: None, experiment=settings)
    monkeypatch.setattr(dashboard, "_of", lambda *_: [logger])
    first = tmp_path / "runs" / "first"
    board = Dashboard(Described(builds_on=(first,), config={"run": {"experiment": "second", "code": "c0de"}}))
    for offline in (True, False):
        settings.offline = offline
        board.setup(SimpleNamespace(), None, "fit")
    assert used == [f"model-{dashboard.run_id(first)}:latest"], "offline nothing can be asked for"
    told = board._lineage(tmp_path / "runs" / "20260101-000000")
    assert told == {
        "folder": "20260101-000000",
        "experiment": "second",
        "code": "c0de",
        "builds_on": [f"model-{dashboard.run_id(first)}"],
    }


@pytest.mark.slow
def test_looks_change_nothing_of_what_is_trained(tmp_path, monkeypatch):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    write_preferences(tmp_path / "pairs")
    monkeypatch.chdir(tmp_path)
    trained = []
    for looks in ("0", "2"):
        words = [*POPALIGN, "--evaluate.looks", looks, "--log", "none", "--fresh"]
        assert main(["train", "popalign_tiny", *words]) == 0
        folder = (tmp_path / "runs" / "popalign_tiny" / "latest").resolve()
        assert (folder / "looks").exists() is (looks == "2")
        trained.append(load_file(folder / "lora.safetensors"))
    assert trained[0].keys() == trained[1].keys()
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())
