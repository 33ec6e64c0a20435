"""Saved views of a project in Weights & Biases: a method's numbers in the order in which somebody asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fairanon.config.experiments import UserError
from fairanon.config.failures import sentence
from fairanon.report.words import words


@dataclass(frozen=True)
class View:
    """What is looked at of a method.

    Attributes:
        answers: Keys of the answer; each has ``answer/KEY/before`` and its like.
        watched: Keys of what should not change.
        training: Keys of the curves, in panels.
        settings: What a sweep varies.
    """

    answers: tuple[str, ...]
    watched: tuple[str, ...]
    training: tuple[tuple[str, ...], ...]
    settings: tuple[str, ...] = field(default=())


VIEWS = {
    "PopAlign": View(
        ("discrepancy/gender/per_prompt", "discrepancy/tone/per_prompt"),
        ("fid/generic", "fid/balanced"),
        (("train/loss", "val/loss"), ("train/gain_winner", "train/gain_loser", "train/mu"), ("train/error_prior",), ("train/gradient_norm",)),
        ("beta", "alpha", "prior_weight", "min_timestep"),
    ),
    "FairHuman": View(
        ("loss/val/global", "loss/val/face", "loss/val/hand"),
        ("fid/whole", "confidence/face", "confidence/hand"),
        (("train/loss/global", "train/loss/face", "train/loss/hand"), ("train/weight/global", "train/weight/face", "train/weight/hand"), ("train/gradient_norm",)),
    ),
    "AnoFaceFair": View(
        ("group_accuracy/overall",),
        ("anonymization/accuracy",),
        (("train/loss",), ("train/error_instance",), ("train/ffe",), ("train/gradient_norm",)),
        ("ffe_weight", "prior_weight"),
    ),
    "ID2Face": View(
        ("retrieval/top1/source",),
        ("preservation/pose", "preservation/expression", "preservation/landmarks"),
        (("train/loss", "val/loss"), ("train/gradient_norm",)),
    ),
}  # fmt: skip
"""By the class of the method."""


def workspace(method: str, entity: str, project: str) -> Any:
    """A method's saved view, which nobody has seen yet: ``.save()`` sends it.

    Args:
        method: A key of `VIEWS`.
        entity: Whose project it is.
        project: Its name.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as reports
        from wandb_workspaces import workspaces
    except ModuleNotFoundError:
        raise UserError('saved views need wandb-workspaces: pip install "fairanon[dashboard]".') from None
    panels: Any = reports  # its stubs name nothing
    view = VIEWS[method]
    init = "model.init_args"
    answers = [f"answer/{_short(key)}" for key in view.answers]
    scalars = [
        panels.ScalarChart(title=f"{words(key)}, {stage}", metric=panels.SummaryMetric(f"{answer}/{stage}"))
        for key, answer in zip(view.answers, answers, strict=True)
        for stage in ("before", "after")
    ]
    kept = [panels.BarPlot(title=words(key), metrics=[f"before/{key}", f"evaluate/{key}"]) for key in view.watched]
    curves = [
        panels.LinePlot(title=_of(keys), x="trainer/global_step", y=list(keys), smoothing_factor=0.6)
        for keys in view.training
    ]
    columns = [panels.ParallelCoordinatesPlotColumn(panels.Config(f"{init}.{name}"), name) for name in view.settings]
    columns += [
        panels.ParallelCoordinatesPlotColumn(panels.SummaryMetric(f"{metric}/after"), metric) for metric in answers
    ]
    sections = [
        ("The answer", scalars),
        ("What it draws", [panels.MediaBrowser(media_keys=["look"], num_columns=4)]),
        ("What should not change", kept),
        ("Training", [*curves, panels.LinePlot(title="learning rate", x="trainer/global_step", y=["train/lr"])]),
        ("Seeds and settings", [panels.ParallelCoordinatesPlot(columns=columns), panels.RunComparer(diff_only=True)]),
        ("Machine", [panels.LinePlot(title="seconds a step", x="trainer/global_step", y=["progress/seconds_per_step"])]),
    ]  # fmt: skip
    return workspaces.Workspace(
        entity=entity, project=project, name=f"fairanon {method}",
        sections=[workspaces.Section(name=name, panels=section_panels, is_open=number < 3) for number, (name, section_panels) in enumerate(sections)],
        runset_settings=workspaces.RunsetSettings(
            filters=[workspaces.Config("run.method") == method], groupby=[workspaces.Metric("Group")]
        ),
    )  # fmt: skip


def save(methods: Sequence[str], entity: str | None, project: str) -> list[str]:
    """Write saved views to W&B.

    Args:
        methods: Whose; keys of `VIEWS`.
        entity: Whose project it is; None takes the account's.
        project: Its name.

    Returns:
        Their addresses.

    Raises:
        UserError: There is no account here, or W&B does not take them.
    """
    import wandb

    try:
        whose = entity or wandb.Api(timeout=20).default_entity
    except Exception as error:
        raise _not_taken(error) from error
    if not whose:
        raise UserError("--entity: the account has no default; say whose project it is.")
    made = [workspace(method, whose, project) for method in methods]
    try:
        return [str(view.save().url) for view in made]
    except Exception as error:
        raise _not_taken(error) from error


def _not_taken(error: Exception) -> UserError:
    reason = sentence(str(error))[:200]
    return UserError(f"W&B did not take the view ({reason}); `wandb login` makes an account known here.")


def shown(method: str) -> tuple[set[str], set[str], set[str]]:
    """What a method's view shows: names of what is logged, of the summary, and of settings."""
    view = VIEWS[method]
    logged = {key for panel in view.training for key in panel} | {
        "train/lr",
        "progress/seconds_per_step",
        "trainer/global_step",
        "look",
    }
    logged |= {f"{stage}/{key}" for key in view.watched for stage in ("before", "evaluate")}
    summary = {f"answer/{_short(key)}/{stage}" for key in view.answers for stage in ("before", "after")}
    return logged, summary, {f"model.init_args.{name}" for name in view.settings}


def _short(key: str) -> str:
    return key.removesuffix("/per_prompt")


def _of(keys: Sequence[str]) -> str:
    return ", ".join(key.removeprefix("train/") for key in keys if key.startswith("train/"))
