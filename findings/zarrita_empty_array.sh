#!/usr/bin/env bash
# zarrita.js 0.7.5: an array of length 0 opens but cannot be read.
# Guess: a Zarr array of shape (0, 4), which is what a writer leaves for images without a box, is read as an empty
#   array, as by zarr 3.1.6.
# Behaviour: get() throws a message about iterators; a selection of nothing from a longer array throws the same.
# Seen: shape [0, 4]: Input contains an empty iterator.; shape [2, 4]: 8 values; its rows 1 to 1: Input contains an
#   ...
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile zarr==3.1.6 numpy==2.4.6
cd "$work"
venv/bin/python -c '
import zarr
for rows in (0, 2):
    array = zarr.create_array(f"{rows}.zarr", shape=(rows, 4), dtype="f4", chunks=(1, 4))
    array[:] = 1
    assert zarr.open_array(f"{rows}.zarr")[:].shape == (rows, 4)
'
npm install --silent --no-audit --no-fund --prefix "$work" zarrita@0.7.5 @zarrita/storage@0.2.0 >/dev/null
cat >read.mjs <<'EOF'
import assert from "node:assert";
import FileSystemStore from "@zarrita/storage/fs";
import * as zarr from "zarrita";

const read = async (name, selection) => {
  const array = await zarr.open.v3(new FileSystemStore(`${process.cwd()}/${name}`), { kind: "array" });
  try {
    return (await zarr.get(array, selection)).data.length;
  } catch (error) {
    return error.message;
  }
};
const found = [await read("2.zarr"), await read("0.zarr"), await read("2.zarr", [zarr.slice(1, 1), null])];
console.log(found);
assert.equal(found[0], 8);
assert.match(found[1], /empty iterator/);
assert.match(found[2], /empty iterator/);
EOF
node read.mjs
