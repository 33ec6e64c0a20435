"""Where images to be judged come from: a method, a pipeline, a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fairanon.backbones import Backbone, Sampling
from fairanon.batches import PromptRow
from fairanon.methods.base import DiffusionMethod
from fairanon.pipelines.sample import sample_rows
from fairanon.pipelines.steering import Steering, steered
from fairanon.seeding import Key


class Sampler(Protocol):
    """Something that has an image for each prompt and key."""

    @property
    def device(self) -> torch.device:
        """Where it works; judges work there too."""
        ...

    def origin(self) -> list[Any]:
        """Everything plain that its images depend on besides prompts and keys: names stored judgements."""
        ...

    def sample(self, rows: Sequence[PromptRow], keys: Sequence[Sequence[Key]]) -> Tensor:
        """Images of B prompts, uint8 (B, 3, H, W) on the CPU; image i depends on row i and key i alone."""
        ...


@dataclass
class BackboneSampler:
    """A model as it is, for example of a pipeline's folder: ``StableDiffusion(FOLDER, frozen=True)``.

    Args:
        backbone: The model.
        sampling: How.
    """

    backbone: Backbone
    sampling: Sampling

    @property
    def device(self) -> torch.device:
        """See `Sampler`."""
        return self.backbone.device

    def origin(self) -> list[Any]:
        """See `Sampler`."""
        return [self.sampling.steps, self.sampling.guidance_scale, self.backbone.origin()]

    def sample(self, rows: Sequence[PromptRow], keys: Sequence[Sequence[Key]]) -> Tensor:
        """See `Sampler`."""
        return sample_rows(self.backbone, rows, keys, self.sampling)


@dataclass
class MethodSampler:
    """A method's model, trained, or its reference.

    Args:
        method: The method.
        sampling: How; adapters have no part in the reference.
    """

    method: DiffusionMethod
    sampling: Sampling

    @property
    def device(self) -> torch.device:
        """See `Sampler`."""
        return self.method.device

    def origin(self) -> list[Any]:
        """See `Sampler`."""
        origin = [self.sampling.steps, self.sampling.guidance_scale, self.method.backbone.origin()]
        if not self.sampling.reference:
            origin += [self.method.weights_digest(), *self.method.settings_of_use(), self.sampling.lora_weight]
        return origin

    def sample(self, rows: Sequence[PromptRow], keys: Sequence[Sequence[Key]]) -> Tensor:
        """See `Sampler`."""
        return self.method.images(rows, keys, self.sampling)


@dataclass
class SteeredSampler:
    """What draws, steered.

    Args:
        plain: What draws; of a method, the model that its sampling names.
        steering: What is different.
    """

    plain: BackboneSampler | MethodSampler
    steering: Steering

    @property
    def backbone(self) -> Backbone:
        """What is steered."""
        return self.plain.backbone if isinstance(self.plain, BackboneSampler) else self.plain.method.backbone

    @property
    def device(self) -> torch.device:
        """See `Sampler`."""
        return self.plain.device

    def origin(self) -> list[Any]:
        """See `Sampler`."""
        return [*self.plain.origin(), self.steering.origin()]

    def sample(self, rows: Sequence[PromptRow], keys: Sequence[Sequence[Key]]) -> Tensor:
        """See `Sampler`."""
        return steered(self.backbone, [row.prompt for row in rows], keys, self.plain.sampling, self.steering)
