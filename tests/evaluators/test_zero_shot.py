import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import BatchEncoding, CLIPConfig, CLIPModel

from fairanon.evaluators import (
    Couples,
    ImageReward,
    InsightFaceDetector,
    JoinedDetectors,
    LaionAesthetics,
    MediaPipeGeometry,
    MediaPipePeople,
    OpenClipAttributes,
    OpenClipScore,
    PickScore,
)
from fairanon.protocols import Detections
from tests.real_world import blendshapes


class FakeDetector:
    """Reads the answer off the first pixel: red men, green women, blue faces."""

    name, kinds = "fake", ("man", "woman", "face")

    def detect(self, pixels):
        def some(count):
            return Detections(torch.zeros(count, 4), torch.linspace(0.9, 0.5, count))

        return [dict(zip(self.kinds, map(some, image[:, 0, 0].tolist()), strict=True)) for image in pixels]


def images(*counts):
    return torch.tensor(counts, dtype=torch.uint8).view(-1, 3, 1, 1).expand(-1, 3, 8, 8).contiguous()


def test_couples_are_the_two_best_people():
    judged = Couples(FakeDetector()).classify(images((2, 0, 0), (0, 3, 0), (1, 1, 0), (1, 0, 0)))["couple"]
    assert judged[:3].argmax(1).tolist() == [0, 1, 2] and judged[3].isnan().all()
    with pytest.raises(ValueError, match="'man' and 'woman'"):
        broken = FakeDetector()
        broken.kinds = ("face",)
        Couples(broken)


@pytest.fixture(scope="module")
def clip_name():
    """A random open_clip model built from configuration."""
    from open_clip.factory import _MODEL_CONFIGS

    name = "fairanon-test"
    _MODEL_CONFIGS[name] = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    return name


def test_open_clip_classifies_and_marks_missing_faces(clip_name):
    attributes = {"gender": {"female": "a photo of a woman", "male": "a photo of a man"}}
    torch.manual_seed(0)
    judge = OpenClipAttributes(attributes, model=clip_name, pretrained=None, detector=FakeDetector())
    assert judge.classes == {"gender": ("female", "male")} and clip_name in judge.name and "fake" in judge.name
    rows = judge.classify(images((9, 9, 1), (9, 200, 0), (90, 9, 2)))["gender"]
    assert rows[1].isnan().all() and not rows[[0, 2]].isnan().any()
    torch.testing.assert_close(rows[[0, 2]].sum(1), torch.ones(2))
    features = judge.features(images((9, 9, 1), (90, 9, 2)))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    expected = (judge.clip.scale * features @ judge.texts["gender"].T).softmax(1)
    torch.testing.assert_close(rows[[0, 2]], expected)


def test_a_missing_face_pack_says_what_to_do(tmp_path):
    (tmp_path / "models" / "buffalo_l").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="has no detector under"):
        InsightFaceDetector(root=str(tmp_path))


def test_clip_score_is_the_cosine(clip_name):
    torch.manual_seed(0)
    scorer = OpenClipScore("clip_score", model=clip_name, pretrained=None)
    pixels, texts = images((9, 9, 1), (90, 9, 2)), ["a doctor", "a nurse raising both hands"]
    expected = 100 * torch.stack([scorer.clip.images(pixels)[k] @ scorer.clip.texts(texts)[k] for k in range(2)])
    torch.testing.assert_close(scorer.score(pixels, texts), expected)
    assert scorer.name == "clip_score" and expected.abs().max() <= 100


def test_joined_detectors_answer_each_kind_by_the_first_that_knows_it():
    first, second = FakeDetector(), FakeDetector()
    first.kinds, second.kinds = ("man", "woman", "child"), ("hand", "woman", "face")
    joined = JoinedDetectors([first, second])
    assert joined.kinds == ("man", "woman", "child", "hand", "face") and joined.name == "fake+fake"
    (found,) = joined.detect(images((1, 2, 3)))
    assert {kind: len(found[kind].scores) for kind in joined.kinds} == {
        "man": 1, "woman": 2, "child": 3, "hand": 1, "face": 3
    }  # fmt: skip


def test_mediapipe_says_what_it_lacks(tmp_path):
    with pytest.raises((ModuleNotFoundError, FileNotFoundError), match=r"fairanon\[eval\]|face_model: .* is missing"):
        MediaPipePeople(str(tmp_path / "a.tflite"), str(tmp_path / "b.task"))


def test_laion_aesthetics_is_its_layers_on_the_image_embedding(clip_name, tmp_path):
    torch.manual_seed(1)
    widths, state = [16, 1024, 128, 64, 16, 1], {}
    for number, a, b in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        state |= {f"layers.{number}.weight": torch.randn(b, a) / a, f"layers.{number}.bias": torch.randn(b)}
    torch.save(state, tmp_path / "sac.pth")
    torch.manual_seed(0)
    scorer = LaionAesthetics(str(tmp_path / "sac.pth"), model=clip_name, pretrained=None)
    pixels = images((9, 9, 1), (90, 9, 2))
    x = scorer.clip.images(pixels)
    for number in (0, 2, 4, 6, 7):
        x = x @ state[f"layers.{number}.weight"].T + state[f"layers.{number}.bias"]
    torch.testing.assert_close(scorer.score(pixels, ["", ""]), x[:, 0])
    with pytest.raises(FileNotFoundError, match=r"scorer\.weights"):
        LaionAesthetics("none.pth", model=clip_name, pretrained=None)


