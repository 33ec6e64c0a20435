"""ID2Face in use: each image by itself, both samplers, folders, and refusals."""

import pytest
import torch
from diffusers import DDIMScheduler
from torch.nn import functional as F

from data_modules.synthetic_faces.identities import SyntheticIdentities
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.anonymizer.draw import Generative, ID2FaceDrawer
from fairanon.anonymizer.faces import Face, Picture
from fairanon.anonymizer.photos import Photo
from fairanon.backbones import StableDiffusion
from fairanon.config.experiments import UserError
from fairanon.degradation import Degradation, IdentityMask
from fairanon.evaluators import (
    FaceDescription,
    TinyAttributes,
    TinyDetector,
    TinyFeatureMaps,
    TinyGeometry,
    TinyRecognizer,
)
from fairanon.imaging import dilate
from fairanon.landmarks import HeadFrame
from fairanon.methods.id2face import Fit, ID2Face, Widths
from fairanon.networks.id2face_networks import OrthogonalIdentityMapping
from fairanon.pipelines import ID2FacePipeline
from tests.methods.common import trainer

SMALL = {"widths": Widths(16, 32, 2, side=4)}
MASK = IdentityMask(half_width=0.328, up=0.336, down=0.344)


def method(**settings):
    torch.manual_seed(0)
    description = FaceDescription(TinyGeometry(), TinyAttributes(faces=False), ("glasses",))
    small = {**SMALL, "description": description, "degradation": Degradation(mask=MASK)}
    module = ID2Face(StableDiffusion("tiny"), TinyRecognizer(), TinyFeatureMaps(), **{**small, **settings})
    spatial = module.networks.spatial
    for layer in () if spatial is None else (spatial.onto_first, spatial.onto_time):
        torch.nn.init.normal_(layer.weight, std=0.05)  # as if it had been trained
    return module


@pytest.fixture(scope="module")
def batch():
    return next(iter(SyntheticIdentities(batch_size=4, people=8).train_dataloader()))


@pytest.fixture
def pipeline():
    with method(mapping=OrthogonalIdentityMapping(rescale=True)).pipeline() as found:
        yield found


def rows(batch, keep=slice(None)):
    return batch.images[keep], batch.masks[keep], batch.landmarks[keep], [(7, key) for key in batch.keys[keep]]


def test_a_image_does_not_depend_on_its_place_in_the_batch(pipeline, batch):
    whole = pipeline(*rows(batch), num_inference_steps=3)
    alone = pipeline(*rows(batch, slice(2, 3)), num_inference_steps=3)
    assert whole.shape == batch.images.shape and whole.dtype == torch.uint8
    assert (whole[2].int() - alone[0].int()).abs().max() <= 1  # convolutions round differently in another batch


def test_the_new_identity_is_orthogonal_to_the_source_and_named_by_the_key(pipeline, batch):
    source = pipeline.latents_of(batch.images)
    draws = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    control = pipeline.identities(source, draws[:, None])
    torch.testing.assert_close(control.norm(dim=1), torch.ones(4))
    mapped = pipeline.mapping(draws, source)
    assert F.cosine_similarity(mapped.double(), source.double(), dim=1).abs().max() < 1e-5
    torch.testing.assert_close(control, pipeline.networks.id_vae.decode(mapped))
    images, masks, landmarks, keys = rows(batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pipeline.identities(pipeline.latents_of(batch.images), draws[:, None]), control)
    first = pipeline(images, masks, landmarks, keys, num_inference_steps=2)
    again = pipeline(images, masks, landmarks, keys, num_inference_steps=2)
    other = pipeline(images, masks, landmarks, [(8, *key) for key in keys], num_inference_steps=2)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_negated_identity_is_drawn_and_hides_nobody(batch, tmp_path):
    module = method(mapping="negated")
    with module.pipeline() as pipeline:
        source = pipeline.latents_of(batch.images)
        control = pipeline.identities(source, torch.randn(4, 5, 16))
        torch.testing.assert_close(control, pipeline.networks.id_vae.decode(-source))
        said = "negated is not trained, exported or used, since whoever negates again finds the person"
        with pytest.raises(UserError, match=said):
            pipeline.save_pretrained(tmp_path / "pipeline")
        with pytest.raises(UserError, match=said):
            ID2FaceDrawer(pipeline, TinyGeometry())
    with pytest.raises(UserError, match=said):
        trainer(tmp_path, 1).fit(module, SyntheticIdentities(batch_size=4, people=8))
    assert not list(tmp_path.iterdir())


