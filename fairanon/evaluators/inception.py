"""The features of most papers' FID: Inception-v3 as torch-fidelity has it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fairanon.evaluators.judge import Judge, weights_file

_FILE = "weights-inception-2015-12-05-6726825d.pth"
_BATCH = 16


def inception_weights() -> Path:
    """Where torch-fidelity keeps them, present or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _FILE


class InceptionFeatures(Judge):
    """Pool-3 features of Inception-v3 (2048), resized as TensorFlow 1 does; weights Apache-2.0.

    Args:
        path: The weights; None is where torch-fidelity keeps them.
    """

    def __init__(self, path: str | None = None) -> None:
        from torch_fidelity import feature_extractor_inceptionv3 as inception

        file = weights_file(
            path or inception_weights(), "features.path", f"torch-fidelity's release v0.2.0 has {_FILE}"
        )
        torch.load(file, weights_only=True)  # refuses a file that would run code; torch-fidelity's own loader would not
        self.network = inception.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file)
        )
        self.name = "inception-v3-torch-fidelity"

    def features(self, pixels: Tensor) -> Tensor:
        """See `FeatureNet`."""
        with torch.no_grad():
            return torch.cat([self.network(part.to(self.device))[0].cpu() for part in pixels.split(_BATCH)])
