"""Which embedded world numbers are of."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from functools import cache

from torch import Tensor

from data_modules.synthetic_faces.world import draw_scenes
from fairanon.embedded import BACKBONES, embedded
from fairanon.seeding import keyed_randn


@cache
def world_version() -> str:
    """A digest of who is drawn, of which noise, and of the embedded models and judges: numbers of another world are stale."""
    total = hashlib.sha256()

    def add(values: Tensor) -> None:
        total.update((values.double() * 1000).round().long().numpy().tobytes())

    add(keyed_randn([("world", k) for k in range(4)], (16,)))
    for scenes in (draw_scenes(0, range(64), "biased"), draw_scenes(0, range(64), "balanced")):
        for field in fields(scenes):
            add(getattr(scenes, field.name))
    for folder in sorted({*BACKBONES.values(), "judges", "segmenter"}):
        for path in sorted(embedded(folder).rglob("*.safetensors")):
            total.update(path.relative_to(embedded()).as_posix().encode())
            total.update(path.read_bytes())
    return total.hexdigest()[:16]
