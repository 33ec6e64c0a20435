"""insightface's detector and recognizer. Its models are for non-commercial research only."""

from __future__ import annotations

import logging
from contextlib import redirect_stdout
from io import StringIO
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fairanon.evaluators.judge import Judge, weights_file
from fairanon.imaging import Square, to_array, to_model
from fairanon.protocols import Detections

_log = logging.getLogger(__name__)
_WORDS = {"detection": "detector", "recognition": "recognizer", "landmark_3d_68": "landmark detector"}


def providers(device: torch.device) -> list[Any]:
    """What ONNX Runtime is asked for: CUDA on the device's own number where its package has it, the CPU otherwise."""
    import onnxruntime

    if device.type != "cuda":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        _log.warning("ONNX models run on the CPU; onnxruntime-gpu in place of onnxruntime would use the GPU.")
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", {"device_id": device.index or 0}), "CPUExecutionProvider"]


def _load(pack: str, root: str, modules: list[str], threshold: float, device: torch.device) -> Any:
    from insightface.app import FaceAnalysis  # pulls in OpenCV and ONNX Runtime

    try:
        with redirect_stdout(StringIO()):  # it tells every file that it looks at
            app = FaceAnalysis(name=pack, root=root, allowed_modules=modules, providers=providers(device))
    except (AssertionError, OSError) as error:
        raise FileNotFoundError(
            f"The insightface pack {pack!r} has no {_WORDS[modules[-1]]} under {root}/models and cannot be "
            f"downloaded ({type(error).__name__ if str(error) else 'empty folder'}); put the pack's .onnx files there."
        ) from None
    if missing := [name for name in modules if name not in app.models]:
        raise FileNotFoundError(f"The insightface pack {pack!r} under {root}/models has no {_WORDS[missing[0]]}.")
    app.prepare(ctx_id=(device.index or 0) if device.type == "cuda" else -1, det_thresh=threshold)
    return app


def _faces(app: Any, image: Tensor) -> list[Any]:
    """Faces of a uint8 (3, H, W) image, the surest first."""
    faces = app.get(to_array(image.flip(0)))  # insightface reads BGR
    return sorted(faces, key=lambda face: -float(face.det_score))


class _Pack(Judge):
    """A model pack of insightface.

    Args:
        pack: Its name or folder.
        root: Where packs lie.
        threshold: Faces below this score are not found.
    """

    modules: ClassVar[list[str]]
    licence = "non-commercial research only"

    def __init__(self, pack: str = "buffalo_l", root: str = "~/.insightface", threshold: float = 0.5) -> None:
        self.name = f"insightface-{pack}"
        self.pack, self.root, self.threshold = pack, root, threshold
        self.app = _load(pack, root, self.modules, threshold, self.device)

    def to(self, device: torch.device | str) -> None:
        """See `Judge`: ONNX Runtime binds a network to a device when it loads it."""
        if torch.device(device) != self.device:
            super().to(device)
            self.app = _load(self.pack, self.root, self.modules, self.threshold, self.device)

    def _middle(self, image: Tensor) -> Any:
        """The surest face over the middle of an image, or None: a bystander's would say nothing about who is meant."""
        y, x = (side / 2 for side in image.shape[-2:])
        for face in _faces(self.app, image):
            if face.bbox[0] <= x <= face.bbox[2] and face.bbox[1] <= y <= face.bbox[3]:
                return face
        return None


class InsightFaceDetector(_Pack):
    """Faces by insightface; the pack holds a detector."""

    modules: ClassVar = ["detection"]
    kinds: tuple[str, ...] = ("face",)
    any_scale = True

    def detect(self, pixels: Tensor) -> list[dict[str, Detections]]:
        """See `Detector`."""
        results = []
        for image in pixels:
            faces = _faces(self.app, image)
            boxes = torch.tensor([face.bbox.tolist() for face in faces]).view(-1, 4)
            results.append({"face": Detections(boxes, torch.tensor([float(face.det_score) for face in faces]))})
        return results


class _Matcher(_Pack):
    """What insightface's own recognizer and others behind its detector share: ArcFace's alignment."""

    size = 112
    metric: Literal["cosine", "euclidean"] = "cosine"
    published: float | None = None

    def align(self, image: Tensor, box: Tensor) -> Square | None:
        """See `FaceMatcher`: by the five points of the face that the detector finds in the box."""
        from insightface.utils.face_align import estimate_norm

        x0, y0, x1, y1 = box.tolist()
        rows, columns = Square((x0 + x1) / 2, (y0 + y1) / 2, 2 * max(x1 - x0, y1 - y0)).window(*image.shape[-2:])
        near = to_array(image[:, rows, columns].flip(0))
        corner = torch.tensor([columns.start, rows.start])
        boxes, points = self.app.det_model.detect(near, max_num=0, metric="default")
        middle = (box[:2] + box[2:]) / 2 - corner
        for face, five in sorted(zip(boxes, points, strict=True), key=lambda pair: -pair[0][4]):
            if face[0] <= middle[0] <= face[2] and face[1] <= middle[1] <= face[3]:
                return Square.of_similarity(torch.tensor(estimate_norm(five + corner.numpy(), self.size)), self.size)
        return None


