"""Photographs of every kind in, files that say nothing but their pixels out."""

import io
import struct
import zlib

import numpy as np
import pillow_heif
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from fairanon.anonymizer.photos import DRAWN_BY_A_MODEL, read_photo, upright
from fairanon.imaging import CorruptImageError
from tests.anonymizer import photographs


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


QUALITIES = {
    "q75-progressive.jpg": {"quality": 75, "optimize": True, "progressive": True}, "q40.jpg": {"quality": 40},
    "q95-444.jpg": {"quality": 95, "subsampling": 0}, "q60.jpg": {"quality": 60}, "q30.webp": {"quality": 30},
    "lossless.webp": {"lossless": True}, "q50.avif": {"quality": 50}, "q50.heic": {"quality": 50},
    "plain.png": {"optimize": True}, "jpeg-inside.tif": {"compression": "jpeg", "quality": 75},
    "deflate.tif": {"compression": "tiff_adobe_deflate"}, "raw.tif": {}, "plain.bmp": {},
}  # fmt: skip


@pytest.mark.parametrize("name", [*QUALITIES, "palette.png", "x.gif", "fax.tif"])
def test_files_stay_about_as_large_and_what_nobody_asked_to_change_stays(tmp_path, name):
    portrait = photographs.astronaut()
    settings = QUALITIES.get(name, {"compression": "group4"} if name == "fax.tif" else {})
    if name in ("palette.png", "x.gif"):
        portrait = portrait.quantize(64)
    elif name == "fax.tif":
        portrait = portrait.convert("1")
    portrait.save(tmp_path / name, **settings)
    raw = (tmp_path / name).read_bytes()
    photo = read_photo(raw, name)
    changed = photo.pixels.clone()
    changed[:, 50:190, 170:280] = 127
    again = photo.encode(changed)
    error = (read_photo(again, name).pixels.double() - photo.pixels.double())[:, 200:]
    exact = name.endswith((".png", ".gif", ".bmp")) or name in ("lossless.webp", "deflate.tif", "raw.tif", "fax.tif")
    assert (error == 0).all() if exact else 10 * (255**2 / error.square().mean()).log10() >= 36
    assert len(again) < 1.5 * len(raw)


def test_a_camera_is_not_told_by_its_tables():
    tables = {tuple(tuple(t) for t in Image.open(io.BytesIO(raw)).quantization.values()) for raw in (
        read_photo(raw_of(photographs.astronaut(), "JPEG", quality=q, subsampling=s), "it").encode(
            read_photo(raw_of(photographs.astronaut(), "JPEG", quality=q), "it").pixels)
        for q in range(20, 101, 4) for s in (0, 1, 2))}  # fmt: skip
    assert len(tables) == 4
    odd = raw_of(photographs.astronaut(), "JPEG", qtables=[[3 + k % 7 for k in range(64)]] * 2)
    photo = read_photo(odd, "it")
    found = Image.open(io.BytesIO(photo.encode(photo.pixels))).quantization
    assert tuple(tuple(t) for t in found.values()) in tables
    coarse = Image.open(io.BytesIO(photo.encode(photo.pixels, quality=30)))
    assert sum(coarse.quantization[0]) > 5000


@pytest.mark.parametrize("mode", ["L", "P"])
def test_grey_and_palette_pictures_are_converted_by_their_profile(mode):
    space = "sRGB" if mode == "P" else "GRAY"
    profile = _gamma_profile(space)
    image = Image.new("L", (8, 8), 100).convert(mode)
    photo = read_photo(raw_of(image, "PNG", icc_profile=profile), "it")
    plain = read_photo(raw_of(image, "PNG"), "it")
    assert (photo.pixels.float().mean() - plain.pixels.float().mean()).abs() > 20


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "HEIF", "AVIF"])
def test_what_a_model_drew_is_marked_and_nothing_else_is_said(kind):
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    raw = raw_of(photographs.astronaut().resize((128, 128)), kind, **({} if kind == "GIF" else {"exif": exif}))
    photo = read_photo(raw, "it")
    again = photo.encode(photo.pixels, drawn=True)
    image = Image.open(io.BytesIO(again))
    said = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    if kind == "GIF":
        start = again.index(b"XMP DataXMP") + 11
        said = again[start : again.index(b"\x01\xff\xfe\xfd", start)]
        image.load()
    if kind == "TIFF":
        said = image.tag_v2[700]
    said = said.encode() if isinstance(said, str) else bytes(said)
    assert b"digitalsourcetype/compositeWithTrainedAlgorithmicMedia" in said and b"A camera" not in again
    assert said.rstrip(b"\0") == DRAWN_BY_A_MODEL.encode()


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


def _gamma_profile(space):
    """A profile with a gamma of 1: its middle grey is much brighter than sRGB's."""

    def tag(kind, body):
        return kind + bytes(4) + body

    curve = tag(b"curv", struct.pack(">IH", 1, 256) + bytes(2))
    white = tag(b"XYZ ", struct.pack(">iii", 63190, 65536, 54061))
    name = tag(b"desc", struct.pack(">I", 5) + b"gray\0" + bytes(78))
    parts = {b"desc": name, b"wtpt": white, b"cprt": tag(b"text", b"none\0\0\0\0")}
    if space == "GRAY":
        parts[b"kTRC"] = curve
    else:
        primaries = ((28578, 14581, 912), (25241, 46981, 6362), (9371, 3974, 46787))
        for letter, values in zip((b"r", b"g", b"b"), primaries, strict=True):
            parts[letter + b"XYZ"], parts[letter + b"TRC"] = tag(b"XYZ ", struct.pack(">iii", *values)), curve
    table, body, place = b"", b"", 128 + 4 + 12 * len(parts)
    for key, value in parts.items():
        value += bytes(-len(value) % 4)
        table += struct.pack(">4sII", key, place + len(body), len(value))
        body += value
    colours = b"GRAY" if space == "GRAY" else b"RGB "
    head = struct.pack(">I", place + len(body)) + b"none" + bytes([2, 0x40, 0, 0]) + b"mntr" + colours + b"XYZ "
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(parts)) + table + body


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_a_file_as_it_lies_are_found_in_the_picture_as_it_is_seen(orientation):
    layers = np.zeros((40, 60, 3), dtype=np.uint8)
    layers[5:15, 20:50] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = read_photo(raw_of(Image.fromarray(layers), "PNG", exif=exif), "it")
    rows, columns = (photo.pixels[0] == 255).nonzero(as_tuple=True)
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    found = upright(torch.tensor([[20.0, 5, 50, 15]]), photo.orientation, *photo.pixels.shape[-2:])
    assert found[0].tolist() == [float(value) for value in expected]


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
