"""aDFT: fine-tuning through the sampler until a judge sees the wanted shares (Shen et al. 2024); a rival of PopAlign."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fairanon.backbones import Backbone
from fairanon.batches import PromptBatch
from fairanon.imaging import to_pixels
from fairanon.losses.assignment import assigned_classes
from fairanon.losses.chain import ddim_steps, evened, final_weights
from fairanon.methods.drawing_method import DrawingMethod
from fairanon.prompts import wanted_shares
from fairanon.protocols import DifferentiableClassifier
from fairanon.seeding import keyed_generator

_DECODED = 4
"""Images that are decoded together with a gradient: the decoder's activations are the largest of all."""
_SCALE = 2.0**16
"""Of the loss while its gradient goes back to the latents: half precision has no number as small as a pixel's share of it."""


class AdjustedFineTuning(DrawingMethod):
    """Draws images in training, and asks some of them to show another class, so that a prompt's images have the wanted shares.

    A step: the images of a prompt are drawn; a judge says who is seen; `assigned_classes` says which of them should show
    whom. The loss is the judge's cross-entropy, plus how unlike an image has become to what the un-tuned model draws of the
    same noise. It reaches each of the sampler's predictions through the linear chain alone, not through the predictions
    after it, and every step alike ("adjusted").

    Args:
        backbone: The diffusion model; its reference draws what images should stay like.
        judge: Whom the images show; its gradients are the training, so another judge has to measure the result. An image in which
            it sees nobody is asked for no class.
        attributes: Whose shares count, each by itself.
        shares: Wanted shares of an attribute's classes other than even ones.
        sampling_steps: DDIM steps.
        guidance_scale: How strongly a prompt acts; 1 is no guidance.
        preserve: Weight of the likeness to the un-tuned model's image.
        preserve_changed: The same for images that are to show another class, as a part of ``preserve``.
        sure: An image is asked for a class only if at least this share of the random assignments gives it that class.
        shared: See `DiffusionMethod`.
    """

    def __init__(
        self,
        backbone: Backbone,
        judge: DifferentiableClassifier,
        attributes: tuple[str, ...] = ("gender",),
        shares: dict[str, dict[str, float]] | None = None,
        sampling_steps: int = 8,
        guidance_scale: float = 7.5,
        preserve: float = 8.0,
        preserve_changed: float = 0.2,
        sure: float = 0.8,
        **shared: Any,
    ) -> None:
        super().__init__(backbone, sampling_steps, guidance_scale, **shared)
        for name in attributes:
            if name not in judge.classes:
                raise ValueError(
                    f"model.attributes: {judge.name} does not judge {name!r}, only {', '.join(judge.classes)}."
                )
        if not 0 <= sure <= 1:
            raise ValueError(f"model.sure must be in [0, 1], got {sure}.")
        self.judge, self.attributes = judge, tuple(attributes)
        self.preserve, self.preserve_changed, self.sure = preserve, preserve_changed, sure
        self._shares = {
            name: torch.tensor(wanted_shares(judge.classes[name], (shares or {}).get(name), f"model.shares: {name}"))
            for name in attributes
        }

    def on_fit_start(self) -> None:
        """The judge works where the model does."""
        self.judge.to(self.device)

    def loss(self, batch: PromptBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on the images of some prompts; see `DiffusionMethod.loss`."""
        abar, timesteps = self.schedule()
        a, b = ddim_steps(abar, self.backbone.prediction_type)
        noise, (now, before_training) = self.starting_noise(batch), self.encoded(batch)
        with torch.no_grad():
            seen = [noise]
            for k in range(self.sampling_steps):
                prediction = self.guided(seen[-1], timesteps[k], *now)
                seen.append(float(a[k]) * seen[-1] + float(b[k]) * prediction)
            kept = noise
            for k in range(self.sampling_steps):
                prediction = self.guided(kept, timesteps[k], *before_training, reference=True)
                kept = float(a[k]) * kept + float(b[k]) * prediction
            _, before = self.judge.differentiable(self.backbone.decode(kept))
        final = seen[-1].requires_grad_()
        images = [checkpoint(self.backbone.decode, part, use_reentrant=False) for part in final.split(_DECODED)]
        value, logs = self._of_images(torch.cat(images), before, batch)
        (slope,) = (one / _SCALE for one in torch.autograd.grad(value * _SCALE, final))
        through = torch.zeros((), device=self.device)
        for k, weight in enumerate(evened(final_weights(a, b)).tolist()):
            prediction = checkpoint(self.guided, seen[k].detach(), timesteps[k], *now, use_reentrant=False)
            through = through + weight * (slope * prediction).sum()
        return value.detach() + through - through.detach(), logs

    def _of_images(self, images: Tensor, before: Tensor, batch: PromptBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of drawn images, float (N, 3, H, W), beside what the un-tuned model's look like, (N, D)."""
        logits, features = self.judge.differentiable(images)
        judged = self.judge.classify(to_pixels(images.detach()))
        crossed, changes = images.new_zeros(()), torch.zeros(len(images), dtype=torch.bool, device=images.device)
        logs = {}
        for name, shares in self._shares.items():
            seen = ~judged[name].isnan().any(1).to(images.device)
            asked = self._asked(logits[name].softmax(1), seen, shares, name, batch)
            often, wanted = asked.max(1)
            sure = seen & (often >= self.sure)
            crossed = crossed + F.cross_entropy(logits[name], wanted, reduction="none")[sure].sum() / len(images)
            changes |= sure & (wanted != logits[name].argmax(1))
            logs[f"sure/{name}"] = sure.float().mean()
        unlike = 1 - F.cosine_similarity(features, before, dim=1)
        preserved = (torch.where(changes, self.preserve_changed, 1.0) * unlike).mean()
        logs |= {"crossed": crossed, "unlike": unlike.mean(), "changes": changes.float().mean()}
        return crossed + self.preserve * preserved, {name: value.detach() for name, value in logs.items()}

    def _asked(self, probabilities: Tensor, seen: Tensor, shares: Tensor, name: str, batch: PromptBatch) -> Tensor:
        """How often each image is asked for each class of an attribute, (N, K), among those of its prompt that show somebody."""
        asked = torch.zeros_like(probabilities)
        for prompt in dict.fromkeys(batch.prompts):
            rows = [k for k, text in enumerate(batch.prompts) if text == prompt and seen[k]]
            if not rows:
                continue
            generator = keyed_generator(self.noise_seed, "assignment", name, *(batch.keys[k] for k in rows))
            asked[rows] = assigned_classes(probabilities[rows], shares, generator).to(asked)
        return asked
