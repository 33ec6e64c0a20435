"""Judges behind small protocols: third-party ones and the embedded world's own."""

from fairanon.evaluators.tiny import TinyAttributes, TinyDetector, TinyEmbedder, TinyGeometry

__all__ = ["TinyAttributes", "TinyDetector", "TinyEmbedder", "TinyGeometry"]
