#!/usr/bin/env bash
# torchmetrics 1.9.0: MeanAveragePrecision is off by a recall threshold where recall is a round number such as 3/5.
# Guess: its defaults are COCO's, so that three of five objects found have the AP of pycocotools 2.0.11, 61/101.
# Behaviour: the thresholds are float32 numbers, and 0.6 in float32 is above 3/5: 60/101. With rec_thresholds given as
#   numpy.linspace(0, 1, 101) it is 61/101. Classes of few objects, whose recalls are round, change most, a few upwards.
# Seen: pycocotools 0.603960, torchmetrics 0.594059, with thresholds in float64 0.603960
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torchmetrics==1.9.0 torch==2.14.1 torchvision==0.29.1 \
    pycocotools==2.0.11 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import contextlib
import io

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.detection import MeanAveragePrecision

boxes = [[50 * i, 10, 40, 40] for i in range(5)]
SCORES = [0.9, 0.8, 0.7]


def official() -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": 1, "width": 600, "height": 100}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [{"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": 1600, "iscrowd": 0}
                            for i, box in enumerate(boxes, 1)],
        }
        coco.createIndex()
        found = [{"image_id": 1, "category_id": 1, "bbox": box, "score": score} for box, score in zip(boxes, SCORES)]
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    return float(evaluation.stats[0])


def torchmetrics(**options) -> float:
    metric = MeanAveragePrecision(box_format="xywh", **options)
    every, labels = torch.tensor(boxes, dtype=torch.float64), torch.ones(5, dtype=torch.long)
    metric.update([{"boxes": every[:3], "labels": labels[:3], "scores": torch.tensor(SCORES)}],
                  [{"boxes": every, "labels": labels}])
    return float(metric.compute()["map"])


values = [official(), torchmetrics(), torchmetrics(rec_thresholds=np.linspace(0, 1, 101).tolist())]
print("pycocotools %.6f, torchmetrics %.6f, with thresholds in float64 %.6f" % tuple(values))
assert np.allclose(values, [61 / 101, 60 / 101, 61 / 101], atol=1e-6)
EOF
