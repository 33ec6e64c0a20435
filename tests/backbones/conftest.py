"""One tiny folder of every kind of model."""

import pytest

from fairanon.backbones.random_models import save_random_sdxl, save_random_stable_diffusion


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "epsilon": save_random_stable_diffusion(root / "eps"),
        "v_prediction": save_random_stable_diffusion(root / "v", "v_prediction"),
        "inpainting": save_random_stable_diffusion(root / "inpaint", inpainting=True),
        "sdxl": save_random_sdxl(root / "sdxl"),
    }
