"""Recognizers and parsers behind their protocols, with random weights."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from facexlib.headpose.hopenet_arch import HopeNet
from facexlib.parsing.bisenet import BiSeNet
from insightface.utils.face_align import arcface_dst
from torch.nn import functional as F

from data_modules.synthetic_faces import SyntheticParts
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.callbacks import Results
from fairanon.evaluators import (
    ConvNextFeatures,
    FacexlibArcFace,
    FacexlibParser,
    HopeNetPose,
    InsightFaceDetector,
    InsightFaceEmbedder,
    InsightFaceGeometry,
    JoinedGeometry,
    Musiq,
    OnnxEmbedder,
    PointRendParser,
    TinyPerceptual,
)
from fairanon.evaluators.recognizers import arcface_network
from fairanon.files import read_json
from fairanon.imaging import to_model
from fairanon.methods import FaceSegmenter
from tests.methods.common import trainer


def face(score, *embedding, left=1):
    return SimpleNamespace(
        det_score=score, bbox=np.array([left, 2, left + 5, 6.0]), normed_embedding=np.array(embedding, "f4"),
        landmark_3d_68=np.full((68, 3), score, "f4"), pose=np.array([1.0, 2.0, 3.0], "f4"), kps=arcface_dst / 14,
    )  # fmt: skip


@pytest.fixture
def insightface(monkeypatch):
    """insightface with one image's faces: as many as its first red value says, and it must be handed BGR."""

    class App:
        def __init__(self, name, root, allowed_modules, providers):
            self.models = {"detection": 1}
            if name != "detector_only":
                self.models |= {"recognition": 1, "landmark_3d_68": 1}

        def prepare(self, ctx_id, det_thresh):
            self.threshold = det_thresh

        def get(self, image):
            assert image[0, 0].tolist()[:2] == [7, 5], "blue, green, red"
            return [face(0.5 + k / 10, 1.0 - k, float(k)) for k in range(int(image[0, 0, 2]))][:2] + [
                face(0.9, 5.0, 5.0, left=5) for _ in range(image.shape[0] > 8)
            ]

    module = ModuleType("insightface.app")
    module.FaceAnalysis = App
    monkeypatch.setitem(sys.modules, "insightface.app", module)


def test_the_surest_face_is_embedded_and_none_is_nan(insightface):
    images = torch.tensor([[2, 5, 7], [0, 5, 7]], dtype=torch.uint8).view(2, 3, 1, 1).expand(2, 3, 8, 8)
    assert InsightFaceEmbedder().embed(images[:1])[0].tolist() == [0.0, 1.0]
    found = InsightFaceDetector().detect(images)
    assert found[0]["face"].scores.tolist() == pytest.approx([0.6, 0.5]) and not len(found[1]["face"].scores)
    assert InsightFaceEmbedder().embed(images[1:]).isnan().all()
    wide = torch.tensor([0, 5, 7], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 9, 30)
    assert InsightFaceEmbedder().embed(wide).isnan().all(), "a bystander is not the person in the middle"
    with pytest.raises(FileNotFoundError, match="has no recognizer"):
        InsightFaceEmbedder("detector_only")


