#!/usr/bin/env bash
# h5wasm 0.10.3: a dataset whose filter is missing is read as other numbers, without an exception.
# Guess: reading a dataset with LZF compression, h5py's own and absent from this build, throws.
# Behaviour: HDF5's error stack goes to the console; `value` returns an array of the right type and length that was
#   never filled. The same data with gzip is read correctly.
# Seen: gzip: right, lzf: 100 values of BigInt64Array, no exception, not the file's 1000 ... 1099
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile h5py==3.16.0 numpy==2.4.6
cd "$work"
venv/bin/python -c '
import h5py, numpy
with h5py.File("features.h5", "w") as file:
    for compression in ("gzip", "lzf"):
        file.create_dataset(compression, data=numpy.arange(1000, 1100), chunks=(50,), compression=compression)
'
npm install --silent --no-audit --no-fund --prefix "$work" h5wasm@0.10.3 >/dev/null
cat >read.mjs <<'EOF'
import assert from "node:assert";
import h5wasm from "h5wasm/node";

await h5wasm.ready;
const file = new h5wasm.File("features.h5", "r");
for (const name of ["gzip", "lzf"]) {
  const value = file.get(name).value;
  const right = Array.from(value).every((v, i) => v === BigInt(1000 + i));
  console.log(name, value.constructor.name, value.length, right ? "right" : "wrong, and no exception");
  assert.equal(value.length, 100);
  assert.equal(right, name === "gzip");
}
EOF
node read.mjs 2>errors
grep -q "required filter 'lzf' is not registered" errors
