#!/usr/bin/env bash
# PyTables 3.11.1: a mask that h5py wrote picks other rows.
# Guess: a bool dataset of h5py 3.16.0 is read as bool, as h5netcdf 1.8.2 reads it and as PyTables reads its own.
# Behaviour: HDF5 has no bool; h5py stores an enumeration of FALSE and TRUE, PyTables reads its base type, int8. As an
#   index, such an array is a list of row numbers: 0s and 1s, again and again, instead of the rows that are True.
# Seen: mask [True, False, True] over rows 10, 20, 30: h5netcdf 10, 30; PyTables int8, 20, 10, 20
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile tables==3.11.1 h5netcdf==1.8.2 h5py==3.16.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import h5netcdf
import h5py
import numpy as np
import tables

rows, is_object = np.array([10, 20, 30]), np.array([True, False, True])
with h5py.File("a.h5", "w") as file:
    file["is_object"] = is_object
with tables.open_file("own.h5", "w") as file:
    file.create_array("/", "is_object", is_object)
with h5netcdf.File("a.h5", "r", phony_dims="sort") as file:
    found = {"h5netcdf": file["is_object"][:]}
for name, path in (("PyTables", "a.h5"), ("PyTables, its own", "own.h5")):
    with tables.open_file(path) as file:
        found[name] = file.root.is_object.read()
for name, mask in found.items():
    print(name, mask.dtype, rows[mask].tolist())
assert rows[found["h5netcdf"]].tolist() == rows[found["PyTables, its own"]].tolist() == [10, 30]
assert found["PyTables"].dtype == np.int8 and rows[found["PyTables"]].tolist() == [20, 10, 20]
EOF
