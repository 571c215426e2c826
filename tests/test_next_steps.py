"""The command that the last line of each command names: it is one that the program takes."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro

from extract.__main__ import main as extract_main
from extract.command_configs import RecallConfig
from extract.uses import command_for
from fuse.commands import next_steps
from fuse.commands.config import Config
from fuse.commands.live_config import ExportConfig, PredictConfig
from fuse.commands.results_config import EvaluateConfig, MergeConfig
from tests.fuse_fixtures import write_tiny
from tests.toy_cache import toy_cache

HEAD, VAL = Path("my head"), Path("val.json")
OPTIONS = ("num_classes=12",)
SPEC = {"detector": "torchvision:m:build", "weights": Path("w.pth"), "detector_options": OPTIONS}


def parsed(config: type, command: str):
    """The options of a command as the program would read them."""
    words = shlex.split(command)
    return tyro.cli(config, args=words[4 if words[3].isalpha() else 3 :])


def cache(detector: str = "torchvision:m:build", **config):
    return SimpleNamespace(provenance={"config": {"detector": detector, **config}}, url="c.zarr")


def test_after_detection_the_drawings_of_the_same_classifier():
    common = {"cache": "val.zarr", "annotations": VAL, "out": Path("runs/cat")}
    command = next_steps.after_detection(Config(**common, head=HEAD), cache(detector_options=list(OPTIONS)))
    assert "predict --detector torchvision:m:build --weights … --head 'my head' --save-images" in command
    found = parsed(PredictConfig, command)
    assert (found.head, found.save_images, found.mode, found.detector_options) == (HEAD, True, "cat", OPTIONS)
    given = Config(**common, method="norcal", gamma=0.5, mode="calibrated", tail=30, images=Path("i"), **SPEC)
    found = parsed(PredictConfig, next_steps.after_detection(given, cache("other")))
    assert (found.detector, found.weights, found.gamma, found.tail) == ("torchvision:m:build", Path("w.pth"), 0.5, 30)
    assert (found.fit_cache, found.mode) == ("val.zarr", "calibrated")
    det = next_steps.after_detection(Config(**common, head=HEAD, mode="det"), cache("mmdet"))
    assert "--detector mmdet --config-file …" in det and "--mode" not in det, "predict has no mode det"
    alone = next_steps.after_detection(Config(**common, mode="original"), cache())
    assert alone == "python -m calib.train --cache train.zarr --out head"


def test_after_export_and_prediction():
    found = parsed(PredictConfig, next_steps.after_export(ExportConfig(**SPEC, out=Path("o"), head=HEAD, tail=30)))
    assert (found.detector, found.weights, found.head, found.tail) == (SPEC["detector"], SPEC["weights"], HEAD, 30)
    method = ExportConfig(**SPEC, out=Path("o"), method="fracal", lam=2.0, fit_cache="train.zarr")
    assert (parsed(PredictConfig, next_steps.after_export(method)).lam) == 2.0
    common = {**SPEC, "out": Path("o"), "head": HEAD, "images": (Path("i"),)}
    found = parsed(ExportConfig, next_steps.after_prediction(PredictConfig(**common)))
    assert (found.head, found.detector_options) == (HEAD, OPTIONS)
    found = parsed(EvaluateConfig, next_steps.after_prediction(PredictConfig(**common, annotations=VAL)))
    assert (found.detections, found.annotations) == (Path("o/predictions.json"), VAL)


def test_after_merge_and_evaluation():
    common = {"annotations": VAL, "cache": "val.zarr"}
    merge = MergeConfig(**common, detections=(Path("a"), Path("b")), out=Path("both"))
    found = parsed(EvaluateConfig, next_steps.after_merge(merge))
    assert found == EvaluateConfig(**common, detections=Path("both/detections.json"), errors=True)
    assert "--errors" in next_steps.after_evaluation(EvaluateConfig(**common, detections=Path("a")))
    assert parsed(RecallConfig, next_steps.after_evaluation(found)) == RecallConfig("val.zarr", VAL)


@pytest.mark.parametrize(
    ("split", "level", "phrase"),
    [
        ("train", "pooled", "calib.train --cache c.zarr"),
        ("train", "logits", "--method logn --fit-cache c.zarr"),
        ("val", "logits", "fuse --cache c.zarr --head head --annotations val.json"),
        ("holdout", "hidden", "fuse select --holdout c.zarr"),
    ],
)
def test_what_takes_a_cache(split, level, phrase):
    one = SimpleNamespace(split="train" if split == "train" else "val", level=level, **vars(cache(split=split)))
    assert phrase in command_for(one)


def test_commands_that_look_at_a_cache_name_what_takes_it(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)
    toy_cache(tmp_path / "toy.zarr", split="val", images=3)
    for command in ("inspect val.zarr", "verify toy.zarr", "recall val.zarr --annotations val.json"):
        caplog.clear()
        assert extract_main(command.split()) == 0
        name = command.split()[1]
        last = caplog.records[-1].getMessage()
        assert last == f"next: python -m fuse --cache {name} --head head --annotations val.json --out runs/cat"
