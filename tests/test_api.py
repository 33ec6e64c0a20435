"""The Python door: what the command line can do, by the same requests; nothing of the host program is changed."""

import doctest
import importlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb

import fairanon
from fairanon.cli import main
from fairanon.config.experiments import resolve
from fairanon.config.runs import find_run
from fairanon.config.settings import FairAnonCLI
from fairanon.evaluation.engine import Engine
from tests.anonymizer.scenes import write_scenes
from tests.conftest import REPOSITORY

TINY = {"detector": "tiny_detector", "recognizer": "tiny_embedder_b"}
WORDS = ("--detector", "tiny_detector", "--recognizer", "tiny_embedder_b")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_importing_loads_nothing_heavy_and_changes_nothing():
    code = """
import sys
import fairanon
assert sorted(fairanon.__all__) == [name for name in dir(fairanon) if name in fairanon.__all__]
fairanon.AnonymizeRequest("a", "b")
assert "torch" not in sys.modules, "a request needs no torch"
import matplotlib, jsonargparse._typehints as hints
from omegaconf.basecontainer import BaseContainer
from PIL import Image
backend = matplotlib.rcParams._get("backend")
before = Image.MAX_IMAGE_PIXELS, backend, hints.discard_init_args_on_class_path_change, dict(BaseContainer._resolvers)
import fairanon.api, fairanon.evaluation, fairanon.evaluators, fairanon.report.plots, fairanon.prepare.run
from fairanon.config.experiments import resolve
from fairanon.config.settings import FairAnonCLI
FairAnonCLI(resolve("popalign_tiny").words(), build=False)
backend = matplotlib.rcParams._get("backend")
after = Image.MAX_IMAGE_PIXELS, backend, hints.discard_init_args_on_class_path_change, dict(BaseContainer._resolvers)
assert before == after, (before, after)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with pytest.raises(AttributeError, match="has no attribute 'anonymise'"):
        _ = fairanon.anonymise


WITH_EXAMPLES = [
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    for package in ("fairanon", "data_modules")
    for path in sorted((REPOSITORY / package).rglob("*.py"))
    if re.search(r">>>(?!.*\+SKIP)", path.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_hold(name):
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted and not done.failed


def test_photographs_in_three_lines(checkout, capfd):
    write_scenes(checkout / "in", [1, 2])
    request = fairanon.AnonymizeRequest("in", "out", workers=1, **TINY)
    result = fairanon.anonymize(request, progress=False)
    assert capfd.readouterr() == ("", ""), "a library says nothing"
    assert result.complete and result.files == {"finished": 2} and sum(result.verdicts.values()) == 3
    assert sorted(path.name for path in result.published.iterdir()) == sorted(
        p.name for p in (checkout / "in").iterdir()
    )
    assert main(["anonymize", "in", "by words", *WORDS]) == 0
    ours, theirs = ((checkout / folder / "manifest.jsonl").read_text() for folder in ("out", "by words"))
    without_times = [[json.loads(line) | {"seconds": 0} for line in text.splitlines()] for text in (ours, theirs)]
    assert without_times[0] == without_times[1]
    shown = fairanon.anonymize(fairanon.AnonymizeRequest(("in",), "shown", dry_run=True, **TINY), progress=False)
    assert shown.shown == checkout.joinpath("shown/preview").relative_to(checkout) and shown.verdicts == {"found": 3}

    found = fairanon.evaluate(fairanon.EvaluateRequest("in", "out", **TINY), progress=False)
    assert found.complete and found.metrics["faces"] == 3
    assert json.loads((found.out / "metrics.json").read_text()) == found.metrics
    (checkout / "in/alone.png").write_bytes(next((checkout / "in").rglob("*.png")).read_bytes())
    found = fairanon.evaluate(fairanon.EvaluateRequest("in", "out", **TINY), progress=False)
    assert not found.complete and "alone.png has no counterpart" in found.left_out[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"inputs": "nowhere"}, "nowhere"),
        ({"strength": 7}, "--strength must be from 0.01 to 1, got 7."),
        (
            {"method": "swirl"},
            "--method: there is no 'swirl'; choose one of mask, pixelate, blur, ano-face-fair, id2face.",
        ),
        ({"keep": "eyes"}, "--keep needs --parser"),
        ({"method": "id2face"}, "needs --checkpoint"),
        ({"people": "who.csv"}, "--people needs --key-file"),
    ],
)
def test_a_mistake_is_one_class_with_the_sentence_of_the_command_line(checkout, settings, said, capsys):
    write_scenes(checkout / "in", [1])
    given = {"inputs": "in", "out": "out", **settings}
    with pytest.raises(fairanon.UserError) as caught:
        fairanon.anonymize(fairanon.AnonymizeRequest(**given, **TINY))
    assert said in str(caught.value)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if name != "inputs"]
    assert main(["anonymize", str(given["inputs"]), "out", *words, *WORDS]) in (1, 2)
    told = capsys.readouterr().err.removeprefix("fairanon: ")
    assert said.partition(";")[0] in told and not (checkout / "out").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"inputs": b"in"}, {"inputs": None}, {"inputs": ()}, {"inputs": ("a", 5)}, {"out": None}, {"strength": "0.5"},
        {"tries": 1.5}, {"fast": "no"}, {"skip_attack": "false"}, {"keep": None}, {"detector": ["centerface"]},
        {"thresholds": None}, {"preview": True}, {"strength": None}, {"detector_threshold": float("nan")},
    ],
    ids=repr,
)  # fmt: skip
def test_a_value_of_another_type_is_a_users_mistake(settings):
    (name,) = settings
    said = "IN" if name == "inputs" else "OUT" if name == "out" else f"--{name.replace('_', '-')}"
    with pytest.raises(fairanon.UserError, match=rf"^({said}|{name})\b"):
        fairanon.AnonymizeRequest(**{"inputs": "in", "out": "out", **settings})


@pytest.mark.parametrize(
    "settings",
    [None, "--trainer.max_steps=3", {"seed": -1}, ("--help",), ("--print_config",), {"trainer.max_steps": "x"}],
)
def test_settings_that_make_no_sense_are_a_users_mistake(checkout, settings):
    seed = settings.pop("seed") if isinstance(settings, dict) and "seed" in settings else None
    with pytest.raises(fairanon.UserError):
        fairanon.train(fairanon.TrainRequest("popalign_gaussian", settings=settings, seed=seed))
    with pytest.raises(fairanon.UserError):
        fairanon.TrainRequest(Path("popalign_gaussian"))


def test_a_training_leaves_the_host_as_it_was(checkout):
    quick = {"trainer.max_steps": 3}
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = dict(os.environ), random.getstate(), torch.get_rng_state()
    done = fairanon.train(fairanon.TrainRequest("popalign_gaussian", settings=quick), progress=False)
    with pytest.raises(fairanon.UserError, match="max_steps"):
        fairanon.train(fairanon.TrainRequest("popalign_gaussian", settings={"trainer.max_steps": -5}))
    assert wandb.run is None, "another training is another run there"
    assert (
        dict(os.environ) == before[0]
        and random.getstate() == before[1]
        and torch.equal(torch.get_rng_state(), before[2])
    )
    text = FairAnonCLI(resolve("popalign_gaussian", settings=["--trainer.max_steps=3"]).words(), build=False).text
    assert find_run("popalign_gaussian", text, finished=True).resolve() == done.folder.resolve(), (
        "bars are not its name"
    )


@pytest.mark.slow
def test_trainings_of_one_process_do_not_know_of_each_other(checkout, capfd):
    quick = {"trainer.max_steps": 20, "trainer.log_every_n_steps": 10}
    first = fairanon.train(fairanon.TrainRequest("popalign_gaussian", settings=quick), progress=False)
    second = fairanon.train(fairanon.TrainRequest("popalign_gaussian", settings=quick, seed=5), progress=False)
    assert first.folder != second.folder and (first.folder / "gaussian.json").exists()
    again = fairanon.train(fairanon.TrainRequest("popalign_gaussian", settings=quick, fresh=True), progress=False)
    assert again.folder not in (first.folder, second.folder)
    same = [(one.folder / "gaussian.json").read_text() for one in (first, again)]
    assert same[0] == same[1] and "FAIRANON_RUN" not in os.environ
    assert "|" not in capfd.readouterr().err, "no progress bar"
    with pytest.raises(fairanon.UserError, match="there is no experiment 'popalign_gausian'"):
        fairanon.train(fairanon.TrainRequest("popalign_gausian"))
    with pytest.raises(fairanon.UserError, match="has no diffusion backbone"):
        fairanon.load_run(first.folder)
    with pytest.raises(fairanon.UserError, match="nowhere is no run's folder"):
        fairanon.measure(fairanon.MeasureRequest("nowhere"))


@pytest.mark.slow
def test_a_run_is_loaded_measured_and_taken_to_diffusers(checkout, preferences):
    request = fairanon.TrainRequest(
        "popalign_tiny",
        settings={
            "data.folder": preferences, "data.batch_size": 2, "trainer.max_steps": 1, "trainer.limit_val_batches": 0,
            "trainer.accelerator": "cpu", "evaluate.images": 1, "evaluate.specific_images": 0,
            "evaluate.sampling_steps": 1, "evaluate.measures.judge.init_args.faces": False,
            "evaluate.measures.reference.init_args.count": 150,
        },
    )  # fmt: skip
    run = fairanon.train(request, progress=False)
    assert run.metrics["after"]["discrepancy/gender/per_prompt"]["n"] and (run.folder / "report.html").exists()
    measured = fairanon.measure(fairanon.MeasureRequest(run.folder, {"evaluate.images": 2}), progress=False)
    assert measured.folder.parent == run.folder.resolve() and measured.metrics["images_per_prompt"] == 2
    settings = {"evaluate.images": 3, "evaluate.batch_size": 4}
    for part in ("2/2", "1/2"):
        request = fairanon.MeasureRequest(run.folder, device="cpu", part=part, settings=settings)
        assert fairanon.measure(request, progress=False).metrics == {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "_judge_chunk", lambda *_: pytest.fail("nothing is left to draw"))
        measured = fairanon.measure(fairanon.MeasureRequest(run.folder, settings=settings), progress=False)
    assert measured.metrics["images_per_prompt"] == 3
    request = fairanon.MeasureRequest(run.folder, device="cpu,cpu", settings={"evaluate.images": 2, "evaluate.seed": 5})
    assert fairanon.measure(request, progress=False).metrics["images_per_prompt"] == 2
    record = run.folder / "run.json"
    finished = record.read_text()
    record.write_text(finished.replace('"finished": true', '"finished": false'))
    with pytest.raises(fairanon.UserError, match="has not finished"):
        fairanon.load_run(run.folder)
    record.write_text(finished)
    model = fairanon.load_run(run.folder)
    assert not model.training and not any(p.isnan().any() for p in model.parameters())
    path = model.export_pipeline(checkout / "pipeline", "popalign_tiny")
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a doctor", num_inference_steps=1, output_type="pt", generator=torch.manual_seed(0)).images
    assert image.shape[-1] == 64


def test_what_is_written_has_the_permissions_of_the_users_umask(tmp_path):
    code = """
import os; os.umask(0o027)
from pathlib import Path
import torch
from safetensors.torch import save_file
from fairanon.files import atomic_write
with atomic_write(Path("a.safetensors")) as partial: save_file({"a": torch.ones(1)}, partial)
with atomic_write(Path("folder")) as partial:
    partial.mkdir(); save_file({"a": torch.ones(1)}, partial / "b.safetensors")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"a.safetensors": 0o640, "folder": 0o750, "b.safetensors": 0o640}


def test_no_module_takes_the_place_of_a_name_of_the_door():
    """Python puts an imported module where its package's attribute of that name was."""
    for name in fairanon.__all__:
        assert (
            not (REPOSITORY / "fairanon" / name).exists() and not (REPOSITORY / "fairanon" / f"{name}.py").exists()
        ), name
