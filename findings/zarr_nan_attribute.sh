#!/usr/bin/env bash
# zarr 3.1.6: an attribute that is NaN makes the array unreadable for tensorstore 0.1.86.
# Guess: NaN (an undefined AP or IoU, say) is written in a form that other readers know, as "NaN" is for a fill value,
#   or refused; zarr.json is JSON.
# Behaviour: the fill value becomes the string "NaN", the attribute the bare token NaN, which no JSON parser but
#   Python's takes. zarr reads it back; tensorstore cannot open the array at all.
# Seen: "fill_value": "NaN", "iou": NaN; DATA_LOSS: Error opening "zarr3" driver ... Invalid JSON
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile zarr==3.1.6 tensorstore==0.1.86 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import math
import os

import tensorstore
import zarr

for name, attributes in (("plain", {"iou": 0.5}), ("undefined", {"iou": float("nan")})):
    array = zarr.create_array(name, shape=(4,), dtype="f4", chunks=(2,), fill_value=float("nan"), attributes=attributes)
    array[:] = 1
with open("undefined/zarr.json") as file:
    lines = [line.strip() for line in file if "NaN" in line]
print(lines)
assert lines == ['"fill_value": "NaN",', '"iou": NaN']
assert math.isnan(zarr.open_array("undefined").attrs["iou"])


def open_with_tensorstore(name: str) -> list[float]:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{os.getcwd()}/{name}/"}}
    return tensorstore.open(spec).result().read().result().tolist()


assert open_with_tensorstore("plain") == [1, 1, 1, 1]
try:
    open_with_tensorstore("undefined")
except ValueError as error:
    print(str(error)[:50], "... Invalid JSON" if "Invalid JSON" in str(error) else "")
    assert "Invalid JSON" in str(error)
else:
    raise AssertionError("tensorstore opens it")
EOF
