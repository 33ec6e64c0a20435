"""PopAlign's one-dimensional study (section 4 and appendix H): a mixture of three Gaussians, many settings at once.

G1 and G3 stand for two groups of an attribute (G3 is rare), G2 for everything unrelated; the preference data
holds no sample of G2. All settings train side by side, each with its own parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from fairanon.losses.preference_losses import popalign_loss

REFERENCE_LOGITS, REFERENCE_MEANS = (1.0, 0.0, -1.0), (-7.0, 0.0, 7.0)


@dataclass
class Setting:
    """One curve of the study.

    Args:
        objective: ``popalign`` or ``sft`` (maximum likelihood on the winners).
        alpha: Weight of the winners in mu.
        beta: Divergence penalty.
        share: Share of G1 among the winners (appendix H.2); the rest is G3.
    """

    objective: Literal["popalign", "sft"] = "popalign"
    alpha: float = 0.5
    beta: float = 0.5
    share: float = 0.5


def log_density(x: Tensor, logits: Tensor, means: Tensor, log_sigmas: Tensor) -> Tensor:
    """Log density of mixtures (equation 10).

    Args:
        x: float (V, N).
        logits: float (V, 3).
        means: float (V, 3).
        log_sigmas: float (V, 3).

    Returns:
        float (V, N).
    """
    z = (x[..., None] - means[:, None]) / log_sigmas.exp()[:, None]
    parts = logits.log_softmax(-1)[:, None] - 0.5 * z.square() - log_sigmas[:, None] - 0.5 * math.log(2 * math.pi)
    return parts.logsumexp(-1)


def mix(groups: Tensor, share: float) -> Tensor:
    """As many draws as each group has, ``share`` of them from G1: float64 (N,)."""
    count = groups.shape[1]
    first = round(share * count)
    return torch.cat([groups[0, :first], groups[1, : count - first]])


class PopAlignGaussian(LightningModule):
    """Trains a mixture per setting and draws what becomes of G1, G2 and G3.

    Args:
        settings: The curves by name.
        optimizer: Called with the parameters.
    """

    title = "gaussian"

    def __init__(
        self,
        settings: dict[str, Setting],
        optimizer: OptimizerCallable = torch.optim.Adam,
    ) -> None:
        super().__init__()
        self.settings, self._optimizer = settings, optimizer
        count = len(settings)
        start = (REFERENCE_LOGITS, REFERENCE_MEANS, (0.0, 0.0, 0.0))
        self.logits, self.means, self.log_sigmas = (
            nn.Parameter(torch.tensor(value, dtype=torch.float64).repeat(count, 1)) for value in start
        )
        self.reference = tuple(p.detach().clone() for p in (self.logits, self.means, self.log_sigmas))
        self.history = [self.logits.detach().softmax(-1)]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam works element by element: the settings do not influence each other."""
        return self._optimizer(self.parameters())

    def loss(self, groups: Tensor) -> Tensor:
        """Loss of every setting.

        Args:
            groups: float64 (2, N), draws of G1 and of G3.

        Returns:
            float64 (V,).
        """
        weights = torch.tensor(REFERENCE_LOGITS).softmax(0)
        # The losers are what the reference draws, without G2.
        losers = mix(groups, float(weights[0] / (weights[0] + weights[2]))).repeat(len(self.settings), 1)
        winners = torch.stack([mix(groups, setting.share) for setting in self.settings.values()])
        now = (self.logits, self.means, self.log_sigmas)
        won = log_density(winners, *now)
        gain_won = won - log_density(winners, *self.reference)
        gain_lost = log_density(losers, *now) - log_density(losers, *self.reference)
        label = torch.cat([torch.ones(won.shape[1]), -torch.ones(won.shape[1])])
        values = []
        for row, setting in enumerate(self.settings.values()):
            if setting.objective == "sft":
                values.append(-won[row].mean())
                continue
            mu = setting.alpha * gain_won[row].mean() + (1 - setting.alpha) * gain_lost[row].mean()
            values.append(popalign_loss(torch.cat([gain_won[row], gain_lost[row]]), label, mu, setting.beta))
        return torch.stack(values)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """One step of all settings."""
        values = self.loss(batch)
        self.log("train/loss", values.detach().mean(), prog_bar=True)
        return values.sum()

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        """The figure shows every step."""
        self.history.append(self.logits.detach().softmax(-1))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A training that goes on draws the whole figure."""
        checkpoint["history"] = torch.stack(self.history)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Likewise."""
        self.history = list(checkpoint["history"])

    def results(self) -> dict[str, Any]:
        """Final weights, means, deviations and the fairness between G1 and G3 of each setting."""
        weights = self.logits.detach().softmax(-1)
        return {
            name: {
                **vars(setting),
                "weights": [round(value, 4) for value in weights[row].tolist()],
                "means": [round(value, 3) for value in self.means[row].tolist()],
                "sigmas": [round(value, 3) for value in self.log_sigmas[row].exp().tolist()],
                "share_of_g1": round(float(weights[row, 0] / (weights[row, 0] + weights[row, 2])), 4),
            }
            for row, (name, setting) in enumerate(self.settings.items())
        }

    def lines(self) -> list[str]:
        """Weights of the three Gaussians, a line for each setting."""
        reference = F.softmax(torch.tensor(REFERENCE_LOGITS), 0).tolist()
        weights = {"reference": reference, **{name: row["weights"] for name, row in self.results().items()}}
        lines = [f"{'setting':<24}{'G1':>8}{'G2':>8}{'G3':>8}"]
        return [*lines, *(name.ljust(24) + "".join(f"{w:8.3f}" for w in row) for name, row in weights.items())]

    def mixtures(self) -> dict[str, Any]:
        """What `fairanon.report.plots.plot_mixtures` draws: densities, and weights at every step."""
        axis = torch.linspace(-14, 14, 561, dtype=torch.float64)
        grid = axis.repeat(len(self.settings), 1)
        after = log_density(grid, self.logits.detach(), self.means.detach(), self.log_sigmas.detach()).exp()
        before = log_density(grid[:1], *(value[:1] for value in self.reference)).exp()[0]
        return {
            "names": list(self.settings), "axis": axis.tolist(), "before": before.tolist(), "after": after.tolist(),
            "history": torch.stack(self.history).tolist(),
        }  # fmt: skip
