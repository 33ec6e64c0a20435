"""A real world in small: random models of the true architectures in the hub's cache, and every data set's true layout.

Experiments run in it as they are shipped: what a YAML names (hub ids, files, folders) is there, only narrower and fewer.
Third-party packages that cannot be installed or have no weights here are stood in for.
"""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import torch
from facexlib.headpose.hopenet_arch import HopeNet
from facexlib.parsing.bisenet import BiSeNet
from insightface.utils.face_align import arcface_dst
from PIL import Image
from transformers import BatchEncoding, CLIPConfig, CLIPModel, CLIPTextModel

from fairanon.backbones import architectures
from fairanon.evaluators.recognizers import arcface_network
from tests.conftest import REPOSITORY
from tests.data_modules.test_human_regions import write_people
from tests.data_modules.test_pick_a_pic import write as write_pairs

SIDE = 64
HUB = {  # what the experiments name, and which architecture it is
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": "sdxl-inpainting",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "dreamlike-art/dreamlike-diffusion-1.0": "sd15",
    "stabilityai/stable-diffusion-2-1": "sd21",
    "stabilityai/stable-diffusion-2-1-base": "sd21-base",
    "stabilityai/stable-diffusion-2-inpainting": "sd2-inpainting",
}


def narrow(name, inpainting=False):
    """Channel widths and image size; blocks, attention, conditioning and objective stay."""
    large = name == "sdxl"
    heads = {"sd15": 8, "sdxl": (1, 2, 2)}.get(name, (1, 2, 2, 2))
    widths = (16, 32, 32) if large else (16, 32, 32, 32)
    unet = {
        "block_out_channels": widths, "attention_head_dim": heads, "cross_attention_dim": 64 if large else 32,
        "norm_num_groups": 8, "sample_size": SIDE // 8, "layers_per_block": 1,
    }  # fmt: skip
    if large:
        unet |= {"transformer_layers_per_block": (1, 1, 2), "addition_time_embed_dim": 8,
                 "projection_class_embeddings_input_dim": 6 * 8 + 32, "in_channels": 9 if inpainting else 4}  # fmt: skip
    return {
        "unet": unet, "vae": {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "layers_per_block": 1},
        "text_encoder": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "projection_dim": 32,
                         "intermediate_size": 64},
    }  # fmt: skip


def cached(cache, name):
    """The folder of a hub id in the cache, as the hub's library lays it out."""
    root = cache / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("c0ffee")
    folder = root / "snapshots" / "c0ffee"
    folder.parent.mkdir()
    return folder


