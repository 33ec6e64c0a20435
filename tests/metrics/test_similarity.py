import pytest
import torch
from torchvision.models import alexnet

from fairanon.metrics.similarity import lpips_weights, picture_pairs, similarity


@pytest.fixture
def pictures():
    return torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_equal_pictures_are_alike_and_psnr_is_the_closed_form(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    same = similarity(picture_pairs(pictures, pictures))
    assert same["ssim"]["value"] == pytest.approx(1.0) and same["psnr"]["value"] == 100.0
    darker = pictures.float().clamp(min=20).to(torch.uint8)
    found = similarity(picture_pairs(darker, darker - 20))
    assert found["psnr"]["value"] == pytest.approx(20 * torch.log10(torch.tensor(255 / 20)).item(), abs=1e-3)
    assert found["ssim"]["low"] <= found["ssim"]["value"] <= found["ssim"]["high"] < 1.0
    assert found["lpips"] is None, "no look-alike where the weights are absent"


def test_lpips_is_computed_where_its_weights_are(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    lpips_weights().parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(alexnet().state_dict(), lpips_weights())
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: torch.load(lpips_weights()))
    found = similarity(picture_pairs(pictures, pictures.flip(0)))
    assert found["lpips"]["value"] > 0.01 and found["lpips"]["n"] == 4
    assert similarity(picture_pairs(pictures, pictures))["lpips"]["value"] == pytest.approx(0.0, abs=1e-6)
