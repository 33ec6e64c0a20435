"""What a face does and wears, as numbers: what is to stay when somebody else is drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from fairanon.evaluators.judge import Judge
from fairanon.protocols import AttributeClassifier, FaceGeometry

_UNITS = {"pose": 10.0, "expression": 0.1, "gaze": 1.0}
"""About the deviation of each quantity among portraits; pose is in degrees."""


class FaceDescription(Judge):
    """Pose, expression and gaze as one judge measures them, attributes as another sees them, in one vector.

    Args:
        geometry: Measures what a face does.
        attributes: Sees what an image shows; None leaves that out.
        shown: Which of its attributes, for example glasses; none may say who somebody is.
    """

    def __init__(
        self, geometry: FaceGeometry, attributes: AttributeClassifier | None = None, shown: tuple[str, ...] = ()
    ) -> None:
        known = {} if attributes is None else attributes.classes
        if missing := [name for name in shown if name not in known]:
            raise ValueError(f"description.shown: nobody judges {', '.join(missing)}; name a judge in attributes.")
        self.geometry, self.attributes, self.shown = geometry, attributes, shown
        self.name = "+".join(judge.name for judge in (geometry, attributes) if judge is not None)
        self.width = sum(geometry.sizes.values()) + sum(len(known[name]) for name in shown)
        """G."""

    def see(self, pixels: Tensor) -> Tensor:
        """float32 (N, G) on the CPU, of images uint8 (N, 3, H, W); 0 where no face was found to be measured."""
        with torch.autocast(self.device.type, enabled=False):  # judges have their own precision, as when they measure
            measured = self.geometry.measure(pixels)
            judged = {} if self.attributes is None else self.attributes.classify(pixels)
        parts = [measured[name] / _UNITS.get(name, 1.0) for name in self.geometry.sizes]
        parts += [judged[name] for name in self.shown]
        return torch.cat(parts, 1).nan_to_num()
