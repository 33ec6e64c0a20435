"""One tiny folder of every kind of model."""

import pytest

from fairanon.backbones.tiny import save_tiny_sdxl, save_tiny_stable_diffusion


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "epsilon": save_tiny_stable_diffusion(root / "eps"),
        "v_prediction": save_tiny_stable_diffusion(root / "v", "v_prediction"),
        "inpainting": save_tiny_stable_diffusion(root / "inpaint", inpainting=True),
        "sdxl": save_tiny_sdxl(root / "sdxl"),
    }
