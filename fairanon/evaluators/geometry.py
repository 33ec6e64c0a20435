"""What a face does: pose, expression, gaze, and several judges as one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fairanon.evaluators.judge import Judge, weights_file
from fairanon.evaluators.people import told_of
from fairanon.imaging import imagenet, to_array
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


class MediaPipeGeometry(Judge):
    """Expression and gaze by MediaPipe's face landmarker, from its 52 blendshapes (extra ``eval``).

    Expression is the 43 blendshapes that are neither neutral nor of where the eyes look, in the order of their names. Gaze is how far both
    eyes look to the person's own left, and up: the mean over the eyes of what speaks for it less what speaks against it. All are
    shares of a full movement. Of several faces it looks at the one that it is surest of.

    Args:
        model: ``face_landmarker.task``.
        threshold: Faces below this score are not found.
    """

    def __init__(self, model: str, threshold: float = 0.5) -> None:
        try:
            import mediapipe
        except ImportError:
            raise ModuleNotFoundError(
                "geometry: MediaPipeGeometry needs the package mediapipe; install fairanon[eval]."
            ) from None
        weights_file(model, "geometry.model", "download face_landmarker.task from MediaPipe's model page")
        self.mediapipe, vision = mediapipe, mediapipe.tasks.vision
        self.name, self.sizes = f"mediapipe-blendshapes-{mediapipe.__version__}", {"expression": 43, "gaze": 2}
        self.threshold = threshold
        options = vision.FaceLandmarkerOptions(
            mediapipe.tasks.BaseOptions(model_asset_path=model),
            output_face_blendshapes=True,
            min_face_detection_confidence=threshold,
        )
        with told_of("geometry.model", model):
            self.landmarker = vision.FaceLandmarker.create_from_options(options)

    def measure(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `FaceGeometry`: expression (N, 43), gaze (N, 2); NaN where no face was found."""
        expression, gaze = (torch.full((len(pixels), size), torch.nan) for size in self.sizes.values())
        for row, image in enumerate(pixels):
            pictured = self.mediapipe.Image(image_format=self.mediapipe.ImageFormat.SRGB, data=to_array(image))
            if faces := self.landmarker.detect(pictured).face_blendshapes:
                expression[row], gaze[row] = in_numbers({shape.category_name: shape.score for shape in faces[0]})
        return {"expression": expression, "gaze": gaze}


def in_numbers(shapes: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """Expression (43,) and gaze (2,) of the blendshapes of a face, see `MediaPipeGeometry`.

    Args:
        shapes: Each blendshape by its name, ``eyeLookInLeft`` and so on; left and right are the person's own.
    """
    names = sorted(name for name in shapes if name != "_neutral" and not name.startswith("eyeLook"))

    def look(for_left: str, against_left: str, for_right: str, against_right: str) -> float:
        left = shapes[f"eyeLook{for_left}Left"] - shapes[f"eyeLook{against_left}Left"]
        right = shapes[f"eyeLook{for_right}Right"] - shapes[f"eyeLook{against_right}Right"]
        return (left + right) / 2

    gaze = look("Out", "In", "In", "Out"), look("Up", "Down", "Up", "Down")
    return torch.tensor([shapes[name] for name in names]), torch.tensor(gaze)


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
