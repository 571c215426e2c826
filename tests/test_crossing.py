"""Evaluators of the field on the same detections: those that are installed for the tests agree with ours."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from benchmarks.crossing.inputs import make_inputs
from benchmarks.crossing.registry import AP, ECE, quiet
from tests.fuse_fixtures import annotations, tiny_cache

pytest.importorskip("lvis")
CALIBRATION = ("the definition, on pycocotools' matches", "hotcoco `calibration`")


@pytest.mark.long
def test_evaluators_of_one_protocol_agree(tmp_path):
    content = annotations(6)
    for annotation in content["annotations"]:
        annotation["id"] += 1  # the official packages mistake 0 for no match
    (tmp_path / "val.json").write_text(json.dumps(content))
    tiny_cache(tmp_path / "val.zarr", content)
    every = make_inputs(str(tmp_path / "val.zarr"), tmp_path / "val.json")
    assert len(every) == 8
    for inputs in every:
        before = json.dumps(inputs.content)
        names = ("lvis", "hotcoco `LVISEval`") if inputs.federated else ("pycocotools", "hotcoco `COCOeval`")
        with quiet():
            found = {name: AP.evaluators[name].function(inputs) for name in ("tailcal", *names)}
            errors = [ECE.evaluators[name].function(inputs) for name in CALIBRATION]
        assert found == pytest.approx(dict.fromkeys(found, found["tailcal"])) and 0 < found["tailcal"] < 100
        assert errors[0] == pytest.approx(errors[1], abs=1e-9) and 0 < errors[0] < 1
        assert json.dumps(inputs.content) == before


@pytest.mark.framework
def test_differences_between_a_framework_and_the_library_are_counted():
    pytest.importorskip("torchvision")
    from benchmarks.crossing.inference import difference
    from extract.detectors.base import ImageDetections

    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 10]], np.float32)
    own = ImageDetections(boxes, np.array([0, 1, 2]), np.array([0.9, 0.5, 0.1], np.float32))
    moved = boxes + np.array([[0.01], [1], [0]], np.float32)
    ours = ImageDetections(moved, np.array([0, 1, 3]), np.array([0.9004, 0.5, 0.1], np.float32))
    found, score = difference(own, ours)
    assert found == 1 and score == pytest.approx(0.0004, rel=0.01), "one box is elsewhere, one of another class"
    assert difference(own, ImageDetections(boxes[:0], np.zeros(0, int), np.zeros(0, np.float32))) == (0, 0)


def test_tables_of_readers_inference_and_tools():
    from benchmarks.crossing.tables import inference_table, readers_table, tools_table

    where = {"machine": "2 CPUs", "commit": "abc", "date": "2026-11-29"}
    reader = {"reader": "zarr", "language": "Python", "version": "3.1.6", "arrays": 2, "equal": 2, "others": np.nan}
    assert "| zarr (3.1.6) | Python | 2 of 2 |  |" in readers_table(pd.DataFrame([{**reader, **where}]))
    row = {"framework": "mmdet", "version": "3.3.0", "threshold": 1e-4, "images": 1, "own_detections": 4000}
    row |= {"found": 3999, "score_difference": 2e-6, "own_AP": 20.123, "AP": 20.124}
    table = inference_table(pd.DataFrame([{**row, "path": path, **where} for path in ("live", "cached")]))
    assert "| 0.0001 | 3,999 of 4,000, 2e-06 | 3,999 of 4,000, 2e-06 | 20.12 | 20.12 | 20.12 |" in table
    tool = {"tool": "datumaro", "version": "1.13.12", "detections": 200, "read": 200, "boxes": 200, "scores": 200}
    assert "| datumaro (1.13.12) | 200 | 200 | 200 | 51 |" in tools_table(
        pd.DataFrame([{**tool, "masks": 51, **where}])
    )
