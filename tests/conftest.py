"""What all tests share: a tiny Mini-LVIS with a random detector, and the markers' checks."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy.testing  # noqa: F401  which starts `lscpu` with NumPy 2.0
import pytest
import torch  # starts `ldconfig` when it is first imported, which would be in the first test that needs it

from extract import Config

CLASSES = 12
FRAMEWORKS = ("torchvision", "detectron2", "mmdet", "mmcv", "mmengine")
FRAMEWORK_MODULES = {
    "test_deform_conv.py",
    "test_detectron2.py",
    "test_distributed_extraction.py",
    "test_exports.py",
    "test_extraction.py",
    "test_hidden.py",
    "test_live.py",
    "test_mmdet.py",
    "test_own_classes.py",
    "test_permuted.py",
    "test_paper_detectors.py",
    "test_painting.py",
    "test_plugins.py",
    "test_precision.py",
    "test_predict.py",
    "test_readers.py",
    "test_scale.py",
    "test_torchvision.py",
    "test_trained.py",
    "test_weights.py",
}
"""Test modules that import a framework, so that all their tests are marked `framework`."""

os.fsync = lambda _: None  # test outputs need not survive a power failure, and the disk is slow
platform.processor()  # starts `uname` at its first call, which importing h5py would be


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Does not import the modules whose tests `-m "not framework"` would only deselect."""
    excluded = "not framework" in config.option.markexpr and collection_path.name in FRAMEWORK_MODULES
    return True if excluded else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in FRAMEWORK_MODULES or "tiny" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.framework)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Makes the import of a framework an error where no test is marked `framework`: the one that fails lacks it."""
    if session.items and not any(item.get_closest_marker("framework") for item in session.items):
        imported = [name for name in FRAMEWORKS if name in sys.modules]
        if imported:
            raise pytest.UsageError(f"{imported} imported, but no test is marked framework: see FRAMEWORK_MODULES")
        sys.modules.update(dict.fromkeys(FRAMEWORKS))


@pytest.fixture(autouse=True)
def only_marked_tests_start_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.node.get_closest_marker("process"):

        def refuse(*_: object, **__: object) -> None:
            pytest.fail("a test that starts a process needs the marker `process`")

        monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
        monkeypatch.setattr(BaseProcess, "start", refuse)


@dataclass(frozen=True)
class Tiny:
    """Where the tiny dataset and the detector's weights are."""

    data: Path
    weights: Path

    def config(self, split: str, out: Path, **changes) -> Config:
        """The config that extracts a split with the random detector."""
        config = Config(
            detector="torchvision:benchmarks.minilvis.detector:mask_rcnn",
            weights=self.weights,
            detector_options=(f"num_classes={CLASSES}",),
            annotations=self.data / f"{split}.json",
            train_annotations=self.data / "train.json",
            images=self.data / split,
            out=str(out),
            split=split,
            proposals=60,
            device="cpu",
        )
        return replace(config, **changes)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    """12 classes, 30 training and 12 validation images of 112 pixels; tests that use it are marked `framework`."""
    from safetensors.torch import save_file

    from benchmarks.minilvis import make
    from benchmarks.minilvis.detector import mask_rcnn

    folder = tmp_path_factory.mktemp("tiny")
    make.make(make.Config(out=folder, classes=CLASSES, train_images=30, eval_images=12, size=112, workers=1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(mask_rcnn(CLASSES).state_dict(), folder / "random.safetensors")
    return Tiny(folder, folder / "random.safetensors")
