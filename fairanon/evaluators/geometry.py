"""What a face does: pose, and several judges as one."""

from __future__ import annotations

import torch
from torch import Tensor

from fairanon.evaluators.judge import Judge, weights_file
from fairanon.imaging import imagenet
from fairanon.protocols import FaceGeometry

_BATCH = 32


class HopeNetPose(Judge):
    """HopeNet by facexlib: yaw, pitch and roll in degrees of the face in the middle of an aligned image.

    It looks at every image and finds no faces itself; join it with a judge that does.

    Args:
        path: ``headpose_hopenet.pth`` of facexlib's release v0.2.0.
    """

    def __init__(self, path: str) -> None:
        from facexlib.headpose.hopenet_arch import HopeNet  # type: ignore[import-untyped]  # pulls in OpenCV

        weights_file(path, "geometry.path", "facexlib's release v0.2.0 has headpose_hopenet.pth")
        with torch.device("cpu"):  # real also where the model round it is only counted
            self.network = HopeNet("resnet", [3, 4, 6, 3], 66)
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["params"])
        self.network.eval().requires_grad_(False)
        self.name, self.sizes = "facexlib-hopenet", {"pose": 3}

    def measure(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `FaceGeometry`."""
        parts = []
        for part in pixels.split(_BATCH):
            with torch.no_grad():
                parts.append(torch.stack(self.network(imagenet(part, 224).to(self.device)), 1).cpu())
        return {"pose": torch.cat(parts)}


class JoinedGeometry(Judge):
    """Several judges as one; of what two of them measure the later one's stands, NaN where the first finds no face.

    Args:
        judges: The first one finds faces.
    """

    def __init__(self, judges: list[FaceGeometry]) -> None:
        self.judges, self.name = judges, "+".join(judge.name for judge in judges)
        self.sizes = {name: size for judge in judges for name, size in judge.sizes.items()}

    def measure(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `FaceGeometry`."""
        geometry = self.judges[0].measure(pixels)
        missing = torch.stack([rows.flatten(1).isnan().any(1) for rows in geometry.values()]).any(0)
        for judge in self.judges[1:]:
            geometry |= judge.measure(pixels)
        return {
            name: rows.masked_fill(missing.view(-1, *[1] * (rows.dim() - 1)), torch.nan)
            for name, rows in geometry.items()
        }
