// Prints, as JSON, the sha256 of the first rows of a Zarr store's arrays as zarrita reads them, or its errors.
// node reader.mjs STORE ROWS ARRAY…, in a folder that has zarrita and @zarrita/storage in node_modules
import { createHash } from "node:crypto";
import FileSystemStore from "@zarrita/storage/fs";
import * as zarr from "zarrita";

const [store, rows, ...paths] = process.argv.slice(2);
const sums = {};
for (const path of paths) {
  try {
    const array = await zarr.open.v3(new FileSystemStore(`${store}/${path}`), { kind: "array" });
    const count = Math.min(Number(rows), array.shape[0]);
    const { data } = await zarr.get(array, array.shape.map((_, axis) => (axis ? null : zarr.slice(count))));
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    sums[path] = createHash("sha256").update(bytes).digest("hex");
  } catch (error) {
    sums[path] = `${error.name}: ${error.message}`.split("\n")[0].slice(0, 120);
  }
}
console.log(JSON.stringify(sums));
