"""Where bfloat16 is computed, and what takes its place where a processor has none."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, MutableMapping
from functools import cache
from typing import Any

import torch

from fairanon.config.ranks import first_process

_log = logging.getLogger(__name__)
_INSTEAD = {"bf16-mixed": "32-true", "bf16": "32-true", "bfloat16": "float32"}
"""What takes the place of a trainer's precision or of a network's dtype."""


def has_bfloat16(device: str) -> bool:
    """Whether a device computes in bfloat16 itself: torch emulates it elsewhere, on a CPU at a thirtieth of the speed.

    Args:
        device: "cpu" or "cuda", with or without a number. ``FAIRANON_BFLOAT16`` says it of all
            devices: 0 or 1, for example for a forecast of another machine's memory.
    """
    if (declared := os.environ.get("FAIRANON_BFLOAT16", "")) in ("0", "1"):
        return declared == "1"
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device) >= (8, 0)  # the A100's
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def mixed(device: str) -> torch.autocast:
    """Inside, networks compute in bfloat16 where the device has it, and as they are where it has not."""
    return torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=has_bfloat16(device))


def replace_bfloat16(settings: Any, device: str) -> None:
    """Have float32 computed instead of bfloat16 on a device that has none: the one place that decides it.

    What names a run or a preparation is read before: it does not depend on the machine. One line says what was done.

    Args:
        settings: A configuration, changed in place: the keys ``precision`` and ``dtype`` at any depth.
        device: See `has_bfloat16`.
    """
    choices = [(part, key) for part, key in _choices(settings) if part[key] in _INSTEAD]
    if not choices or has_bfloat16(device):
        return
    for part, key in choices:
        part[key] = _INSTEAD[part[key]]
    _say("processor" if device == "cpu" else "GPU")


@cache
def _say(what: str) -> None:
    """Once is enough."""
    if first_process():
        _log.info("this %s has no bfloat16: float32 is computed instead", what)


def _choices(settings: Any) -> Iterator[tuple[MutableMapping[str, Any], str]]:
    """The keys ``precision`` and ``dtype`` with a word as value, each with the part of the settings that holds it."""
    if isinstance(settings, list):
        for value in settings:
            yield from _choices(value)
        return
    part = settings if isinstance(settings, dict) else getattr(settings, "__dict__", {})
    for key, value in part.items():
        if key in ("precision", "dtype") and isinstance(value, str):
            yield part, key
        else:
            yield from _choices(value)
