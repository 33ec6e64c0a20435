"""Judges by name: what ``--detector`` and ``--recognizer`` stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonargparse

from fairanon.evaluators.judge import Judge
from fairanon.experiments import UserError, experiments_folder, read_yaml


def judge(name: str, key: str) -> Any:
    """Build a judge.

    Args:
        name: Of a file in ``experiments/judges``, or a YAML file of the user's own (``class_path``, ``init_args``).
        key: The option that named it, for messages.

    Raises:
        UserError: There is no such file.
    """
    folder = experiments_folder() / "judges"
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise UserError(f"{key}: there is no judge {name!r}; there are {known}, or a YAML file of your own.")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Judge, "judge")
    return parser.instantiate_classes(parser.parse_object({"judge": read_yaml(path)})).judge


def judges(names: str, key: str, needs: tuple[str, ...]) -> list[Any]:
    """Several judges, with commas between their names; each must offer some attributes."""
    found = [judge(name, key) for name in names.split(",")]
    for name, one in zip(names.split(","), found, strict=True):
        if missing := [attribute for attribute in needs if not hasattr(one, attribute)]:
            raise UserError(f"{key}: {name} cannot do this, it has no `{missing[0]}`; take another judge.")
    return found


FINDS = ("detect", "any_scale", "licence")
MATCHES = ("align", "embed_aligned", "metric", "licence")
