"""Inference as diffusers pipelines."""

from fairanon.pipelines.inpaint import InpaintPipeline

__all__ = ["InpaintPipeline"]
