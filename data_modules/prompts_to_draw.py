"""Prompts of which a training draws the images itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from data_modules.base import StepDataModule
from fairanon.batches import PromptBatch
from fairanon.files import read_table


class _Prompts(Dataset[PromptBatch]):
    def __init__(self, prompts: Sequence[str], images: int) -> None:
        self.prompts, self.images = prompts, images

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, place: tuple[int, int]) -> PromptBatch:
        row, number = place
        return PromptBatch([f"{row}.{number}.{k}" for k in range(self.images)], [self.prompts[row]] * self.images)


def _together(parts: Sequence[PromptBatch]) -> PromptBatch:
    return PromptBatch(
        [key for part in parts for key in part.keys], [prompt for part in parts for prompt in part.prompts]
    )


class PromptsToDraw(StepDataModule):
    """Neutral prompts, each for several images: their shares can only be told of images of one prompt.

    Args:
        prompts: A CSV with the column "prompt"; rows of the set "heldout" are left out.
        images: Images of each prompt in a step.
        batch_size: Prompts of one rank and step.
        num_workers: Loader processes.
        seed: Of the order of the prompts.
    """

    def __init__(
        self, prompts: str, images: int = 16, batch_size: int = 1, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        if images < 2:
            raise ValueError(f"data.images must be at least 2, got {images}.")
        self.path, self.images = Path(prompts), images

    def look(self) -> None:
        """See `fairanon.protocols.OnDisk`."""
        self.prompts()

    def prompts(self) -> list[str]:
        """The prompts of the file.

        Raises:
            FileNotFoundError: It is not there.
            ValueError: It has none.
        """
        if not self.path.exists():
            raise FileNotFoundError(f"data.prompts: {self.path} is missing; give a CSV with the column prompt.")
        rows = read_table(self.path, "data.prompts", ("prompt",))
        prompts = [row["prompt"] for _, row in rows if row["prompt"].strip() and row.get("set") != "heldout"]
        if not prompts:
            raise ValueError(f"data.prompts: {self.path} has no prompt; fill the column prompt.")
        return prompts

    def train_dataloader(self) -> DataLoader[PromptBatch]:
        """Whole prompts, in an order that is a function of the step."""
        return self.endless_loader(_Prompts(self.prompts(), self.images), _together)
