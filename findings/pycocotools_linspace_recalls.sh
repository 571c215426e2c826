#!/usr/bin/env bash
# pycocotools 2.0.11: a recall of exactly 7/20 does not reach the recall threshold 0.35.
# Guess: 7 of 20 objects found, and nothing else, are AP 36/101: thresholds 0, 0.01 ... 0.35 of 101.
# Behaviour: the thresholds are numpy.linspace(0, 1, 101), of which ten are the next float64 above k/100: 35, 41, 47, 57,
#   69, 70, 82, 83, 94 and 95. A recall that is such a fraction misses its own threshold: 35/101. Not so 6/20. tidecv
#   1.0.1, which divides k by 100, has 36/101, so that the two differ in classes of 20, 40, 100 ... objects.
# Seen: thresholds above k/100: 35 41 47 57 69 70 82 83 94 95; 6 of 20: 31 31; 7 of 20: pycocotools 35, tidecv 36
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pycocotools==2.0.11 tidecv==1.0.1 seaborn==0.13.2 appdirs==1.4.4 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tidecv import TIDE, Data

BOXES = [[50 * (i % 10), 50 * (i // 10), 40, 40] for i in range(20)]


def official(found: int) -> float:
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": 1600, "iscrowd": 0}
        for i, box in enumerate(BOXES, 1)
    ]
    results = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9} for box in BOXES[:found]]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": 1, "width": 600, "height": 100}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": annotations,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    return float(evaluation.stats[0])


def tide(found: int) -> float:
    truth, results = Data("truth"), Data("results")
    truth.add_image(1, "1")
    for box in BOXES:
        truth.add_ground_truth(1, 1, box)
    for box in BOXES[:found]:
        results.add_detection(1, 1, 0.9, box)
    return TIDE().evaluate(truth, results, mode=TIDE.BOX).ap / 100


thresholds = np.linspace(0, 1, 101)
above = [k for k in range(101) if thresholds[k] > k / 100]
print("thresholds above k/100:", *above)
points = {found: (round(101 * official(found), 6), round(101 * tide(found), 6)) for found in (6, 7)}
for found, pair in points.items():
    print(f"{found} of 20: pycocotools {pair[0]:g}, tidecv {pair[1]:g}")
assert above == [35, 41, 47, 57, 69, 70, 82, 83, 94, 95]
assert points == {6: (31, 31), 7: (35, 36)}
EOF
