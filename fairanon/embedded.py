"""Where the files lie that come with fairanon: small models and judges of the embedded world."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent / "assets"
BACKBONES = {"tiny": "text_to_image", "tiny-inpainting": "inpainting"}
"""Names of backbones, and of their folders."""


def embedded(*parts: str) -> Path:
    """A file or folder; `fairanon.assets` makes them."""
    return _FOLDER.joinpath(*parts)
