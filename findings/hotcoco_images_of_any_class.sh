#!/usr/bin/env bash
# hotcoco 1.3.0: getImgIds(catIds=[a, b]) has the images with either class, and areaRng includes its bounds.
# Guess: COCO is a drop-in replacement of pycocotools 2.0.11, camelCase names and all, so that both return the images
#   in which all of the classes are, and annotations whose area lies strictly within the range.
# Behaviour: hotcoco unites what pycocotools and faster-coco-eval 1.8.0 intersect: a script that picks images with a cat
#   and a dog gets those with one of them. loadAnns of an id that is not there is [], not a KeyError.
# Seen: images with cat, dog, both: pycocotools [3], hotcoco [1, 2, 3]; areas of 9 in (9, 10): 0 and 4 annotations
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile hotcoco==1.3.0 pycocotools==2.0.11 faster-coco-eval==1.8.0 \
    numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import contextlib
import io

import faster_coco_eval
import hotcoco
from pycocotools.coco import COCO

truth = {
    "images": [{"id": i, "width": 9, "height": 9} for i in (1, 2, 3)],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": i, "image_id": image, "category_id": k, "bbox": [1.0, 1, 3, 3], "area": 9.0, "iscrowd": 0}
        for i, (image, k) in enumerate([(1, 1), (2, 2), (3, 1), (3, 2)], 1)
    ],
}
reference = COCO()
reference.dataset = truth
with contextlib.redirect_stdout(io.StringIO()):
    reference.createIndex()
faster, hot = faster_coco_eval.COCO(truth), hotcoco.COCO(truth)
images = [sorted(one.getImgIds(catIds=[1, 2])) for one in (reference, faster, hot)]
areas = [len(one.getAnnIds(areaRng=[9, 10])) for one in (reference, hot)]
try:
    reference.loadAnns([99])
    missing = "no error"
except KeyError as error:
    missing = repr(error)
print("images with both classes: pycocotools, faster-coco-eval, hotcoco", *images)
print("annotations at the bound: pycocotools, hotcoco", *areas)
print("annotation 99: pycocotools", missing, "hotcoco", hot.loadAnns([99]))
assert images == [[3], [3], [1, 2, 3]] and areas == [0, 4]
assert missing == "KeyError(99)" and hot.loadAnns([99]) == []
EOF
