"""Real-world judges without a trained classifier: CLIP zero-shot attributes, and couples counted by a detector."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor
from torch.nn import functional as F

from fairanon.evaluators.judge import Judge
from fairanon.evaluators.open_clip import OpenClip
from fairanon.evaluators.pretrained import from_hub
from fairanon.imaging import to_array
from fairanon.protocols import Detections, Detector


class OpenClipAttributes(Judge):
    """Attributes by CLIP zero-shot classification, faces by a detector.

    Args:
        attributes: For each attribute the text of each class, for example
            ``{"gender": {"female": "a photo of a woman", "male": "a photo of a man"}}``.
        model: An open_clip model name, or ``local-dir:FOLDER``.
        pretrained: An open_clip tag or a weights file.
        detector: Images in which it finds no "face" get NaN; None judges every image.
    """

    def __init__(
        self,
        attributes: dict[str, dict[str, str]],
        model: str = "ViT-L-14",
        pretrained: str | None = "openai",
        detector: Detector | None = None,
    ) -> None:
        self.name = f"open_clip-{model}-{pretrained}"
        if attributes:  # the answers depend on the words
            self.name += f"-{hashlib.sha256(json.dumps(attributes).encode()).hexdigest()[:8]}"
        if detector is not None:
            self.name += f"+{detector.name}"
        self.classes = {name: tuple(texts) for name, texts in attributes.items()}
        self.detector, self.clip = detector, OpenClip(model, pretrained)
        self.texts = {name: self.clip.texts(list(texts.values())) for name, texts in attributes.items()}

    def features(self, pixels: Tensor) -> Tensor:
        """Unit CLIP image embeddings, see `FeatureNet`."""
        return self.clip.images(pixels)

    def differentiable(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """See `DifferentiableClassifier`."""
        features = self.clip.of((images + 1) / 2)
        return {name: self.clip.scale * features @ texts.to(features).T for name, texts in self.texts.items()}, features

    def classify(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `AttributeClassifier`."""
        features = self.features(pixels)
        result = {name: (self.clip.scale * features @ texts.T).softmax(1) for name, texts in self.texts.items()}
        if self.detector is not None:
            has_face = [len(kinds["face"].scores) > 0 for kinds in self.detector.detect(pixels)]
            missing = ~torch.tensor(has_face, dtype=torch.bool)
            for value in result.values():
                value[missing] = float("nan")
        return result


class GroundingDinoDetector(Judge):
    """Things named by words, by GroundingDINO through transformers.

    Args:
        kinds: What to look for.
        model: A hub id or a local folder.
        threshold: Detections below this score are not returned.
    """

    def __init__(
        self,
        kinds: tuple[str, ...] = ("man", "woman"),
        model: str = "IDEA-Research/grounding-dino-base",
        threshold: float = 0.35,
    ) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self.name, self.kinds, self.threshold = f"grounding-dino-{model}", kinds, threshold
        self.processor, network = from_hub("judge", model, AutoProcessor, AutoModelForZeroShotObjectDetection)
        self.model = network.eval()

    def detect(self, pixels: Tensor) -> list[dict[str, Detections]]:
        """See `Detector`."""
        text = ". ".join(self.kinds) + "."
        results = []
        for image in pixels:
            array = to_array(image)
            inputs = self.processor(images=array, text=text, return_tensors="pt").to(self.device)
            with torch.no_grad():
                outputs = self.model(**inputs)
            (detections,) = self.processor.post_process_grounded_object_detection(
                outputs, inputs["input_ids"], threshold=self.threshold, target_sizes=[array.shape[:2]]
            )
            labels = detections.get("text_labels", detections["labels"])
            kinds = {}
            for kind in self.kinds:
                rows = torch.tensor([label == kind for label in labels], dtype=torch.bool)
                scores, boxes = detections["scores"].cpu()[rows], detections["boxes"].cpu()[rows]
                order = scores.argsort(descending=True)
                kinds[kind] = Detections(boxes[order].view(-1, 4), scores[order])
            results.append(kinds)
        return results


class Couples(Judge):
    """Judges a couple by the two best detections of men and women (PopAlign, section 5.2).

    Fewer than two people: not judged (NaN).

    Args:
        detector: Finds "man" and "woman".
    """

    def __init__(self, detector: Detector) -> None:
        if not {"man", "woman"} <= set(detector.kinds):
            raise ValueError(f"judge.detector must find 'man' and 'woman', finds {', '.join(detector.kinds)}.")
        self.detector = detector
        self.name = f"couples+{detector.name}"
        self.classes = {"couple": ("two men", "two women", "man and woman")}

    def classify(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `AttributeClassifier`."""
        rows = torch.full((len(pixels), 3), float("nan"))
        for n, kinds in enumerate(self.detector.detect(pixels)):
            people = [(float(score), kind) for kind in ("man", "woman") for score in kinds[kind].scores]
            best = sorted(people, reverse=True)[:2]
            if len(best) == 2:
                men = sum(kind == "man" for _, kind in best)
                rows[n] = F.one_hot(torch.tensor({2: 0, 0: 1, 1: 2}[men]), 3).float()
        return {"couple": rows}