def test_pickscore_is_the_scaled_cosine_of_its_clip(tmp_path, monkeypatch):
    config = CLIPConfig(
        text_config={"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        vision_config={"image_size": 32, "patch_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        projection_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(tmp_path / "model")

    class Processor:
        """Words to ids, images to tensors; batches are told by their lengths."""

        @staticmethod
        def from_pretrained(path):
            return Processor()

        def __call__(self, images, text, **_):
            values = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images]).float() / 255
            ids = torch.tensor([[0, len(words), 39] for words in text])
            return BatchEncoding({"pixel_values": values, "input_ids": ids})

    monkeypatch.setattr("transformers.AutoProcessor", Processor)
    scorer = PickScore(str(tmp_path / "model"))
    images = torch.randint(0, 256, (20, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    prompts = ["a" * (1 + n) for n in range(20)]
    found = scorer.score(images, prompts)
    inputs = Processor()([image.permute(1, 2, 0).numpy() for image in images], prompts)
    with torch.no_grad():
        out = scorer.model(**inputs)
        expected = scorer.model.logit_scale.exp() * (out.image_embeds * out.text_embeds).sum(1)
    torch.testing.assert_close(found, expected)
    assert scorer.name == "pickscore-model" and found.std() > 0


def test_image_reward_is_asked_image_by_image(monkeypatch):
    class Model:
        def score(self, text, image):
            return len(text) + image.getpixel((0, 0))[0] / 100

    module = ModuleType("ImageReward")
    module.load = lambda name, device: Model()
    monkeypatch.setitem(sys.modules, "ImageReward", module)
    scores = ImageReward().score(images((50, 0, 0), (7, 0, 0)), ["a", "bcd"])
    assert scores.tolist() == pytest.approx([1.5, 3.07])


def test_a_missing_pickscore_says_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="hf download nobody/nothing"):
        PickScore("nobody/nothing")


def test_blendshapes_are_expression_and_gaze(tmp_path, monkeypatch):
    """Against the sums by hand: a face that looks to its own left and half up, with an open jaw; and an image without a face."""
    from fairanon.evaluators.geometry import in_numbers

    shapes = {
        one.category_name: one.score
        for one in blendshapes(
            _neutral=0.9,
            jawOpen=0.25,
            eyeLookOutLeft=0.8,
            eyeLookInRight=0.6,
            eyeLookInLeft=0.1,
            eyeLookUpLeft=0.5,
            eyeLookUpRight=0.5,
        )
    }
    assert len(shapes) == 52
    expression, gaze = in_numbers(shapes)
    assert len(expression) == 43 and expression.sum() == 0.25, "neither what is neutral nor where the eyes look"
    torch.testing.assert_close(gaze, torch.tensor([(0.8 - 0.1 + 0.6) / 2, 0.5]))
    turned = dict(shapes) | {"eyeLookOutLeft": 0.1, "eyeLookInLeft": 0.8, "eyeLookInRight": 0.0, "eyeLookOutRight": 0.6}
    assert in_numbers(turned)[1][0] == pytest.approx(-0.65)
    (tmp_path / "face.task").write_bytes(b"")
    faces = iter([[blendshapes(jawOpen=1.0)], []])
    landmarker = SimpleNamespace(detect=lambda image: SimpleNamespace(face_blendshapes=next(faces)))
    options = {}
    vision = SimpleNamespace(
        FaceLandmarker=SimpleNamespace(create_from_options=lambda _: landmarker), FaceLandmarkerOptions=lambda base, **given: options.update(given),
    )  # fmt: skip
    package = ModuleType("mediapipe")
    package.__version__, package.ImageFormat, package.Image = "1", SimpleNamespace(SRGB=0), lambda **image: image
    package.tasks = SimpleNamespace(vision=vision, BaseOptions=lambda **_: None)
    monkeypatch.setitem(sys.modules, "mediapipe", package)
    judge = MediaPipeGeometry(str(tmp_path / "face.task"))
    measured = judge.measure(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert measured["expression"][0].sum() == 1 and measured["gaze"][0].tolist() == [0, 0]
    assert measured["expression"][1].isnan().all() and measured["gaze"][1].isnan().all()
    assert {name: rows.shape[1] for name, rows in measured.items()} == judge.sizes and options[
        "output_face_blendshapes"
    ] is True
    with pytest.raises(FileNotFoundError, match=r"geometry\.model"):
        MediaPipeGeometry("none.task")