def mean_colour(path):
    """An ONNX recognizer that returns each channel's mean."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)
    graph = helper.make_graph(
        [node], "mean", [helper.make_tensor_value_info("x", kind, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("y", kind, ["n", 3])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9), path)
    return str(path)


def test_a_users_own_recognizer_sees_the_aligned_face_in_its_channels_order(insightface, tmp_path):
    path = mean_colour(tmp_path / "adaface.onnx")
    images = torch.tensor([[2, 5, 7], [0, 5, 7]], dtype=torch.uint8).view(2, 3, 1, 1).repeat(1, 1, 8, 8)
    expected = F.normalize(torch.tensor([[2.0, 5.0, 7.0]]) / 127.5 - 1, dim=1)[0]
    for channels, order in (("rgb", [0, 1, 2]), ("bgr", [2, 1, 0])):
        judge = OnnxEmbedder(path, "adaface-ir101-webface12m", channels)
        found = judge.embed(images)
        torch.testing.assert_close(found[0], expected[order], atol=5e-3, rtol=0)  # the crop reaches over the edge
        assert found[1].isnan().all() and judge.name == "adaface-ir101-webface12m+insightface-buffalo_l"
    with pytest.raises(FileNotFoundError, match=r"embedder\.path"):
        OnnxEmbedder("none.onnx", "x")


def test_geometry_of_several_judges(insightface, tmp_path):
    images = torch.tensor([[1, 5, 7], [0, 5, 7]], dtype=torch.uint8).view(2, 3, 1, 1).expand(2, 3, 8, 8)
    found = InsightFaceGeometry().measure(images)
    assert found["landmarks"].shape == (2, 68, 2) and (found["landmarks"][0] == 0.5).all()
    assert found["pose"][0].tolist() == [1, 2, 3] and found["pose"][1].isnan().all()
    torch.manual_seed(0)
    torch.save({"params": HopeNet("resnet", [3, 4, 6, 3], 66).state_dict()}, tmp_path / "headpose_hopenet.pth")
    pose = HopeNetPose(str(tmp_path / "headpose_hopenet.pth"))
    both = JoinedGeometry([InsightFaceGeometry(), pose])
    joined = both.measure(images)
    torch.testing.assert_close(joined["pose"][0], pose.measure(images)["pose"][0])
    assert joined["pose"][1].isnan().all(), "HopeNet looks at anything"
    assert both.name == "insightface-buffalo_l+facexlib-hopenet"
    with pytest.raises(FileNotFoundError, match=r"geometry\.path"):
        HopeNetPose("none.pth")


def test_arcface_has_a_gradient_and_sees_the_middle_alone(tmp_path):
    torch.manual_seed(0)
    torch.save(arcface_network().state_dict(), tmp_path / "arcface.pth")
    judge = FacexlibArcFace(str(tmp_path / "arcface.pth"))
    images = (torch.rand(1, 3, 64, 64) * 2 - 1).requires_grad_()
    found = judge.recognize(images)
    assert found.shape == (1, judge.width)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(1))
    found[0, 0].backward()
    assert images.grad[..., 20:40, 20:40].abs().sum() > 0 and images.grad[..., :4, :].abs().sum() == 0
    assert all(p.grad is None for p in judge.parameters())
    with pytest.raises(FileNotFoundError, match=r"recognizer\.path"):
        FacexlibArcFace("none.pth")


def test_a_convolutional_clip_gives_four_scales():
    features = ConvNextFeatures("convnext_tiny", None)
    images = torch.rand(1, 3, 64, 64).requires_grad_()
    maps = features.maps(images)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, s, s) for c, s in zip(features.channels, (16, 8, 4, 2), strict=True)
    ]
    assert not any(p.requires_grad for p in features.parameters())
    with pytest.raises(ValueError, match="no convolutional CLIP"):
        ConvNextFeatures("ViT-B-32", None)


def test_musiq_is_asked_for_values_between_zero_and_one(monkeypatch):
    module = ModuleType("pyiqa")
    module.__version__ = "0"
    module.create_metric = lambda model, device: lambda x: x.amax((1, 2, 3), keepdim=True) * 70
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    images = torch.tensor([51, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    assert Musiq().score(images, ["", ""]).tolist() == pytest.approx([14, 70])
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ModuleNotFoundError, match="non-commercial"):
        Musiq()


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
    settings = {"limit_val_batches": 2, "val_check_interval": 3, "check_val_every_n_epoch": None}
    trainer(tmp_path, 6, callbacks=[Results()], **settings).fit(module, data)
    assert set(module.results()["iou"]) == {*regions, "mean"} and "IoU mean" in capsys.readouterr().out
    assert read_json(tmp_path / "segmenter.json", "test") == module.results()
    module.export_weights(tmp_path, "segmenter_tiny")
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
    images = render(draw_scenes(7, range(8), "balanced")).image
    judge = TinyPerceptual()
    blurred = F.avg_pool2d(images.float(), 3, 1, 1).round().to(torch.uint8)
    same, little, much = (judge.distance(images, others) for others in (images, blurred, images.roll(1, 0)))
    assert (same == 0).all() and (little > 0).all() and (little < much).all()
    torch.testing.assert_close(judge.distance(blurred, images), little)
