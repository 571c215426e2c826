"""Reading images without a framework: every kind of file, EXIF, and the sizes of the annotations."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageOps

from extract.data.decoding import decode_image, decode_unturned, read_orientation, turn
from extract.data.images import SizedReader, read_image
from tests.image_kinds import HEIGHT, ORIENTATION, WIDTH, colours, write_kinds

UPRIGHT, STORED = (WIDTH, HEIGHT), (HEIGHT, WIDTH)
"""Sizes (height, width) of the images of orientations 5 to 8."""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    return write_kinds(tmp_path_factory.mktemp("kinds"))


def test_every_kind_is_rgb(kinds):
    for name, path in kinds.items():
        pixels = decode_unturned(path)
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3, name
        assert pixels.shape[:2] == (UPRIGHT if name == "turned.tif" else STORED), name  # PIL turns TIFF itself


@pytest.mark.parametrize(
    "name", ["colour.png", "colour.bmp", "alpha.png", "deep-colour.png", "turned.png", "turned.tif"]
)
def test_colours_are_exact(kinds, name):
    expected = np.rot90(colours(), -1) if "turned" in name else colours()
    largest = np.abs(decode_image(kinds[name]).astype(int) - expected).max()
    assert largest <= (name == "deep-colour.png")


@pytest.mark.parametrize("name", ["palette.png", "palette.gif", "transparent-palette.png", "transparent-colour.png"])
def test_palettes_keep_their_colours(kinds, name):
    np.testing.assert_array_equal(decode_image(kinds[name]), decode_image(kinds["palette.png"]))


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_deep_grey_is_scaled(kinds, name):
    pixels = decode_image(kinds[name])
    assert 126 < pixels.mean() < 129 and len(np.unique(pixels)) == 256
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_cmyk_is_not_inverted(kinds):
    for name in ("cmyk.tif", "cmyk.jpg"):
        assert np.abs(decode_image(kinds[name]).astype(int) - colours()).mean() < 20, name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_upright_and_back(kinds, orientation):
    path = kinds[f"turned{orientation}.jpg"]
    stored, upright = decode_unturned(path), decode_image(path)
    with PILImage.open(path) as image:
        np.testing.assert_array_equal(upright, np.asarray(ImageOps.exif_transpose(image)))
    assert read_orientation(path) == (orientation, STORED)
    np.testing.assert_array_equal(turn(stored, orientation), upright)
    np.testing.assert_array_equal(turn(upright, orientation, back=True), stored)


@pytest.mark.parametrize("reader", [decode_image, decode_unturned])
@pytest.mark.parametrize("name", [*(f"turned{i}.jpg" for i in range(5, 9)), "turned.tif", "turned.png", "turned.webp"])
def test_the_annotations_size_decides(kinds, name, reader, caplog):
    path = kinds[name]
    upright = decode_image(path)
    orientation = read_orientation(path).value
    read = SizedReader(reader)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(read(path, UPRIGHT), upright)
            np.testing.assert_array_equal(read(path, STORED), turn(upright, orientation, back=True))
        read.log_turned()
    record, counted = caplog.records
    assert counted.message == (
        f"2 of 4 images were turned, or left unturned, to have the size in the annotations, such as {path}"
    )
    expected = "not turned" if reader(path).shape[:2] == UPRIGHT else "turned"
    assert f"{name} and images like it are {expected} by their EXIF orientation ({orientation})" in record.message
    np.testing.assert_array_equal(read(path, None), reader(path))
    with pytest.raises(ValueError, match=f"{name}: image is .*, the annotations have 40×20"):
        read(path, (20, 40))


def test_a_size_that_no_turn_explains_is_refused(kinds):
    for name in ("colour.png", "turned3.jpg"):
        with pytest.raises(ValueError, match=f"{name}: image is 40×24, the annotations have 24×40"):
            read_image(kinds[name].parent, (name,), UPRIGHT)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_damaged_exif_does_not_matter(tmp_path):
    PILImage.fromarray(colours()).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01garbage")
    PILImage.fromarray(colours()).save(tmp_path / "b.jpg")
    np.testing.assert_array_equal(decode_image(tmp_path / "a.jpg"), decode_image(tmp_path / "b.jpg"))
    exif = PILImage.Exif()
    exif[ORIENTATION] = 12
    PILImage.fromarray(colours()).save(tmp_path / "c.jpg", exif=exif)
    np.testing.assert_array_equal(decode_image(tmp_path / "c.jpg"), decode_image(tmp_path / "b.jpg"))


def test_unreadable_files_are_named(tmp_path, kinds):
    with pytest.raises(FileNotFoundError, match="no.png: no such image"):
        decode_image(tmp_path / "no.png")
    for content in (b"", b"hello", kinds["colour.png"].read_bytes()[:80], kinds["colour.jpg"].read_bytes()[:700]):
        (tmp_path / "a.png").write_bytes(content)
        for reader in (decode_image, decode_unturned):
            with pytest.raises(ValueError, match="a.png: not a readable image"):
                reader(tmp_path / "a.png")
