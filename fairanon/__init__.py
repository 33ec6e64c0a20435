"""fairanon: fair and private face generation with PyTorch Lightning."""

__version__ = "0.1.0"
