"""How images are sampled."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """Settings of a sampler.

    Attributes:
        steps: DPM-Solver++ steps.
        guidance_scale: How strongly a prompt acts; 1 is no guidance.
        reference: By the reference instead of the trained model.
        lora_weight: How strongly trained adapters act.
    """

    steps: int
    guidance_scale: float = 1.0
    reference: bool = False
    lora_weight: float = 1.0
