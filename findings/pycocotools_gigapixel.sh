#!/usr/bin/env bash
# pycocotools 2.0.11: a polygon in an image of more than 2^32 pixels becomes a mask in another place, of the right area.
# Guess: a slide of 100,000 x 60,000 pixels works as a small one does, or is refused, as by hotcoco 1.3.0.
# Behaviour: positions in run lengths are 32-bit and wrap around, so a rectangle in the right part of the image is a
#   rectangle of the same size in the left part. Area and shape look right; the box and every IoU are wrong.
# Seen: rectangle at (50000, 90000): area 200, box [7051, 22704, 10, 20]; at (100, 90000): box [100, 90000, 10, 20];
#   hotcoco: ValueError: image dimensions 100000x60000 = 6000000000 pixels exceed u32::MAX
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pycocotools==2.0.11 hotcoco==1.3.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import hotcoco
from pycocotools import mask

height, width = 100_000, 60_000
boxes = {}
for x, y in ((50_000.0, 90_000.0), (100.0, 90_000.0)):
    polygon = [[x, y, x + 10, y, x + 10, y + 20, x, y + 20]]
    (rle,) = mask.frPyObjects(polygon, height, width)
    boxes[x] = mask.toBbox(rle).tolist()
    print((x, y), "area", mask.area(rle), "box", boxes[x])
    assert mask.area(rle) == 200
    try:
        hotcoco.mask.frPyObjects(polygon, height, width)
    except ValueError as error:
        print("hotcoco:", error)
    else:
        raise AssertionError("hotcoco takes it")
assert boxes == {50_000.0: [7051, 22704, 10, 20], 100.0: [100, 90_000, 10, 20]}
EOF
