"""The shared diffusion backbones; the only rooms that know diffusers and peft."""

from fairanon.backbones.adapters import Control, Lora
from fairanon.backbones.base import Backbone, Conditioning, tokenize
from fairanon.backbones.sampling import Sampling
from fairanon.backbones.sdxl import StableDiffusionXL
from fairanon.backbones.stable_diffusion import StableDiffusion

__all__ = [
    "Backbone",
    "Conditioning",
    "Control",
    "Lora",
    "Sampling",
    "StableDiffusion",
    "StableDiffusionXL",
    "tokenize",
]
