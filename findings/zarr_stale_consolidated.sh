#!/usr/bin/env bash
# zarr 3.1.6: a group whose metadata were consolidated once shows arrays as they were then, also after zarr changed them.
# Guess: what zarr itself changes in a group afterwards, it finds when it opens the group.
# Behaviour: resize() and create_array() leave the copy of the metadata in the group's zarr.json, and opening the group
#   prefers the copy. Rows appended since are cut off, silently; an array made since is not there. Deleted arrays and the
#   group's attributes are followed. With use_consolidated=False, or opened by its own path, everything is there.
# Seen: rows by the group 4, by the array 10, without the copy 10; new array by the group False, without the copy True
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile zarr==3.1.6 numpy==2.4.6
cd "$work"
venv/bin/python -W ignore - <<'EOF'
import numpy as np
import zarr

group = zarr.open_group("features.zarr", mode="w")
group.create_array("box", shape=(4,), chunks=(4,), dtype="i4")[:] = np.arange(4)
zarr.consolidate_metadata("features.zarr")

later = zarr.open_group("features.zarr", mode="r+")
later["box"].append(np.arange(4, 10))
later.create_array("label", shape=(10,), dtype="i4")

default = zarr.open_group("features.zarr", mode="r")
plain = zarr.open_group("features.zarr", mode="r", use_consolidated=False)
rows = len(default["box"][:]), len(zarr.open_array("features.zarr/box", mode="r")[:]), len(plain["box"][:])
there = "label" in default, "label" in plain
print("rows by the group {}, by the array {}, without the copy {}".format(*rows))
print("new array by the group {}, without the copy {}".format(*there))
assert rows == (4, 10, 10)
assert there == (False, True)
EOF
