import torch

from data_modules.synthetic_faces.captions import VOCABULARY, captions, prompt
from data_modules.synthetic_faces.renderer import MASKS, render
from data_modules.synthetic_faces.world import (
    HELD_OUT_OCCUPATIONS,
    OCCUPATION_BIAS,
    OCCUPATIONS,
    SUBJECTS,
    TONES,
    TRAIN_OCCUPATIONS,
    draw_scenes,
    tone_probabilities,
)
from fairanon.evaluators import tiny
from fairanon.metrics.functional.discrepancy import discrepancy


def test_a_scene_depends_on_seed_and_index_alone():
    alone = draw_scenes(3, [41])
    among = draw_scenes(3, range(40, 44))[1:2]
    for name, value in vars(alone).items():
        assert torch.equal(value, getattr(among, name)), name
    together = render(draw_scenes(3, range(40, 44)), masks=True)
    single = render(alone, masks=True)
    assert torch.equal(single.image[0], together.image[1])
    assert torch.equal(single.masks[0], together.masks[1])
    assert not torch.equal(render(draw_scenes(4, [41])).image, single.image)


def test_a_person_keeps_identity_and_changes_the_rest():
    first, second = (draw_scenes(5, [index], "balanced", people=10) for index in (3, 13))
    for name in ("identity", "gender", "tone", "age"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(first.pose, second.pose)


def test_images_masks_and_landmarks():
    scenes = draw_scenes(1, range(64), "balanced")
    drawn = render(scenes, masks=True)
    assert drawn.image.shape == (64, 3, 64, 64) and drawn.image.dtype == torch.uint8
    assert drawn.masks.shape == (64, len(MASKS), 64, 64) and set(drawn.masks.unique().tolist()) == {0, 1}
    parts = drawn.masks[:, [MASKS.index(name) for name in MASKS if name != "glasses"]]
    assert parts.sum(1).max() == 1, "a pixel belongs to one region at most"
    worn = drawn.masks[:, MASKS.index("glasses")].flatten(1).any(1)
    assert torch.equal(worn, scenes.glasses)
    hands = drawn.masks[:, [MASKS.index("left_hand"), MASKS.index("right_hand")]].flatten(2).any(2)
    assert torch.equal(hands.all(1), scenes.hands) and torch.equal(hands.any(1), scenes.hands)
    left = drawn.masks[:, MASKS.index("left_hand")].float().mean((0, 1))
    assert left[:32].sum() > left[32:].sum(), "left is the image's left"
    assert drawn.landmarks.shape == (64, 68, 2)
    eyes = drawn.masks[:, MASKS.index("eyes")]
    for n in range(64):  # the eyes' corners stand round visible eye pixels
        points = drawn.landmarks[n, 36:48]
        rows, columns = eyes[n].nonzero(as_tuple=True)
        assert points[:, 0].min() - 2 <= columns.min() and columns.max() <= points[:, 0].max() + 2
        assert points[:, 1].min() - 2 <= rows.min() and rows.max() <= points[:, 1].max() + 2
    assert (drawn.landmarks[:, 36, 0] < drawn.landmarks[:, 45, 0]).all()
    assert (drawn.landmarks[:, 8, 1] > drawn.landmarks[:, 27, 1]).all(), "the chin is below the nose's root"


def test_subjects_without_a_person():
    scenes = draw_scenes(1, range(8), "balanced").replace(subject=torch.arange(8) % 4)
    drawn = render(scenes, masks=True)
    nobody = scenes.subject > 0
    assert drawn.masks[nobody].sum() == 0 and drawn.landmarks[nobody].abs().sum() == 0
    assert drawn.masks[~nobody].flatten(1).any(1).all()
    texts = captions(scenes)
    assert all(SUBJECTS[int(k)] in text.split() for k, text in zip(scenes.subject, texts, strict=True) if k)


def test_the_population_has_the_bias_of_the_table():
    scenes = draw_scenes(9, range(30_000))
    neutral = ~scenes.named[:, :2].any(1) & (scenes.subject == 0)
    gaps = {"gender": [], "tone": []}
    for k, (name, (female, tone, share, _)) in enumerate(OCCUPATION_BIAS.items()):
        chosen = neutral & (scenes.occupation == k)
        observed = (scenes.gender[chosen] == 0).float().mean().item()
        assert abs(observed - female) < 0.06, name
        assert abs((scenes.tone[chosen] == TONES.index(tone)).float().mean().item() - share) < 0.06, name
        if k < 14:
            gaps["gender"].append(discrepancy(torch.tensor([female, 1 - female])))
            gaps["tone"].append(discrepancy(tone_probabilities()[k]))
    assert 0.35 < torch.stack(gaps["gender"]).mean() < 0.55
    assert 0.5 < torch.stack(gaps["tone"]).mean() < 0.7
    explicit = scenes.named[:, 1] & (scenes.subject == 0)
    shares = torch.bincount(scenes.tone[explicit], minlength=6) / explicit.sum()
    assert (shares - 1 / 6).abs().max() < 0.02, "who is named is drawn uniformly"


def test_captions():
    assert prompt("doctor") == "a photo of a doctor"
    assert prompt("doctor", gender="female", tone="dark") == "a photo of a female doctor with dark skin"
    assert prompt("person", gender="male", age="old") == "a photo of an old man"
    assert prompt("athlete") == "a photo of an athlete"
    words = {word for text in captions(draw_scenes(2, range(4000))) for word in text.split()}
    assert words == set(VOCABULARY), words ^ set(VOCABULARY)


def test_the_judges_speak_the_worlds_language():
    assert tiny.ATTRIBUTES["occupation"] == OCCUPATIONS and tiny.ATTRIBUTES["tone"] == TONES
    assert tiny.ATTRIBUTES["subject"] == SUBJECTS
    assert len(TRAIN_OCCUPATIONS) == 10 and len(HELD_OUT_OCCUPATIONS) == 4
    assert not set(TRAIN_OCCUPATIONS) & set(HELD_OUT_OCCUPATIONS)
