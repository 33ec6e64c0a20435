"""VGGFace2-HQ, FFHQ and CelebA-HQ as pairs of one person, from prepared masks and landmarks."""

import json
import logging

import pytest
import torch

from data_modules.celeba_hq import CelebAHq
from data_modules.ffhq import Ffhq
from data_modules.identity_pairs import IdentityPairs, PeopleToAnonymize
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from data_modules.vggface2_hq import VggFace2Hq
from fairanon.evaluators import PointRendParser, TinyGeometry
from fairanon.imaging import write_image
from fairanon.prepare import FaceMasks

PEOPLE = {"n000002": (0, 3, 6), "n000003": (1, 4), "n000004": (2,)}  # scene i shows person i % 3


def write_faces(root, size=32):
    """Two images of one person in ``root/vgg``, with annotations; returns the annotations' folder."""
    (root / "vgg" / "n000002").mkdir(parents=True)
    (root / "faces").mkdir()
    write_image(torch.full((3, size, size), 255, dtype=torch.uint8), root / "faces" / "mask.png")
    lines = []
    for number in range(2):
        path = root / "vgg" / "n000002" / f"{number:04d}_01.png"
        generator = torch.Generator().manual_seed(number)
        write_image(torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8), path)
        points = torch.rand(68, 2, generator=generator).tolist()
        lines.append({"image": str(path.resolve()), "mask_face": "mask.png", "landmarks": points})
    (root / "faces" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root / "faces"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """VGGFace2-HQ of three people, one with a single image and one of a wall; FFHQ of two; annotations of both."""
    root = tmp_path_factory.mktemp("sets")
    images = render(draw_scenes(8, range(7), "balanced", 3)).image
    for name, scenes in PEOPLE.items():
        (root / "vgg" / name).mkdir(parents=True)
        for scene in scenes:
            write_image(images[scene], root / "vgg" / name / f"{scene:04d}_01.png")
    write_image(torch.full((3, 64, 64), 200, dtype=torch.uint8), root / "vgg" / "n000003" / "0009_01.png")
    (root / "ffhq" / "00000").mkdir(parents=True)
    for number in range(2):
        write_image(images[number], root / "ffhq" / "00000" / f"{number:05d}.png")
    for name in ("vgg", "ffhq"):
        FaceMasks(
            str(root / f"{name}_faces"), str(root / name), PointRendParser(), "face+hair", landmarks=TinyGeometry()
        ).run()
    return root


def module(sets, *sources, **settings):
    folders = [str(sets / "vgg_faces"), str(sets / "ffhq_faces")]
    data = IdentityPairs(list(sources), folders, batch_size=4, size=64, num_workers=0, **settings)
    data.setup("fit")
    return data


def test_preparation_writes_landmarks_and_leaves_walls_without(sets):
    lines = [json.loads(line) for line in (sets / "vgg_faces" / "metadata.jsonl").read_text().splitlines()]
    by_name = {line["image"].split("/")[-1]: line for line in lines}
    assert len(lines) == 7 and by_name["0009_01.png"]["landmarks"] is None
    points = torch.tensor(by_name["0000_01.png"]["landmarks"])
    truth = render(draw_scenes(8, [0], "balanced", 3)).landmarks[0] / 64
    assert (points - truth).norm(dim=1).mean() < 0.03


def test_pairs_show_one_person_and_change_with_the_pass(sets, caplog):
    with caplog.at_level(logging.INFO):
        data = module(sets, VggFace2Hq(str(sets / "vgg")))
    assert "VggFace2Hq: 2 people" in caplog.text and "1 without a face" in caplog.text
    assert "1 people with too few" in caplog.text, "an identity folder with one image has no pair"
    who = {p.read_bytes(): p.parent.name for p in (sets / "vgg").glob("*/*.png")}
    assert len(who) == 7
    pairs = data._data["train"]
    assert len(pairs) == 5
    mates = set()
    for number in range(12):
        sample = pairs[0, number]
        assert torch.equal(sample.images, pairs[0, 0].images) and not torch.equal(sample.references, sample.images)
        assert torch.equal(pairs[0, number].references, sample.references), "drawn from its key"
        mates.add(sample.references.float().mean().item())
    assert len(mates) == 2, "both of the others in turn"
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == 4 and batch.landmarks.shape == (4, 68, 2) and batch.masks.any()


def test_single_images_are_their_own_mates(sets):
    data = module(sets, Ffhq(str(sets / "ffhq"), last=1), val_sources=[Ffhq(str(sets / "ffhq"), first=1)])
    train, held_out = data._data["train"], data._data["validate"]
    assert len(train) == len(held_out) == 1
    assert torch.equal(train[0, 0].images, train[0, 0].references)
    assert not torch.equal(train[0, 0].images, held_out[0, 0].images)
    assert len(list(data.val_dataloader())) == 1


def test_a_crop_moves_the_landmarks_with_the_image(sets, tmp_path):
    (tmp_path / "wide" / "a").mkdir(parents=True)
    square = render(draw_scenes(8, [0], "balanced", 3)).image[0]
    wide = torch.full((3, 64, 96), 128, dtype=torch.uint8)
    wide[:, :, 16:80] = square
    for k in range(2):
        write_image(wide, tmp_path / "wide" / "a" / f"{k}.png")
    truth = render(draw_scenes(8, [0], "balanced", 3)).landmarks[0]
    rows = [
        {"image": str((tmp_path / "wide" / "a" / f"{k}.png").resolve()), "mask_face": "mask.png",
         "landmarks": ((truth + torch.tensor([16.0, 0.0])) / torch.tensor([96.0, 64.0])).tolist()} for k in range(2)
    ]  # fmt: skip
    folder = tmp_path / "faces"
    folder.mkdir()
    write_image(torch.full((3, 64, 96), 255, dtype=torch.uint8), folder / "mask.png")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = IdentityPairs([VggFace2Hq(str(tmp_path / "wide"))], [str(folder)], size=32, batch_size=1, num_workers=0)
    data.setup("fit")
    torch.testing.assert_close(next(iter(data.train_dataloader())).landmarks[0], truth / 64, atol=1e-5, rtol=0)


def test_lists_and_mistakes(sets, tmp_path):
    (tmp_path / "list.txt").write_text("n000002/0000_01.png\nn000002/0003_01.png\n\n")
    assert {k: len(v) for k, v in VggFace2Hq(str(sets / "vgg"), str(tmp_path / "list.txt")).people().items()} == {
        "n000002": 2
    }
    (tmp_path / "list.txt").write_text("n000002/none.png\n")
    with pytest.raises(FileNotFoundError, match="line 1 names"):
        VggFace2Hq(str(sets / "vgg"), str(tmp_path / "list.txt")).people()
    with pytest.raises(FileNotFoundError, match=r"a folder for each person[\s\S]*has the download"):
        VggFace2Hq(str(tmp_path / "none")).people()
    with pytest.raises(FileNotFoundError, match="fairanon prepare faces"):
        IdentityPairs([VggFace2Hq(str(sets / "vgg"))], [str(tmp_path)], num_workers=0).setup("fit")
    with pytest.raises(ValueError, match="nobody in VggFace2Hq has 4 images with a face"):
        module(sets, VggFace2Hq(str(sets / "vgg"), minimum=4))


def test_celeba_knows_who_is_who(tmp_path):
    (tmp_path / "CelebA-HQ-img").mkdir()
    for number in range(3):
        write_image(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "CelebA-HQ-img" / f"{number}.jpg")
    source = CelebAHq(str(tmp_path), region=None)
    with pytest.raises(FileNotFoundError, match="CelebA-HQ-to-CelebA-mapping"):
        source.people()
    mapping = "idx orig_idx orig_file\n0 119613 119614.jpg\n1 99094 099095.jpg\n2 200121 200122.jpg\n"
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").write_text(mapping)
    (tmp_path / "identity_CelebA.txt").write_text("119614.jpg 2880\n099095.jpg 17\n200122.jpg 2880\n")
    assert {name: [p.stem for p in paths] for name, paths in source.people().items()} == {
        "2880": ["0", "2"],
        "17": ["1"],
    }
    (tmp_path / "identity_CelebA.txt").write_text("119614.jpg 2880\n")
    with pytest.raises(ValueError, match="does not know image 1"):
        source.people()


def test_people_to_anonymize_have_a_reference_where_there_is_one(sets):
    folders = [str(sets / "vgg_faces"), str(sets / "ffhq_faces")]
    rows = PeopleToAnonymize(VggFace2Hq(str(sets / "vgg")), folders, 5, attacked=1, draws=3, size=64).rows()
    rows = [row.loaded() for row in rows]
    assert [row.set for row in rows] == ["people"] * 2 + ["attacker"] + ["diverse"] * 3
    assert all(row.reference is not None and not torch.equal(row.reference, row.image) for row in rows)
    single = PeopleToAnonymize(Ffhq(str(sets / "ffhq")), folders, 5, attacked=0, draws=0, size=64).rows()
    assert (
        len(single) == 2
        and not single[0].holds("reference")
        and single[0].person != single[1].person
        and single[0].loaded().reference is None
    )
