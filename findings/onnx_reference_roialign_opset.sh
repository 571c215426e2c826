#!/usr/bin/env bash
# onnx 1.23.2: the reference evaluator computes RoiAlign of opset 10 by the rules of opset 16.
# Guess: ReferenceEvaluator follows the opset that the model declares, so it agrees with onnxruntime 1.32.0 on both.
# Behaviour: opset 10 has no half-pixel shift (as torchvision's aligned=False, what exported detectors of opset 11 to
#   15 carry), opset 16 has it. onnxruntime knows the difference; the reference shifts in both, and says nothing.
# Seen: opset 10: onnxruntime [18, 20, 34, 36], reference [13.5, 15.5, 29.5, 31.5]; opset 16: both [13.5, 15.5, 29.5,
#   31.5]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

inputs = {
    "x": np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8),
    "rois": np.array([[1, 1, 5, 5]], np.float32),
    "batch": np.zeros(1, np.int64),
}
kinds = {"x": TensorProto.FLOAT, "rois": TensorProto.FLOAT, "batch": TensorProto.INT64}
seen = {}
for opset in (10, 16):
    node = helper.make_node("RoiAlign", list(inputs), ["y"], output_height=2, output_width=2, sampling_ratio=2)
    graph = helper.make_graph(
        [node], "roi_align", [helper.make_tensor_value_info(n, kinds[n], inputs[n].shape) for n in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 1, 2, 2))])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    runtime = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = runtime.run(None, inputs)[0], ReferenceEvaluator(model).run(None, inputs)[0]
    seen[opset] = [output.ravel().tolist() for output in outputs]
    print("opset", opset, "onnxruntime", seen[opset][0], "reference", seen[opset][1])
shifted = [13.5, 15.5, 29.5, 31.5]
assert np.allclose(seen[10][0], [18, 20, 34, 36]) and np.allclose(seen[10][1], shifted)
assert np.allclose(seen[16], shifted)
EOF
