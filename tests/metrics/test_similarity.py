import pytest
import torch
from torchvision.models import alexnet

from fairanon.metrics.functional.similarity import image_pairs, lpips_weights, similarity


@pytest.fixture
def images():
    return torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_equal_images_are_alike_and_psnr_is_the_closed_form(images, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    same = similarity(image_pairs(images, images))
    assert same["ssim"].value == pytest.approx(1.0) and same["psnr"].value == 100.0
    darker = images.float().clamp(min=20).to(torch.uint8)
    found = similarity(image_pairs(darker, darker - 20))
    assert found["psnr"].value == pytest.approx(20 * torch.log10(torch.tensor(255 / 20)).item(), abs=1e-3)
    assert found["ssim"].low <= found["ssim"].value <= found["ssim"].high < 1.0
    assert found["lpips"] is None, "no look-alike where the weights are absent"


def test_one_pair_has_no_interval_and_a_persons_pairs_are_one_persons(images):
    alone = similarity(image_pairs(images[:1], images[1:2]))
    assert alone["ssim"].low is None and alone["psnr"].low is None
    values = {"ssim": torch.tensor([0.9, 0.8, 0.7]).repeat_interleave(10), "error": torch.full((30,), 0.01)}
    people = torch.arange(3).repeat_interleave(10)
    three, thirty = similarity(values, people)["ssim"], similarity(values)["ssim"]
    assert three.low == pytest.approx(0.8 - 4.3027 * 0.1 / 3**0.5, abs=1e-4) and three.low < thirty.low
    assert similarity(values)["psnr"].value == pytest.approx(20.0)


def test_lpips_is_computed_where_its_weights_are(images, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    lpips_weights().parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(alexnet().state_dict(), lpips_weights())
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: torch.load(lpips_weights()))
    found = similarity(image_pairs(images, images.flip(0)))
    assert found["lpips"].value > 0.01 and found["lpips"].n == 4
    assert similarity(image_pairs(images, images))["lpips"].value == pytest.approx(0.0, abs=1e-6)
