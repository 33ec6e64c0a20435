"""Real-world detectors of faces and hands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fairanon.evaluators.judge import Judge, weights_file
from fairanon.imaging import to_array
from fairanon.protocols import Detections, Detector


class MediaPipePeople(Judge):
    """Faces by BlazeFace and hands by MediaPipe's landmarker, as FairHuman's evaluation (extra ``eval``).

    A face's score is the detection's; a hand's is that of its handedness, which is what the paper calls hand
    confidence: it says how sure the model is that the hand is a left or a right one.

    Args:
        face_model: ``blaze_face_short_range.tflite``.
        hand_model: ``hand_landmarker.task``.
        most_hands: Hands looked for in an image.
        threshold: Detections below this score are not returned.
    """

    def __init__(self, face_model: str, hand_model: str, most_hands: int = 4, threshold: float = 0.5) -> None:
        try:
            import mediapipe
        except ImportError:
            raise ModuleNotFoundError(
                "detector: MediaPipePeople needs the package mediapipe; install fairanon[eval]."
            ) from None
        for key, path in (("face_model", face_model), ("hand_model", hand_model)):
            weights_file(path, f"detector.{key}", "download it from MediaPipe's model page")
        self.name, self.kinds = f"mediapipe-{mediapipe.__version__}", ("face", "hand")
        self.most_hands, self.threshold = most_hands, threshold
        self.mediapipe, vision = mediapipe, mediapipe.tasks.vision
        base = mediapipe.tasks.BaseOptions
        with told_of("detector.face_model", face_model):
            self.faces = vision.FaceDetector.create_from_options(
                vision.FaceDetectorOptions(base(model_asset_path=face_model), min_detection_confidence=threshold)
            )
        with told_of("detector.hand_model", hand_model):
            self.hands = vision.HandLandmarker.create_from_options(
                vision.HandLandmarkerOptions(
                    base(model_asset_path=hand_model), num_hands=most_hands, min_hand_detection_confidence=threshold
                )
            )

    def detect(self, pixels: Tensor) -> list[dict[str, Detections]]:
        """See `Detector`."""
        return [self._detect(to_array(image)) for image in pixels]

    def _detect(self, array: Any) -> dict[str, Detections]:
        image = self.mediapipe.Image(image_format=self.mediapipe.ImageFormat.SRGB, data=array)
        height, width = array.shape[:2]
        faces = []
        for detection in self.faces.detect(image).detections:
            box = detection.bounding_box
            corners = (box.origin_x, box.origin_y, box.origin_x + box.width, box.origin_y + box.height)
            faces.append((detection.categories[0].score, corners))
        hands = []
        result = self.hands.detect(image)
        for handedness, points in zip(result.handedness, result.hand_landmarks, strict=True):
            xs, ys = [point.x * width for point in points], [point.y * height for point in points]
            hands.append((handedness[0].score, (min(xs), min(ys), max(xs), max(ys))))
        return {"face": best_first(faces), "hand": best_first(hands)}


@contextmanager
def told_of(key: str, path: str) -> Iterator[None]:
    """A file that MediaPipe cannot read is said in a sentence.

    Args:
        key: The setting that names it.
        path: Where it is.

    Raises:
        ValueError: It is no model of MediaPipe.
    """
    try:
        yield
    except RuntimeError as error:
        raise ValueError(f"{key}: {path} is no model that MediaPipe reads ({str(error).strip(' .')}).") from None


class JoinedDetectors(Judge):
    """Several detectors as one; the first that knows a kind finds it.

    Args:
        detectors: For example one for faces and one for hands.
    """

    def __init__(self, detectors: list[Detector]) -> None:
        self.detectors = detectors
        self.kinds = tuple(dict.fromkeys(kind for detector in detectors for kind in detector.kinds))
        self.name = "+".join(detector.name for detector in detectors)

    def detect(self, pixels: Tensor) -> list[dict[str, Detections]]:
        """See `Detector`."""
        rows: list[dict[str, Detections]] = [{} for _ in range(len(pixels))]
        for detector in reversed(self.detectors):
            for row, by_kind in zip(rows, detector.detect(pixels), strict=True):
                row |= by_kind
        return rows


def best_first(scored_boxes: list[tuple[float, tuple[float, float, float, float]]]) -> Detections:
    """Detections from (score, box) pairs."""
    scored_boxes = sorted(scored_boxes, reverse=True)
    boxes = torch.tensor([box for _, box in scored_boxes], dtype=torch.float32).view(-1, 4)
    return Detections(boxes, torch.tensor([score for score, _ in scored_boxes], dtype=torch.float32))
