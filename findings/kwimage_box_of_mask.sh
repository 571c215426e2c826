#!/usr/bin/env bash
# kwimage 0.12.0: the box of a mask is one pixel narrower and lower than that of pycocotools 2.0.11.
# Guess: Mask.box() encloses the pixels, as pycocotools.mask.toBbox does for the same run lengths.
# Behaviour: it spans pixel centres, from first to last: a mask of one pixel has a box without area, and of a small
#   object the box is smaller than the mask itself, so that box IoU and size bins move.
# Seen: mask of 4 x 3 pixels: kwimage [3, 2, 3, 2], area 6; pycocotools [3, 2, 4, 3], area 12. One pixel: area 0 and 1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile kwimage==0.12.0 pycocotools==2.0.11 numpy==2.4.6 \
    opencv-python-headless==5.0.0.93
"$work/venv/bin/python" - <<'EOF'
import kwimage
import numpy as np
from pycocotools import mask

for (top, left, bottom, right), expected in (((2, 3, 5, 7), [3, 2, 3, 2]), ((3, 4, 4, 5), [4, 3, 0, 0])):
    pixels = np.zeros((8, 10), np.uint8)
    pixels[top:bottom, left:right] = 1
    kwimages = np.asarray(kwimage.Mask(pixels, "c_mask").box().to_xywh().data).tolist()
    official = mask.toBbox(mask.encode(np.asfortranarray(pixels))).astype(int).tolist()
    print(int(pixels.sum()), "pixels: kwimage", kwimages, "pycocotools", official)
    assert kwimages == expected
    assert official == [left, top, right - left, bottom - top]
EOF
