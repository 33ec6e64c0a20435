"""Recognizers and parsers behind their protocols, with random weights."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from facexlib.parsing.bisenet import BiSeNet
from torch.nn import functional as F

from data_modules.synthetic_faces import SyntheticParts
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.evaluators import (
    FacexlibParser,
    InsightFaceDetector,
    InsightFaceEmbedder,
    PointRendParser,
    TinyPerceptual,
)
from fairanon.imaging import to_model
from fairanon.methods import FaceSegmenter
from tests.methods.common import trainer


def face(score, *embedding, left=1):
    import numpy as np

    return SimpleNamespace(
        det_score=score, bbox=np.array([left, 2, left + 5, 6.0]), normed_embedding=np.array(embedding, "f4")
    )


@pytest.fixture
def insightface(monkeypatch):
    """insightface with one picture's faces: as many as its first red value says, and it must be handed BGR."""

    class App:
        def __init__(self, name, root, allowed_modules, providers):
            self.models = {"detection": 1, **({"recognition": 1} if name != "detector_only" else {})}

        def prepare(self, ctx_id, det_thresh):
            self.threshold = det_thresh

        def get(self, picture):
            assert picture[0, 0].tolist()[:2] == [7, 5], "blue, green, red"
            return [face(0.5 + k / 10, 1.0 - k, float(k)) for k in range(int(picture[0, 0, 2]))][:2] + [
                face(0.9, 5.0, 5.0, left=5) for _ in range(picture.shape[0] > 8)
            ]

    module = ModuleType("insightface.app")
    module.FaceAnalysis = App
    monkeypatch.setitem(sys.modules, "insightface.app", module)


def test_the_surest_face_is_embedded_and_none_is_nan(insightface):
    pictures = torch.tensor([[2, 5, 7], [0, 5, 7]], dtype=torch.uint8).view(2, 3, 1, 1).expand(2, 3, 8, 8)
    assert InsightFaceEmbedder().embed(pictures[:1])[0].tolist() == [0.0, 1.0]
    found = InsightFaceDetector().detect(pictures)
    assert found[0]["face"].scores.tolist() == pytest.approx([0.6, 0.5]) and not len(found[1]["face"].scores)
    assert InsightFaceEmbedder().embed(pictures[1:]).isnan().all()
    wide = torch.tensor([0, 5, 7], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 9, 30)
    assert InsightFaceEmbedder().embed(wide).isnan().all(), "a bystander is not the person in the middle"
    with pytest.raises(FileNotFoundError, match="has no recognizer"):
        InsightFaceEmbedder("detector_only")


def test_facexlibs_parser_groups_its_classes(tmp_path):
    torch.manual_seed(0)
    torch.save(BiSeNet(num_class=19).state_dict(), tmp_path / "parsing_bisenet.pth")
    parser = FacexlibParser(str(tmp_path / "parsing_bisenet.pth"))
    masks = parser.parse(torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8))
    assert set(masks) == set(parser.regions) and masks["face"].shape == (1, 1, 64, 96)
    assert not (masks["eyes"] & ~masks["face"]).any() and not (masks["hair"] & masks["face"]).any()
    with pytest.raises(FileNotFoundError, match=r"parser\.path"):
        FacexlibParser("none.pth")


def test_a_trained_segmenter_is_read_back(tmp_path, capsys):
    regions = ("face", "eyes", "brows", "nose", "lips", "hair", "left_hand", "right_hand")
    module = FaceSegmenter(regions, lambda p: torch.optim.AdamW(p, lr=1e-2), width=16)
    data = SyntheticParts(4, 64, 8)
    trainer(tmp_path, 6, limit_val_batches=2, val_check_interval=3, check_val_every_n_epoch=None).fit(module, data)
    assert set(module.results) == {*regions, "mean"} and "IoU mean" in capsys.readouterr().out
    parser = PointRendParser(str(tmp_path / "segmenter.safetensors"))
    batch = next(iter(data.val_dataloader()))
    labels = module.network.eval()(to_model(batch.images)).argmax(1)
    masks = parser.parse(batch.images)
    same = torch.stack([masks[name][:, 0] == (labels == k) for k, name in enumerate(regions, 1)])
    assert same.float().mean() > 0.99, "but for half precision"
    with pytest.raises(FileNotFoundError, match="segmenter_tiny"):
        PointRendParser(str(tmp_path / "none.safetensors"))


def test_a_segmenter_that_goes_on_equals_an_uninterrupted_one(tmp_path):
    def module():
        return FaceSegmenter(("face", "hair"), lambda p: torch.optim.AdamW(p, lr=1e-2), width=16, seed=3)

    class Two(SyntheticParts):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            batch.labels.clamp_(max=2)
            return batch

    whole, first, second = module(), module(), module()
    trainer(tmp_path / "a", 4).fit(whole, Two(4, 64, 8))
    part = trainer(tmp_path / "b", 2)
    part.fit(first, Two(4, 64, 8))
    part.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path / "c", 4).fit(second, Two(4, 64, 8), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for (name, value), (_, other) in zip(whole.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(value, other), name


def test_the_stand_in_for_lpips_grows_with_what_is_changed():
    pictures = render(draw_scenes(7, range(8), "balanced")).image
    judge = TinyPerceptual()
    blurred = F.avg_pool2d(pictures.float(), 3, 1, 1).round().to(torch.uint8)
    same, little, much = (judge.distance(pictures, others) for others in (pictures, blurred, pictures.roll(1, 0)))
    assert (same == 0).all() and (little > 0).all() and (little < much).all()
    torch.testing.assert_close(judge.distance(blurred, pictures), little)
