"""SPO: preferences between candidates of one denoising step (Liang et al. 2024); a rival in Ano-Face-Fair's table 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fairanon.backbones import Backbone
from fairanon.backbones.base import Conditioning
from fairanon.batches import PromptBatch
from fairanon.config.experiments import UserError
from fairanon.evaluators.judge import to_device
from fairanon.imaging import to_pixels
from fairanon.losses.chain import noisy_ddim_steps
from fairanon.losses.preference_losses import clipped_log_ratio
from fairanon.methods.base import sum_over_ranks
from fairanon.methods.drawing_method import DrawingMethod, Encoded
from fairanon.protocols import Scorer
from fairanon.seeding import keyed_randint, keyed_randn


@dataclass
class _Pairs:
    """Pairs of one step.

    Attributes:
        step: Which.
        rows: int64 (P,), of the batch: those whose best and worst candidate differ enough.
        noisy: float (P, C, h, w), where the step begins.
        won: Likewise, the better candidate.
        lost: The worse one.
    """

    step: int
    rows: Tensor
    noisy: Tensor
    won: Tensor
    lost: Tensor


class StepPreference(DrawingMethod):
    """Draws images in training, and in each step prefers the better of several candidates that begin at the same latents.

    A step of the sampler is a Gaussian: DDIM with noise. From the step ``first`` on ``candidates`` of it are drawn. A scorer
    rates what each will become. The best and the worst are a pair if their scores differ by more than ``threshold``, and one
    candidate at random goes on. The loss of a pair is -log sigmoid(beta (log rho_w - log rho_l)), where rho is the density of
    a candidate under the model over that under the reference, clipped to 1 +- ``clip``.

    The official method has a preference model that knows the timestep and rates noisy latents. Here the scorer rates the image
    that the model predicts of a candidate.

    Args:
        backbone: The diffusion model; its reference is the one that a candidate's density is compared with.
        scorer: Rates images, as it rates the pairs of other preference objectives.
        sampling_steps: See `DrawingMethod`.
        first: Of the steps, from 0 on, the first one of which candidates are drawn.
        candidates: Of each step.
        threshold: By how much two scores must differ.
        beta: Scale of the log ratio.
        clip: How far a ratio counts.
        eta: How much of DDPM's noise a step has.
        guidance_scale: See `DrawingMethod`.
        shared: See `DiffusionMethod`.
    """

    def __init__(
        self,
        backbone: Backbone,
        scorer: Scorer,
        sampling_steps: int = 20,
        first: int = 4,
        candidates: int = 4,
        threshold: float = 0.3,
        beta: float = 10.0,
        clip: float = 0.1,
        eta: float = 1.0,
        guidance_scale: float = 5.0,
        **shared: Any,
    ) -> None:
        super().__init__(backbone, sampling_steps, guidance_scale, **shared)
        if not 0 <= first < sampling_steps - 1:
            raise ValueError(f"model.first must be 0 to {sampling_steps - 2}, got {first}: the last step has no noise.")
        if candidates < 2:
            raise ValueError(f"model.candidates must be at least 2, got {candidates}.")
        if not 0 < eta <= 1 or not 0 < clip < 1 or beta <= 0:
            raise ValueError("model: eta must be in (0, 1], clip in (0, 1), and beta positive.")
        self.scorer, self.first, self.candidates, self.threshold = scorer, first, candidates, threshold
        self.beta, self.clip, self.eta = beta, clip, eta

    def configure_model(self) -> None:
        """See `DiffusionMethod`; ranks have different numbers of pairs, and would wait for one another's weights for ever."""
        if self.device_mesh is not None:
            raise UserError("trainer.strategy: StepPreference is not laid over devices; take OVERLAY=ddp.")

    def on_fit_start(self) -> None:
        """The scorer works where the model does."""
        to_device({"scorer": self.scorer}, self.device)

    def loss(self, batch: PromptBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on the images of some prompts; see `DiffusionMethod.loss`."""
        noise, (now, before) = self.starting_noise(batch), self.encoded(batch)
        with torch.no_grad():
            pairs, scores = self._drawn(batch, noise, *now)
        count = sum(len(pair.rows) for pair in pairs)
        everywhere = sum_over_ranks(torch.tensor([float(count), 1.0], device=self.device))
        value, right = noise.new_zeros(()), 0.0
        for pair in pairs:
            won, lost = self._log_ratios(pair, now, before)
            value = value - F.logsigmoid(self.beta * (won - lost)).sum()
            right += float((won > lost).sum())
        value = value * everywhere[1] / everywhere[0].clamp_min(1)  # ranks are averaged
        value = value + sum(
            p.flatten()[0] * 0.0 for p in self.parameters() if p.requires_grad
        )  # no pair is no gradient
        tried = len(batch) * (self.sampling_steps - 1 - self.first)
        logs = {"pairs": count / tried, "score": float(scores.mean()), "reward_accuracy": right / max(1, count)}
        return value, {name: torch.tensor(number) for name, number in logs.items()}

    def _drawn(
        self, batch: PromptBatch, noise: Tensor, condition: Conditioning, nothing: Conditioning
    ) -> tuple[list[_Pairs], Tensor]:
        """The pairs of each step, and the candidates' scores."""
        abar, timesteps = self.schedule()
        a, b, spread = noisy_ddim_steps(abar, self.backbone.prediction_type, self.eta)
        here, prediction = noise, self.guided(noise, timesteps[0], condition, nothing)
        pairs, every, each = [], [], torch.arange(len(batch), device=noise.device)
        for k in range(self.sampling_steps - 1):
            mean = float(a[k]) * here + float(b[k]) * prediction
            count = self.candidates if k >= self.first else 1
            drawn = torch.stack([mean + float(spread[k]) * self._noise(batch, k, n) for n in range(count)])
            after = torch.stack([self.guided(one, timesteps[k + 1], condition, nothing) for one in drawn])
            chosen = torch.zeros_like(each)
            if count > 1:
                scores = torch.stack(
                    [self._score(one, seen, timesteps[k + 1], batch) for one, seen in zip(drawn, after, strict=True)]
                )
                every.append(scores)
                differs = (scores.amax(0) - scores.amin(0) > self.threshold).nonzero()[:, 0]
                best, worst = scores.argmax(0)[differs], scores.argmin(0)[differs]
                if len(differs):
                    pairs.append(_Pairs(k, differs, here[differs], drawn[best, differs], drawn[worst, differs]))
                chosen = keyed_randint([(self.noise_seed, "goes on", key, k) for key in batch.keys], count).to(each)
            here, prediction = drawn[chosen, each], after[chosen, each]
        return pairs, torch.stack(every)

    def _noise(self, batch: PromptBatch, step: int, candidate: int) -> Tensor:
        keys = [(self.noise_seed, "candidate", key, step, candidate) for key in batch.keys]
        side = int(self.backbone.unet.config.sample_size)
        return keyed_randn(keys, (self.backbone.latent_channels, side, side)).to(self.device)

    def _score(self, noisy: Tensor, prediction: Tensor, timestep: int, batch: PromptBatch) -> Tensor:
        """What a candidate will become, rated: float32 (B,)."""
        when = torch.full((len(noisy),), timestep, device=noisy.device)
        images = self.backbone.decode(self.backbone.predict_x0(noisy, prediction, when))
        return self.scorer.score(to_pixels(images), list(batch.prompts)).to(noisy.device)

    def _log_ratios(self, pair: _Pairs, encoded: Encoded, kept: Encoded) -> Sequence[Tensor]:
        """Of the better and of the worse candidate, (P,) each.

        Args:
            pair: Pairs of one step.
            encoded: The batch's prompts and the empty one.
            kept: The same by the reference.
        """
        abar, timesteps = self.schedule()
        a, b, spread = (float(x[pair.step]) for x in noisy_ddim_steps(abar, self.backbone.prediction_type, self.eta))
        when = timesteps[pair.step]
        asked, nothing = (one[pair.rows] for one in encoded)
        asked_before, nothing_before = (one[pair.rows] for one in kept)
        before = self.guided(pair.noisy, when, asked_before, nothing_before, reference=True)
        now = checkpoint(self.guided, pair.noisy, when, asked, nothing, use_reentrant=False)
        mean, old = (a * pair.noisy + b * prediction for prediction in (now, before))
        return [clipped_log_ratio(drawn, mean, old, spread, self.clip) for drawn in (pair.won, pair.lost)]
