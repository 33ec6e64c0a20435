"""Misspelt settings are refused before anything heavy is imported, and nothing else is."""

import subprocess
import sys
from pathlib import Path

import pytest

from fairanon.cli import main
from fairanon.config.experiments import UserError, names, own, read_yaml, resolve
from fairanon.config.spelling import check_spelling, parameters
from tests.conftest import REPOSITORY

WRONG = {
    "model.bta": "PopAlign has no setting 'bta' (did you mean beta?)",
    "trainer.max_stps": "Trainer has no setting 'max_stps' (did you mean max_steps?)",
    "evaluate.measures.judg": "Population has no setting 'judg' (did you mean judge?)",
    "evaluate.imags": "Evaluate has no setting 'imags' (did you mean images?)",
    "model.backbone.init_args.modle": "StableDiffusion has no setting 'modle' (did you mean model?)",
    "data.batchsize": "PopulationPreferences has no setting 'batchsize' (did you mean batch_size?)",
    "model.optimizer.lrr": "AdamW has no setting 'lrr' (did you mean lr?)",
    "modl.beta": "an experiment has no setting 'modl' (did you mean model?)",
    "xyz": "an experiment has no setting 'xyz'; ",
}


@pytest.mark.parametrize("key", WRONG)
def test_a_setting_that_does_not_exist_is_named_with_the_one_that_was_meant(key, capsys):
    assert main(["train", "popalign_tiny", f"--{key}", "3"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"--{key}: {WRONG[key]}") and "`fairanon config popalign_tiny` prints" in said


def test_a_no_imports_nothing_heavy(tmp_path):
    code = "import sys; from fairanon.cli import main; code = main(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    for words in (["train", "popalign_tiny", "--model.bta", "3"], ["report", "nowhere"], ["measure", "runs/none"],
                  ["export", "runs/none", "to"], ["table", "popalign_tinny", "--seeds", "1"]):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["2", "False"], (words, done)
        assert len(done.stderr.splitlines()) == 1, done.stderr


def keys(node, head=""):
    if isinstance(node, list):
        for one in node[-1:]:
            yield from keys(one, head)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name not in ("class_path", "init_args"):
                yield f"{head}{name}"
            yield from keys(value, head if name == "init_args" else f"{head}{name}.")


@pytest.mark.parametrize("name", names())
def test_nothing_that_an_experiment_says_is_refused(name):
    file = Path("experiments") / f"{name}.yaml"
    said = [f"--{key}=1" for key in keys(read_yaml(file))]
    check_spelling(resolve(name, settings=said))
    check_spelling(resolve(name, settings=["--model=fairanon.methods.BaseModel", "--evaluate=null", "--prepare+=x"]))


def test_what_cannot_be_read_is_left_to_the_parser():
    assert parameters("nowhere.Class") is None and parameters("torch.nn.NoSuchClass") is None
    assert "max_steps" in parameters("lightning.pytorch.Trainer")
    check_spelling(resolve("popalign_tiny", settings=["--model.backbone.lora.whatever=1"]))
    with pytest.raises(UserError, match="has no setting 'lora_'"):
        check_spelling(resolve("popalign_tiny", settings=["--model.backbone.lora_=1"]))


@pytest.mark.parametrize(
    "settings",
    [
        ["--model.optimizer=torch.optim.SGD", "--model.optimizer.momentum=0.9"],
        ["--model.optimizer.class_path=torch.optim.SGD", "--model.optimizer.init_args.momentum=0.9"],
        ["--evaluate.measures.judge=fairanon.evaluators.FairFaceAttributes", "--evaluate.measures.judge.folder=x"],
        ["--data=data_modules.pick_a_pic.PickAPic", "--data.folder=pairs", "--data.whatever=1"],
        ["--model.optimizer.dict_kwargs.anything=1"],
        ["--model=fairanon.methods.PairwisePreference", "--model.objective=dpo"],
        ["--evaluate.measures+=fairanon.evaluation.Retrieval", "--evaluate.measures.embedder=x"],
        ["--config=own.yaml", "--model.optimizer.momentum=.5"],
    ],
)
def test_settings_of_a_class_that_another_setting_names_are_left_to_the_parser(settings):
    check_spelling(resolve("popalign_tiny", settings=settings))


def test_classes_that_extend_what_cannot_be_read_are_left_to_the_parser(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    code = "import torch\nfrom torch import nn\nclass A(torch.optim.SGD):\n    pass\nclass B(nn.Module):\n    def __init__(self, x, **k): ...\n"
    (tmp_path / "mine" / "__init__.py").write_text(code)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "__init__.py").write_text("class A(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert parameters("mine.A") is None and parameters("mine.B") == {"x"} and parameters("broken.A") is None


def test_files_of_ones_own_in_the_short_form_and_settings_without_a_name(tmp_path, monkeypatch):
    file = tmp_path / "own.yaml"
    file.write_text("extends: popalign_tiny\nmodel:\n  optimizer: torch.optim.SGD\n")
    check_spelling(own([str(file)], settings=["--model.optimizer.momentum=.5"]))
    file.write_text("extends: popalign_tiny\n")
    with pytest.raises(UserError, match="`fairanon fit -c FILE --print_config` prints all"):
        check_spelling(own([str(file)], settings=["--model.bta=.5"]))
    with pytest.raises(UserError, match="--init_args: a setting has a name"):
        check_spelling(resolve("popalign_tiny", settings=["--init_args=3"]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.beta", "high"], "model.beta must be a number, got high."),
        (["--trainer.max_steps", "ten"], "trainer.max_steps must be a whole number, got ten."),
        (["--model.backbone.lora.rank", "x"], "model.backbone.lora.rank must be a whole number, got x."),
        (["--model.reference", "none"], "model.reference must be copy or beforehand, got none."),
        (["--model.optimizer.lr", "high"], "model.optimizer.lr must be a number, got high."),
        (["--model.backbone.lora", "5"], "model.backbone.lora must be a class (MODULE.CLASS) or its settings, got 5."),
        (["--model.optimizer", "AdamV"], "model.optimizer must be a class (MODULE.CLASS) or its settings, got AdamV."),
        (
            ["--model.optimizer.class_path", "torch.optim.AdamV"],
            "model.optimizer: torch.optim has no AdamV; did you mean Adam or RAdam or NAdam?",
        ),
        (
            ["--model.backbone.class_path", "fairanon.backbones.StableDiffusio"],
            "model.backbone: fairanon.backbones has no StableDiffusio; did you mean StableDiffusion or StableDiffusionXL?",
        ),
    ],
)
def test_a_value_of_the_wrong_kind_is_said_in_words(words, said, capsys):
    assert main(["config", "popalign_tiny", *words]) == 2
    assert capsys.readouterr().err == f"fairanon: {said}\n"
