"""Face parsers: which pixel belongs to which region."""

from __future__ import annotations

import hashlib
import json

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from fairanon.embedded import embedded
from fairanon.evaluators.judge import Judge, weights_file
from fairanon.imaging import imagenet, to_model
from fairanon.networks.point_rend import PointRend

_BATCH = 32
_STEP = 16  # the network halves four times
_FACE = ("face", "eyes", "brows", "nose", "lips")
SEGMENTER = embedded("segmenter", "segmenter.safetensors")


class PointRendParser(Judge):
    """A segmenter that `FaceSegmenter` trained.

    Args:
        path: Its ``segmenter.safetensors``; None is the embedded world's.
    """

    def __init__(self, path: str | None = None) -> None:
        file = weights_file(
            path or SEGMENTER, "parser.path", "`make train EXP=segmenter_tiny` or `make assets` makes it"
        )
        with safe_open(file, "pt") as opened:
            self.regions = tuple(json.loads(opened.metadata()["regions"]))
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a dictionary)
        width = state["last.weight"].shape[1] - len(self.regions) - 1
        self.network = PointRend(len(self.regions) + 1, width)
        self.network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
        self.network.eval().requires_grad_(False)
        self.name = (
            "tiny-point-rend" if path is None else f"point-rend-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"
        )

    def parse(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `FaceParser`."""
        height, width = pixels.shape[-2:]
        padding = (0, -width % _STEP, 0, -height % _STEP)
        labels = []
        for part in pixels.split(_BATCH):
            padded = F.pad(to_model(part.to(self.device)), padding, mode="replicate")
            with torch.no_grad():
                labels.append(self.network(padded).argmax(1)[:, :height, :width].cpu())
        label = torch.cat(labels)
        masks = {name: (label == k)[:, None] for k, name in enumerate(self.regions, 1)}
        if "face" in masks:  # a pixel has one label; a mouth belongs to the face all the same
            masks["face"] = torch.stack([masks[name] for name in _FACE if name in masks]).any(0)
        return masks


_FACEXLIB = {
    "face": (1, 2, 3, 4, 5, 6, 10, 11, 12, 13), "eyes": (4, 5, 6), "brows": (2, 3), "nose": (10,), "lips": (11, 12, 13),
    "hair": (17,), "ears": (7, 8), "neck": (14,),
}  # fmt: skip
"""Values of CelebAMask-HQ's classes that belong to a region; glasses (6) are painted over the eyes behind them."""


class FacexlibParser(Judge):
    """BiSeNet of facexlib, trained on CelebAMask-HQ, whose licence is for non-commercial research.

    Args:
        path: ``parsing_bisenet.pth`` of facexlib's release v0.2.0.
    """

    def __init__(self, path: str) -> None:
        from facexlib.parsing.bisenet import BiSeNet  # type: ignore[import-untyped]  # pulls in OpenCV

        weights_file(path, "parser.path", "facexlib's release v0.2.0 has parsing_bisenet.pth")
        self.network = BiSeNet(num_class=19)
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.network.eval().requires_grad_(False)
        self.name = "facexlib-bisenet"
        self.regions = tuple(_FACEXLIB)

    def parse(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `FaceParser`."""
        size = pixels.shape[-2:]
        labels = []
        for part in pixels.split(_BATCH):
            with torch.no_grad():
                logits = self.network(imagenet(part, 512).to(self.device))[0]
            labels.append(F.interpolate(logits, size, mode="bilinear").argmax(1).cpu())
        label_maps = torch.cat(labels)
        return {name: torch.isin(label_maps, torch.tensor(values))[:, None] for name, values in _FACEXLIB.items()}
