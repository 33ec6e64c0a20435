"""Saved views of W&B: made offline, and of what runs of that method really have."""

import json

import pytest

from fairanon.cli import main
from fairanon.cli.experiments import METHODS
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
    view = views.VIEWS[method]
    for key in (*view.watched, *(key for panel in view.training for key in panel), "look", "train/lr"):
        assert key in text, key
    assert (
        f"answer/{view.answers[0].removesuffix('/per_prompt')}/after" in text
        and "run.method" in text
        and "Group" in text
    )


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
    assert main(["dashboard", "PopAlgn"]) == 2 and "there is no 'PopAlgn'" in capsys.readouterr().err
