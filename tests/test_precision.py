"""Half precision: outputs within a tolerance of fp32's, what records it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

import extract
import tests.frameworks.torchvision as builders
from extract.config import DetectorSpec
from extract.detectors import load_detector
from extract.detectors.base import ImageDetections
from extract.detectors.identity import check_same_detector, precision_of
from extract.detectors.precision import lacks_instructions, set_precision
from extract.detectors.torchvision import TorchvisionDetector
from extract.verify import worst_logit_error
from fuse.commands.mask_config import MaskConfig
from fuse.commands.masks import PaintedMasks
from fuse.painting import load_painter
from tests import frameworks
from tests.exactness import assert_layers_give_logits, make_images

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # detectron2's anchors
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),  # of mmdetection's cascades
]
BOXES = np.float32([[10, 20, 60, 70], [0, 0, 144, 96], [90, 30, 110, 90], [30, 5, 55, 40]])
TOLERANCE = {"bf16": 0.04, "fp16": 0.04 / 6}
"""Of features, logits and boxes, relative to the largest."""
AMPLIFIED = {"detectron2, convolutions": 2.5}
"""Factors of the tolerance: group normalisation of a random box head amplifies what the backbone has rounded."""


def detectron2(kind: str) -> Callable[[Path], DetectorSpec]:
    def write(folder: Path) -> DetectorSpec:
        return frameworks.import_framework("detectron2").write_reference(kind, folder).spec

    return write


def mmdet(kind: str) -> Callable[[Path], DetectorSpec]:
    def write(folder: Path) -> DetectorSpec:
        module = frameworks.import_framework("mmdet")
        return module.write_spec(folder, module.KINDS[kind]())

    return write


def torchvision(name: str) -> Callable[[Path], DetectorSpec]:
    def write(folder: Path) -> DetectorSpec:
        torch.save(getattr(builders, name)().state_dict(), folder / "weights.pth")
        target = f"torchvision:{builders.__name__}:{name}"
        return DetectorSpec(target, folder / "weights.pth", device="cpu")

    return write


AGNOSTIC = "torchvision, class-agnostic"
SPECS = {
    AGNOSTIC: torchvision("class_agnostic"),
    "torchvision, class-specific": torchvision("mask_rcnn"),
    "torchvision, convolutions": torchvision("convolutions"),
    "detectron2, class-agnostic": detectron2("class-agnostic"),
    "detectron2, c4": detectron2("c4"),
    "detectron2, cascade": detectron2("cascade"),
    "detectron2, convolutions": detectron2("convolutions"),
    "mmdet, class-agnostic": mmdet("class-agnostic"),
    "mmdet, hybrid, semantic": mmdet("hybrid, semantic"),
    "mmdet, cascade with convolutions": mmdet("cascade with convolutions"),
}


def select_boxes(index: int, proposals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Selects no proposal and appends the same boxes at every precision, which no stage refines."""
    return np.empty(0, np.int64), BOXES


@pytest.mark.parametrize(
    ("kind", "precision"), [*((kind, "bf16") for kind in SPECS), (AGNOSTIC, "fp16"), ("detectron2, c4", "fp16")]
)
def test_outputs_are_close_to_those_of_fp32(kind, precision, tmp_path):
    spec, images = SPECS[kind](tmp_path), make_images((96, 144), (96, 144))
    exact, reduced = load_detector(spec), load_detector(replace(spec, precision=precision))
    outputs = [detector.forward(images, "pooled", select_boxes) for detector in (exact, reduced)]
    tolerance = TOLERANCE[precision] * AMPLIFIED.get(kind, 1)
    for theirs, ours in zip(*(output.rois for output in outputs), strict=True):
        for field in ("features", "logits", "boxes"):
            expected, found = (torch.as_tensor(getattr(rois, field)) for rois in (theirs, ours))
            assert found.dtype == torch.float32
            difference = float((found - expected).abs().max() / expected.abs().max())
            assert 0 < difference < tolerance, (field, difference)
    labels = np.zeros(len(BOXES), np.int64)
    detections = [ImageDetections(BOXES, labels, np.ones(len(BOXES), np.float32))] * 2
    for theirs, ours in zip(*(output.to_framework(detections) for output in outputs), strict=True):
        (_, expected), (_, found) = exact.to_arrays(theirs), reduced.to_arrays(ours)
        assert (expected is None) == (found is None) and (found is None or (found != expected).mean() < 10 * tolerance)
    if exact.has_masks:
        for theirs, ours in zip(*(output.masks() for output in outputs), strict=True):
            assert np.abs(theirs.astype(int) - ours).max() < 255 * tolerance
    proposals = [detector.forward(images, "logits").rois[0].proposals[:, 0] for detector in (exact, reduced)]
    distance = np.abs(proposals[0][:, None] - proposals[1]).max(2)
    assert np.median(distance.min(1)) < 50 * tolerance


@pytest.mark.parametrize("kind", ["torchvision, convolutions", "mmdet, class-agnostic", "detectron2, cascade"])
def test_features_give_the_logits(kind, tmp_path):
    detector = load_detector(replace(SPECS[kind](tmp_path), precision="bf16"))
    assert_layers_give_logits(detector, make_images((96, 144)))


