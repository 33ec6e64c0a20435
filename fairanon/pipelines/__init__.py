"""Inference as diffusers pipelines."""

from fairanon.pipelines.id2face_pipeline import ID2FacePipeline
from fairanon.pipelines.inpaint import InpaintPipeline, inpaint, paste

__all__ = ["ID2FacePipeline", "InpaintPipeline", "inpaint", "paste"]
