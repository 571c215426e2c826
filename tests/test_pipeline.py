"""The three commands one after the other, on a tiny Mini-LVIS with a random detector."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import calib.__main__
import extract.__main__
import fuse.__main__
from benchmarks.minilvis.coco import as_coco
from tests.conftest import CLASSES

ROOT = Path(__file__).parents[1]


def run(program, *arguments: object) -> None:
    assert program.main([str(a) for a in arguments]) == 0


def test_pipeline(tiny, tmp_path, capsys):
    for split in ("train", "val"):
        run(
            extract.__main__,
            *("--detector", "torchvision:benchmarks.minilvis.detector:mask_rcnn", "--weights", tiny.weights),
            *("--split", split, "--min-images-per-class", 2),
            *("--train-annotations", tiny.data / "train.json", "--annotations", tiny.data / f"{split}.json"),
            *("--images", tiny.data / split, "--out", tmp_path / f"{split}.zarr", "--proposals", 40),
            f"num_classes={CLASSES}",
        )
    run(calib.__main__, "train", "--cache", tmp_path / "train.zarr", "--out", tmp_path / "head", "--steps", 20)
    inputs = ("--cache", tmp_path / "val.zarr", "--head", tmp_path / "head", "--annotations", tiny.data / "val.json")
    run(fuse.__main__, "sweep", *inputs, "--out", tmp_path / "sweep", "--iou-types", "segm", "bbox")
    assert "rhead-cat-scale" in capsys.readouterr().out
    run(fuse.__main__, *inputs, "--out", tmp_path / "cat", "--tail", 10)

    metrics = pd.read_csv(tmp_path / "sweep" / "metrics.csv", index_col=["iou_type", "row"])
    assert len(metrics) == 2 * 10 and metrics["AP"].between(0, 100).all()
    results = json.loads((tmp_path / "cat" / "detections.json").read_text())
    assert {"image_id", "category_id", "score", "bbox", "segmentation"} == results[0].keys()
    known = {c["id"] for c in json.loads((tiny.data / "val.json").read_text())["categories"]}
    assert {r["category_id"] for r in results} <= known
    html = (tmp_path / "sweep" / "report.html").read_text()
    assert "rhead-cat" in html and not re.search(r"(src|href)=.http", html), "one file, nothing from outside"
    assert not list(tmp_path.rglob("*partial*"))


@pytest.mark.long
def test_an_exhaustive_dataset_and_its_test_set(tiny, tmp_path, capsys, caplog):
    """The same images and objects in COCO's format; the test set has no annotations."""
    caplog.set_level("INFO")
    caches = {}
    for split in ("train", "val", "test"):
        content = as_coco(json.loads((tiny.data / f"{split}.json").read_text()))
        if split == "test":
            del content["annotations"]
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
        kind = "train" if split == "train" else "val"
        changes = {"annotations": tmp_path / f"{split}.json", "train_annotations": tmp_path / "train.json"}
        changes |= {"images": tiny.data / split, "level": "embedding", "proposals": 40}
        caches[split] = extract.run(tiny.config(kind, tmp_path / f"{split}.zarr", **changes)).url
    assert "train.json: exhaustive annotations; background RoIs are ignored in 0 of 30 images" in caplog.text
    run(calib.__main__, "--cache", caches["train"], "--out", tmp_path / "head", "--head-type", "linear", "--steps", 5)
    val = ("--cache", caches["val"], "--head", tmp_path / "head", "--annotations", tmp_path / "val.json")
    run(fuse.__main__, "sweep", *val, "--out", tmp_path / "sweep", "--tail", 10)
    metrics = pd.read_csv(tmp_path / "sweep" / "metrics.csv", index_col="row")
    assert len(metrics) == 10 and metrics["AR@10"].between(0, 100).all()
    capsys.readouterr()
    for file in (tiny.data / "val.json", tmp_path / "val.json"):
        run(extract.__main__, "recall", caches["val"], "--annotations", file)
    lines = capsys.readouterr().out.splitlines()
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
    test = ("--cache", caches["test"], "--head", tmp_path / "head", "--annotations", tmp_path / "test.json")
    run(fuse.__main__, *test, "--out", tmp_path / "test")
    assert "test.json has no annotations, so no AP" in capsys.readouterr().out
    images = {image["id"] for image in json.loads((tmp_path / "test.json").read_text())["images"]}
    assert {found["image_id"] for found in json.loads((tmp_path / "test" / "detections.json").read_text())} == images


def test_a_class_specific_detector_is_evaluated_by_its_boxes(tiny, tmp_path, capsys):
    from safetensors.torch import save_file

    from tests.frameworks.torchvision import mask_rcnn

    options = {"num_classes": CLASSES + 1}
    save_file(mask_rcnn(**options).state_dict(), tmp_path / "w.safetensors")
    changes = {
        "detector": "torchvision:tests.frameworks.torchvision:mask_rcnn",
        "detector_options": (f"num_classes={CLASSES + 1}",),
        "weights": tmp_path / "w.safetensors",
        "min_images_per_class": 1,
    }
    train, val = (extract.run(tiny.config(s, tmp_path / f"{s}.zarr", **changes)) for s in ("train", "val"))
    assert "masks" not in val.fields and val.fields["boxes"] == (CLASSES, 4)
    run(calib.__main__, "--cache", train.url, "--out", tmp_path / "head", "--steps", 3)
    annotations = ("--annotations", tiny.data / "val.json")
    run(fuse.__main__, "--cache", val.url, "--head", tmp_path / "head", *annotations, "--out", tmp_path / "cat")
    run(fuse.__main__, "evaluate", tmp_path / "cat" / "detections.json", *annotations, "--cache", val.url)
    out = capsys.readouterr().out
    assert out.splitlines().count("Box AP") == 2 and "Mask AP" not in out


def test_heads_of_other_detectors_are_refused(tiny, tmp_path, capsys):
    train = extract.run(tiny.config("train", tmp_path / "train.zarr", min_images_per_class=1))
    calib.__main__.main(["train", "--cache", train.url, "--out", str(tmp_path / "head"), "--steps", "2"])
    other = tiny.config("val", tmp_path / "val.zarr", min_images_per_class=1, weights=tmp_path / "other.safetensors")
    content = bytearray(tiny.weights.read_bytes())
    content[-1] ^= 1
    other.weights.write_bytes(content)
    extract.run(other)
    arguments = ["--cache", other.out, "--head", str(tmp_path / "head"), "--annotations", str(other.annotations)]
    capsys.readouterr()
    assert fuse.__main__.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert "detector tensors" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.process
@pytest.mark.parametrize("package", ["extract", "calib", "fuse"])
def test_importing_a_package_is_quick_and_help_too(package):
    heavy = "{'torch', 'numba', 'zarr', 'pandas', 'h5py', 'matplotlib', 'torchvision'}"
    configs = f"{package}.config" + (", fuse.commands.config" if package == "fuse" else "")
    code = f"import sys, {package}, {configs}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    module = {"calib": "calib.train"}.get(package, package)
    code = f"import sys, runpy; sys.argv = ['x', '--help']; runpy.run_module('{module}', run_name='__main__')"
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0 and "Example: python -m" in result.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines() if "|" in line}
    assert not imported & {"torch", "numba", "zarr", "pandas"}


def test_public_names():
    for package in (extract, calib, fuse):
        for name in package.__all__:
            assert getattr(package, name) is not None
        assert set(package.__all__) <= set(dir(package))
        with pytest.raises(AttributeError, match="nonsense"):
            _ = package.nonsense
