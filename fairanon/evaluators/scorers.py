"""How well pictures match their prompts, and how good people would find them."""

from __future__ import annotations

import torch
from torch import Tensor

from fairanon.evaluators.open_clip import OpenClip


class OpenClipScore:
    """100 x the cosine of a picture's and its prompt's embeddings.

    With ``ViT-L-14`` and ``openai`` it is the usual CLIP score; with ``ViT-H-14`` and the file
    ``HPS_v2.1_compressed.pt`` it is HPSv2.1, which is CLIP fine-tuned on people's choices.

    Args:
        name: What it is called in the table; say the version ("hpsv2.1"), for scales differ between versions.
        model: An open_clip model name, or ``local-dir:FOLDER``.
        pretrained: An open_clip tag or a weights file.
        device: Where it runs.
    """

    def __init__(
        self, name: str, model: str = "ViT-L-14", pretrained: str | None = "openai", device: str = "cpu"
    ) -> None:
        self.name, self.clip = name, OpenClip(model, pretrained, device)

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """See `Scorer`."""
        return 100 * (self.clip.images(pixels) * self.clip.texts(prompts)).sum(1)


class ImageReward:
    """ImageReward by its own package, ``image-reward``; about -2 to 2, the paper reports it times 100.

    Args:
        model: A name that the package knows, or a weights file.
        device: Where it runs.
    """

    def __init__(self, model: str = "ImageReward-v1.0", device: str = "cpu") -> None:
        try:
            from ImageReward import load
        except ImportError as error:
            raise ModuleNotFoundError(
                f"scorer: ImageReward needs the package image-reward, which does not load here ({error}); "
                "install one that fits your version of transformers, or leave the scorer out."
            ) from None
        self.name, self.model = model, load(model, device=device)

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """See `Scorer`."""
        from PIL import Image

        pictures = [Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()) for picture in pixels]
        with torch.no_grad():
            return torch.tensor([self.model.score(text, one) for text, one in zip(prompts, pictures, strict=True)])
