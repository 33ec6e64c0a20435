"""Inference as diffusers pipelines."""

from fairanon.pipelines.faces import FaceAnonymizer, FaceResult
from fairanon.pipelines.inpaint import InpaintPipeline, inpaint, paste

__all__ = ["FaceAnonymizer", "FaceResult", "InpaintPipeline", "inpaint", "paste"]
