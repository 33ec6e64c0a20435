"""Who works, where, and on which share of the whole."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fairanon.config.experiments import UserError
from fairanon.config.runs import BusyError
from fairanon.engines.crew import Crew, Hands
from fairanon.engines.processes import Processes
from fairanon.engines.ray_actors import RayActors
from fairanon.engines.work import Start, Task
from fairanon.progress import progress_bar


def hands_of(start: Start, engine: str, devices: Sequence[str], device: str, cpus: int | None = None) -> Hands:
    """Who works.

    Args:
        start: What each is told.
        engine: What ``--engine`` says: here, ray or ray:HOST:PORT.
        devices: Of this machine, a process each.
        device: What ``--device`` says.
        cpus: Of each of Ray's actors; None: as many as the smallest node has, and this machine must have the same kind of devices.
    """
    if engine == "here":
        return Processes(start, devices)
    return RayActors(start, engine.partition(":")[2], device, cpus)


def devices_of(names: str, on_the_cpu: bool = False) -> list[str]:
    """Where models work: one process each.

    Args:
        names: What ``--device`` says.
        on_the_cpu: ``auto`` is the CPU.

    Raises:
        UserError: A device is none, or not there.
    """
    import torch

    gpus = torch.cuda.device_count()
    if names == "auto":
        return ["cpu"] if on_the_cpu or not gpus else [f"cuda:{k}" for k in range(gpus)]
    devices = [re.sub(r"^gpu", "cuda", name.strip()) for name in names.split(",")]
    for name in devices:
        number = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
        if number is None:
            raise UserError(f"--device: {name!r} is no device; take auto, cpu, cuda, cuda:0, cuda:1, ...")
        if name != "cpu" and int(number[1] or 0) >= gpus:
            raise UserError(
                f"--device {names}: this machine has {gpus or 'no'} CUDA devices; take cpu, or leave it out."
            )
    return devices


_EACH = 4
"""Tasks for each process of this machine: a slow process then does fewer of them."""
_OF_A_CLUSTER = 64
"""Tasks for a Ray cluster, whose number of workers may change."""


def in_shares(
    start: Start, engine: str, devices: Sequence[str], device: str, part: tuple[int, int] | None, desc: str
) -> None:
    """Have work done that can be divided by numbers: `Task.about` is (share, from 0 on, and of how many).

    Args:
        start: How workers begin.
        engine: What ``--engine`` says.
        devices: Of this machine, a process each.
        device: What ``--device`` says.
        part: Which part of the whole is done, from 1 on, and of how many; None: all of it.
        desc: Of the bar.
    """
    number, parts = part or (1, 1)
    shares = _EACH * len(devices) if engine == "here" else _OF_A_CLUSTER
    tasks = [Task(k, f"share {k + 1} of {shares}", (number - 1 + parts * k, parts * shares)) for k in range(shares)]
    hands = hands_of(start, engine, devices, device)
    try:
        with progress_bar(total=shares, desc=desc, unit="share") as bar:
            held = Crew(hands)(tasks, lambda _, __: bar.update())
        if held:
            raise BusyError(f"other processes work on {len(held)} shares; give the command again when they have ended.")
    finally:
        hands.end()
