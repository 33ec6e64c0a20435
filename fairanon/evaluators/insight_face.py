"""insightface's detector and recognizer. Its models are for non-commercial research only."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fairanon.evaluators.protocols import Detections

_WORDS = {"detection": "detector", "recognition": "recognizer"}


def _load(pack: str, root: str, modules: list[str], threshold: float, device: str) -> Any:
    from insightface.app import FaceAnalysis  # pulls in OpenCV and ONNX Runtime

    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    try:
        app = FaceAnalysis(name=pack, root=root, allowed_modules=modules, providers=[provider])
    except (AssertionError, OSError) as error:
        raise FileNotFoundError(
            f"judge: the insightface pack {pack!r} has no {_WORDS[modules[-1]]} under {root}/models and cannot be "
            f"downloaded ({error or 'empty folder'}); put the pack's .onnx files there."
        ) from None
    if missing := [name for name in modules if name not in app.models]:
        raise FileNotFoundError(
            f"judge: the insightface pack {pack!r} under {root}/models has no {_WORDS[missing[0]]}."
        )
    app.prepare(ctx_id=0 if device == "cuda" else -1, det_thresh=threshold)
    return app


def _faces(app: Any, picture: Tensor) -> list[Any]:
    """Faces of a uint8 (3, H, W) picture, the surest first."""
    found = app.get(picture.permute(1, 2, 0).numpy()[:, :, ::-1].copy())  # insightface reads BGR
    return sorted(found, key=lambda face: -float(face.det_score))


class _Pack:
    """A model pack of insightface.

    Args:
        pack: Its name or folder.
        root: Where packs lie.
        threshold: Faces below this score are not found.
        device: "cpu" or "cuda".
    """

    modules: ClassVar[list[str]]

    def __init__(
        self, pack: str = "buffalo_l", root: str = "~/.insightface", threshold: float = 0.5, device: str = "cpu"
    ) -> None:
        self.name = f"insightface-{pack}"
        self.app = _load(pack, root, self.modules, threshold, device)


class InsightFaceDetector(_Pack):
    """Faces by insightface; the pack holds a detector."""

    modules: ClassVar = ["detection"]
    kinds: tuple[str, ...] = ("face",)

    def detect(self, pixels: Tensor) -> list[dict[str, Detections]]:
        """See `Detector`."""
        results = []
        for picture in pixels:
            faces = _faces(self.app, picture)
            boxes = torch.tensor([face.bbox.tolist() for face in faces]).view(-1, 4)
            results.append({"face": Detections(boxes, torch.tensor([float(face.det_score) for face in faces]))})
        return results


class InsightFaceEmbedder(_Pack):
    """Identity embeddings by insightface (ArcFace) of the surest face over the middle of the picture.

    Pictures of one person are meant; where the middle shows no face, a bystander's would say nothing about them.
    The pack holds a detector and a recognizer.
    """

    modules: ClassVar = ["detection", "recognition"]

    def embed(self, pixels: Tensor) -> Tensor:
        """See `Embedder`."""
        rows = []
        for picture in pixels:
            y, x = (side / 2 for side in picture.shape[-2:])
            faces = [
                f for f in _faces(self.app, picture) if f.bbox[0] <= x <= f.bbox[2] and f.bbox[1] <= y <= f.bbox[3]
            ]
            rows.append(torch.tensor(faces[0].normed_embedding) if faces else torch.full((512,), float("nan")))
        return torch.stack(rows).float()
