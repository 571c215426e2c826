#!/usr/bin/env bash
# zarr 3.1.6: an array with more rows or columns than the selection is cut without a word when it is assigned.
# Guess: as in NumPy 2.4.6 and h5py 3.16.0, a shape that cannot be broadcast to the selection is an error.
# Behaviour: of too many values the first ones are written, the rest is lost. Too few are an error only if a chunk gets
#   none or several of them: a single one is repeated. A row that NumPy would broadcast, of shape (3,) for two rows of
#   three, is an IndexError.
# Seen: z[:2] = ones((100, 3)) stores 6 ones; so does ones((2, 5)) in rows of three; 5 values for 6 places in chunks of
#   2 give 1 2 3 4 5 5
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile zarr==3.1.6 numpy==2.4.6 h5py==3.16.0
"$work/venv/bin/python" - <<'EOF'
import h5py
import numpy as np
import zarr

store = h5py.File("memory", "w", driver="core", backing_store=False)
arrays = {
    "numpy": np.zeros((4, 3), np.float32),
    "h5py": store.create_dataset("a", (4, 3), "f4"),
    "zarr": zarr.create_array({}, shape=(4, 3), chunks=(2, 3), dtype="f4"),
}


def assign(array, shape):
    array[:] = np.zeros((4, 3))
    try:
        array[:2] = np.ones(shape)
    except Exception as error:
        return type(error).__name__
    return int(array[:].sum())


seen = {}
for shape in ((2, 3), (100, 3), (2, 5), (3,)):
    seen[shape] = {name: assign(array, shape) for name, array in arrays.items()}
    print("shape", shape, seen[shape])
few = zarr.create_array({}, shape=(6,), chunks=(2,), dtype="f4")
few[:] = np.arange(1, 6)
print("5 values for 6 places", few[:])
assert few[:].tolist() == [1, 2, 3, 4, 5, 5]
assert seen[2, 3] == {"numpy": 6, "h5py": 6, "zarr": 6}
for shape in ((100, 3), (2, 5)):
    assert seen[shape]["zarr"] == 6 and all(isinstance(seen[shape][name], str) for name in ("numpy", "h5py"))
assert seen[3,]["zarr"] == "IndexError" and seen[3,]["numpy"] == 6
EOF
