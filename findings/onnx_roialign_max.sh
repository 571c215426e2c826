#!/usr/bin/env bash
# onnxruntime 1.32.0, onnx 1.23.2: RoiAlign in mode "max" is the maximum of neither pixels nor samples.
# Guess: of an image that is 1 everywhere, any pooling of bilinear samples is 1. A warning of onnxruntime says that
#   release 1.13 corrects this mode, so 1.32.0 has it right.
# Behaviour: each sample is a weighted sum of four pixels; "max" takes the largest of the weighted pixels instead,
#   before they are summed. 1.32.0 still does so, with the same warning, and onnx's reference evaluator agrees.
# Seen: image of ones, 2 x 2 samples in cells of one pixel: avg 1.0, max 0.5625, in both
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF' 2>"$work/warnings"
import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

inputs = {
    "image": np.ones((1, 1, 8, 8), np.float32),
    "boxes": np.array([[1, 1, 4, 4]], np.float32),
    "index": np.zeros(1, np.int64),
}
for mode, expected in (("avg", 1.0), ("max", 0.5625)):
    node = helper.make_node("RoiAlign", list(inputs), ["cells"], mode=mode, output_height=3, output_width=3,
                            sampling_ratio=2, coordinate_transformation_mode="output_half_pixel")
    types = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
             for n, v in inputs.items()]
    output = helper.make_tensor_value_info("cells", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph([node], "g", types, [output]),
                              opset_imports=[helper.make_opsetid("", 16)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, runner in (("onnxruntime", session), ("reference", ReferenceEvaluator(model))):
        (cells,) = runner.run(None, inputs)
        print(mode, name, np.unique(cells).tolist())
        assert np.allclose(cells, expected)
EOF
grep -q "will be fixed in the next ORT 1.13 release" "$work/warnings"
