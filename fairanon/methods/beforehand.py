"""The reference's errors, made before the training: then no copy of the model has to stand beside the one that trains."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fairanon.batches import PreferenceBatch
from fairanon.files import atomic_write

_BYTES = 16
"""Of a pair's name."""
Errors = dict[bytes, tuple[float, float]]


class Beforehand:
    """Errors of the reference: two numbers a pair, which trainings share that differ in their objective alone.

    Noise, timestep and dropped captions belong to a pair and a pass over the data, not to a moment; so these are the
    numbers that the reference would give during the training. In the file a pair is known by all that it is, its pixels
    too: other data cannot be taken for it.

    Args:
        folder: Of the file.
        origin: What the errors depend on beside the pair; it names the file.
    """

    def __init__(self, folder: Path, origin: Sequence[Any]) -> None:
        name = hashlib.sha256(repr(list(origin)).encode()).hexdigest()[:16]
        self.path = folder / f"{name}.safetensors"
        self._kept, self._new = self._read(), Errors()
        self._met: dict[tuple[str, str], tuple[float, float]] = {}

    def put(self, moment: str, batch: PreferenceBatch, errors: Tensor) -> None:
        """Keep the errors of a batch of P pairs: float (2P,), winners first."""
        won, lost = errors.float().cpu().chunk(2)
        finite = bool(errors.isfinite().all())  # otherwise the training says what is wrong, and nothing is kept
        for key, name, *row in zip(batch.keys, _names(moment, batch), won.tolist(), lost.tolist(), strict=True):
            self._met[moment, key] = (row[0], row[1])
            if finite:
                self._kept[name] = self._new[name] = (row[0], row[1])

    def get(self, moment: str, batch: PreferenceBatch) -> Tensor | None:
        """The errors of a batch of P pairs: float32 (2P,), winners first; None if those of one are not known."""
        if any((moment, key) not in self._met for key in batch.keys):
            names = _names(moment, batch)
            if any(name not in self._kept for name in names):
                return None
            self._met |= {(moment, key): self._kept[name] for key, name in zip(batch.keys, names, strict=True)}
        return torch.tensor([self._met[moment, key][side] for side in (0, 1) for key in batch.keys])

    def write(self) -> None:
        """Add what all ranks made since the last time to the file; what another training wrote meanwhile stays."""
        parts: list[Errors] = [self._new]
        together = dist.is_available() and dist.is_initialized()
        if together:
            parts = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(parts, self._new)
        self._new = {}
        if not any(parts) or (together and dist.get_rank()):
            return
        rows = self._read()
        for part in parts:
            rows |= part
        self.path.parent.mkdir(parents=True, exist_ok=True)
        names = torch.tensor([list(name) for name in rows], dtype=torch.uint8)
        with atomic_write(self.path) as partial:
            save_file({"names": names, "errors": torch.tensor(list(rows.values()))}, partial)

    def _read(self) -> Errors:
        if not self.path.exists():
            return {}
        try:
            tables = load_file(self.path)
            names, errors = tables["names"], tables["errors"]
            if names.shape != (len(errors), _BYTES) or errors.shape[1:] != (2,) or not bool(errors.isfinite().all()):
                raise ValueError("its tables do not fit")
        except (SafetensorError, KeyError, ValueError) as error:
            raise OSError(f"{self.path} is damaged ({error}); delete it and run the same command again.") from None
        rows = zip(names.tolist(), errors.tolist(), strict=True)
        return {bytes(name): (won, lost) for name, (won, lost) in rows}


def _names(moment: str, batch: PreferenceBatch) -> list[bytes]:
    """A name for each pair: what is drawn for it hangs on its key, what it is on its images and its caption."""
    winners, losers = (images.cpu().contiguous().numpy() for images in (batch.winners, batch.losers))
    names = []
    for key, winner, loser, caption in zip(batch.keys, winners, losers, batch.captions, strict=True):
        hasher = hashlib.blake2b(repr((moment, key, caption)).encode(), digest_size=_BYTES)
        hasher.update(winner)
        hasher.update(loser)
        names.append(hasher.digest())
    return names
