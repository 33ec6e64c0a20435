"""Random numbers that belong to a key, not to a moment.

Every draw of the project (noise, timesteps, caption dropout, augmentation, synthetic people) comes from
a generator seeded by *what* it is for: ``(seed, epoch, sample id, purpose)``. Results then depend neither
on the number of ranks or workers nor on where a run was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import torch

Key = str | int


_FRESH = torch.Generator().manual_seed(0).get_state()
_WORDS = slice(24, 24 + 624 * 8)  # the Mersenne twister's 624 numbers of 32 bits, each in 8 bytes


def keyed_generator(*key: Key) -> torch.Generator:
    """A CPU generator for ``key``; noise is drawn on the CPU and moved, so every device sees the same.

    Its whole state comes from the key. (`torch.Generator.manual_seed` has 32 bits on the CPU: among 100,000 keys about
    one pair would share its draws.)

    Args:
        key: Any mix of strings and integers; order and type matter.
    """
    words = np.frombuffer(hashlib.shake_128(repr(key).encode()).digest(624 * 4), dtype=np.uint32)
    state = _FRESH.clone()
    state.numpy()[_WORDS].view(np.uint64)[:] = words
    generator = torch.Generator()
    generator.set_state(state)
    return generator


def keyed_randn(keys: Iterable[Sequence[Key]], shape: Sequence[int]) -> torch.Tensor:
    """Standard normal noise, one independent draw per key.

    Args:
        keys: One key per sample.
        shape: The shape of one sample.

    Returns:
        float32 tensor of shape (len(keys), *shape) on the CPU.
    """
    return torch.stack([torch.randn(*shape, generator=keyed_generator(*key)) for key in keys])


def keyed_randint(keys: Iterable[Sequence[Key]], high: int) -> torch.Tensor:
    """Integers in [0, high), one independent draw per key; int64 of shape (len(keys),) on the CPU."""
    return torch.cat([torch.randint(0, high, (1,), generator=keyed_generator(*key)) for key in keys])


def keyed_uniform(keys: Iterable[Sequence[Key]]) -> torch.Tensor:
    """Numbers in [0, 1), one independent draw per key; float32 of shape (len(keys),) on the CPU."""
    return torch.cat([torch.rand(1, generator=keyed_generator(*key)) for key in keys])


def uniform_rows(seed: int, indices: Iterable[int], columns: int) -> torch.Tensor:
    """A row of uniform numbers for each index; cheap enough for hundreds of thousands of rows.

    Args:
        seed: Of the table.
        indices: Row numbers, any non-negative integers.
        columns: Numbers per row.

    Returns:
        float32 tensor in [0, 1) of shape (len(indices), columns); row i depends on ``seed`` and
        ``indices[i]`` alone.
    """
    rows = [
        np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), int(index)])).random(columns, dtype=np.float32)
        for index in indices
    ]
    return torch.from_numpy(np.stack(rows))


class KeyedOrder(Sequence[int]):
    """The numbers below ``size`` in an order that a key names, of which nothing is stored.

    A Feistel network permutes a power of four that holds them; what falls outside goes through it again (Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002).

    Args:
        size: How many numbers.
        key: See `keyed_generator`.

    Examples:
        >>> sorted(KeyedOrder(5, "a pass", 0))
        [0, 1, 2, 3, 4]
    """

    def __init__(self, size: int, *key: Key) -> None:
        self.size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._keys = [int(number) for number in keyed_randint([(*key, turn) for turn in range(_TURNS)], 2**62)]

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> list[int]: ...
    def __getitem__(self, place: int | slice) -> int | list[int]:
        """The number at a place, or those at several."""
        if isinstance(place, slice):
            return [self[position] for position in range(*place.indices(self.size))]
        number = range(self.size)[place]
        while True:
            left, right = number >> self._half, number & (1 << self._half) - 1
            for key in self._keys:
                left, right = right, left ^ _mixed(right ^ key) & (1 << self._half) - 1
            number = left << self._half | right
            if number < self.size:
                return number


_TURNS = 8


def _mixed(number: int) -> int:
    """A number of 64 bits of which each depends on all of another one's (the last steps of splitmix64)."""
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
    number = (number ^ number >> 27) * 0x94D049BB133111EB & 2**64 - 1
    return number ^ number >> 31
