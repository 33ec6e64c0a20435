"""What every judge is: something that whoever runs it can put on a device, and that says what its answers depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


class Judge:
    """Base of judges; networks and further judges that it holds as attributes follow `to`.

    Attributes:
        device: Where it runs. A new judge is on the CPU: nobody but the process that runs it knows which device is its own.
    """

    device: torch.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> None:
        """Move to a device."""
        self.device = torch.device(device)
        to_device(vars(self), self.device)

    def describe(self) -> dict[str, Any]:
        """Everything plain that its answers depend on: names stored judgements together with its class."""
        return {"class": type(self).__name__, **jsonable(vars(self))}


def weights_file(path: str | Path, key: str, remedy: str) -> Path:
    """The file of a judge's weights.

    Args:
        path: Where the user says it is.
        key: The setting that says so.
        remedy: Where to get it.

    Raises:
        FileNotFoundError: It is not there.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{key}: {path} is missing; {remedy}.")
    return Path(path)


def to_device(things: Any, device: torch.device) -> None:
    """Move every judge and network among things (at any depth of lists and dictionaries) to a device."""
    if isinstance(things, (Judge, nn.Module)):
        things.to(device)
    elif isinstance(things, dict):
        to_device(list(things.values()), device)
    elif isinstance(things, (list, tuple)):
        for thing in things:
            to_device(thing, device)


def jsonable(things: Any) -> Any:
    """The part of things that JSON can say: numbers, texts, and judges by what they describe.

    Args:
        things: For example a judge's attributes. Private ones, devices, networks and whatever else is left out.
    """
    if isinstance(things, Judge):
        return things.describe()
    if isinstance(things, dict):
        entries = {str(key): jsonable(value) for key, value in things.items() if not str(key).startswith("_")}
        return {key: value for key, value in entries.items() if value is not None}
    if isinstance(things, (list, tuple)):
        return [jsonable(thing) for thing in things]
    return things if isinstance(things, (str, int, float, bool)) else None
