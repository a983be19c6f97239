"""Every picture is read upright and by one rule, whatever its mode; what is no picture is refused by name."""

from __future__ import annotations

import colorsys
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import EpsImagePlugin, Image, ImageOps, features

from firstlight.data import image_files, image_formats, image_modes
from firstlight.data.image_files import open_upright, read_image, read_upright
from firstlight.data.image_metadata import without_metadata
from firstlight.data.image_modes import grey_or_rgb
from firstlight.errors import InputError, printable

Pixel = tuple[int, ...]
Rule = Callable[[Pixel], tuple[float, ...]]
needs_avif = pytest.mark.skipif("avif" not in features.get_supported(), reason="this Pillow decodes no AVIF")
FORMATS = [
    *("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO"),
    pytest.param("AVIF", marks=needs_avif),
]


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def pixels(data: bytes) -> NDArray[np.int64]:
    """Return the pixels that the reader makes of a file, H×W or H×W×3."""
    return np.asarray(read_upright(io.BytesIO(data), "file")).astype(np.int64)


def refusal(data: bytes, name: str = "picture.jpg", least_side: int | None = None) -> InputError:
    """Return the error for a file; it is one line that names the file."""
    with pytest.raises(InputError) as caught:
        read_upright(io.BytesIO(data), name, least_side)
    assert name in caught.value.message and caught.value.message.isprintable()
    return caught.value


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, **chunks: bytes) -> bytes:
    """Return a PNG file; rows: the packed samples; colour: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    length = len(rows) // height
    filtered = b"".join(b"\0" + rows[k * length : (k + 1) * length] for k in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header),
            *(png_chunk(name.encode(), content) for name, content in chunks.items()),
            png_chunk(b"IDAT", zlib.compress(filtered)) + png_chunk(b"IEND", b""),
        ]
    )


def exif(*entries: tuple[int, int, int, int], extra: bytes = b"") -> bytes:
    """Return an EXIF block of entries (tag, type, count, value), with `extra` at offset 14 + 12 · entries."""
    block = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return b"Exif\0\0" + block + b"".join(struct.pack("<HHII", *row) for row in entries) + bytes(4) + extra


# ---------------------------------------------------------------- modes

PALETTE = noise(256, 3, seed=1).tolist()
ALPHAS = bytes(noise(256, seed=2).tolist())


def on_white(*colour_and_alpha: float) -> tuple[float, ...]:
    *colour, alpha = colour_and_alpha
    return tuple((value * alpha + 255 * (255 - alpha)) / 255 for value in colour)


def from_ycbcr(pixel: Pixel) -> tuple[float, ...]:
    y, cb, cr = pixel[0], pixel[1] - 128, pixel[2] - 128
    return y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb


def from_lab(pixel: Pixel) -> tuple[float, ...]:
    """CIE L*a*b* of the white D50, to sRGB: L in 0…255, a and b with 128 for 0."""
    f = (pixel[0] * 100 / 255 + 16) / 116
    a, b = pixel[1] - 128, pixel[2] - 128
    xyz = [t**3 if t > 6 / 29 else 3 * (6 / 29) ** 2 * (t - 4 / 29) for t in (f + a / 500, f, f - b / 200)]
    x, y, z = (value * white for value, white in zip(xyz, (0.9642, 1.0, 0.8249), strict=True))
    linear = (
        3.1338561 * x - 1.6168667 * y - 0.4906146 * z,
        -0.9787684 * x + 1.9161415 * y + 0.0334540 * z,
        0.0719453 * x - 0.2289914 * y + 1.4052427 * z,
    )
    return tuple(255 * (12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055) for v in linear)


def opaque_enough(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Premultiplied colours are at most as large as their alpha."""
    values[..., :-1] = np.minimum(values[..., :-1], values[..., -1:])
    return values


