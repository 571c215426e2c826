#!/usr/bin/env bash
# Pillow 13.0.0, OpenCV 5.0.0: samples of 4 and 12 bits in a TIFF come out as other numbers, in each library otherwise.
# Guess: a label map of 4 bits (16 classes) and a frame of a 12-bit sensor are read as the numbers that were stored, as
#   by tifffile 2026.3.3.
# Behaviour: Pillow stretches 4 bits to 0 ... 255, so class 3 is class 51, and leaves 12 bits; OpenCV stretches 12 bits
#   to 16 (times 16) and reads no 4 bits. A threshold or a normalisation that fits one reader does not fit the other.
# Seen: 4 bits, stored 3: Pillow 51, OpenCV None; 12 bits, stored 4095: Pillow 4095, OpenCV 65520
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile opencv-python-headless==5.0.0.93 pillow==13.0.0 tifffile==2026.3.3 \
  imagecodecs==2026.3.6 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import cv2
import numpy as np
import tifffile
from PIL import Image

labels = np.tile(np.arange(16, dtype=np.uint8), (8, 1))
frame = np.tile(np.array([0, 1, 2048, 4095], np.uint16), (8, 4))
for name, stored, bits in (("labels.tif", labels, 4), ("frame.tif", frame, 12)):
    tifffile.imwrite(name, stored, bitspersample=bits, photometric="minisblack")
    assert (tifffile.imread(name) == stored).all()
    pillow, opencv = np.array(Image.open(name)), cv2.imread(name, cv2.IMREAD_UNCHANGED)
    print(bits, "bits:", stored[0, :4], "Pillow", pillow[0, :4], "OpenCV", None if opencv is None else opencv[0, :4])
    if bits == 4:
        assert (pillow == 17 * stored).all() and opencv is None
    else:
        assert (pillow == stored).all() and (opencv == 16 * stored).all()
EOF