def write_models(cache):
    """Every model that an experiment names, in a cache of the hub's layout."""
    written = {}
    for name, kind in HUB.items():
        base, inpainting = kind.removesuffix("-inpainting") if kind == "sdxl-inpainting" else kind, "inpainting" in kind
        folder = cached(cache, name)
        if kind in written:
            folder.symlink_to(written[kind])
            continue
        less = narrow(base, inpainting)
        torch.manual_seed(0)
        written[kind] = architectures.write(base, folder, less.__getitem__)
    cached(cache, "madebyollin/sdxl-vae-fp16-fix").symlink_to(written["sdxl"] / "vae")
    alone = cached(cache, "mhdang/dpo-sdxl-text2image-v1")
    alone.mkdir()
    (alone / "unet").symlink_to(written["sdxl"] / "unet")
    config = CLIPConfig(
        text_config={"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        vision_config={"image_size": 32, "patch_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        projection_dim=8,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(cached(cache, "yuvalkirstain/PickScore_v1"))


def _onnx(path):
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)
    graph = helper.make_graph(
        [node], "mean", [helper.make_tensor_value_info("x", kind, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("y", kind, ["n", 3])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9), path)


def write_judges(folder):
    """Files of judges' weights, random, under the names that the experiments give."""
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(BiSeNet(num_class=19).state_dict(), folder / "parsing_bisenet.pth")
    torch.save({"params": HopeNet("resnet", [3, 4, 6, 3], 66).state_dict()}, folder / "headpose_hopenet.pth")
    torch.save(arcface_network().state_dict(), folder / "recognition_arcface_ir_se50.pth")
    _onnx(folder / "adaface_ir101_webface12m.onnx")
    widths, state = [16, 1024, 128, 64, 16, 1], {}
    for number, a, b in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        state |= {f"layers.{number}.weight": torch.randn(b, a) / a, f"layers.{number}.bias": torch.randn(b)}
    torch.save(state, folder / "sac+logos+ava1-l14-linearMSE.pth")
    for name in (
        "HPS_v2.1_compressed.pt",
        "blaze_face_short_range.tflite",
        "hand_landmarker.task",
        "face_landmarker.task",
    ):
        (folder / name).write_bytes(b"stand-in")


def _images(folder, names, mode="RGB"):
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        noise = np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((SIDE, SIDE)).convert(mode).save(folder / name)


def write_data(folder):
    """Every data set that an experiment names, in its true layout, a few images each."""
    _images(folder / "ai_hub", [f"{k}.png" for k in range(6)])
    celeba, numbers = folder / "CelebAMask-HQ", [*range(6), *range(28000, 28012)]
    _images(celeba / "CelebA-HQ-img", [f"{k}.jpg" for k in numbers])
    for k in numbers:
        skin = celeba / "CelebAMask-HQ-mask-anno" / str(k // 2000)
        skin.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((SIDE // 2, SIDE // 2), 255, np.uint8)).save(skin / f"{k:05d}_skin.png")
    lines = [f"{k} {k} {k:06d}.jpg" for k in numbers]
    (celeba / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(["idx orig_idx orig_file", *lines]) + "\n")
    people = "".join(f"{k:06d}.jpg {n // 2}\n" for n, k in enumerate(numbers))
    (celeba / "identity_CelebA.txt").write_text(people)
    _images(folder / "ffhq" / "images1024x1024" / "00000", [f"{k:05d}.png" for k in range(6)])
    _images(folder / "ffhq" / "images1024x1024" / "65000", [f"{k:05d}.png" for k in range(65000, 65160)])
    for person in ("n000002", "n000003"):
        _images(folder / "vggface2_hq" / person, [f"{k:04d}_01.jpg" for k in range(3)])
    write_people(folder / "regions", 6, side=(SIDE + 8, SIDE), controls=True)
    _images(folder / "mole", [f"{k}.png" for k in range(12)])
    rows = [{"image": f"{k}.png", "text": f"a person, number {k}", "conditioning_image": f"{k}.png"} for k in range(12)]
    (folder / "mole" / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_pairs(folder / "pick-a-pic-v1", rows=60)
    write_pairs(folder / "pick-a-pic-v1", rows=60, split="validation")


# --- packages --------------------------------------------------------------------------------------------


class _Faces:
    """insightface: a face in the middle of every image."""

    def __init__(self, name, root, allowed_modules, providers):
        self.models = dict.fromkeys(["detection", "recognition", "landmark_3d_68"])

    def prepare(self, ctx_id, det_thresh):
        pass

    def get(self, image):
        height, width = image.shape[:2]
        mean = image.reshape(-1, 3).mean(0).astype("f4")
        points = np.tile(np.array([width, height, 0], "f4") / 2, (68, 1)) + mean[0] / 99
        return [SimpleNamespace(
            det_score=0.9, bbox=np.array([width / 4, height / 4, width * 3 / 4, height * 3 / 4]), pose=mean / 10,
            normed_embedding=np.resize(mean, 512) / max(1e-6, float(np.linalg.norm(np.resize(mean, 512)))),
            landmark_3d_68=points, kps=arcface_dst * width / 112,
        )]  # fmt: skip


class _Processor:
    @staticmethod
    def from_pretrained(path):
        return _Processor()

    def __call__(self, images, text, **_):
        values = [torch.from_numpy(np.ascontiguousarray(image[:32, :32])).permute(2, 0, 1) for image in images]
        ids = torch.tensor([[0, len(words) % 38, 39] for words in text])
        return BatchEncoding({"pixel_values": torch.stack(values).float() / 255, "input_ids": ids})


class _People:
    """MediaPipe's finders of faces, hands and blendshapes: one of each in the middle; how far the jaw is open follows the picture."""

    def detect(self, image):
        side = image.data.shape[0]
        box = SimpleNamespace(origin_x=side / 4, origin_y=side / 4, width=side / 2, height=side / 2)
        score = [SimpleNamespace(score=0.8)]
        points = [SimpleNamespace(x=0.3, y=0.3), SimpleNamespace(x=0.6, y=0.6)]
        return SimpleNamespace(
            detections=[SimpleNamespace(bounding_box=box, categories=score)],
            handedness=[score],
            hand_landmarks=[points],
            face_blendshapes=[blendshapes(jawOpen=float(image.data.mean()) / 255)],
        )


def blendshapes(**scores):
    """All 52 of a face, as MediaPipe names them; those that are not given are 0."""
    sides = [
        "browDown",
        "browOuterUp",
        "cheekSquint",
        "eyeBlink",
        "eyeLookDown",
        "eyeLookIn",
        "eyeLookOut",
        "eyeLookUp",
        "eyeSquint",
        "eyeWide",
        "mouthDimple",
        "mouthFrown",
        "mouthLowerDown",
        "mouthPress",
        "mouthSmile",
        "mouthStretch",
        "mouthUpperUp",
        "noseSneer",
    ]
    single = [
        "_neutral",
        "browInnerUp",
        "cheekPuff",
        "jawForward",
        "jawLeft",
        "jawOpen",
        "jawRight",
        "mouthClose",
        "mouthFunnel",
        "mouthLeft",
        "mouthPucker",
        "mouthRight",
        "mouthRollLower",
        "mouthRollUpper",
        "mouthShrugLower",
        "mouthShrugUpper",
    ]
    names = [*single, *(f"{name}{side}" for name in sides for side in ("Left", "Right"))]
    return [SimpleNamespace(category_name=name, score=scores.get(name, 0.0)) for name in names]


class _Anything:
    """GroundingDINO: a man and a woman in every image."""

    kinds = ("man", "woman")

    def to(self, device):
        return self

    def eval(self):
        return self

    def __call__(self, images=None, text="", return_tensors="pt", **inputs):
        return BatchEncoding({"input_ids": torch.zeros(1, 1)}) if images is not None else None

    def post_process_grounded_object_detection(self, outputs, ids, threshold, target_sizes):
        return [{"scores": torch.tensor([0.9, 0.8]), "boxes": torch.zeros(2, 4), "labels": list(self.kinds)}]


def _module(name, **members):
    module = ModuleType(name)
    for key, value in members.items():
        setattr(module, key, value)
    return module


def stand_in(monkeypatch, cache):
    """Put the models in the place of the hub's cache, and stand-ins in the place of packages without weights."""
    import open_clip
    from open_clip.factory import _MODEL_CONFIGS

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    create = open_clip.create_model
    small = {
        "embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }  # fmt: skip
    conv = {**small, "vision_cfg": {"image_size": 32, "timm_model_name": "convnext_atto", "timm_model_pretrained": False,
                                    "timm_pool": "", "timm_proj": "linear"}}  # fmt: skip
    large = {**small, "text_cfg": {**small["text_cfg"], "width": 32}}  # that of Stable Diffusion 1
    for name, config in (("ViT-L-14", large), ("ViT-H-14", small), ("convnext_base_w", conv)):
        monkeypatch.setitem(_MODEL_CONFIGS, name, config)

    encoder = cache / "models--stable-diffusion-v1-5--stable-diffusion-v1-5/snapshots/c0ffee/text_encoder"
    words = CLIPTextModel.from_pretrained(encoder).get_input_embeddings().weight.detach()

    def random_weights(model, pretrained=None, **settings):
        assert pretrained is None or "/" not in pretrained or Path(pretrained).exists(), f"{pretrained} is missing"
        torch.manual_seed(0)
        made = create(model, pretrained=None, **settings)
        if model == "ViT-L-14":  # whose text encoder is that of Stable Diffusion 1
            made.token_embedding.load_state_dict({"weight": words})
        return made

    monkeypatch.setattr(open_clip, "create_model", random_weights)
    monkeypatch.setattr("transformers.AutoProcessor", _Processor)
    monkeypatch.setattr("fairanon.evaluators.zero_shot.from_hub", lambda *_: [_Anything(), _Anything()])
    monkeypatch.setitem(sys.modules, "insightface.app", _module("insightface.app", FaceAnalysis=_Faces))
    reward = SimpleNamespace(score=lambda text, image: float(image.getpixel((0, 0))[0]), to=lambda device: None)
    monkeypatch.setitem(sys.modules, "ImageReward", _module("ImageReward", load=lambda name, device: reward))
    vision = SimpleNamespace(
        FaceDetector=SimpleNamespace(create_from_options=lambda _: _People()), FaceDetectorOptions=lambda *_, **__: None,
        HandLandmarker=SimpleNamespace(create_from_options=lambda _: _People()), HandLandmarkerOptions=lambda *_, **__: None,
        FaceLandmarker=SimpleNamespace(create_from_options=lambda _: _People()), FaceLandmarkerOptions=lambda *_, **__: None,
    )  # fmt: skip
    tasks = SimpleNamespace(vision=vision, BaseOptions=lambda **_: None)
    formats = SimpleNamespace(SRGB=0)
    monkeypatch.setitem(sys.modules, "mediapipe", _module(
        "mediapipe", __version__="0", tasks=tasks, ImageFormat=formats, Image=lambda image_format, data: SimpleNamespace(data=data),
    ))  # fmt: skip


def move_in(folder, shared, monkeypatch):
    """Work in ``folder``, where everything lies that `write_models`, `write_judges` and `write_data` wrote to ``shared``."""
    (folder / "experiments").symlink_to(REPOSITORY / "experiments")
    for name in ("models", "data"):
        (folder / name).mkdir()
        for path in (shared / name).iterdir():
            (folder / name / path.name).symlink_to(path)
    monkeypatch.chdir(folder)
    stand_in(monkeypatch, shared / "cache")
