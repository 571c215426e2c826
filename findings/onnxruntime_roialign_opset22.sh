#!/usr/bin/env bash
# onnxruntime 1.32.0: of a detector in opset 22, everything but RoiAlign can be loaded.
# Guess: opset 22 (which added bfloat16 to many operators, and changed nothing in float32) is supported as a whole,
#   since Conv, MaxPool, GridSample and DeformConv of 22 load.
# Behaviour: RoiAlign and MaxRoiPool of 22 have no kernel. A two-stage detector that is converted to opset 22 or later
#   passes onnx.checker and fails when its session is made; at 21 the same model runs.
# Seen: 21: all load; 22: NOT_IMPLEMENTED : Could not find an implementation for RoiAlign(22), MaxRoiPool(22)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import onnx
import onnxruntime
from onnx import TensorProto, helper

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
operators = {
    "Conv": ({"x": (1, 1, 8, 8), "w": (1, 1, 3, 3)}, {}),
    "MaxPool": ({"x": (1, 1, 8, 8)}, {"kernel_shape": [2, 2]}),
    "GridSample": ({"x": (1, 1, 8, 8), "grid": (1, 2, 2, 2)}, {}),
    "DeformConv": ({"x": (1, 1, 8, 8), "w": (1, 1, 3, 3), "offset": (1, 18, 6, 6)}, {}),
    "MaxRoiPool": ({"x": (1, 1, 8, 8), "boxes": (1, 5)}, {"pooled_shape": [2, 2]}),
    "RoiAlign": ({"x": (1, 1, 8, 8), "boxes": (1, 4), "index": (1,)}, {}),
}
missing = {21: [], 22: []}
for opset, names in missing.items():
    for name, (inputs, attributes) in operators.items():
        types = [helper.make_tensor_value_info(n, INT if n == "index" else FLOAT, s) for n, s in inputs.items()]
        node = helper.make_node(name, list(inputs), ["y"], **attributes)
        graph = helper.make_graph([node], "g", types, [helper.make_tensor_value_info("y", FLOAT, 4 * [None])])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as error:
            print(opset, str(error)[:110])
            names.append(name)
print(missing)
assert missing == {21: [], 22: ["MaxRoiPool", "RoiAlign"]}
EOF
