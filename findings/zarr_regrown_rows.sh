#!/usr/bin/env bash
# zarr 3.1.6: rows that resize() removed are back when the array grows again; of a sharded array, all of them.
# Guess: new rows hold the fill value, as in HDF5 (h5py 3.16.0), whether they had been there before or not.
# Behaviour: resize deletes only files that lie outside altogether, and leaves what is stored in the last one. With
#   shards, which are large by design, whatever was cut from the last shard reappears: 6 of 8 rows here.
# Seen: 0 ... 7 cut to 2 rows and grown to 8: chunks of 4: 0 1 2 3 -1 -1 -1 -1; one shard of 8, chunks of 2:
#   0 1 2 3 4 5 6 7; h5py: 0 1 -1 -1 -1 -1 -1 -1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile zarr==3.1.6 h5py==3.16.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import h5py
import numpy as np
import zarr


def regrown(array):
    array[:] = np.arange(8)
    array.resize((2,))
    array.resize((8,))
    return array[:].tolist()


plain = zarr.create_array("plain.zarr", shape=(8,), chunks=(4,), dtype="i4", fill_value=-1)
sharded = zarr.create_array("sharded.zarr", shape=(8,), chunks=(2,), shards=(8,), dtype="i4", fill_value=-1)
with h5py.File("rows.h5", "w") as file:
    hdf5 = file.create_dataset("rows", (8,), "i4", chunks=(4,), maxshape=(None,), fillvalue=-1)
    found = {"chunks": regrown(plain), "shard": regrown(sharded), "hdf5": regrown(hdf5)}
for name, rows in found.items():
    print(name, rows)
assert found["hdf5"] == [0, 1] + 6 * [-1]
assert found["chunks"] == [0, 1, 2, 3] + 4 * [-1]
assert found["shard"] == list(range(8))
EOF
