#!/usr/bin/env bash
# faster-coco-eval 1.8.0: a first part of two points turns every part of an object's polygon into a box.
# Guess: segmentation [[x1, y1, x2, y2], [triangle]] is a line without area and a triangle, whatever their order.
#   (Annotation tools leave such parts behind; pycocotools 2.0.11 raises a TypeError if one comes first.)
# Behaviour: if the first part has four numbers, each part is read as [x, y, width, height] and the rest of its
#   numbers is dropped, silently. With the triangle first, the line is empty and the triangle right.
# Seen: triangle first: areas [18, 0]; line first: areas [9, 8]; pycocotools: [18, 0], then TypeError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile faster-coco-eval==1.8.0 pycocotools==2.0.11 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import pycocotools.mask
from faster_coco_eval.core import mask

line, triangle = [1.0, 1, 3, 3], [2.0, 2, 8, 1, 8, 8]


def areas(module, parts: list[list[float]]) -> list[int]:
    return [int(area) for area in module.area(module.frPyObjects(parts, 10, 10))]


found = areas(mask, [triangle, line]), areas(mask, [line, triangle]), areas(pycocotools.mask, [triangle, line])
print("faster-coco-eval", found[0], found[1], "pycocotools", found[2])
assert found == ([18, 0], [9, 8], [18, 0])
try:
    areas(pycocotools.mask, [line, triangle])
except TypeError as error:
    print("TypeError:", error)
else:
    raise AssertionError("pycocotools reads a first part of two points")
EOF
