"""Judges by name: what ``--detector`` and ``--recognizer`` stand for."""

from __future__ import annotations

import inspect
import pkgutil
from pathlib import Path
from typing import Any

from fairanon.config.build import build
from fairanon.config.experiments import UserError, experiments_folder, read_yaml
from fairanon.evaluators.judge import Judge


def judge(name: str, key: str, threshold: float | None = None, usual: float | None = None) -> Any:
    """Build a judge.

    Args:
        name: Of a file in ``experiments/judges``, or a YAML file of the user's own (``class_path``, ``init_args``).
        key: The option that named it, for messages.
        threshold: The score that the user wants; None leaves the file's.
        usual: The score where neither the user nor the file names one, for judges that have one.

    Raises:
        UserError: There is no such file, or its judge has no such score.
    """
    node = read_yaml(judge_file(name, key))
    arguments = dict(node.get("init_args") or {})
    kind = pkgutil.resolve_name(node["class_path"])
    if "threshold" in inspect.signature(kind).parameters:
        if threshold is not None or usual is not None:
            arguments["threshold"] = threshold or arguments.get("threshold", usual)
    elif threshold is not None:
        raise UserError(f"{key}-threshold: {name} has no score to choose from; leave the option out.")
    return build({**node, "init_args": arguments}, Judge)


def judge_file(name: str, key: str) -> Path:
    """The YAML file of a judge; arguments and errors as `judge`."""
    folder = experiments_folder() / "judges"
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise UserError(f"{key}: there is no judge {name!r}; there are {known}, or a YAML file of your own.")
    return path


def judges(names: str, key: str, needs: tuple[str, ...], **scores: float | None) -> list[Any]:
    """Several judges, with commas between their names; each must offer some attributes. Scores as `judge`."""
    listed = [name.strip() for name in names.split(",") if name.strip()]
    models = [judge(name, key, **scores) for name in listed]
    for name, model in zip(listed, models, strict=True):
        if missing := [attribute for attribute in needs if not hasattr(model, attribute)]:
            raise UserError(f"{key}: {name} cannot do this, it has no `{missing[0]}`; take another judge.")
    return models


FINDS = ("detect", "any_scale", "licence")
MATCHES = ("align", "embed_aligned", "metric", "licence")
