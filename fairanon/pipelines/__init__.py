"""Inference as diffusers pipelines."""

from fairanon.pipelines.faces import FaceAnonymizer, FaceResult, ID2FaceAnonymizer
from fairanon.pipelines.id2face import ID2FacePipeline
from fairanon.pipelines.inpaint import InpaintPipeline, inpaint, paste

__all__ = [
    "FaceAnonymizer",
    "FaceResult",
    "ID2FaceAnonymizer",
    "ID2FacePipeline",
    "InpaintPipeline",
    "inpaint",
    "paste",
]