def soft(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """L*a*b* colours inside sRGB."""
    return (values // 10 + 115).astype(np.uint8)


# Mode, rule for one pixel, largest difference, what is done to noise to make it valid.
MODES: dict[str, tuple[Rule, float, Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None]] = {
    "L": (lambda p: p, 0, None),
    "LA": (lambda p: on_white(*p), 1, None),
    "La": (lambda p: (p[0] + 255 - p[1],), 0, opaque_enough),
    "P": (lambda p: tuple(PALETTE[p[0]]), 0, None),
    "PA": (lambda p: on_white(*PALETTE[p[0]], p[1]), 1, None),
    "RGB": (lambda p: p, 0, None),
    "RGBA": (lambda p: on_white(*p), 1, None),
    "RGBa": (lambda p: tuple(value + 255 - p[3] for value in p[:3]), 0, opaque_enough),
    "RGBX": (lambda p: p[:3], 0, None),
    "CMYK": (lambda p: tuple((255 - ink) * (255 - p[3]) / 255 for ink in p[:3]), 1, None),
    "YCbCr": (from_ycbcr, 1, None),
    "LAB": (from_lab, 2, soft),
    "HSV": (lambda p: tuple(255 * v for v in colorsys.hsv_to_rgb(*(v / 255 for v in p))), 1.5, None),
}


def made(mode: str, values: NDArray[np.uint8]) -> Image.Image:
    """Return a picture of these samples; Pillow reads a and b of LAB as signed."""
    height, width = values.shape[:2]
    raw = values.copy()
    if mode == "LAB":
        raw[..., 1:] ^= 128
    image = Image.new(mode, (width, height))
    image.frombytes(raw.tobytes())
    if mode in ("P", "PA"):
        image.putpalette([value for colour in PALETTE for value in colour])
    return image


def by_pixel(values: NDArray[np.uint8], rule: Rule) -> NDArray[np.float64]:
    rows = [[rule(tuple(pixel)) for pixel in row] for row in values.astype(int).tolist()]
    return np.clip(np.array(rows), 0, 255)


def as_array(image: Image.Image) -> NDArray[np.float64]:
    values = np.asarray(image).astype(np.float64)
    return values[..., None] if values.ndim == 2 else values


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_any_mode_is_read_by_the_rule_of_that_mode(mode: str) -> None:
    rule, tolerance, valid = MODES[mode]
    values = noise(7, 5, len(Image.new(mode, (1, 1)).getbands()))
    values = valid(values) if valid else values
    flat = grey_or_rgb(made(mode, values))
    expected = by_pixel(values, rule)
    assert flat.mode == ("L" if expected.shape[2] == 1 else "RGB")
    np.testing.assert_allclose(as_array(flat), expected, atol=tolerance + 0.5, rtol=0)


def test_black_and_white_is_0_and_255() -> None:
    values = noise(9, 20) > 127
    image = Image.fromarray(values)
    assert image.mode == "1"
    np.testing.assert_array_equal(np.asarray(grey_or_rgb(image)), np.where(values, 255, 0))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_16_bits_are_divided_by_257_in_either_byte_order(mode: str) -> None:
    values = np.array([[0, 1, 128, 129, 255, 256, 257], [4660, 32767, 32768, 43981, 65279, 65406, 65535]])
    order = {"I;16B": ">u2", "I;16N": "=u2", "I": "=i4"}.get(mode, "<u2")
    image = Image.new(mode, (7, 2))
    image.frombytes(values.astype(order).tobytes())
    flat = grey_or_rgb(image)
    assert flat.mode == "L"
    np.testing.assert_array_equal(np.asarray(flat), np.rint(values / 257))


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        pytest.param("i4", [0, 65535, 257], [0, 255, 1], id="whole numbers of 16 bits"),
        pytest.param("i4", [0, 65536, 262144], [0, 64, 255], id="larger whole numbers"),
        pytest.param("i4", [-100, 0, 156], [0, 100, 255], id="negative whole numbers"),
        pytest.param("i4", [70000, 70000], [0, 0], id="one large value"),
        pytest.param("f4", [0, 0.25, 1], [0, 64, 255], id="0 to 1"),
        pytest.param("f4", [0, 0.25, 1.6], [0, 0, 2], id="just above 1"),
        pytest.param("f4", [0, 0.25, 1.6, 255], [0, 0, 2, 255], id="0 to 255"),
        pytest.param("f4", [0, 510, 2040], [0, 64, 255], id="above 255"),
        pytest.param("f4", [-1, 0, 3], [0, 64, 255], id="negative"),
    ],
)
def test_values_of_32_bits_come_to_0_to_255_by_the_stated_rule(
    kind: str, values: list[float], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.fromarray(np.array([values] * 3, kind))
    assert np.asarray(grey_or_rgb(image)).tolist() == [expected] * 3
    # The least and the greatest value are those of the picture, not of a strip of it.
    column = Image.fromarray(np.array(values, kind)[:, None])
    monkeypatch.setattr(image_modes, "_STRIP_PIXELS", 1)
    assert np.asarray(grey_or_rgb(column)).ravel().tolist() == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_finite_number_is_refused(value: float) -> None:
    data = saved(Image.fromarray(np.array([[0, value, 1]], np.float32)), "TIFF")
    assert "not finite numbers" in refusal(data).message


def test_a_large_picture_is_read_in_strips_as_if_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    image = made("RGBA", noise(37, 20, 4))
    whole, half = grey_or_rgb(image), grey_or_rgb(image, 2)
    monkeypatch.setattr(image_modes, "_STRIP_PIXELS", 64)
    np.testing.assert_array_equal(np.asarray(grey_or_rgb(image)), np.asarray(whole))
    np.testing.assert_array_equal(np.asarray(grey_or_rgb(image, 2)), np.asarray(half))
    # Colours are averaged after they are laid on the ground, so hidden ones do not show.
    np.testing.assert_array_equal(np.asarray(half), np.asarray(whole.reduce(2)))


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_a_png_of_16_bits_gives_the_pixels_of_its_twin_of_8_bits(colour: int, channels: int) -> None:
    deep = np.random.default_rng(3).integers(0, 65536, (6, 9, channels))
    twin = np.rint(deep / 257).astype(np.uint8)
    files = [
        png(9, 6, 16, colour, deep.astype(">u2").tobytes()),
        png(9, 6, 8, colour, twin.tobytes()),
    ]
    first, second = map(pixels, files)
    if colour == 4:  # Pillow reads grey with alpha of 16 bits as RGBA
        second = np.repeat(second[..., None], 3, axis=2)
    assert first.shape == second.shape
    # Pillow drops the lower 8 bits of colours and of their alpha: twice at most 1, then rounded.
    assert np.abs(first - second).max() <= (2 if colour in (4, 6) else 1)


# ---------------------------------------------------------------- transparency


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "ICO"])
def test_files_that_look_the_same_give_the_same_pixels_whatever_is_hidden(format: str) -> None:
    values = noise(32, 32, 4)
    values[8:20, 8:20, 3] = 0
    other = values.copy()
    other[8:20, 8:20, :3] = 7
    options = {"WEBP": {"lossless": True, "exact": True}, "ICO": {"sizes": [(32, 32)]}}.get(format, {})
    first, second = (pixels(saved(made("RGBA", v), format, **options)) for v in (values, other))
    np.testing.assert_array_equal(first, second)
    assert (first[8:20, 8:20] == 255).all()
    np.testing.assert_allclose(first, by_pixel(values, lambda p: on_white(*p)), atol=1.5)