class InsightFaceEmbedder(_Matcher):
    """Identity embeddings by insightface (ArcFace) of the surest face over the middle of the image.

    The pack holds a detector and a recognizer.
    """

    modules: ClassVar = ["detection", "recognition"]

    def embed(self, pixels: Tensor) -> Tensor:
        """See `Embedder`."""
        rows = []
        for image in pixels:
            face = self._middle(image)
            rows.append(torch.full((512,), float("nan")) if face is None else torch.tensor(face.normed_embedding))
        return torch.stack(rows).float()

    def embed_aligned(self, cuts: Tensor) -> Tensor:
        """See `FaceMatcher`."""
        images = [to_array(cut.flip(0)) for cut in cuts]
        return F.normalize(torch.from_numpy(self.app.models["recognition"].get_feat(images)), dim=1)


class OnnxEmbedder(_Matcher):
    """A recognizer from an ONNX file (AdaFace, TopoFR, another ArcFace, ...); insightface finds and aligns the face.

    Args:
        path: The file: takes (N, 3, 112, 112) in [-1, 1] and returns (N, D).
        name: Its name with its version; stands in every table.
        channels: The order it was trained with: ArcFace and TopoFR "rgb", AdaFace "bgr".
        pack: insightface's pack with the detector.
        root: Where packs lie.
        threshold: Faces below this score are not found.
    """

    modules: ClassVar = ["detection"]

    def __init__(
        self,
        path: str,
        name: str,
        channels: Literal["rgb", "bgr"] = "rgb",
        pack: str = "buffalo_l",
        root: str = "~/.insightface",
        threshold: float = 0.5,
    ) -> None:
        import onnxruntime

        weights_file(path, "embedder.path", "export the recognizer to ONNX and name the file")
        super().__init__(pack, root, threshold)
        self.path = path
        self.session = onnxruntime.InferenceSession(path, providers=providers(self.device))
        try:
            self.width = int(self.session.get_outputs()[0].shape[1])
        except ValueError:
            raise ValueError(
                f"embedder.path: {path} does not say how wide its embeddings are; export it with a fixed width."
            ) from None
        self.name, self.channels = f"{name}+insightface-{pack}", channels

    def to(self, device: torch.device | str) -> None:
        """See `Judge`."""
        import onnxruntime

        super().to(device)
        self.session = onnxruntime.InferenceSession(self.path, providers=providers(self.device))

    def embed(self, pixels: Tensor) -> Tensor:
        """See `Embedder`."""
        rows = torch.full((len(pixels), self.width), float("nan"))
        for row, image in zip(rows, pixels, strict=True):
            face = self._middle(image)
            if face is not None:
                row.copy_(self._embed(image, face.kps))
        return rows

    def _embed(self, image: Tensor, points: Any) -> Tensor:
        from insightface.utils.face_align import norm_crop

        crop = torch.from_numpy(norm_crop(to_array(image), points, 112)).permute(2, 0, 1)
        return self.embed_aligned(crop[None])[0]

    def embed_aligned(self, cuts: Tensor) -> Tensor:
        """See `FaceMatcher`."""
        x = to_model(cuts if self.channels == "rgb" else cuts.flip(1))
        embeddings = self.session.run(None, {self.session.get_inputs()[0].name: x.numpy()})[0]
        return F.normalize(torch.from_numpy(embeddings), dim=1)


class InsightFaceGeometry(_Pack):
    """68 landmarks and pose by insightface; the pack holds a detector and ``1k3d68``."""

    modules: ClassVar = ["detection", "landmark_3d_68"]
    sizes: ClassVar = {"pose": 3}

    def measure(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `FaceGeometry`; pose is pitch, yaw and roll."""
        landmarks, pose = torch.full((len(pixels), 68, 2), float("nan")), torch.full((len(pixels), 3), float("nan"))
        for row, image in enumerate(pixels):
            face = self._middle(image)
            if face is not None:
                landmarks[row] = torch.tensor(face.landmark_3d_68[:, :2])
                pose[row] = torch.tensor(face.pose)
        return {"landmarks": landmarks, "pose": pose}

    def landmarks(self, pixels: Tensor) -> Tensor:
        """See `LandmarkDetector`."""
        return self.measure(pixels)["landmarks"]
