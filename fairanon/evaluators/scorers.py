"""How well images match their prompts, and how good people would find them."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from torch import Tensor, nn

from fairanon.evaluators.judge import Judge, weights_file
from fairanon.evaluators.open_clip import OpenClip
from fairanon.evaluators.pretrained import from_hub
from fairanon.imaging import to_array

_BATCH = 16


class OpenClipScore(Judge):
    """100 x the cosine of an image's and its prompt's embeddings.

    With ``ViT-L-14`` and ``openai`` it is the usual CLIP score; with ``ViT-H-14`` and the file
    ``HPS_v2.1_compressed.pt`` it is HPSv2.1, which is CLIP fine-tuned on people's choices.

    Args:
        name: What it is called in the table; say the version ("hpsv2.1"), for scales differ between versions.
        model: An open_clip model name, or ``local-dir:FOLDER``.
        pretrained: An open_clip tag or a weights file.
    """

    def __init__(self, name: str, model: str = "ViT-L-14", pretrained: str | None = "openai") -> None:
        self.name, self.clip = name, OpenClip(model, pretrained)

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """See `Scorer`."""
        return 100 * (self.clip.images(pixels) * self.clip.texts(prompts)).sum(1)


class ImageReward(Judge):
    """ImageReward by its own package, ``image-reward``; about -2 to 2, the paper reports it times 100.

    Args:
        model: A name that the package knows, or a weights file.
    """

    def __init__(self, model: str = "ImageReward-v1.0") -> None:
        try:
            from ImageReward import load
        except ImportError as error:
            raise ModuleNotFoundError(
                f"scorer: ImageReward needs the package image-reward, which does not load here ({error}); "
                "install one that fits your version of transformers, or leave the scorer out."
            ) from None
        self.name, self.model = model, load(model, device="cpu")

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """See `Scorer`."""
        from PIL import Image

        images = [Image.fromarray(to_array(image)) for image in pixels]
        with torch.no_grad():
            return torch.tensor(
                [self.model.score(text, picture) for text, picture in zip(prompts, images, strict=True)]
            )


class PickScore(Judge):
    """PickScore: CLIP fine-tuned on Pick-a-Pic; the scaled cosine, about 18 to 24.

    Args:
        model: A hub id or a local folder of transformers' CLIPModel with its processor.
    """

    def __init__(self, model: str = "yuvalkirstain/PickScore_v1") -> None:
        from transformers import AutoProcessor, CLIPModel

        self.name = f"pickscore-{Path(model).name}"
        self.processor, network = from_hub("scorer", model, AutoProcessor, CLIPModel)
        self.model = network.eval()

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """See `Scorer`."""
        scores = []
        for first in range(0, len(prompts), _BATCH):
            rows = slice(first, first + _BATCH)
            inputs = self.processor(
                images=[to_array(image) for image in pixels[rows]], text=prompts[rows],
                padding=True, truncation=True, return_tensors="pt",
            ).to(self.device)  # fmt: skip
            with torch.no_grad():
                scores.append(self.model(**inputs).logits_per_image.diagonal().float().cpu())
        return torch.cat(scores)


class LaionAesthetics(Judge):
    """LAION's aesthetic predictor (version 2, "sac+logos+ava1-l14-linearMSE"): about 1 to 10, prompts are ignored.

    Args:
        weights: Its file ``sac+logos+ava1-l14-linearMSE.pth``.
        model: The open_clip model it was trained on.
        pretrained: An open_clip tag or a weights file.
    """

    def __init__(self, weights: str, model: str = "ViT-L-14", pretrained: str | None = "openai") -> None:
        weights_file(weights, "scorer.weights", "improved-aesthetic-predictor's repository has it")
        self.name, self.clip = f"laion-aesthetics-{Path(weights).stem}", OpenClip(model, pretrained)
        state = torch.load(weights, map_location="cpu", weights_only=True)
        widths = [state["layers.0.weight"].shape[1], 1024, 128, 64, 16, 1]
        self.layers = nn.Sequential()  # the file numbers the layers with the dropout between them
        for number, (inputs, outputs) in zip((0, 2, 4, 6, 7), itertools.pairwise(widths), strict=True):
            layer = nn.Linear(inputs, outputs)
            layer.load_state_dict({key: state[f"layers.{number}.{key}"] for key in ("weight", "bias")})
            self.layers.append(layer)
        self.layers.requires_grad_(False)

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """See `Scorer`."""
        return self.layers(self.clip.images(pixels).to(self.device))[:, 0].cpu()


class Musiq(Judge):
    """MUSIQ, how good an image looks, about 0 to 100; by pyiqa, whose licence (PolyForm Noncommercial) is its own.

    Args:
        model: A metric of pyiqa's: "musiq" is trained on KonIQ-10k.
    """

    def __init__(self, model: str = "musiq") -> None:
        try:
            import pyiqa
        except ImportError as error:
            raise ModuleNotFoundError(
                f"quality: MUSIQ needs the package pyiqa, which does not load here ({error}); install it if its "
                "non-commercial licence suits you, or set quality to null."
            ) from None
        self.name = f"pyiqa-{pyiqa.__version__}-{model}"
        self.metric = pyiqa.create_metric(model, device="cpu")

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """See `Scorer`; prompts are ignored."""
        with torch.no_grad():
            parts = [self.metric(part.to(self.device).float() / 255).flatten().cpu() for part in pixels.split(_BATCH)]
        return torch.cat(parts)