@pytest.mark.parametrize("key", [5, ALPHAS, bytes(range(100))], ids=["one index", "256 alphas", "100 alphas"])
def test_the_transparency_of_a_palette_is_laid_on_white(key: int | bytes) -> None:
    values = noise(12, 12, 1)
    values[0, :6] = 5
    alphas = [0 if k == key else 255 for k in range(256)] if isinstance(key, int) else list(key)
    alphas += [255] * (256 - len(alphas))
    expected = by_pixel(values, lambda p: on_white(*PALETTE[p[0]], alphas[p[0]]))
    for format in ("PNG", "GIF") if isinstance(key, int) else ("PNG",):
        data = saved(made("P", values), format, transparency=key)
        np.testing.assert_allclose(pixels(data), expected, atol=1.5)


@pytest.mark.parametrize(
    ("depth", "colour", "rows", "key", "expected"),
    [
        pytest.param(1, 0, b"\x40", [1], [0, 255, 0, 0], id="1 bit"),
        pytest.param(2, 0, b"\x1b", [1], [0, 255, 170, 255], id="2 bits"),
        pytest.param(4, 0, b"\x01\x2f", [2], [0, 17, 255, 255], id="4 bits"),
        pytest.param(8, 0, bytes([0, 9, 90, 255]), [90], [0, 9, 255, 255], id="8 bits"),
        pytest.param(16, 0, struct.pack(">4H", 0, 300, 301, 65535), [300], [0, 255, 1, 255], id="16 bits"),
        pytest.param(8, 2, bytes([1, 2, 3, 4, 5, 6]), [1, 2, 3], [[255] * 3, [4, 5, 6]], id="RGB"),
        pytest.param(
            *(16, 2, struct.pack(">6H", *(256 * k for k in range(1, 7))), [256, 512, 768]),
            [[255] * 3, [4, 5, 6]],
            id="RGB of 16 bits",
        ),
    ],
)
def test_the_transparent_colour_of_a_png_is_laid_on_white(
    depth: int, colour: int, rows: bytes, key: list[int], expected: list[object]
) -> None:
    data = png(len(expected), 1, depth, colour, rows, tRNS=struct.pack(f">{len(key)}H", *key))
    assert pixels(data)[0].tolist() == expected


