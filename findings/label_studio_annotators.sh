#!/usr/bin/env bash
# label-studio-sdk 2.1.2: what two annotators drew in one image is two images as COCO, and one annotator's work as
#   YOLO.
# Guess: both exports hold the image once, with the boxes of both annotators (or of one, chosen by a rule).
# Behaviour: the COCO export lists the same file_name under two ids, each with one annotator's boxes, so that a
#   detector is scored twice against halves of the truth. The YOLO export overwrites the image's text file: the last
#   one wins.
# Seen: COCO: 2 images of one file name, 1 and 2 boxes; YOLO: 1 file with 2 lines
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile label-studio-sdk==2.1.2
cd "$work"
venv/bin/python - <<'EOF' 2>log || { cat log; exit 1; }
import json
from collections import Counter
from pathlib import Path

from label_studio_sdk.converter import Converter

CONFIG = """<View><Image name="image" value="$image"/>
<RectangleLabels name="label" toName="image"><Label value="cat"/></RectangleLabels></View>"""


def region(x: int) -> dict:
    value = {"x": x, "y": 10, "width": 10, "height": 10, "rotation": 0, "rectanglelabels": ["cat"]}
    return {"type": "rectanglelabels", "from_name": "label", "to_name": "image", "value": value,
            "original_width": 200, "original_height": 100}


annotations = [{"id": 1, "completed_by": 1, "result": [region(10)]},
               {"id": 2, "completed_by": 2, "result": [region(40), region(70)]}]
Path("task.json").write_text(json.dumps([{"id": 1, "data": {"image": "a.png"}, "annotations": annotations}]))
for name in ("COCO", "YOLO"):
    Converter(CONFIG, ".", download_resources=False).convert("task.json", name, name, is_dir=False)
coco = json.loads(Path("COCO/result.json").read_text())
names = [image["file_name"] for image in coco["images"]]
boxes = Counter(annotation["image_id"] for annotation in coco["annotations"])
texts = {path.name: len(path.read_text().split("\n")) - 1 for path in Path("YOLO/labels").glob("*.txt")}
print("COCO images", names, "boxes by image id", dict(boxes), "YOLO lines", texts)
assert len(names) == 2 and len(set(names)) == 1 and sorted(boxes.values()) == [1, 2]
assert len(texts) == 1 and list(texts.values()) == [2]
EOF