@pytest.fixture(scope="module")
def caches(tiny, tmp_path_factory):
    """Precision → val cache of a few images."""
    folder = tmp_path_factory.mktemp("precision")
    return {p: extract.run(tiny_config(tiny, folder / p, precision=p)) for p in ("fp32", "bf16")}


def tiny_config(tiny, out: Path, **changes) -> extract.Config:
    return tiny.config("val", out, min_images_per_class=1, proposals=20, **changes)


def test_a_cache_records_its_precision_and_its_logits_follow_from_its_features(caches):
    assert {name: precision_of(cache.detector) for name, cache in caches.items()} == {"fp32": "fp32", "bf16": "bf16"}
    exact, reduced = caches["fp32"].header, caches["bf16"].header
    assert "precision" not in exact.detector["settings"] and exact.provenance == reduced.provenance
    assert exact.detector["tensors_sha256"] == reduced.detector["tensors_sha256"]
    assert worst_logit_error(caches["bf16"]) < 5e-3


@pytest.mark.parametrize(("there", "now"), [("fp32", "bf16"), ("bf16", "fp32"), ("bf16", "fp16")])
def test_another_precision_does_not_resume(caches, tiny, there, now):
    message = f"was made with other options: precision \\('{there}' there, '{now}' now\\); --overwrite starts anew$"
    with pytest.raises(extract.CacheError, match=message):
        extract.run(tiny_config(tiny, Path(caches[there].url), precision=now))
    assert extract.run(tiny_config(tiny, Path(caches[there].url), precision=there)).url == caches[there].url


def test_another_precision_is_said_where_cache_head_and_detector_meet(caches, caplog):
    exact, reduced = caches["fp32"], caches["bf16"]
    check_same_detector(reduced.url, reduced.detector, "of the other", reduced.detector)
    check_same_detector("old", {**exact.detector, "settings": {}}, "of the other", reduced.detector)
    assert not caplog.records
    check_same_detector(reduced.url, reduced.detector, "the head was trained for", exact.detector)
    assert caplog.messages == [f"{reduced.url}: precision of the detector bf16, the head was trained for fp32"]


def test_masks_are_painted_in_the_precision_of_the_cache(caches, tiny):
    spec = tiny_config(tiny, Path("unused"))
    config = MaskConfig(
        detector=spec.detector,
        weights=spec.weights,
        detector_options=spec.detector_options,
        images=spec.images,
        device="cpu",
    )
    for name, cache in caches.items():
        loaded = []
        with patch("fuse.commands.masks.load_detector", lambda s: loaded.append(load_detector(s)) or loaded[-1]):  # noqa: B023
            PaintedMasks(config, cache, spec.annotations)._painter.check()
        assert precision_of(loaded[0].description) == name


def test_painting_in_another_precision_is_refused(caches, tiny):
    spec = tiny_config(tiny, Path("unused"))
    with pytest.raises(ValueError, match="precision of its detector is bf16: load the detector in it to paint masks$"):
        load_painter(load_detector(spec), caches["bf16"], spec.annotations, spec.images)


def test_weights_in_half_precision_are_not_exported(tiny):
    detector = load_detector(replace(tiny.config("val", "unused"), precision="bf16"))
    with pytest.raises(ValueError, match="is in half precision: load the detector with precision fp32"):
        detector.state_dict_with_classifiers(detector.fc_layers("embedding")[0][-1:])


def test_a_precision_that_cannot_be_had_is_refused_in_one_line(tmp_path):
    detector = TorchvisionDetector(builders.mask_rcnn())
    with pytest.raises(ValueError, match="precision is 'fp8', expected one of fp32, bf16, fp16"):
        set_precision(detector, "fp8")
    with patch.object(TorchvisionDetector, "half_precision_parts", None), pytest.raises(ValueError, match="fp32 only"):
        set_precision(detector, "bf16")
    set_precision(detector, "fp16")
    detector.model.backbone.body.conv1.weight.mul_(1e6)
    with pytest.raises(ValueError, match="^precision fp16: values of Backbone exceed its range; use bf16$"):
        detector.forward(make_images((96, 96)), "logits")


def test_an_operation_that_does_not_exist_is_refused_in_one_line():
    def fail(*_: object) -> None:
        raise RuntimeError('"op" not implemented\nfor BFloat16')

    detector = TorchvisionDetector(builders.mask_rcnn())
    detector.model.backbone.forward = fail
    set_precision(detector, "bf16")
    expected = '^precision bf16: Backbone cannot run in it on cpu: "op" not implemented for BFloat16$'
    with pytest.raises(ValueError, match=expected):
        detector.forward(make_images((96, 96)), "logits")


def test_a_device_without_the_instructions_gets_a_warning(caplog):
    for flags, lacking in (({"avx2"}, True), ({"avx2", "avx512_bf16"}, False), (set(), False)):
        caplog.clear()
        with patch("extract.detectors.precision.cpu_flags", lambda flags=flags: frozenset(flags)):
            set_precision(TorchvisionDetector(builders.single_level()), "bf16")
        assert caplog.messages == ["precision bf16: cpu lacks its instructions; fp32 may be faster"] * lacking
    for capability, lacking in (((7, 5), True), ((8, 0), False)):
        with patch("torch.cuda.get_device_capability", lambda _, capability=capability: capability):
            assert lacks_instructions(torch.device("cuda"), "bf16") == lacking
            assert not lacks_instructions(torch.device("cuda"), "fp16")