def test_a_text_titled_transparency_is_no_transparency() -> None:
    data = png(2, 1, 8, 2, bytes([1, 2, 3, 4, 5, 6]), tEXt=b"transparency\0very")
    assert pixels(data)[0].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_cmyk_jpeg_has_its_colours_and_not_their_opposites() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image.paste((255, 0, 0, 51), (8, 0, 16, 16))
    data = saved(image, "JPEG", quality=95)
    assert b"Adobe" in data
    left, right = pixels(data)[8, 2], pixels(data)[8, 13]
    np.testing.assert_allclose(left, [255, 0, 0], atol=6)
    np.testing.assert_allclose(right, [0, 204, 204], atol=6)


def test_the_first_frame_and_the_first_page_are_read() -> None:
    first, second = (Image.new("L", (8, 8), value) for value in (40, 200))
    for format in ("GIF", "TIFF", "PNG", "WEBP"):
        data = saved(first, format, save_all=True, append_images=[second])
        assert abs(pixels(data) - 40).max() <= 2, format


# ---------------------------------------------------------------- orientation and metadata

# What a camera's picture has to go through, row 0 and column 0 as in the EXIF standard.
TURNS: dict[int, Callable[[NDArray[np.int64]], NDArray[np.int64]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}
STORED = np.kron(noise(3, 2, 3, seed=4), np.ones((16, 16, 1), np.uint8))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP", pytest.param("AVIF", marks=needs_avif)])
@pytest.mark.parametrize("orientation", TURNS)
def test_each_of_the_eight_orientations_comes_out_upright(format: str, orientation: int) -> None:
    info = Image.Exif()
    info[0x0112] = orientation
    options = {} if format in ("PNG", "TIFF") else {"quality": 95}
    data = saved(Image.fromarray(STORED), format, exif=info, **options)
    upright = pixels(data)
    expected = TURNS[orientation](STORED.astype(np.int64))
    assert upright.shape == expected.shape
    # The middles of the blocks: at their edges a lossy format is far off.
    difference = np.abs(upright - expected)[4::8, 4::8]
    assert difference.mean() <= (0 if format in ("PNG", "TIFF") else 12)


def test_an_orientation_in_xmp_or_in_hexadecimal_counts_and_one_beyond_8_does_not() -> None:
    rows = bytes(range(6))
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    block = exif((0x0112, 3, 1, 6))
    profile = f"Raw profile type exif\0\nexif\n{len(block):8}\n{block.hex()}\n".encode()
    for chunks, size in (
        ({}, (3, 2)),
        ({"iTXt": xmp}, (2, 3)),
        ({"tEXt": profile}, (2, 3)),
        ({"eXIf": struct.pack(">2sHIHHHII", b"MM", 42, 8, 1, 0x0112, 4, 1, 6)}, (2, 3)),
        ({"eXIf": exif((0x0112, 3, 1, 9))[6:]}, (3, 2)),
    ):
        assert read_upright(io.BytesIO(png(3, 2, 8, 0, rows, **chunks)), "file").size == size


BROKEN_EXIF = {
    "resolution of -1/0": (exif((0x0112, 3, 1, 6), (282, 10, 1, 38), extra=struct.pack("<ii", -1, 0)), True),
    "text outside the block": (exif((0x0112, 3, 1, 6), (271, 2, 5000, 99999)), True),
    "directory outside the block": (exif((0x0112, 3, 1, 6), (34665, 4, 1, 999999)), True),
    "directory that contains itself": (exif((0x0112, 3, 1, 6), (34665, 4, 1, 8)), True),
    "orientation cut off": (exif((0x0112, 3, 1, 6))[:20], False),
    "first directory outside": (b"Exif\0\0II*\0\xff\xff\xff\xff", False),
    "two letters": (b"Exif\0\0II", False),
    "nonsense": (b"Exif\0\0" + b"nonsense" * 9, False),
    "nothing": (b"Exif\0\0", False),
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("fault", BROKEN_EXIF)
def test_broken_metadata_costs_neither_the_picture_nor_an_orientation_beside_it(
    format: str, fault: str
) -> None:
    block, has_orientation = BROKEN_EXIF[fault]
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(Image.fromarray(STORED), format, exif=block, **options)
    expected = TURNS[6 if has_orientation else 1](pixels(saved(Image.fromarray(STORED), format, **options)))
    np.testing.assert_array_equal(pixels(data), expected)


def test_the_broken_metadata_is_such_that_pillow_alone_raises() -> None:
    data = saved(Image.fromarray(STORED), "JPEG", exif=BROKEN_EXIF["resolution of -1/0"][0])
    with Image.open(io.BytesIO(data)) as image, pytest.raises(struct.error):
        ImageOps.exif_transpose(image)


def test_a_png_with_a_broken_text_is_read_without_it_before_and_after_the_pixels() -> None:
    rows, good = bytes(range(6)), png_chunk(b"tEXt", b"title\0text")
    bad = good[:-1] + bytes([good[-1] ^ 1])
    # More text than Pillow unpacks.
    bomb = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**21)))
    turned = png(3, 2, 8, 0, rows, eXIf=exif((0x0112, 3, 1, 6))[6:])
    expected = pixels(turned)
    for chunk in (good, bad, bomb):
        for before in (b"IDAT", b"IEND"):
            place = turned.index(before) - 4
            np.testing.assert_array_equal(pixels(turned[:place] + chunk + turned[place:]), expected)
    with pytest.raises(OSError, match="cannot identify"):
        place = turned.index(b"IDAT") - 4
        Image.open(io.BytesIO(turned[:place] + bad + turned[place:]))


