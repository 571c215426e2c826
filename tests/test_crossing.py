"""Evaluators of the field on the same detections: those that are installed for the tests agree with ours."""

from __future__ import annotations

import json

import pytest

from benchmarks.crossing.evaluators import EVALUATORS, quiet
from benchmarks.crossing.inputs import make_inputs
from tests.fuse_fixtures import annotations, tiny_cache

pytest.importorskip("lvis")


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
            found = {name: EVALUATORS[name][1](inputs) for name in ("tailcal", *names)}
        assert found == pytest.approx(dict.fromkeys(found, found["tailcal"])) and 0 < found["tailcal"] < 100
        assert json.dumps(inputs.content) == before
