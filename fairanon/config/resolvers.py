"""What ``${...}`` in configuration files stands for.

``${run:NAME}`` is a run, ``${judge:NAME}`` a judge, ``${judges:NAME,NAME}`` several, ``${nodes:}`` the number of machines.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

from fairanon.config.experiments import UserError, experiments_folder, read_yaml
from fairanon.config.ranks import nodes
from fairanon.config.runs import runs_root

STAGES: dict[str, Path] = {}
"""Folders of the runs that an experiment builds on, by name."""


def run_of(name: str) -> Path:
    """The folder of the run that an experiment's ``${run:NAME}`` stands for."""
    return Path(STAGES.get(name, runs_root() / name / "latest"))


def _judge(name: str) -> Any:
    """The settings in ``experiments/judges/NAME.yaml``."""
    path = experiments_folder() / "judges" / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"${{judge:{name}}}: there is no {path}; there are {known}.")
    return OmegaConf.create(read_yaml(path))


@contextmanager
def resolving() -> Iterator[None]:
    """Inside, OmegaConf knows these names; afterwards it is as it was for whatever program this is part of."""
    kept = dict(BaseContainer._resolvers)
    OmegaConf.register_resolver("run", lambda name: str(run_of(name)), replace=True)
    OmegaConf.register_resolver("judge", _judge, replace=True)
    OmegaConf.register_resolver(
        "judges", lambda *names: OmegaConf.create([_judge(name) for name in names]), replace=True
    )
    OmegaConf.register_resolver("nodes", lambda *_: nodes(), replace=True)
    try:
        yield
    finally:
        BaseContainer._resolvers.clear()
        BaseContainer._resolvers.update(kept)