def test_what_decoding_needs_is_not_taken_out_with_the_metadata() -> None:
    block = exif((0x0112, 3, 1, 6))
    data = saved(Image.new("CMYK", (16, 16)), "JPEG", exif=block, comment=b"a comment")
    bare, kept_exif = without_metadata(image_formats.JPEG, data)
    assert b"Adobe" in bare and b"Exif" not in bare and b"a comment" not in bare and kept_exif == block
    rows = bytes([0, 90])
    bad = png(2, 1, 8, 0, rows, tRNS=b"\0\x5a", zTXt=b"a\0\0" + zlib.compress(bytes(2**21)))
    assert pixels(bad).tolist() == [[0, 255]]


# ---------------------------------------------------------------- size

# Not getrusage: its peak is inherited from the process that starts this one.
_PEAK = """
import json, sys, time
from pathlib import Path
from firstlight.data.image_files import open_upright, read_image
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
before, start = peak(), time.perf_counter()
pixels = read_image(Path(sys.argv[1]), (3, 32, 32))
seconds = time.perf_counter() - start
print(json.dumps([before, peak(), seconds, pixels.float().mean((1, 2)).tolist()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_a_photo_of_108_megapixels_is_read_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    tile = Image.fromarray(noise(500, 500, 3)).resize((1000, 1000))
    photo = Image.new("RGB", (12000, 9000))
    for corner in range(108):
        photo.paste(tile, (corner % 12 * 1000, corner // 12 * 1000))
    photo.save(path, quality=50)
    del photo
    environment = {**os.environ, "PYTHONPATH": str(Path(image_files.__file__).parents[2])}
    command = [sys.executable, "-c", _PEAK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    before, after, seconds, means = json.loads(done.stdout)
    print(f"108 megapixels: {seconds:.2f} s, {after - before:.0f} MiB above {before:.0f} MiB")
    assert after - before < 60  # decoded whole, it takes 412 MiB
    np.testing.assert_allclose(means, np.asarray(tile).mean((0, 1)), atol=2)


def test_a_jpeg_read_at_reduced_size_keeps_the_wanted_side_and_its_pixels(tmp_path: Path) -> None:
    smooth = Image.fromarray(noise(7, 9, 3)).resize((900, 700), Image.Resampling.BICUBIC)
    (tmp_path / "photo.jpg").write_bytes(saved(smooth, "JPEG", quality=95))
    whole, part = (open_upright(tmp_path / "photo.jpg", side) for side in (None, 64))
    assert whole.size == (900, 700) and part.size == (113, 88)
    resized = [np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC), int) for image in (whole, part)]
    difference = np.abs(resized[0] - resized[1])
    assert difference.max() <= 16 and difference.mean() <= 3


def test_a_large_picture_of_another_format_is_averaged_before_it_is_resized(tmp_path: Path) -> None:
    image = Image.new("LA", (5000, 4000), (80, 0))
    image.paste((80, 255), (0, 0, 2500, 4000))
    image.save(tmp_path / "large.png", compress_level=1)
    small = open_upright(tmp_path / "large.png", 100)
    assert small.mode == "L" and small.size == (625, 500)
    assert small.getpixel((10, 10)) == 80 and small.getpixel((600, 10)) == 255


def with_jpeg_size(data: bytes, marker: int, width: int, height: int) -> bytes:
    place = data.index(bytes([0xFF, marker])) + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def riff(chunk: bytes, content: bytes) -> bytes:
    body = b"WEBP" + chunk + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(body)) + body


SMALL = Image.new("RGB", (16, 16))
HUGE_PNG = png(60_000, 60_000, 8, 2, bytes(60))
CLAIMS = {
    "PNG": (HUGE_PNG, "60000×60000", "3600 megapixels", "120 megapixels"),
    "JPEG": (
        with_jpeg_size(saved(SMALL, "JPEG"), 0xC0, 65000, 4000),
        "65000×4000",
        "260 m",
        "250 megapixels",
    ),
    "progressive JPEG": (
        with_jpeg_size(saved(SMALL, "JPEG", progressive=True), 0xC2, 13000, 10000),
        *("13000×10000", "130 megapixels", "120 megapixels"),
    ),
    "lossless WebP": (
        riff(b"VP8L", b"\x2f" + struct.pack("<I", 16382 | 16382 << 14) + bytes(30)),
        *("16383×16383", "268 megapixels", "120 megapixels"),
    ),
    "lossy WebP": (
        riff(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383) + bytes(30)),
        *("16383×16383", "268 megapixels", "120 megapixels"),
    ),
    "animated WebP": (
        riff(b"VP8X", bytes(4) + (59999).to_bytes(3, "little") * 2 + bytes(30)),
        *("60000×60000", "3600 megapixels", "120 megapixels"),
    ),
    "ICO": (
        struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(HUGE_PNG), 22) + HUGE_PNG,
        *("60000×60000", "3600 megapixels", "120 megapixels"),
    ),
    "GIF": (
        b"GIF89a" + struct.pack("<HH", 60000, 60000) + saved(SMALL.quantize(), "GIF")[10:],
        *("60000×60000", "3600 megapixels", "120 megapixels"),
    ),
    "BMP": (
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
        *("60000×60000", "3600 megapixels", "120 megapixels"),
    ),
    "PPM": (b"P6 60000 60000 255\n", "60000×60000", "3600 megapixels", "120 megapixels"),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_a_file_that_claims_too_many_pixels_is_refused_from_its_header(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, *words = CLAIMS[case]

    def allocated(*_: object) -> None:
        raise AssertionError("memory was taken for the pixels")

    # Where ICO and WebP take it, and all others.
    monkeypatch.setattr(Image.core, "new", allocated)
    monkeypatch.setattr("PIL._webp.WebPAnimDecoder", allocated)
    limit = Image.MAX_IMAGE_PIXELS
    message = refusal(data, least_side=8).message
    assert all(word in message for word in words), message
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_picture_that_pillow_itself_would_warn_of_is_read_without_a_warning() -> None:
    size = 9500
    data = png(size, size, 1, 0, bytes(size // 8 + 1) * size)
    with pytest.raises(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(data))
    assert read_upright(io.BytesIO(data), "file", 100).size == (1188, 1188)


# ---------------------------------------------------------------- what is no picture

FALSE_NAMES = {
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "an EPS file", "Convert"),
    "EPS with a preview": (b"\xc5\xd0\xd3\xc6" + bytes(30), "an EPS file", "Convert"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC file", "Formats › Most Compatible"),
    "HEIC by its second brand": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC file", "Convert it to JPEG"),
    "PDF": (b"%PDF-1.7\n", "a PDF file", "Save the picture itself"),
    "SVG": (b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg/>', "an SVG file", "Export"),
    "HTML": (b"\n<!DOCTYPE html><html>", "an HTML page", "download the picture itself"),
    "XML": (b"<?xml version='1.0'?><Error/>", "an XML file", ""),
    "MP4": (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "an MP4 film", "a single frame"),
    "MOV": (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "a MOV film", "a single frame"),
    "AVI": (b"RIFF\0\0\0\0AVI LIST", "an AVI film", "a single frame"),
    "zip": (b"PK\3\4" + bytes(20), "a zip file", "Unpack"),
    "gzip": (b"\x1f\x8b\x08\0", "a gzip file", "Unpack"),
    "tar": (b"name".ljust(257, b"\0") + b"ustar\x0000", "a tar file", "Unpack"),
    "Photoshop": (b"8BPS\0\1", "a Photoshop file", "Export"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 file", "Convert"),
    "JPEG XL": (b"\xff\x0a\xfa\x7f", "a JPEG XL file", "Convert"),
    "CR2": (b"II*\0\x10\0\0\0CR\2\0", "a camera raw file", "Develop"),
    "CR3": (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a camera raw file", "Develop"),
    "DICOM": (bytes(128) + b"DICM", "a DICOM file", "Export"),
    "macOS": (b"\0\5\x16\7\0\2\0\0Mac OS X", "a macOS metadata file", "without ._"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", "git lfs pull"),
    "nothing": (b"", "empty", "again"),
    "zeros": (bytes(4096), "zero bytes only", "again"),
    "text": (b"BM is how this\x1b[2J text begins", "b'BM is ho'", "Give a JPEG"),
    "escapes": (b"\x1b[2J\n", r"b'\x1b[2J\n'", "Give a JPEG"),
    "one letter": (b"P", "b'P'", "Give a JPEG"),
}


@pytest.mark.parametrize("case", FALSE_NAMES)
def test_a_file_under_a_false_name_is_refused_as_what_it_is(case: str) -> None:
    data, name, hint = FALSE_NAMES[case]
    error = refusal(data)
    assert name in error.message and hint in error.hint


def test_an_eps_file_called_jpg_starts_no_ghostscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []

    def ghostscript(*arguments: object, **_: object) -> object:
        started.append(arguments)
        return Image.new("RGB", (9, 9)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    path = tmp_path / "photo.jpg"
    path.write_bytes(FALSE_NAMES["EPS"][0])
    with pytest.raises(InputError, match="this is an EPS file"):
        read_image(path, (3, 8, 8))
    assert not started
    with Image.open(path) as image:  # what would have happened
        image.load()
    assert started


def test_the_preview_of_a_camera_raw_file_is_not_taken_for_the_picture() -> None:
    data = saved(Image.new("RGB", (16, 12)), "TIFF", tiffinfo={254: 1})
    assert "preview" in refusal(data).message


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_read_and_a_truncated_file_is_refused(format: str) -> None:
    image = Image.fromarray(noise(48, 48, 3))
    data = saved(image.quantize() if format == "GIF" else image, format)
    assert pixels(data).shape == (48, 48, 3)
    for length in (len(data) // 2, len(data) * 9 // 10):
        message = refusal(data[:length]).message
        assert "cut short" in message or format == "AVIF", message


def test_a_format_that_this_pillow_does_not_decode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.WebPImagePlugin.SUPPORTED", False)
    assert "a WebP file, which the installed Pillow does not decode" in refusal(saved(SMALL, "WEBP")).message
    kind = image_formats.FileKind("a new file", "NoSuchPlugin", "NoSuchFile")
    assert not image_formats.is_supported(kind)


def test_changed_bytes_give_a_picture_or_an_input_error() -> None:
    image = Image.fromarray(noise(12, 16, 3))
    random = np.random.default_rng(7)
    refused = 0
    for format in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO"):
        good = saved(image, format)
        for _ in range(60):
            data = bytearray(good)
            for place in random.integers(0, min(len(data), 120), 2):
                data[place] = random.integers(0, 256)
            try:
                read_upright(io.BytesIO(bytes(data)), "file", 8)
            except InputError as error:
                assert error.message.isprintable()
                refused += 1
    assert 50 < refused < 430


# ---------------------------------------------------------------- files and shapes


def test_what_cannot_be_opened_is_named_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*new\\nline\\x1b\[2J\\xff\\u202e.jpg") as caught:
        open_upright(tmp_path / "new\nline\x1b[2J\udcff\u202e.jpg")
    assert caught.value.message.isprintable()
    with pytest.raises(InputError, match="is a folder or a device"):
        open_upright(tmp_path)
    with pytest.raises(InputError, match=r"a\\x00b"):
        open_upright(Path("a\0b"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes by name are POSIX")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match="is a folder or a device"):
        open_upright(tmp_path / "pipe.jpg")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such name")
def test_a_file_whose_name_is_not_utf_8_is_read_and_named(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    path.write_bytes(saved(SMALL, "PNG"))
    assert open_upright(path).size == (16, 16)
    path.write_bytes(b"%PDF")
    with pytest.raises(InputError, match=r"caf\\xe9.png: this is a PDF file") as caught:
        open_upright(path)
    caught.value.message.encode()


def test_letters_of_any_script_stay_as_they_are() -> None:
    assert printable(Path("Füße 图 ñ")) == "Füße 图 ñ"
    assert printable("a\tb\u2028c\udc80") == r"a\tb\u2028c\x80"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(40, 90), (90, 40), (12, 12)])
def test_a_picture_is_brought_to_the_shape_by_cropping_padding_or_stretching(
    tmp_path: Path, size: tuple[int, int], channels: int
) -> None:
    image = Image.fromarray(noise(size[1], size[0], 3, seed=5)).resize(size)
    image.save(tmp_path / "a.png")
    mode, height, width = ("L" if channels == 1 else "RGB"), 20, 30
    plain = image.convert(mode)

    def expected(box: tuple[float, ...], wide: int, high: int) -> NDArray[np.int64]:
        part = plain.resize((wide, high), Image.Resampling.BICUBIC, tuple(box))
        return np.atleast_3d(np.asarray(part, np.int64)).transpose(2, 0, 1)

    def read(fit: str) -> NDArray[np.int64]:
        pixels = read_image(tmp_path / "a.png", (channels, height, width), fit=fit)
        assert pixels.dtype == torch.uint8 and pixels.is_contiguous()
        assert pixels.shape == (channels, height, width)
        return pixels.numpy().astype(np.int64)

    w, h = size
    np.testing.assert_array_equal(read("stretch"), expected((0, 0, w, h), width, height))
    window = (w, w * 2 / 3) if w / h < 1.5 else (h * 1.5, h)
    left, top = (w - window[0]) / 2, (h - window[1]) / 2
    crop = expected((left, top, left + window[0], top + window[1]), width, height)
    assert np.abs(read("crop") - crop).max() <= 1
    default = read_image(tmp_path / "a.png", (channels, height, width)).numpy()
    np.testing.assert_array_equal(default, read("crop"))
    inner = (round(w * 20 / h), 20) if w / h < 1.5 else (30, round(h * 30 / w))
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    padded = np.full((channels, height, width), 255)
    padded[:, top : top + inner[1], left : left + inner[0]] = expected((0, 0, w, h), *inner)
    np.testing.assert_array_equal(read("pad"), padded)


def test_a_grey_picture_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(noise(9, 9)).save(tmp_path / "a.png")
    grey, colour = (read_image(tmp_path / "a.png", (channels, 9, 9)) for channels in (1, 3))
    assert grey.shape == (1, 9, 9) and torch.equal(colour, grey.expand(3, 9, 9))
    np.testing.assert_array_equal(grey[0].numpy(), noise(9, 9))


def test_a_line_of_pixels_is_brought_to_the_shape_by_every_fit(tmp_path: Path) -> None:
    Image.new("RGB", (1, 3000), (9, 8, 7)).save(tmp_path / "line.png")
    for fit in image_files.FITS:
        assert read_image(tmp_path / "line.png", (3, 8, 8), fit)[:, 4, 4].tolist() in ([9, 8, 7], [255] * 3)


def test_an_unknown_fit_and_an_unknown_number_of_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fit is 'squash'") as caught:
        read_image(tmp_path / "a.png", (3, 8, 8), fit="squash")
    assert all(name in caught.value.hint for name in ("crop", "pad", "stretch"))
    with pytest.raises(InputError, match="1 or 3 channels, not 4"):
        read_image(tmp_path / "a.png", (4, 8, 8))
