#!/usr/bin/env bash
# hotcoco 1.3.0: the `dataset` of an LVIS file, dumped as JSON, is no LVIS file any more.
# Guess: COCO(file).dataset is the file's content, as in pycocotools; edited and dumped, it can be evaluated by lvis
#   0.5.3.
# Behaviour: `dataset` omits neg_category_ids and not_exhaustive_category_ids wherever the list is empty (most images
#   of LVIS have an empty one); lvis indexes both and raises. COCO.save keeps them.
# Seen: in the file {neg_category_ids: [2], not_exhaustive_category_ids: []}, in `dataset` {neg_category_ids: [2]};
#   KeyError: 'not_exhaustive_category_ids'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile hotcoco==1.3.0 numpy==2.4.6 pycocotools==2.0.11 matplotlib==3.11.2 \
    opencv-python-headless==4.12.0.88 --no-deps packaging contourpy cycler fonttools kiwisolver pillow pyparsing \
    python-dateutil six lvis==0.5.3
cd "$work"
venv/bin/python - <<'EOF' 2>log || { cat log; exit 1; }
import json

import hotcoco
from lvis import LVIS, LVISEval, LVISResults

image = {"id": 1, "width": 64, "height": 64, "neg_category_ids": [2], "not_exhaustive_category_ids": []}
categories = [{"id": i, "name": f"c{i}", "frequency": "r", "image_count": 1, "instance_count": 1} for i in (1, 2)]
annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 32, 32], "area": 1024,
              "segmentation": [[8, 8, 40, 8, 40, 40, 8, 40]]}
with open("file.json", "w") as file:
    json.dump({"images": [image], "categories": categories, "annotations": [annotation]}, file)
dataset = hotcoco.COCO("file.json").dataset
with open("dataset.json", "w") as file:
    json.dump(dataset, file)
print("file:", image, "dataset:", dataset["images"][0])


def evaluate(path: str) -> None:
    truth = LVIS(path)
    detection = {"image_id": 1, "category_id": 1, "bbox": [8, 8, 32, 32], "score": 0.9}
    LVISEval(truth, LVISResults(truth, [detection]), "bbox").evaluate()


evaluate("file.json")
try:
    evaluate("dataset.json")
except KeyError as error:
    print("KeyError:", error)
    assert "not_exhaustive_category_ids" in str(error)
else:
    raise AssertionError("lvis evaluates the dumped dataset")
EOF
