#!/usr/bin/env bash
# Pillow 13.0.0, OpenCV 5.0.0: a TIFF whose zero is white is turned to black-is-zero if it has 8 bits, not if it has 16.
# Guess: WhiteIsZero (scanners, X-ray, thermal cameras) is resolved by an image reader at any depth, or at none, as
#   tifffile 2026.3.3, scikit-image 0.26.0 and imageio 2.38.1, which always return what is stored.
# Behaviour: both invert 8-bit grey and leave 16-bit grey. The same picture, stored deeper, is a negative, for a
#   detector and for whoever draws its boxes.
# Seen: stored 0, 255 / 0, 65535: Pillow and OpenCV 255, 0 / 0, 65535; the others as stored
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile opencv-python-headless==5.0.0.93 pillow==13.0.0 tifffile==2026.3.3 \
  scikit-image==0.26.0 imageio==2.38.1 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import cv2
import imageio.v3
import numpy as np
import skimage.io
import tifffile
from PIL import Image

readers = {
    "Pillow": lambda name: np.array(Image.open(name)),
    "OpenCV": lambda name: cv2.imread(name, cv2.IMREAD_UNCHANGED),
    "tifffile": tifffile.imread,
    "scikit-image": skimage.io.imread,
    "imageio": imageio.v3.imread,
}
for dtype in ("uint8", "uint16"):
    stored = np.tile(np.array([[0, np.iinfo(dtype).max]], dtype), (4, 4))
    tifffile.imwrite("grey.tif", stored, photometric="miniswhite")
    for name, read in readers.items():
        found = read("grey.tif")
        print(dtype, name, found[0, :2].tolist())
        inverted = dtype == "uint8" and name in ("Pillow", "OpenCV")
        assert (found == (~stored if inverted else stored)).all()
EOF
