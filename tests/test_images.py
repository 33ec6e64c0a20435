"""Images and masks of every kind that people have: read as a viewer shows them, or one sentence that names them."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.records import Mask
from fairanon.imaging import CorruptImageError, image_size, read_image, read_labels, read_mask

SIDE = 32


def photograph() -> Image.Image:
    """Soft colours, nothing symmetric."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    pixels = np.stack([60 + 150 * x, 40 + 160 * y, 200 - 120 * x * y], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float()


def _png16(path, pixels: np.ndarray) -> None:
    """A PNG of 16 bits a channel, which Pillow does not write."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def _turned(path, orientation: int) -> None:
    back = {
        3: Image.Transpose.ROTATE_180,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[274] = orientation
    photograph().transpose(back[orientation]).save(path, exif=exif)


def _transparent(path) -> None:
    pixels = np.dstack([np.asarray(photograph()), np.full((SIDE, SIDE), 255, np.uint8)])
    pixels[:, :8] = [1, 2, 3, 0]  # what a cut-out leaves under the transparency
    Image.fromarray(pixels).save(path)


def _palette(path) -> None:
    indexed = photograph().quantize(200)
    indexed.save(path, transparency=int(np.asarray(indexed)[0, 0]))


GREY = photograph().convert("L")
IMAGES = {  # name: how it is written, the true image, and how far it may be from it
    "plain.png": (lambda p: photograph().save(p), photograph(), 0),
    "jpeg.jpg": (lambda p: photograph().save(p, quality=95), photograph(), 3),
    "webp.webp": (lambda p: photograph().save(p, lossless=True), photograph(), 0),
    "bmp.bmp": (lambda p: photograph().save(p), photograph(), 0),
    "tiff.tif": (lambda p: photograph().save(p), photograph(), 0),
    "gif.gif": (lambda p: photograph().save(p), photograph(), 12),
    "cmyk.jpg": (lambda p: photograph().convert("CMYK").save(p, quality=95), photograph(), 25),
    "grey.png": (lambda p: GREY.save(p), GREY, 0),
    "grey16.png": (lambda p: _png16(p, np.asarray(GREY)[..., None].astype(int) * 257), GREY, 1),
    "rgb16.png": (lambda p: _png16(p, np.asarray(photograph()).astype(int) * 257), photograph(), 1),
    "grey-alpha.png": (lambda p: GREY.convert("LA").save(p), GREY, 0),
    "one-bit.png": (lambda p: GREY.convert("1").save(p), GREY.convert("1"), 0),
    "on-its-side.jpg": (lambda p: _turned(p, 6), photograph(), 3),
    "upside-down.png": (lambda p: _turned(p, 3), photograph(), 0),
    "mirrored.png": (lambda p: _turned(p, 5), photograph(), 0),
    "wrong-ending.jpg": (lambda p: photograph().save(p, "PNG"), photograph(), 0),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_read_as_a_viewer_shows_them(tmp_path, name):
    write, true, far = IMAGES[name]
    write(tmp_path / name)
    assert (read_image(tmp_path / name, name).float() - tensor(true)).abs().mean() <= far
    assert image_size(tmp_path / name, name) == (SIDE, SIDE)


@pytest.mark.parametrize("write", [_transparent, _palette])
def test_transparency_is_white(tmp_path, write):
    write(tmp_path / "x.png")
    found = read_image(tmp_path / "x.png", "x").float()
    gone = (found == 255).all(0)
    assert gone.any() and not gone.all() and (found - tensor(photograph()))[:, ~gone].abs().mean() < 3


def _cut_off(path) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((SIDE, SIDE), 80).convert("RGB").save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])


BAD = {
    "cut-off.jpg": (_cut_off, "(?i)cannot be read .*truncated"),
    "empty.jpg": (lambda p: p.write_bytes(b""), "no image, or of an unknown kind"),
    "page.png": (lambda p: p.write_text("<html>404</html>"), "no image, or of an unknown kind"),
    "header.png": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 30), "bad.header.png"),
    "folder.png": (lambda p: p.mkdir(), "bad.folder.png cannot be read"),
    "missing.png": (lambda p: None, "is missing"),
    "float.tif": (lambda p: Image.fromarray(np.ones((4, 4), np.float32)).save(p), "32 bits"),
    "giant.png": (
        lambda p: Image.new("1", (14_000, 14_000)).save(p),
        r"too large \(14000 x 14000 pixels\); FAIRANON_MAX_PIXELS",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_whatever_a_decoder_trips_over_is_one_error_that_names_the_file(tmp_path, name):
    write, said = BAD[name]
    write(tmp_path / name)
    for read in (read_image, read_mask, image_size):
        with pytest.raises(CorruptImageError, match=said) as error:
            read(tmp_path / name, f"bad {name}")
        assert str(error.value).startswith(f"bad {name}") and len(str(error.value)) < 500


def test_the_limit_of_size_is_a_setting(tmp_path, monkeypatch):
    photograph().save(tmp_path / "x.png")
    monkeypatch.setenv("FAIRANON_MAX_PIXELS", "1000")
    with pytest.raises(CorruptImageError, match="too large"):
        read_image(tmp_path / "x.png", "x")


# --- masks -----------------------------------------------------------------------------------------------

REGION = np.zeros((SIDE, SIDE), bool)
REGION[4:20, 8:16] = True
WHITE = REGION.astype(np.uint8) * 255


def _layers(colour: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([colour, colour, colour, alpha]).astype(np.uint8))


MASKS = {
    "black-and-white.png": lambda p: Image.fromarray(WHITE).save(p),
    "zero-one.png": lambda p: Image.fromarray(REGION.astype(np.uint8)).save(p),
    "one-bit.png": lambda p: Image.fromarray(REGION).save(p),
    "colour.png": lambda p: Image.fromarray(WHITE).convert("RGB").save(p),
    "jpeg.jpg": lambda p: Image.fromarray(WHITE).save(p, quality=60),
    "sixteen.png": lambda p: _png16(p, WHITE[..., None].astype(int) * 257),
    "white-cut-out.png": lambda p: _layers(np.full_like(WHITE, 255), WHITE).save(p),
    "black-with-a-hole.png": lambda p: _layers(np.zeros_like(WHITE), 255 - WHITE).save(p),
    "opaque-alpha.png": lambda p: _layers(WHITE, np.full_like(WHITE, 255)).save(p),
    "palette.png": lambda p: Image.fromarray(WHITE).convert("P").save(p),
    "turned.png": lambda p: _turned_mask(p),
}


def _turned_mask(path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(WHITE).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_every_kind_cover_the_same(tmp_path, name):
    MASKS[name](tmp_path / name)
    found = read_mask(tmp_path / name, name).numpy()
    assert (found != REGION).mean() < 0.02
    assert ((Mask(path=tmp_path / name).read("x", SIDE, SIDE)[0] > 0).numpy() == found).all()


def test_what_is_no_mask_is_said(tmp_path):
    photo = np.asarray(photograph().convert("L"))
    _layers(photo, 255 - WHITE).save(tmp_path / "hole.png")
    Image.fromarray(REGION.astype(np.uint8) * 7).save(tmp_path / "labels.png")
    with pytest.raises(CorruptImageError, match="hole is no mask: it is transparent in parts and of several colours"):
        read_mask(tmp_path / "hole.png", "hole")
    with pytest.raises(CorruptImageError, match="labels is no mask: its brightest pixel is 7"):
        read_mask(tmp_path / "labels.png", "labels")
    assert read_labels(tmp_path / "labels.png", "labels").unique().tolist() == [0, 7]
    Image.fromarray(WHITE).convert("RGB").save(tmp_path / "rgb.png")
    with pytest.raises(CorruptImageError, match="rgb is no parsing map: it has the channels RGB"):
        read_labels(tmp_path / "rgb.png", "rgb")