def test_what_the_mask_hides_reaches_the_image_through_the_description_alone(pipeline, batch):
    images, masks, landmarks, keys = rows(batch)
    control = pipeline.identities(pipeline.latents_of(images), torch.ones(4, 1, 16))
    seen = pipeline.seen(images)
    pipeline.seen = lambda _: seen  # what somebody does and wears: that is to stay
    hidden = pipeline.degradation.mask(masks, landmarks)
    inside = torch.where(hidden, 255 - images, images)
    first = pipeline(images, masks, landmarks, keys, control, 2)
    assert torch.equal(pipeline(inside, masks, landmarks, keys, control, 2), first)
    outside = torch.where(hidden, images, 255 - images)
    assert not torch.equal(pipeline(outside, masks, landmarks, keys, control, 2), first)
    pipeline.seen = lambda _: 0 * seen
    assert not torch.equal(pipeline(images, masks, landmarks, keys, control, 2), first)
    pipeline.degradation = None
    assert not torch.equal(pipeline(inside, masks, landmarks, keys, control, 2), first)


def test_outside_the_mask_the_image_stays_the_original_or_is_drawn_too(pipeline, batch):
    images, masks, landmarks, keys = rows(batch)
    hidden = pipeline.degradation.mask(masks, landmarks).expand_as(images)
    pasted = pipeline(images, masks, landmarks, keys, num_inference_steps=2)
    outside = ~dilate(hidden[:, :1], pipeline.feather).expand_as(hidden)
    assert torch.equal(pasted[outside], images[outside]) and not torch.equal(pasted[hidden], images[hidden])
    pipeline.feather = None
    drawn = pipeline(images, masks, landmarks, keys, num_inference_steps=2)
    assert not torch.equal(drawn[outside], images[outside])
    assert torch.equal(drawn[hidden], pasted[hidden]), "nothing of the original"


def test_landmarks_are_the_sources_or_those_of_whoever_is_drawn(pipeline, batch):
    images, masks, landmarks, keys = rows(batch)
    seen = pipeline.seen(images)
    one, other = torch.eye(64)[:4], torch.eye(64)[4:8]
    placed = pipeline.placed(landmarks, seen, one)
    frame, source = HeadFrame.of(placed), HeadFrame.of(landmarks)
    torch.testing.assert_close(
        HeadFrame.of(landmarks).to_head(placed), pipeline.networks.landmarks(seen, one)
    )  # at the source's place
    assert not torch.allclose(placed, pipeline.placed(landmarks, seen, other))
    assert not torch.allclose(placed, pipeline.placed(landmarks, 0 * seen, one))
    shape_of_somebody_else = source.to_image(1.3 * source.to_head(landmarks))
    torch.testing.assert_close(pipeline.placed(shape_of_somebody_else, seen, one), placed)
    assert not torch.allclose(frame.to_head(placed), source.to_head(landmarks))
    drawn = pipeline(images, masks, landmarks, keys, one, 2)
    pipeline.shape = "source"
    assert torch.equal(pipeline.placed(landmarks, seen, one), landmarks)
    assert not torch.equal(pipeline(images, masks, landmarks, keys, one, 2), drawn)
    pipeline.shape, pipeline.networks.landmarks = "new", None
    with pytest.raises(ValueError, match="train it with a description"):
        pipeline(images, masks, landmarks, keys, one, 2)


def test_it_moves_and_takes_another_precision(pipeline, batch):
    assert set(pipeline.components) >= {"vae", "unet", "scheduler"}
    assert pipeline.to("cpu", torch.bfloat16) is pipeline and pipeline.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in pipeline.networks.parameters())
    assert pipeline(*rows(batch), num_inference_steps=2).dtype == torch.uint8
    pipeline.to(dtype=torch.float32)
    with pytest.raises(ValueError, match="sides must be multiples of"):
        pipeline(batch.images[..., :62], batch.masks[..., :62], batch.landmarks, [(k,) for k in batch.keys])


def test_a_folder_with_something_else_in_it_is_left_alone(pipeline, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="holds something else than a pipeline"):
        pipeline.save_pretrained(tmp_path / "photos")
    assert (tmp_path / "photos" / "mine.jpg").exists()
    for _ in range(2):
        pipeline.save_pretrained(tmp_path / "model")


PAPER = {"harmonized": False, "conditioning": "tokens", "description": None, "landmarks": "source", "feather": None}


