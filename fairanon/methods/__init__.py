"""The methods, one LightningModule each."""

from fairanon.methods.popalign import PopAlign

__all__ = ["PopAlign"]
