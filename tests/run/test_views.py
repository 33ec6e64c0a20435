"""Saved views of W&B: made offline, and of what runs of that method really have."""

import json

import pytest

from fairanon.cli import main
from fairanon.cli.experiment_verbs import METHODS
from fairanon.config.experiments import UserError
from fairanon.run import views


def test_every_method_has_a_view():
    assert tuple(views.VIEWS) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_view_asks_in_the_order_of_a_reader_and_folds_seeds(method):
    pytest.importorskip("wandb_workspaces")
    made = views.workspace(method, "somebody", "fairanon")
    assert [section.name for section in made.sections][:3] == ["The answer", "What it draws", "What should not change"]
    text = json.dumps(made._to_model().model_dump(mode="json", by_alias=True))
    logged, summary, settings = views.shown(method)
    for name in (*logged, *summary):
        assert f'"{name}"' in text or f'"summary_metrics.{name}"' in text or f"summary:{name}" in text, name
    assert all(name.rpartition(".")[2] in text for name in settings)
    assert "run.method" in text and "Group" in text


def test_without_an_account_it_says_what_to_do(monkeypatch, capsys):
    pytest.importorskip("wandb_workspaces")

    class Api:
        default_entity = None

        def __init__(self, timeout):
            assert timeout <= 30

    monkeypatch.setattr("wandb.Api", Api)
    assert (
        main(["dashboard", "PopAlign"]) in (1, 2) and "--entity: the account has no default" in capsys.readouterr().err
    )
    monkeypatch.setattr("wandb.Api", lambda timeout: 1 / 0)
    with pytest.raises(UserError, match="W&B did not take the view"):
        views.save(["PopAlign"], None, "fairanon")
    monkeypatch.setattr("fairanon.run.views.workspace", lambda *_: {}["a bug of ours"])
    with pytest.raises(KeyError):
        views.save(["PopAlign"], "somebody", "fairanon")
    assert main(["dashboard", "PopAlgn"]) == 2 and "there is no 'PopAlgn'" in capsys.readouterr().err
