"""Frozen networks that stand in a loss or in a condition: recognizers and multi-scale features, differentiable."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairanon.evaluators.judge import weights_file
from fairanon.evaluators.tiny import VERSION, AttributeNet, EmbedderNet, load_network


class Recognizer(Protocol):
    """Who a face is, with a gradient to the image; a module without trainable parameters."""

    name: str
    width: int
    """D."""

    def recognize(self, images: Tensor) -> Tensor:
        """Unit embeddings float (B, D) of images float (B, 3, H, W) in [-1, 1]."""
        ...


class FeatureMaps(Protocol):
    """What an image shows, at several scales; a module without trainable parameters."""

    name: str
    channels: tuple[int, ...]
    """Of each scale, the finest first."""

    def maps(self, images: Tensor) -> list[Tensor]:
        """Maps float (B, C, h, w) of images float (B, 3, H, W) in [-1, 1]."""
        ...


class TinyRecognizer(nn.Module):
    """The embedded world's first embedder: it may stand in a loss, the second one judges what came of it.

    Args:
        folder: Folder of the judges' weights; None is the packaged one.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__()
        self.name, self.width = f"tiny-embedder-a-{VERSION}", 64
        network = load_network("embedder_a", folder)
        assert isinstance(network, EmbedderNet)
        self.network = network

    def recognize(self, images: Tensor) -> Tensor:
        """See `Recognizer`."""
        return self.network(F.interpolate(images, (64, 64), mode="area") if images.shape[-1] != 64 else images)


class TinyFeatureMaps(nn.Module):
    """The trunk of the embedded attribute classifier, at strides 2, 4 and 8.

    Args:
        folder: Folder of the judges' weights; None is the packaged one.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__()
        self.name, self.channels = f"tiny-attributes-{VERSION}", (24, 48, 96)
        network = load_network("attributes", folder)
        assert isinstance(network, AttributeNet)
        self.trunk = network.trunk

    def maps(self, images: Tensor) -> list[Tensor]:
        """See `FeatureMaps`."""
        maps = []
        for number, layer in enumerate(self.trunk):
            images = layer(images)
            if number % 2:
                maps.append(images)
        return maps


_CROP = (35 / 256, 32 / 256, 223 / 256, 220 / 256)
"""Top, left, bottom and right of ArcFace's square in an image aligned as FFHQ's are (pixel2style2pixel)."""


class FacexlibArcFace(nn.Module):
    """ArcFace (IR-SE 50) of facexlib on images aligned as FFHQ's are; trained on MS1MV2, for research alone.

    Args:
        path: ``recognition_arcface_ir_se50.pth`` of facexlib's release v0.1.0.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        weights_file(path, "recognizer.path", "facexlib's release v0.1.0 has recognition_arcface_ir_se50.pth")
        self.name, self.width = "facexlib-arcface-ir-se50", 512
        with torch.device("cpu"):  # real also where the model round it is only counted
            self.network = arcface_network()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.requires_grad_(False).eval()

    def recognize(self, images: Tensor) -> Tensor:
        """See `Recognizer`."""
        height, width = images.shape[-2:]
        top, left, bottom, right = (round(share * side) for share, side in zip(_CROP, (height, width) * 2, strict=True))
        face = F.interpolate(images[..., top:bottom, left:right], (112, 112), mode="bilinear", antialias=True)
        # An autoencoder with attention decodes to channels-last images, which facexlib's network cannot flatten.
        return F.normalize(self.network(face.contiguous()), dim=1)


def arcface_network() -> nn.Module:
    """The network of `FacexlibArcFace`, not trained."""
    from facexlib.recognition.arcface_arch import Backbone  # type: ignore[import-untyped]  # pulls in OpenCV

    return cast(nn.Module, Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se"))


class ConvNextFeatures(nn.Module):
    """Multi-scale features of a convolutional CLIP's image encoder by open_clip, at strides 4, 8, 16 and 32.

    Args:
        model: An open_clip model whose image encoder is a ConvNeXt.
        pretrained: An open_clip tag or a weights file; None is not trained.
    """

    def __init__(self, model: str = "convnext_base_w", pretrained: str | None = "laion2b_s13b_b82k") -> None:
        super().__init__()
        import open_clip  # heavy, and only this encoder needs it

        with torch.device("cpu"):  # real also where the model round it is only counted
            network: Any = open_clip.create_model(model, pretrained=pretrained)
        trunk: Any = getattr(network.visual, "trunk", None)
        if not hasattr(trunk, "stages"):
            raise ValueError(f"features.model: {model} is no convolutional CLIP; convnext_base_w is one.")
        self.name = f"open-clip-{model}-{Path(pretrained or 'random').stem}"
        self.channels = tuple(int(info["num_chs"]) for info in trunk.feature_info)
        trunk.reset_classifier(0, "")  # the pooling and the projection are of no use here
        self.trunk = trunk
        config = open_clip.get_model_preprocess_cfg(network)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def maps(self, images: Tensor) -> list[Tensor]:
        """See `FeatureMaps`."""
        return self.trunk.forward_intermediates(((images + 1) / 2 - self.mean) / self.std, intermediates_only=True)
