"""The paper's detectors and their relatives from mmdetection's own configs: extracted and calibrated at a small size.

Source: Wang et al., "Classification Calibration for Long-tail Instance Segmentation" (2019); its best model is a Hybrid
Task Cascade with ResNeXt-101 64x4d, deformable convolution and multi-scale training.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import pytest

import calib
import extract
import fuse
from benchmarks import mmcv_ext
from extract.config import DetectorSpec
from extract.detectors import load_detector
from extract.verify import LOGIT_TOLERANCE, worst_logit_error
from tests.conftest import Tiny
from tests.exactness import assert_same_detections, make_images, our_detections

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the frameworks about each other, at import
    pytest.importorskip("mmcv")
    mmcv_ext.install()
    mmdet = pytest.importorskip("mmdet")
    from mmengine.config import Config

    from tests.frameworks.mmdet import infer, init_model, parsed_options, write_weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore``:UserWarning"),  # of HTC's semantic branch
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),  # of a cascade's masks
]

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
CLASSES = 1230
LOGIT_DEVIATION = 6.0
"""So large that some of 1,231 scores are above 0.05, also where the logits of three stages are averaged."""
DETECTORS = {
    "HTC X101-64x4d DCN, multi-scale": "htc/htc_x101-64x4d-dconv-c3-c5_fpn_ms-400-1400-16xb1-20e_coco.py",
    "cascade X101-32x4d DCN": "dcn/cascade-mask-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco.py",
    "Mask R-CNN X101-32x4d, LVIS": "lvis/mask-rcnn_x101-32x4d_fpn_sample1e-3_ms-2x_lvis-v0.5.py",
    "Mask R-CNN R101 DCN": "dcn/mask-rcnn_r101-dconv-c3-c5_fpn_1x_coco.py",
    "Faster R-CNN R50 DCNv2": "dcnv2/faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco.py",
    "Double-Head R-CNN": "double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py",
    "convolutions": "gn/mask-rcnn_r50_fpn_gn-all_2x_coco.py",
    "soft-NMS": "faster_rcnn/faster-rcnn_r50_fpn_soft-nms_1x_coco.py",
}
"""Detector → its config in mmdetection."""


def small_options(config: Path) -> tuple[str, ...]:
    """Options for 1,230 classes, few proposals and small images; everything else is as in the config."""
    roi_head = Config.fromfile(str(config)).model.roi_head
    heads = []
    for part in ("bbox_head", "mask_head"):
        found = roi_head.get(part, [])
        heads += [f"{part}.{i}" for i in range(len(found))] if isinstance(found, list) else [part]
    return (
        *(f"model.roi_head.{head}.num_classes={CLASSES}" for head in heads),
        "model.test_cfg.rpn.max_per_img=30",
        "model.test_cfg.rcnn.max_per_img=300",
        "test_dataloader.dataset.pipeline.1.scale=(160,112)",
    )


def write_detector(name: str, folder: Path) -> DetectorSpec:
    """Writes random weights of a detector."""
    config = CONFIGS / DETECTORS[name]
    spec = DetectorSpec("mmdet", folder / "weights.pth", config, small_options(config), device="cpu")
    deviation = None if name == "soft-NMS" else LOGIT_DEVIATION  # found by inference, which lacks soft-NMS here
    write_weights(folder, init_model, str(config), cfg_options=parsed_options(spec), deviation=deviation)
    return spec


@pytest.fixture(scope="module")
def lvis(tiny, tmp_path_factory) -> Tiny:
    """The tiny dataset with LVIS's number of classes; those that it does not have are in no image."""
    folder = tmp_path_factory.mktemp("lvis")
    for split in ("train", "val"):
        content = json.loads((tiny.data / f"{split}.json").read_text())
        used = max(category["id"] for category in content["categories"])
        last = content["categories"][-1] | {"image_count": 0, "instance_count": 0}
        missing = CLASSES - len(content["categories"])
        more = [last | {"id": used + i, "name": f"class {i}", "synset": f"class.n.{i}"} for i in range(1, missing + 1)]
        (folder / f"{split}.json").write_text(json.dumps(content | {"categories": content["categories"] + more}))
        (folder / split).symlink_to(tiny.data / split)
    return Tiny(folder, tiny.weights)


def assert_same_as_mmdetection(spec: DetectorSpec) -> None:
    """Checks detections at score thresholds 0 and 0.05 against `inference_detector`."""
    (image,) = make_images((96, 144))
    detector = load_detector(spec)
    (rois,) = detector.forward([image], "logits").rois
    model = init_model(str(spec.config_file), str(spec.weights), cfg_options=parsed_options(spec))
    for threshold in (0.0, 0.05):
        model.roi_head.test_cfg.score_thr = threshold
        (theirs,) = infer(model, [image])
        expected, _ = detector.to_arrays(theirs)
        assert len(expected.scores) > (299 if threshold == 0 else 3)
        assert_same_detections(our_detections(rois, detector, threshold), expected)


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_are_extracted_and_calibrated(name, lvis, tmp_path, caplog):
    caplog.set_level(logging.INFO, "extract")
    spec = write_detector(name, tmp_path)
    if name == "soft-NMS":
        load_detector(spec)
        assert "NMS at IoU 0.5 replaces the config's soft_nms" in caplog.text
    else:
        assert_same_as_mmdetection(spec)
    options = {"detector": "mmdet", "config_file": spec.config_file, "weights": spec.weights, "proposals": 20}
    options |= {"detector_options": spec.detector_options, "min_images_per_class": 1}
    options |= {"class_order": "id"} if "LVIS" in name else {}  # its config names LVIS's classes, the file has others
    caches = {}
    for split in ("train", "val"):
        caches[split] = extract.run(lvis.config(split, tmp_path / f"{split}.zarr", **options))
        assert caches[split].num_classes == CLASSES and worst_logit_error(caches[split]) < LOGIT_TOLERANCE
    assert "trains --head-type 2fc_rand 3fc_rand linear 3fc_ft" in caplog.text
    # Random layers are no minimum: with a larger learning rate three steps lead far away.
    head = calib.train_head(caches["train"], head_type="3fc_ft", steps=3, lr=1e-7, device="cpu")
    rois = caches["val"][0]
    own, calibrated = rois.logits.astype(np.float32), head.logits(rois)
    assert not np.array_equal(own, calibrated)
    np.testing.assert_allclose(calibrated, own, atol=0.2 * np.abs(own).max(), err_msg="it starts from the own layers")
    detections = fuse.detect(caches["val"], head, mode="cat", tail=10)
    assert len(detections) == 300 * len(caches["val"]) and np.isfinite(detections.scores).all()
