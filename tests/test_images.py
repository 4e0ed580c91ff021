"""Every kind of image a data set may hold, and every way in which a file may be broken."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from mhe import BytesSource, FileSource, Image, SampleDataError, open_image


def encoded(picture: PIL.Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(data: bytes, **options: object) -> PIL.Image.Image:
    return open_image(Image("sample", BytesSource(data), **options))


GRADIENT = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))


@pytest.mark.parametrize(
    ("picture", "kind"),
    [
        (PIL.Image.fromarray(GRADIENT), "PNG"),
        (PIL.Image.fromarray(GRADIENT).convert("P"), "PNG"),
        (PIL.Image.fromarray(GRADIENT).convert("P"), "GIF"),
        (PIL.Image.fromarray(GRADIENT).convert("RGB").convert("CMYK"), "JPEG"),
        (PIL.Image.fromarray(GRADIENT).convert("LA"), "PNG"),
        (PIL.Image.fromarray(GRADIENT.astype(np.uint16) * 257), "PNG"),
        (PIL.Image.fromarray(GRADIENT.astype(np.uint16) * 16), "TIFF"),
        (PIL.Image.fromarray(GRADIENT.astype(np.float32) / 252), "TIFF"),
    ],
    ids=["grey", "palette", "gif", "cmyk", "grey+alpha", "16-bit", "12-bit tiff", "float tiff"],
)
def test_every_mode_becomes_the_same_rgb_gradient(picture, kind):
    image = opened(encoded(picture, kind))
    assert (image.mode, image.size) == ("RGB", (64, 48))
    row = np.asarray(image, dtype=float)[20, :, 0]
    assert row[-1] - row[0] > 200, "a 16-bit or palette image must keep its contrast"
    assert np.corrcoef(row, GRADIENT[0])[0, 1] > 0.99


def test_a_wrong_suffix_does_not_matter(tmp_path):
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded(PIL.Image.fromarray(GRADIENT)))
    assert open_image(Image("x", FileSource(path))).size == (64, 48)


def test_transparent_pixels_lie_on_black():
    layer = PIL.Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    assert opened(encoded(layer)).getpixel((0, 0)) == (0, 0, 0)


def test_orientation_is_applied():
    picture = PIL.Image.fromarray(GRADIENT)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    assert opened(encoded(picture, "JPEG", exif=exif)).size == (48, 64)


def test_the_tasks_size_is_applied():
    assert opened(encoded(PIL.Image.fromarray(GRADIENT)), resize=(224, 200)).size == (224, 200)


def png_header_of(width: int, height: int) -> bytes:
    """A PNG that claims a size; its pixels are never reached."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no bytes"),
        (b"these are not pixels", "not an image"),
        (encoded(PIL.Image.fromarray(GRADIENT), "JPEG")[:300], "damaged or truncated"),
        (encoded(PIL.Image.effect_noise((64, 48), 50))[:1500], "damaged or truncated"),
        (png_header_of(20_000, 20_000), "above the limit of 179"),
        (png_header_of(14_000, 14_000), "above the limit of 179"),
    ],
    ids=["empty", "text", "cut jpeg", "cut png", "400 megapixels", "196 megapixels"],
)
def test_a_broken_image_is_an_error_of_the_sample(data, says):
    with pytest.raises(SampleDataError, match=says):
        opened(data)


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(SampleDataError, match=r"gone\.png"):
        open_image(Image("x", FileSource(tmp_path / "gone.png")))
    (tmp_path / "empty.png").touch()
    with pytest.raises(SampleDataError, match="empty"):
        open_image(Image("x", FileSource(tmp_path / "empty.png")))


def test_digests_are_of_content(tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "b.jpg"
    first.write_bytes(b"same")
    second.write_bytes(b"same")
    assert FileSource(first).digest() == FileSource(second).digest() == BytesSource(b"same").digest()
    assert FileSource(tmp_path / "gone").digest() != BytesSource(b"").digest()
