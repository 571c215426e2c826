#!/usr/bin/env bash
# hotcoco 1.3.0: COCO(file).save(other) is not a copy that a schema-checked reader accepts.
# Guess: fields that the file does not have stay away, so what picsellia-annotations 0.14.0 reads before, it reads
#   after.
# Behaviour: every field that hotcoco knows is written, as null where there was none: `info`, and in each annotation
#   `score`, `keypoints`, `obb`, `is_group_of`; `iscrowd` 0 becomes false. The reader refuses the copy.
# Seen: keypoints null, obb null, score null, is_group_of null, iscrowd False; ParsingError on info and
#   annotations.0.score
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile hotcoco==1.3.0 picsellia-annotations==0.14.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import json
from pathlib import Path

import hotcoco
from picsellia_annotations.utils import read_coco_file

annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 32, 32], "area": 1024, "iscrowd": 0,
              "segmentation": [[8, 8, 40, 8, 40, 40, 8, 40]]}
Path("before.json").write_text(json.dumps({
    "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 64}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [annotation],
}))
hotcoco.COCO("before.json").save("after.json")
saved = json.loads(Path("after.json").read_text())["annotations"][0]
added = [name for name in saved if name not in annotation]
print("added fields:", {name: saved[name] for name in added}, "iscrowd:", saved["iscrowd"])
assert {"score", "keypoints", "obb", "is_group_of"} <= set(added) and all(saved[name] is None for name in added)
assert saved["iscrowd"] is False
read_coco_file(Path("before.json"))
try:
    read_coco_file(Path("after.json"))
except Exception as error:
    print(type(error).__name__, str(error)[:60])
    assert "annotations.0.score" in str(error)
else:
    raise AssertionError("the saved copy is accepted")
EOF
