"""The methods, one LightningModule each."""

from fairanon.methods.fairhuman import FairHuman
from fairanon.methods.popalign import PopAlign
from fairanon.methods.popalign_gaussian import PopAlignGaussian

__all__ = ["FairHuman", "PopAlign", "PopAlignGaussian"]
