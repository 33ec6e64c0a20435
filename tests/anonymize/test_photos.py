"""Photographs of every kind in, files that say nothing but their pixels out."""

import io
import struct
import zlib

import numpy as np
import pillow_heif
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from fairanon.anonymize.photos import read_photo
from fairanon.imaging import CorruptImageError
from tests.anonymize import photographs


def raw_of(image, kind, **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def metadata(raw):
    """Parts of a file that are not needed to show its pixels."""
    found = []
    if raw[:2] == b"\xff\xd8":
        place = 2
        while raw[place + 1] != 0xDA:  # the scan; behind it there is nothing but the end
            marker, length = raw[place + 1], struct.unpack(">H", raw[place + 2 : place + 4])[0]
            if marker == 0xFE or 0xE1 <= marker <= 0xEF:
                found.append(raw[place + 4 : place + 2 + length])
            place += 2 + length
        assert raw.endswith(b"\xff\xd9")
    elif raw[:8] == b"\x89PNG\r\n\x1a\n":
        place = 8
        while place < len(raw):
            length, kind = struct.unpack(">I4s", raw[place : place + 8])
            if kind not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
                found.append(kind)
            place += 12 + length
    else:
        image = Image.open(io.BytesIO(raw))
        left = {
            "background", "loop", "duration", "timestamp", "compression", "dpi", "jfif", "version", "chroma", "resolution",
            "primary", "bit_depth", "nclx_profile",
        }  # fmt: skip
        found = [name for name, value in image.info.items() if name not in left and value not in (b"", None, [], {}, 0)]
        found += [tag for tag in image.getexif() if image.format != "TIFF"]
    return found


@pytest.mark.parametrize("which", ["turned", "cmyk", "deep", "grey", "palette", "small", "name"])
def test_what_is_written_shows_the_same_and_says_nothing_else(tmp_path, which):
    raw = photographs.write(which, tmp_path).read_bytes()
    photo = read_photo(raw, "it")
    again = photo.encode(photo.pixels)
    assert metadata(again) == [] and (which in ("small", "name") or metadata(raw) != [])
    shown = read_photo(again, "again")
    difference = (shown.pixels.int() - photo.pixels.int()).abs().float().mean()
    assert difference < 2 and shown.kind == photo.kind and shown.grey == photo.grey
    upright = torch.from_numpy(np.array(photographs.astronaut())).permute(2, 0, 1)
    if which not in ("palette", "small", "cmyk"):
        seen = upright.float().mean(0, keepdim=True) if photo.grey else upright.float()
        assert (photo.pixels.float() - seen).abs().mean() < 12, "upright, and as bright as it was"


def test_a_jpeg_keeps_its_quality():
    portrait = photographs.astronaut()
    for quality, sampling in ((60, 2), (97, 0)):
        raw = raw_of(portrait, "JPEG", quality=quality, subsampling=sampling)
        photo = read_photo(raw, "it")
        assert 0.9 < len(photo.encode(photo.pixels)) / len(raw) < 1.1


@pytest.mark.parametrize("kind", ["WEBP", "BMP", "TIFF", "GIF", "HEIF", "AVIF"])
def test_other_still_pictures(kind):
    portrait = photographs.astronaut().resize((128, 128))
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    raw = raw_of(portrait, kind, **({} if kind in ("BMP", "GIF") else {"exif": exif}))
    photo = read_photo(raw, "it")
    again = photo.encode(photo.pixels)
    assert metadata(again) == []
    assert b"A camera" not in again
    assert (read_photo(again, "again").pixels.float() - photo.pixels.float()).abs().mean() < 8


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_what_moves_or_has_pages_is_refused(kind):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    raw = raw_of(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(CorruptImageError, match="it has 3 frames or pages; only still pictures are handled"):
        read_photo(raw, "it")


def test_transparent_pixels_are_white_and_hide_nothing():
    layers = np.zeros((8, 8, 4), dtype=np.uint8)
    layers[..., 0] = 200
    layers[:4, :, 3] = 255
    photo = read_photo(raw_of(Image.fromarray(layers), "PNG"), "it")
    assert photo.pixels[:, :4].float().mean((1, 2)).tolist() == [200, 0, 0] and (photo.pixels[:, 4:] == 255).all()
    assert Image.open(io.BytesIO(photo.encode(photo.pixels))).mode == "RGB"


def test_colours_are_those_that_the_profile_says():
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {}
    for k in range(struct.unpack(">I", profile[128:132])[0]):
        name, offset, size = struct.unpack(">4sII", profile[132 + 12 * k : 144 + 12 * k])
        tags[name] = (offset, size)
    (red, size), (green, _) = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red : red + size], profile[green : green + size] = profile[green : green + size], profile[red : red + size]
    swapped = (
        bytes(profile).replace("sRGB".encode("utf-16-be"), "other"[:4].encode("utf-16-be")).replace(b"sRGB", b"othr")
    )
    raw = raw_of(Image.new("RGB", (8, 8), (250, 10, 10)), "PNG", icc_profile=swapped)
    photo = read_photo(raw, "it")
    red, green, _ = photo.pixels.float().mean((1, 2)).tolist()
    assert green > 200 and red < 60, "its red is what everybody calls green"
    assert metadata(photo.encode(photo.pixels)) == []


def test_a_second_picture_in_a_phones_jpeg_is_dropped():
    first, second = Image.new("RGB", (64, 64), "red"), photographs.astronaut()
    raw = raw_of(first, "MPO", save_all=True, append_images=[second])
    photo = read_photo(raw, "it")
    again = photo.encode(photo.pixels)
    assert photo.kind == "JPEG" and len(again) < 2000 and metadata(again) == []


def test_text_behind_a_png_and_in_it_is_gone():
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "somebody")
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta>me</x:xmpmeta>")
    text.add(b"caBX", b"c2pa manifest")
    raw = raw_of(Image.new("RGB", (8, 8)), "PNG", pnginfo=text) + b"a second file behind it"
    again = read_photo(raw, "it")
    written = again.encode(again.pixels)
    assert metadata(written) == [] and not any(word in written for word in (b"somebody", b"me<", b"c2pa", b"second"))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"not a picture", "cannot be read"),
        (b"", "cannot be read"),
        (raw_of(Image.new("F", (4, 4)), "TIFF"), "32 bits"),
        (raw_of(Image.new("RGB", (400, 400)), "JPEG")[:900], "cannot be read"),
        (raw_of(Image.new("RGB", (4, 4)), "PPM"), "is a PPM file; handled are JPEG"),
    ],
)
def test_what_cannot_be_read_is_said(raw, said):
    with pytest.raises(CorruptImageError, match=said):
        read_photo(raw, "it.jpg")


def test_a_bomb_is_not_decoded(monkeypatch):
    monkeypatch.setenv("FAIRANON_MAX_PIXELS", "1000")
    with pytest.raises(CorruptImageError, match="too large"):
        read_photo(raw_of(Image.new("L", (100, 100)), "PNG"), "it")


def test_several_pictures_in_a_heif_are_refused():
    file = pillow_heif.HeifFile()
    for colour in ("red", "blue"):
        file.add_from_pillow(Image.new("RGB", (64, 64), colour))
    out = io.BytesIO()
    file.save(out)
    with pytest.raises(CorruptImageError, match="2 frames or pages"):
        read_photo(out.getvalue(), "it")


def test_what_looks_for_metadata_sees_it():
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    assert metadata(raw_of(Image.new("RGB", (8, 8)), "JPEG", exif=exif)) and metadata(
        raw_of(Image.new("RGB", (8, 8)), "WEBP", exif=exif)
    )
    assert zlib.crc32(b"IEND") and metadata(raw_of(Image.new("RGB", (8, 8)), "PNG", exif=exif)) == [b"eXIf"]
