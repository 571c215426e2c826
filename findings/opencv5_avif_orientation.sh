#!/usr/bin/env bash
# OpenCV 5.0.0: imread turns JPEG, PNG and WebP as their orientation says, AVIF not, and it refuses such a TIFF.
# Guess: one rule for all formats, as ImageOps.exif_transpose of Pillow 13.0.0 has it; phones and converters write AVIF.
# Behaviour: an AVIF that Pillow wrote with orientation 6 (in the file: AVIF's own rotation property) is read as stored.
#   Converting a dataset from JPEG to AVIF exchanges width and height under its boxes. For TIFF, imread reports an
#   internal error and returns None.
# Seen: an image of 32 x 64 pixels (height x width) with orientation 6: OpenCV jpg, png, webp (64, 32), avif (32, 64),
#   tiff None; Pillow (64, 32) for all
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile opencv-python-headless==5.0.0.93 pillow==13.0.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF' 2>errors
import cv2
from PIL import Image, ImageOps

image = Image.new("RGB", (64, 32))
shapes = {}
for suffix in ("jpg", "png", "webp", "avif", "tiff"):
    exif = Image.Exif()
    exif[0x112] = 6
    image.save(f"a.{suffix}", exif=exif)
    read = cv2.imread(f"a.{suffix}")
    upright = ImageOps.exif_transpose(Image.open(f"a.{suffix}"))
    shapes[suffix] = None if read is None else read.shape[:2]
    print(suffix, "OpenCV", shapes[suffix], "Pillow", (upright.height, upright.width))
    assert upright.size == (32, 64)
turned, stored = (64, 32), (32, 64)
assert shapes == {"jpg": turned, "png": turned, "webp": turned, "avif": stored, "tiff": None}
EOF
grep -q "original_ptr == real_mat.data" errors
