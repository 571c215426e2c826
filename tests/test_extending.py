"""What docs/extending.md adds, added from the code on the page itself."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch

import calib
import calib.config
import calib.head_types
import calib.posthoc
import extract
import fuse
import fuse.export.module
import fuse.scores
from calib.heads import linear_layers
from extract.class_scores import softmax
from extract.detectors import FRAMEWORKS
from extract.verify import worst_logit_error
from fuse.commands.config import Config
from tests.fuse_fixtures import write_tiny
from tests.toy_cache import CLASSES, toy_cache

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
BLOCKS = dict(re.findall(r"```python\n# (.*?)\n(.*?)```", PAGE, flags=re.S))
"""First line of a block, a comment with the place of the code → the code."""


def add(block: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """Runs a block of the page in a namespace."""
    exec(compile(BLOCKS[block], "docs/extending.md", "exec"), namespace)
    return namespace


@pytest.fixture
def toy_framework(monkeypatch) -> None:
    """The framework "toy", with its adapter."""
    module = ModuleType("extract.detectors.toy")
    monkeypatch.setitem(sys.modules, "toy", ModuleType("toy"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    add("extract/detectors/toy.py", vars(module))
    monkeypatch.setitem(FRAMEWORKS, "toy", "")
    add("a row of FRAMEWORKS in extract/detectors/__init__.py", {"FRAMEWORKS": FRAMEWORKS})


def test_every_block_is_used():
    source = Path(__file__).read_text()
    assert [block for block in BLOCKS if f'"{block}"' not in source] == []
    assert PAGE.count("```python") == len(BLOCKS)


@pytest.mark.long
def test_method(tmp_path, monkeypatch):
    module = add("calib/posthoc/sharpened.py", {"__name__": "calib.posthoc.sharpened"})
    monkeypatch.setitem(calib.posthoc.METHODS, "sharpened", None)
    add(
        "a row of METHODS in calib/posthoc/__init__.py",
        {"METHODS": calib.posthoc.METHODS, "Sharpened": module["Sharpened"]},
    )
    cache = toy_cache(tmp_path / "cache.zarr", level="logits")
    method = calib.posthoc.build_method("sharpened", tau=2).fit(cache)
    np.testing.assert_allclose(method.scores(cache[0]), softmax(cache[0].logits[:, 0] * 2), rtol=1e-2, atol=1e-4)
    assert len(fuse.detect(cache, method, mode="calibrated"))


@pytest.mark.long
def test_method_on_the_command_line(tmp_path, monkeypatch):
    from fuse.commands.detect import run

    module = add("calib/posthoc/sharpened.py", {"__name__": "calib.posthoc.sharpened"})
    monkeypatch.setitem(calib.posthoc.METHODS, "sharpened", module["Sharpened"])
    annotations, cache, _ = write_tiny(tmp_path)
    options = {"annotations": annotations, "cache": str(cache), "out": tmp_path / "out"}
    run(Config(method="sharpened", tau=2.0, mode="calibrated", **options))
    assert (tmp_path / "out" / "metrics.csv").is_file()


@pytest.mark.long
def test_head_type(tmp_path, monkeypatch):
    names = add("the names of head types in calib/config.py", {"Literal": Literal})["HeadType"]
    assert get_args(names)[:-1] == calib.config.HEAD_TYPES
    row = eval(BLOCKS["a row of RECIPES in calib/head_types.py"], {"Recipe": calib.head_types.Recipe})
    for module in (calib.config, calib.head_types):
        monkeypatch.setattr(module, "HEAD_TYPES", get_args(names))
    monkeypatch.setattr(calib.head_types, "RECIPES", calib.head_types.RECIPES + row)
    cache = toy_cache(tmp_path / "cache.zarr")
    head = calib.train_head(cache, head_type="3fc_new", steps=2, device="cpu")
    assert [layer.out_features for layer in linear_layers(head.stages[0])] == [16, 16, CLASSES + 1]
    assert head.info.frozen_layers == 0 and head.scores(cache[0]).shape == (30, CLASSES + 1)


@pytest.mark.long
def test_mode(tmp_path, monkeypatch):
    names = add("the names of modes in fuse/scores.py", {"Literal": Literal})["ScoreMode"]
    assert get_args(names)[:-1] == fuse.scores.SCORE_MODES
    monkeypatch.setitem(fuse.scores.COMBINATIONS, "max", None)
    add("a combination in fuse/scores.py", {"np": np, "COMBINATIONS": fuse.scores.COMBINATIONS})
    cache = toy_cache(tmp_path / "cache.zarr", level="embedding")
    head = calib.train_head(cache, head_type="linear", steps=2, device="cpu")
    assert len(fuse.detect(cache, head, mode="max"))

    rois = cache[0]
    mask = np.arange(CLASSES) < 5
    fused = fuse.fuse_scores(softmax(rois.logits[:, 0]), head.scores(rois), mask, "max")
    exported = patched_module(monkeypatch, get_args(names)).CalibratedScores(head.info.widths, mode="max")
    exported.load_scorer(head, mask)
    np.testing.assert_allclose(exported.eval().requires_grad_(False).scores(rois), fused, rtol=1e-5, atol=1e-6)


def patched_module(monkeypatch, modes: tuple[str, ...]) -> ModuleType:
    """`fuse.export.module` with the page's branch before the last one of `CalibratedScores._fuse`."""
    monkeypatch.setattr(fuse.scores, "SCORE_MODES", modes)
    source = inspect.getsource(fuse.export.module)
    branch = "".join(f"        {line}\n" for line in BLOCKS[BRANCH].splitlines())
    before, found, after = source.partition("            fused = (foreground + new) / 2\n")
    module = ModuleType("patched")
    exec(compile(before + found + branch + after, "docs/extending.md", "exec"), vars(module))
    return module


BRANCH = "a branch of CalibratedScores._fuse in fuse/export/module.py"


def test_framework(tiny, tmp_path, toy_framework):
    options = {"detector": "toy:12", "weights": None, "detector_options": (), "level": "pooled"}
    train = extract.run(tiny.config("train", tmp_path / "train.zarr", **options))
    val = extract.run(tiny.config("val", tmp_path / "val.zarr", **options))
    assert worst_logit_error(train) < 1e-2
    assert (train.read("labels") < 12).any(), "ground-truth boxes are labelled"
    head = calib.train_head(train, head_type="3fc_ft", steps=5, device="cpu")
    cached = fuse.detect(val, head, mode="cat", tail=10)
    assert len(cached) and set(cached.image_ids) <= set(val.images["image_id"])

    detector = extract.load_detector(extract.DetectorSpec("toy:12"))
    live = fuse.CalibratedDetector(detector, head, mode="cat", tail=10)
    first = json.loads((tiny.data / "val.json").read_text())["images"][0]
    ((found, masks),) = live.predict(tiny.data / "val" / first["file_name"])
    assert masks is None
    np.testing.assert_allclose(found.scores, cached.scores[cached.image_ids == first["id"]], rtol=2e-2, atol=1e-3)

    method = calib.posthoc.NorCal().fit(val)
    ((weight, bias),) = fuse.folded_classifiers(detector, method)
    assert detector.state_dict_with_classifiers([(weight, bias)])["weight"].equal(torch.from_numpy(weight))
