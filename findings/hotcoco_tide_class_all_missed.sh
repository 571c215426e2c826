#!/usr/bin/env bash
# hotcoco 1.3.0 and tidecv 1.0.1: what finding the missed objects would gain, where a class has none that is found.
# Guess: both have the same counts of errors and the same AP, so the gains of TIDE are the same too.
# Behaviour: objects that are missed are taken out of the class's number of objects. Where that leaves none, hotcoco
#   keeps the class with AP 0, so there is nothing to gain; tidecv leaves it out of the mean, but only if it has no
#   false positive either: one background detection of the class, and the gain is 0 there as well. With rare classes
#   that a detector never names, "Miss" of tidecv is mainly these.
# Seen: two classes, one object each, one found: hotcoco Miss 0, tidecv Miss 50.0, with a background detection 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile hotcoco==1.3.0 tidecv==1.0.1 pycocotools==2.0.11 numpy==2.4.6 \
    seaborn==0.13.2 appdirs==1.4.4 opencv-python-headless==5.0.0.93 pandas matplotlib
"$work/venv/bin/python" - <<'EOF'
import hotcoco
from tidecv import TIDE, Data

objects = [(1, [10.0, 10, 50, 50]), (2, [200.0, 200, 50, 50])]
found = (1, [10.0, 10, 50, 50], 0.9)
background = (2, [300.0, 10, 40, 40], 0.8)


def by_hotcoco(results):
    annotations = [
        {"id": i, "image_id": 1, "category_id": k, "bbox": box, "area": 2500.0, "iscrowd": 0}
        for i, (k, box) in enumerate(objects, 1)
    ]
    categories = [{"id": k, "name": str(k)} for k in (1, 2)]
    truth = {"images": [{"id": 1, "width": 400, "height": 400}], "annotations": annotations, "categories": categories}
    coco = hotcoco.COCO(truth)
    records = [{"image_id": 1, "category_id": k, "bbox": box, "score": score} for k, box, score in results]
    evaluator = hotcoco.COCOeval(coco, coco.load_res(records), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    errors = evaluator.tide_errors()
    return 100 * errors["ap_base"], errors["counts"]["Miss"], 100 * errors["delta_ap"]["Miss"]


def by_tidecv(results):
    gt, detections = Data("gt"), Data("detections")
    for data in (gt, detections):
        data.add_image(1, "1")
        for k in (1, 2):
            data.add_class(k, str(k))
    for k, box in objects:
        gt.add_ground_truth(1, k, box=box)
    for k, box, score in results:
        detections.add_detection(1, k, score, box=box)
    run = TIDE().evaluate(gt, detections, mode=TIDE.BOX)
    gains, counts = ({one.short_name: n for one, n in f().items()} for f in (run.fix_main_errors, run.count_errors))
    return run.ap, counts["Miss"], gains["Miss"]


for results, expected in (([found], 50.0), ([found, background], 0.0)):
    hot, tide = by_hotcoco(results), by_tidecv(results)
    print("AP50, missed objects, gain: hotcoco", hot, "tidecv", tide)
    assert abs(hot[0] - tide[0]) < 1e-9 and hot[1] == tide[1] == 1
    assert abs(hot[2]) < 1e-9 and abs(tide[2] - expected) < 1e-9
EOF
