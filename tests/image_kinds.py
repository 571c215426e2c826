"""Small image files of all kinds that people bring: deep grey, palettes, alpha, CMYK, one bit, turned by EXIF."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

HEIGHT, WIDTH = 24, 40
ORIENTATION = 0x0112


def colours() -> np.ndarray:
    """(24, 40, 3) uint8 RGB: blocks of noise, no two corners alike."""
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)


def write_kinds(folder: Path) -> dict[str, Path]:
    """Writes one file of each kind; returns kind → path."""
    rgb = PILImage.fromarray(colours())
    grey, alpha = rgb.convert("L"), rgb.getchannel("R")
    deep = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    palette = rgb.quantize(200)
    images = {
        "colour.jpg": rgb,
        "colour.png": rgb,
        "colour.bmp": rgb,
        "colour.webp": rgb,
        "grey.jpg": grey,
        "grey.png": grey,
        "grey-alpha.png": PILImage.merge("LA", (grey, alpha)),
        "alpha.png": PILImage.merge("RGBA", (*rgb.split(), alpha)),
        "palette.png": palette,
        "palette.gif": palette,
        "bit.png": rgb.convert("1"),
        "bit.tif": rgb.convert("1"),
        "deep.png": PILImage.fromarray(deep.astype(np.uint16)),
        "deep.tif": PILImage.fromarray(deep.astype(np.uint16)),
        "integers.tif": PILImage.fromarray((deep / 100).astype(np.int32)),
        "floats.tif": PILImage.fromarray((deep / 200).astype(np.float32)),
        "fractions.tif": PILImage.fromarray((deep / 65535).astype(np.float32)),
        "cmyk.jpg": rgb.convert("CMYK"),  # PIL writes Adobe's inverted values
        "cmyk.tif": rgb.convert("CMYK"),
    }
    paths = {name: folder / name for name in images}
    for name, image in images.items():
        image.save(paths[name])
    for name, transparency in (("transparent-palette.png", bytes(range(200))), ("transparent-colour.png", 7)):
        paths[name] = folder / name
        palette.save(paths[name], transparency=transparency)
    for orientation in range(1, 9):
        exif = PILImage.Exif()
        exif[ORIENTATION] = orientation
        paths[f"turned{orientation}.jpg"] = folder / f"turned{orientation}.jpg"
        rgb.save(paths[f"turned{orientation}.jpg"], exif=exif, quality=95)
    for name in ("turned.png", "turned.webp", "turned.tif"):
        exif = PILImage.Exif()
        exif[ORIENTATION] = 6
        paths[name] = folder / name
        rgb.save(paths[name], exif=exif)
    paths["deep.pgm"] = folder / "deep.pgm"
    paths["deep.pgm"].write_bytes(b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + deep.astype(">u2").tobytes())
    paths["deep-colour.png"] = _write_deep_colour(folder / "deep-colour.png")
    return paths


def _write_deep_colour(path: Path) -> Path:
    """Writes 16-bit RGB, which PIL cannot write, as a PNG."""
    deep = (colours().astype(np.int32) * 257 - 128).clip(0).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    content = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path
