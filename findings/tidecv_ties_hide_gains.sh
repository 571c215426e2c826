#!/usr/bin/env bash
# tidecv 1.0.1: with equal scores, gains are too small, and the gain of finding all objects is negative.
# Guess: correcting an error never lowers AP; "if an error is negative that means it's likely due to binning
#   differences", says the source.
# Behaviour: AP is computed from detections in the order of the results, gains from all errors first and the right
#   detections after them. Of equal scores false positives then come first, which lowers AP by more than the correction
#   gains; main errors are cut at 0. Detectors whose scores have 8 bits, or two digits, have such ties.
# Seen: two objects of a class, one found, a background detection of the same score after it. hotcoco 1.3.0: Miss
#   49.5 points. tidecv: Miss 0, FalseNeg -0.495; with scores 0.5 and 0.4 Miss 49.5
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile hotcoco==1.3.0 tidecv==1.0.1 pycocotools==2.0.11 numpy==2.4.6 \
    seaborn==0.13.2 appdirs==1.4.4 opencv-python-headless==5.0.0.93 pandas matplotlib
"$work/venv/bin/python" - <<'EOF'
import hotcoco
from tidecv import TIDE, Data

objects = [[10.0, 10, 50, 50], [200.0, 200, 50, 50]]
boxes = [objects[0], [300.0, 10, 40, 40]]
truth = {
    "images": [{"id": 1, "width": 400, "height": 400}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": 2500.0, "iscrowd": 0}
        for i, box in enumerate(objects, 1)
    ],
}
seen = {}
for last in (0.5, 0.4):
    results = list(zip(boxes, (0.5, last)))
    coco = hotcoco.COCO(truth)
    records = [{"image_id": 1, "category_id": 1, "bbox": box, "score": score} for box, score in results]
    evaluator = hotcoco.COCOeval(coco, coco.load_res(records), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    gt, detections = Data("gt"), Data("detections")
    for data in (gt, detections):
        data.add_image(1, "1")
        data.add_class(1, "cat")
    for box in objects:
        gt.add_ground_truth(1, 1, box=box)
    for box, score in results:
        detections.add_detection(1, 1, score, box=box)
    run = TIDE().evaluate(gt, detections, mode=TIDE.BOX)
    main, special = (
        {one.short_name: float(gain) for one, gain in gains.items()}
        for gains in (run.fix_main_errors(), run.fix_special_errors())
    )
    seen[last] = 100 * evaluator.tide_errors()["delta_ap"]["Miss"], main["Miss"], special["FalseNeg"]
    print("scores 0.5 and", last, "gain: hotcoco Miss", *seen[last][:1], "tidecv Miss, FalseNeg", *seen[last][1:])
whole = 50 - 50 / 101
assert abs(seen[0.5][0] - whole) < 1e-9 and seen[0.5][1] == 0 and abs(seen[0.5][2] + 50 / 101) < 1e-9
assert all(abs(gain - whole) < 1e-9 for gain in seen[0.4])
EOF
