#!/usr/bin/env bash
# hotcoco 1.3.0: diagnostics of one and the same LVIS evaluator disagree about which detections count.
# Guess: with lvis_style=True, a detection of a class that is not verified in its image is ignored everywhere.
# Behaviour: AP, tide_errors, calibration and image_diagnostics ignore it; confusion_matrix calls it a false positive.
# Seen: AP 1.0, no TIDE error, calibration over 1 detection, statuses tp 1; confusion matrix with 3 false positives
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile hotcoco==1.3.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
from collections import Counter

import hotcoco
import numpy as np

box = [8.0, 8.0, 40.0, 40.0]
truth = hotcoco.COCO({
    "images": [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 100, "neg_category_ids": [],
                "not_exhaustive_category_ids": []}],
    "categories": [{"id": i, "name": f"c{i}", "frequency": "c"} for i in (1, 2)],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 1600.0, "iscrowd": 0}],
})
# One detection of the annotated class, and three of class 2, which nobody looked for in this image.
detections = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9}]
detections += [{"image_id": 1, "category_id": 2, "bbox": [100.0 + i, 8.0, 40.0, 40.0], "score": 0.8} for i in range(3)]
evaluator = hotcoco.COCOeval(truth, truth.load_res(detections), "bbox", lvis_style=True)
evaluator.evaluate()
evaluator.accumulate()
evaluator.summarize()
errors = sum(n for kind, n in evaluator.tide_errors()["counts"].items())
calibrated = sum(b["count"] for b in evaluator.calibration()["bins"])
confused = int(np.asarray(evaluator.confusion_matrix()["matrix"])[-1].sum())
statuses = dict(Counter(evaluator.image_diagnostics()["dt_status"].values()))
print("AP", evaluator.get_results()["AP"], "TIDE errors", errors, "calibrated detections", calibrated)
print("false positives of the confusion matrix", confused, "statuses", statuses)
assert abs(evaluator.get_results()["AP"] - 1) < 1e-9 and errors == 0 and calibrated == 1
assert confused == 3 and statuses == {"tp": 1}
EOF
