"""What judges said of images, as typed records that can be stored, cut and joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from fairanon.batches import PromptRow


@dataclass
class Observed:
    """Base of what a measure observes of N images; each field is a tensor of N rows, several by name, or None."""

    def flat(self) -> dict[str, Tensor]:
        """All tensors: ``field``, or ``field/name``."""
        tensors = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                tensors[field.name] = value
            elif value is not None:
                tensors |= {f"{field.name}/{name}": tensor for name, tensor in value.items()}
        return tensors

    @classmethod
    def of(cls, flat: dict[str, Tensor]) -> Self:
        """The record of what `flat` returned."""
        values: dict[str, Tensor | dict[str, Tensor]] = {}
        for key, tensor in flat.items():
            field, inside, name = key.partition("/")
            if inside:
                values.setdefault(field, {})[name] = tensor  # type: ignore[index]  # a dictionary: it has names
            else:
                values[field] = tensor
        return cls(**values)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, one after the other."""
        flat = [part.flat() for part in parts]
        return cls.of({key: torch.cat([part[key] for part in flat]) for key in flat[0]})

    def __getitem__(self, rows: Tensor) -> Self:
        return self.of({key: tensor[rows] for key, tensor in self.flat().items()})


R = TypeVar("R", bound=Observed)


@dataclass
class Judged(Generic[R]):
    """Judged images.

    Attributes:
        rows: The prompt table.
        prompt: int64 (N,), each image's row in it.
        values: What a measure observed of them.
    """

    rows: list[PromptRow]
    prompt: Tensor
    values: R

    def within(self, *sets: str) -> Judged[R]:
        """Those of these sets."""
        return self[torch.isin(self.prompt, torch.tensor([n for n, row in enumerate(self.rows) if row.set in sets]))]

    def asked(self, name: str) -> list[str | None]:
        """What each image's prompt asks of an attribute."""
        return [self.rows[row].asked.get(name) for row in self.prompt.tolist()]

    def __getitem__(self, chosen: Tensor) -> Judged[R]:
        return Judged(self.rows, self.prompt[chosen], self.values[chosen])

    def __len__(self) -> int:
        return len(self.prompt)