@pytest.mark.parametrize("settings", [{"fit": Fit(mixture=3)}, PAPER])
def test_a_folder_gives_the_same_images(batch, tmp_path, settings):
    module = method(**settings)
    given = TinyRecognizer(), TinyFeatureMaps(), module.description
    with module.pipeline() as pipeline:
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        expected = pipeline(*rows(batch), num_inference_steps=3)
        pipeline.save_pretrained(tmp_path / "model")
    found = ID2FacePipeline.from_pretrained(tmp_path / "model", *given)
    assert found.degradation == pipeline.degradation and found.shape == pipeline.shape
    found.set_progress_bar_config(disable=True)
    assert isinstance(found.scheduler, DDIMScheduler) and found.mapping is None
    away = (found(*rows(batch), num_inference_steps=3).int() - expected.int()).abs()
    assert away.max() <= 1, "but for rounding: memory layouts differ"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    stranger = TinyRecognizer()
    stranger.name = "somebody-else"
    with pytest.raises(ValueError, match="trained with the recognizer tiny-embedder-a-1, not with somebody-else"):
        ID2FacePipeline.from_pretrained(tmp_path / "model", stranger, *given[1:])
    if settings is not PAPER:
        with pytest.raises(ValueError, match=r"the description tiny-geometry-1[+]tiny-attributes-1, not with None"):
            ID2FacePipeline.from_pretrained(tmp_path / "model", *given[:2])
    with pytest.raises(FileNotFoundError, match="holds no ID2Face pipeline"):
        ID2FacePipeline.from_pretrained(tmp_path, TinyRecognizer(), TinyFeatureMaps())


def test_a_image_without_a_face_is_refused(pipeline, batch):
    images, masks, landmarks, keys = rows(batch)
    masks = masks.clone()
    masks[1] = False
    with pytest.raises(ValueError, match="image 1 has no mask: no face was found"):
        pipeline(images, masks, landmarks, keys)
    landmarks = landmarks.clone()
    landmarks[3, 5] = float("nan")
    with pytest.raises(ValueError, match="image 3 has no landmarks"):
        pipeline(images, batch.masks, landmarks, keys)
    with pytest.raises(ValueError, match="masks must be bool"):
        pipeline(images, batch.masks.float(), batch.landmarks, keys)
    with pytest.raises(ValueError, match="do not fit"):
        pipeline(images, batch.masks, batch.landmarks, keys[:2])


class NoLandmarks(TinyGeometry):
    def landmarks(self, pixels):
        return torch.full((len(pixels), 68, 2), torch.nan)


def two_people():
    scenes = draw_scenes(9, range(2), "balanced")
    return torch.cat(list(render(scenes.replace(pose=torch.zeros_like(scenes.pose))).image), -1)


def hidden(pipeline, group, landmarks, seed=1):
    """The group's faces drawn anew: the result, its faces, and where each was cut out."""
    boxes = TinyDetector().detect(group[None])[0]["face"].boxes.tolist()
    picture = Picture("group.png", Photo(group, "PNG", False, {}), [Face(tuple(box), 1.0) for box in boxes])
    hider = Generative(ID2FaceDrawer(pipeline, landmarks, steps=2), seed, scale=2.8)
    hider.draw([picture])
    return hider.apply(picture), picture.faces, [hider.square(group, face) for face in picture.faces]


def test_faces_of_an_image_are_drawn_anew(pipeline):
    group = two_people()
    result, faces, squares = hidden(pipeline, group, TinyGeometry())
    assert [face.method for face in faces] == ["id2face"] * 2
    changed = (result != group).any(0)
    for square in squares:
        cut = square.crop(group, 64)
        mask = pipeline.degradation.mask(
            torch.zeros(1, 1, 64, 64, dtype=torch.bool), TinyGeometry().landmarks(cut[None]) / 64
        )
        same = (square.crop(result, 64) == cut).all(0, keepdim=True) & mask[0]
        assert same.sum() < 0.02 * mask.sum(), "hair as well, which the detected box does not hold"
    assert not changed[-4:].any(), "clothes"
    assert torch.equal(hidden(pipeline, group, TinyGeometry())[0], result)
    assert not torch.equal(hidden(pipeline, group, TinyGeometry(), seed=2)[0], result)


def test_faces_without_landmarks_are_painted_over(pipeline):
    result, faces, squares = hidden(pipeline, two_people(), NoLandmarks())
    assert [face.method for face in faces] == ["mask", "mask"]
    for square in squares:
        x, y = round(square.x), round(square.y)
        assert (result[:, y - 3 : y + 3, x - 3 : x + 3].float() - 127).abs().max() <= 1
