#!/usr/bin/env bash
# tidecv 1.0.1: a class that no image has, and that the detector finds once, counts as AP 0.
# Guess: classes without ground truth are left out of the mean, as in pycocotools 2.0.11.
# Behaviour: one such false positive halves the AP of a dataset of one class. With many classes, a part of a dataset has
#   a lower AP the smaller the part is.
# Seen: one object, found; one detection of another class: pycocotools AP50 1.0, tidecv 50.0 of 100
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile tidecv==1.0.1 pycocotools==2.0.11 numpy==2.4.6 seaborn==0.13.2 \
    appdirs==1.4.4 opencv-python-headless==5.0.0.93 pandas matplotlib
"$work/venv/bin/python" - <<'EOF'
import contextlib
import io

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tidecv import TIDE, Data

box, other = [10, 10, 40, 40], [100, 100, 40, 40]
gt, found = Data("gt"), Data("found")
gt.add_image(1, "1.jpg")
gt.add_class(2, "dog")
gt.add_ground_truth(1, 1, box=box)
found.add_detection(1, 1, 0.9, box=box)
found.add_detection(1, 2, 0.8, box=other)
tide = TIDE().evaluate(gt, found, mode=TIDE.BOX).ap

with contextlib.redirect_stdout(io.StringIO()):
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 1, "width": 200, "height": 200}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 1600, "iscrowd": 0}],
    }
    coco.createIndex()
    results = [{"image_id": 1, "category_id": k, "bbox": b, "score": s} for k, b, s in ((1, box, 0.9), (2, other, 0.8))]
    evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
print("pycocotools AP50", evaluation.stats[1], "tidecv", tide)
assert abs(evaluation.stats[1] - 1) < 1e-9 and abs(tide - 50) < 1e-9
EOF
