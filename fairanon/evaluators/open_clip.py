"""CLIP by open_clip, for judges that need its embeddings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fairanon.evaluators.judge import Judge
from fairanon.offline import without_retries


class OpenClip(Judge):
    """Unit embeddings of images and texts.

    Args:
        model: An open_clip model name, or ``local-dir:FOLDER``.
        pretrained: An open_clip tag or a weights file.
    """

    def __init__(self, model: str, pretrained: str | None) -> None:
        import open_clip  # heavy, and only these judges need it

        self.kind, self.pretrained = model, pretrained
        try:
            with torch.device("cpu"), without_retries():  # real also where the model round it is only counted
                network = open_clip.create_model(model, pretrained=pretrained)
        except (RuntimeError, OSError) as error:
            raise FileNotFoundError(
                f"open_clip has no weights {pretrained!r} for {model} here ({str(error).partition('. ')[0]}); fetch "
                "them where there is a network, or name a weights file."
            ) from None
        self.model = network.eval().requires_grad_(False)
        config = open_clip.get_model_preprocess_cfg(self.model)
        self.size = config["size"] if isinstance(config["size"], int) else config["size"][0]
        self.mean, self.std = (torch.tensor(config[k], device="cpu").view(1, 3, 1, 1) for k in ("mean", "std"))
        self.tokenizer = open_clip.get_tokenizer(model)
        self.scale = float(self.model.logit_scale.exp())

    def images(self, pixels: Tensor) -> Tensor:
        """Embeddings float32 (N, D) of images uint8 (N, 3, H, W), resized whole."""
        parts = []
        for part in pixels.split(32):
            with torch.no_grad():
                parts.append(self.of(part.to(self.device).float() / 255).cpu())
        return torch.cat(parts)

    def of(self, images: Tensor) -> Tensor:
        """Embeddings float32 (N, D) of images float (N, 3, H, W) in [0, 1], resized whole; differentiable."""
        x = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        return F.normalize(self.model.encode_image((x - self.mean.to(x)) / self.std.to(x)).float(), dim=1)

    def texts(self, texts: list[str]) -> Tensor:
        """Embeddings float32 (N, D) of N texts."""
        with torch.no_grad(), torch.device("cpu"):
            return F.normalize(self.model.encode_text(self.tokenizer(texts).to(self.device)).float(), dim=1).cpu()

    @property
    def width(self) -> int | None:
        """Width of its text encoder; None of a CLIP that does not project texts by one matrix."""
        matrix = getattr(self.model, "text_projection", None)
        return matrix.shape[0] if isinstance(matrix, Tensor) else None

    @property
    def vocabulary(self) -> Tensor:
        """Its text encoder's embeddings of tokens, float32 (V, W); of a CLIP that has a `width`."""
        return self.model.token_embedding.weight.float()

    def projected(self, ends: Tensor) -> Tensor:
        """The end tokens (N, W) of a text encoder of the same weights, in the joint space: float32 (N, D); differentiable."""
        return ends.float() @ self.model.text_projection.to(ends.device).float()
