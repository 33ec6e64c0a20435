import numpy as np
import pytest
import torch
from PIL import Image

from data_modules import masked_faces
from data_modules.masked_faces import MaskedFaces, MaskedImages, random_masks
from data_modules.records import Mask, Record, Rows, usable
from data_modules.synthetic_faces import FacesToAnonymize, SyntheticGroup
from fairanon.evaluators import PointRendParser
from fairanon.imaging import combine_regions, read_image


class Source:
    def __init__(self, records):
        self.given = records

    def records(self):
        return self.given


def image(folder, name, colour, mask=None):
    path = folder / f"{name}.png"
    Image.new("RGB", (40, 48), colour).save(path)
    masks = ()
    if mask:
        canvas = Image.new("L", (40, 48))
        canvas.paste(255, mask)
        canvas.save(folder / f"{name}.mask.png")
        masks = (Mask(path=folder / f"{name}.mask.png"),)
    return Record(path, f"a {name} face", masks)


def test_instances_bring_the_other_roles_along(tmp_path):
    records = {
        "instance": [image(tmp_path, f"olive{k}", (k, 0, 0), (0, 0, 20, 48)) for k in range(3)],
        "prior": [image(tmp_path, f"any{k}", (0, k, 0)) for k in range(2)],
        "difference": [image(tmp_path, "pale", (0, 0, 9))],
    }
    data = MaskedImages(records, 32, masks="given")
    batch = data[2, 1]
    assert batch.keys == ["instance.2.1", "prior.2.1", "difference.2.1"] and batch.roles == list(records)
    assert batch.captions == ["a olive2 face", "a any1 face", "a pale face"]
    assert batch.images[:, 0, 0, 0].tolist() == [2, 0, 0] and batch.images[1, 1, 0, 0] == 1
    assert batch.masks[0, 0, :, :15].all() and not batch.masks[0, 0, :, 17:].any(), "its own mask"
    assert torch.equal(data[2, 1].masks[1], batch.masks[1]), "a random one, but always the same"
    assert not torch.equal(data[2, 2].masks[1], batch.masks[1])
    seen = {data[k % 3, k // 3].captions[1] for k in range(6)}
    assert seen == {"a any0 face", "a any1 face"}


def test_masks_and_flips_are_keyed_and_joint(tmp_path):
    records = {"instance": [image(tmp_path, "olive", (9, 9, 9), (0, 0, 20, 48))]}
    flipped = MaskedImages(records, 32, masks="given", flip=True)
    sides = {bool(flipped[0, number].masks[0, 0, 5, 0]) for number in range(20)}
    assert sides == {True, False}
    both = MaskedImages(records, 32, masks="both")
    own = [bool(both[0, n].masks[0, 0, :, :15].all() and not both[0, n].masks[0, 0, :, 17:].any()) for n in range(40)]
    assert 8 < sum(own) < 32
    grown = MaskedImages(records, 32, masks="given", grow=3)[0, 0].masks
    assert grown.sum() - MaskedImages(records, 32, masks="given")[0, 0].masks.sum() == 3 * 32


def test_random_masks_hide_a_part_of_every_image():
    share = random_masks(torch.Generator().manual_seed(0), 200, 64).float().mean((1, 2, 3))
    assert share.min() > 0.05 and share.max() < 0.7 and share.std() > 0.05


def test_unusable_images_are_counted_and_none_at_all_is_an_error(tmp_path):
    small = [image(tmp_path, "olive", (0, 0, 0))]
    with pytest.raises(
        ValueError, match=r"data\.instance: no usable image of 1 \(left out: 1 smaller than 64 pixels\)"
    ):
        MaskedFaces(Source(small), minimum=64).setup("fit")


def test_regions_combine_from_left_to_right():
    masks = {name: torch.zeros(4, 4, dtype=torch.bool) for name in ("face", "lips", "eyes")}
    masks["face"][:3], masks["lips"][2:], masks["eyes"][0] = True, True, True
    assert torch.equal(combine_regions(masks, "face - lips"), masks["face"] & ~masks["lips"])
    assert torch.equal(combine_regions(masks, "face-lips+eyes-eyes"), masks["face"] & ~masks["lips"] & ~masks["eyes"])
    for wrong in ("face+ears", "", "face-"):
        with pytest.raises(ValueError, match="the regions are face, lips, eyes"):
            combine_regions(masks, wrong)


def test_the_embedded_group_is_drawn_once_and_hides_its_skin(tmp_path):
    source = SyntheticGroup(str(tmp_path), {"olive": 1.0}, 4)
    records = source.records()
    stamps = [record.image.stat().st_mtime_ns for record in records]
    assert all("olive skin" in record.caption for record in records)
    assert stamps == [record.image.stat().st_mtime_ns for record in source.records()]
    dark = SyntheticGroup(str(tmp_path), {"dark": 1.0}, 4).records()
    for one, other in zip(records, dark, strict=True):  # the same people in another tone: the masks hide all of it
        differs = (read_image(one.image, "") != read_image(other.image, "")).any(0)
        hidden = one.masks[0].read("", 64, 64)[0] > 0
        assert differs.any() and not (differs & ~hidden).any()
    for wrong in ({"green": 1.0}, {"olive": 0.5}):
        with pytest.raises(ValueError, match="shares of pale, light"):
            SyntheticGroup(str(tmp_path), wrong)


def test_people_to_anonymize_are_balanced_and_partial_masks_are_parts():
    rows = FacesToAnonymize(4).rows()
    groups = [row.asked["tone"] for row in rows]
    assert len(rows) == 24 and all(groups.count(tone) == 4 for tone in groups)
    assert all(row.asked["tone"] in row.prompt and row.image is not None for row in rows)
    whole = torch.stack([row.mask for row in rows])
    parser = PointRendParser()
    assert all(map(torch.equal, whole, (row.mask for row in FacesToAnonymize(4, parser=parser).rows())))
    parts = torch.stack([row.mask for row in FacesToAnonymize(4, "eyes+nose", parser).rows()])
    assert len(parts) == 24 and not (parts & ~whole).any() and parts.sum() < whole.sum() / 4
    with pytest.raises(ValueError, match="'lips' needs a parser"):
        FacesToAnonymize(4, "lips")


def test_people_without_the_region_are_not_passed_over():
    class Half:
        name, regions = "half", ("nose",)

        def parse(self, pixels):
            return {"nose": (torch.arange(len(pixels)) % 2 == 0).view(-1, 1, 1, 1).expand(-1, 1, 64, 64)}

    with pytest.raises(ValueError, match=r"no nose found in person 1 \(of 6"):
        FacesToAnonymize(2, "nose", Half()).rows()


def test_a_training_set_may_be_a_population(tmp_path):
    tones = {"pale": 0.7, "olive": 0.2, "dark": 0.1}
    records = SyntheticGroup(str(tmp_path), tones, 200).records()
    found = [record.caption.split("with ")[1].split()[0] for record in records]
    assert {name: found.count(name) / 200 for name in tones} == pytest.approx(tones, abs=0.08) and len(set(found)) == 3
    assert len(list(tmp_path.glob("olive-4200-*.mask.png"))) == found.count("olive")


def test_a_photo_on_its_side_fits_its_upright_mask_and_a_cropped_mask_is_replaced(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 30), (9, 9, 9)).save(tmp_path / "phone.jpg", exif=exif)
    mask = np.zeros((60, 30), np.uint8)
    mask[:4] = 255  # at the top of the upright image, where a square crop leaves nothing of it
    Image.fromarray(mask).save(tmp_path / "phone.png")
    record = Record(tmp_path / "phone.jpg", "a face", (Mask(path=tmp_path / "phone.png"),))
    kept, left_out = usable(Rows([[record]]), 16)
    assert list(kept) == [record] and not left_out
    sample = MaskedImages({"instance": kept}, 16, "given")[0, 0]
    assert sample.masks.any() and sample.masks.shape == (1, 1, 16, 16)


def test_every_group_is_asked_of_the_same_images(tmp_path):
    records = [image(tmp_path, f"p{k}", (k, 0, 0), (5, 5, 30, 30)) for k in range(6)]
    faces = masked_faces.FacesToAnonymize(
        Source(records), {"asian": "an Asian", "white": "a White"}, {"male": "He is {group} man.", "female": "{group}"},
        count=3, size=32, grow=1,
    )  # fmt: skip
    rows = faces.rows()
    assert [row.prompt for row in rows[:4]] == ["He is an Asian man."] * 3 + ["an Asian"]
    assert rows[3].asked == {"race": "asian", "gender": "female"} and len(rows) == 12
    rows = [row.loaded() for row in rows]
    for k in range(3):
        assert all(torch.equal(rows[k].image, rows[k + 3 * n].image) for n in range(4))
    assert len({int(row.image[0, 0, 0]) for row in rows}) == 3
    plain = Source([image(tmp_path, "plain", (1, 1, 1))])
    with pytest.raises(ValueError, match=r"plain\.png has no mask"):
        masked_faces.FacesToAnonymize(plain, {"asian": "an Asian"}, {"male": "{group}"}).rows()
    drawn = torch.cat(list(masked_faces.Images(Source(records), 4, 16).images()))
    assert drawn.shape == (4, 3, 16, 16) and len({int(one[0, 0, 0]) for one in drawn}) == 4
