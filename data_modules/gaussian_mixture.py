"""Samples of the two Gaussians of PopAlign's one-dimensional study (section 4)."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from fairanon.seeding import keyed_generator


class GaussianGroups(LightningDataModule):
    """The same batch at every step: float64 (2, samples), draws of G1 and of G3 (G2 is never seen).

    Args:
        samples: Draws of each; the paper has 1000 in all.
        means: Of G1 and G3.
        seed: Of the draws.
    """

    def __init__(self, samples: int = 1000, means: tuple[float, float] = (-7.0, 7.0), seed: int = 0) -> None:
        super().__init__()
        self.samples, self.means, self.seed = samples, means, seed

    def batch(self) -> Tensor:
        """The draws."""
        noise = torch.randn(2, self.samples, generator=keyed_generator(self.seed, "gaussian"), dtype=torch.float64)
        return noise + torch.tensor(self.means, dtype=torch.float64)[:, None]

    def train_dataloader(self) -> DataLoader[Tensor]:
        """A thousand times the same batch."""
        return DataLoader([self.batch()] * 1000, batch_size=None)  # type: ignore[arg-type]  # a list is a data set
