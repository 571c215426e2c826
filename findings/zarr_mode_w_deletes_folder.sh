#!/usr/bin/env bash
# zarr 3.1.6: mode="w" deletes everything in the folder, not only what is zarr's.
# Guess: it replaces an array or group that is there, as its documentation says ("create, overwrite if exists"), or
#   refuses a folder that is none; other files stay.
# Behaviour: the folder is emptied first, whether zarr made it or not, without a word. So does create_array with
#   overwrite=True, in the folder of the array's name. h5py 3.16.0's "w" replaces the one file that it is given.
# Seen: left by open_group: zarr.json; by create_array: zarr.json; beside h5py's file: notes.txt photos rois.h5
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile zarr==3.1.6 h5py==3.16.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
from pathlib import Path

import h5py
import zarr


def folder(name: str) -> Path:
    path = Path(name)
    (path / "photos").mkdir(parents=True)
    (path / "photos" / "1.jpg").write_text("a photo")
    (path / "notes.txt").write_text("mine")
    return path


def left(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


group, array, hdf5 = folder("group"), folder("parent/box"), folder("hdf5")
zarr.open_group(str(group), mode="w")
zarr.open_group("parent", mode="a").create_array("box", shape=(4,), dtype="f4", overwrite=True)
h5py.File(hdf5 / "rois.h5", "w").close()
print("left by open_group:", *left(group))
print("left by create_array:", *left(array))
print("beside h5py's file:", *left(hdf5))
assert left(group) == left(array) == ["zarr.json"]
assert left(hdf5) == ["notes.txt", "photos", "rois.h5"]
EOF
