#!/usr/bin/env bash
# TensorFlow.js 4.22.0: NMS removes a box whose IoU is the threshold; TensorFlow 2.21.0 and onnxruntime 1.32.0 keep it.
# Guess: the same graph gives the same boxes in the browser: a box is removed if its IoU is above the threshold, as
#   tf.image.non_max_suppression and the ONNX operator have it.
# Behaviour: tfjs compares with >=. Boxes on a grid of whole pixels hit 0.5 exactly, such as a box and its half.
# Seen: boxes 2 x 2 and its half, threshold 0.5: TensorFlow and onnxruntime keep 0 and 1, tfjs keeps 0; at 0.51 all keep
#   both
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper

inputs = {
    "boxes": np.array([[[0, 0, 2, 2], [0, 0, 2, 1]]], np.float32),
    "scores": np.array([[[0.9, 0.8]]], np.float32),
    "count": np.array([10]),
    "iou": np.array([0.5], np.float32),
}
types = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in inputs.items()]
output = helper.make_tensor_value_info("kept", TensorProto.INT64, None)
node = helper.make_node("NonMaxSuppression", list(inputs), ["kept"])
model = helper.make_model(helper.make_graph([node], "g", types, [output]),
                          opset_imports=[helper.make_opsetid("", 11)], ir_version=10)
(kept,) = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)
print("onnxruntime, 0.5:", kept[:, 2].tolist())
assert kept[:, 2].tolist() == [0, 1]
EOF
npm install --silent --no-audit --no-fund --prefix "$work" @tensorflow/tfjs-core@4.22.0 \
  @tensorflow/tfjs-backend-cpu@4.22.0 >/dev/null
cat >nms.mjs <<'EOF'
import assert from "node:assert";
import * as tf from "@tensorflow/tfjs-core";
import "@tensorflow/tfjs-backend-cpu";

await tf.setBackend("cpu");
const boxes = tf.tensor2d([[0, 0, 2, 2], [0, 0, 2, 1]]);
const scores = tf.tensor1d([0.9, 0.8]);
const kept = async (iou) => (await tf.image.nonMaxSuppressionAsync(boxes, scores, 10, iou)).arraySync();
console.log("tfjs, 0.5:", await kept(0.5), "0.51:", await kept(0.51));
assert.deepEqual(await kept(0.5), [0]);
assert.deepEqual(await kept(0.51), [0, 1]);
EOF
node nms.mjs
