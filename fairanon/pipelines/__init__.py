"""Inference as diffusers pipelines."""

from fairanon.pipelines.inpaint import InpaintPipeline, inpaint, paste

__all__ = ["InpaintPipeline", "inpaint", "paste"]
