"""The readers of the adapters are, pixel for pixel, those of their frameworks."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

import extract
import fuse
from benchmarks import mmcv_ext
from extract.data.decoding import decode_unturned
from extract.data.images import SizedReader
from extract.detectors import load_detector
from extract.detectors.base import Image, reader_of
from tests.image_kinds import ORIENTATION, colours, write_kinds

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the frameworks at import
    pytest.importorskip("detectron2.modeling")
    pytest.importorskip("mmcv")
    mmcv_ext.install()
    pytest.importorskip("mmdet")
    import mmcv
    from detectron2.data import DatasetMapper
    from detectron2.data.detection_utils import read_image
    from detectron2.data.transforms import ResizeShortestEdge
    from mmcv.transforms import Compose, LoadImageFromFile
    from mmengine.registry import DefaultScope

    from extract.detectors.detectron2 import IMAGE_FORMATS, Detectron2Detector
    from extract.detectors.mmdet_images import image_reader, swap_colours
    from tests.frameworks.detectron2 import write_reference
    from tests.frameworks.mmdet import changed, mask_rcnn, write_spec

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # detectron2's anchors
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),  # detectron2's mapper
    pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning"),  # PIL, of detectron2's reader
]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, Path]:
    return write_kinds(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="module")
def detectron2_detector(tmp_path_factory) -> Detectron2Detector:
    return load_detector(write_reference("class-agnostic", tmp_path_factory.mktemp("detectron2")).spec)


def test_detectron2(kinds, detectron2_detector):
    read = reader_of(detectron2_detector)
    for name, path in kinds.items():
        np.testing.assert_array_equal(read(path), read_image(str(path), "BGR")[:, :, ::-1], name)


def test_clipped_grey_is_reported_once(kinds, detectron2_detector, caplog):
    with DefaultScope.overwrite_default_scope("mmdet"):
        SizedReader(image_reader({"type": "LoadImageFromFile"}))(kinds["deep.png"], None)
    for name in ("bit.png", "colour.png"):
        SizedReader(detectron2_detector.read_image)(kinds[name], None)
    assert not caplog.records
    for name, kind in (("deep.png", 100), ("deep.tif", 100), ("fractions.tif", 100)):
        caplog.clear()
        read = SizedReader(detectron2_detector.read_image)
        read(kinds[name], None), read(kinds[name], None)
        (record,) = caplog.records
        assert f"{name}: {kind}% of the pixels are 0 or 255, because the reader of the detector's" in record.message


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_detectron2_input(kinds, detectron2_detector, image_format):
    resize = ResizeShortestEdge(30, 60)
    mapper = DatasetMapper(is_train=False, augmentations=[resize], image_format=image_format)
    detector = copy.copy(detectron2_detector)
    detector._image_format, detector._resize = image_format, resize
    for name, path in kinds.items():
        ours = detector.to_tensor(Image(1, detector.read_image(path)))
        torch.testing.assert_close(ours, mapper({"file_name": str(path)})["image"].float(), rtol=0, atol=0, msg=name)


STEPS = [
    {},
    {"color_type": "color_ignore_orientation"},
    {"imdecode_backend": "pillow"},
    {"color_type": "grayscale"},
    {"color_type": "unchanged"},
    {"imdecode_backend": "pillow", "color_type": "grayscale_ignore_orientation"},
    {"imdecode_backend": "tifffile"},
    {"to_float32": True, "backend_args": None},
]


@pytest.mark.parametrize("options", STEPS, ids=str)
def test_mmdetection(kinds, options):
    step = LoadImageFromFile(**options)
    with DefaultScope.overwrite_default_scope("mmdet"):
        read = image_reader({"type": "LoadImageFromFile", **options})
    readable = 0
    for name, path in kinds.items():
        try:
            theirs = step({"img_path": str(path)})["img"]
        except Exception:
            with pytest.raises(ValueError, match=f"{name}: not a readable image"):
                read(path)
        else:
            np.testing.assert_array_equal(swap_colours(read(path)), theirs, name)
            readable += 1
    assert readable >= (5 if "tifffile" in options.values() else 25)


def test_mmdetection_by_default(kinds):
    with DefaultScope.overwrite_default_scope("mmdet"):
        read = image_reader({"type": "mmdet.LoadImageFromNDArray"})
    for name in ("colour.jpg", "deep.png", "alpha.png", "turned6.jpg"):
        np.testing.assert_array_equal(read(kinds[name]), mmcv.imread(kinds[name])[..., ::-1], name)


def test_mmdetection_input(kinds, tmp_path):
    """The model's input from a file is that of the config's whole test pipeline; here of grey floats."""
    config = changed(
        mask_rcnn(),
        model__data_preprocessor__mean=[120.0],
        model__data_preprocessor__std=[60.0],
        model__data_preprocessor__bgr_to_rgb=False,
        model__backbone__in_channels=1,
    )
    step = config["test_dataloader"]["dataset"]["pipeline"][0]
    step |= {"color_type": "grayscale", "to_float32": True}
    spec = write_spec(tmp_path, config)
    detector = load_detector(spec)
    with DefaultScope.overwrite_default_scope("mmdet"):
        pipeline = Compose(config["test_dataloader"]["dataset"]["pipeline"])
    for name in ("deep.png", "turned6.jpg"):
        packed = pipeline({"img_path": str(kinds[name]), "img_id": 1})
        theirs = detector.model.data_preprocessor({key: [value] for key, value in packed.items()}, False)["inputs"]
        ours = detector._preprocess([Image(1, detector.read_image(kinds[name]))])["inputs"]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    (result,) = fuse.CalibratedDetector(detector, mode="original")(kinds["turned6.jpg"])
    assert result.ori_shape == (40, 24)


def test_torchvision(tiny, kinds):
    read = reader_of(load_detector(tiny.config("val", "unused")))
    assert read is decode_unturned
    for name, path in kinds.items():
        if not name.startswith(("deep.", "transparent-palette")):
            with PILImage.open(path) as image:
                np.testing.assert_array_equal(read(path), np.asarray(image.convert("RGB")), name)


@pytest.mark.parametrize("turned", [False, True])
def test_extraction_follows_the_annotations(tiny, tmp_path, turned, caplog):
    """torchvision leaves images as they are stored; annotations may be of the upright image."""
    content = json.loads((tiny.data / "val.json").read_text())
    image = content["images"][0]
    shutil.copytree(tiny.data / "val", tmp_path / "val")
    exif = PILImage.Exif()
    exif[ORIENTATION] = 6
    pixels = colours().repeat(3, 0).repeat(3, 1)  # 72 high, 120 wide
    PILImage.fromarray(pixels).save(tmp_path / "val" / image["file_name"], exif=exif, quality=95, format="jpeg")
    image["height"], image["width"] = (120, 72) if turned else (72, 120)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != image["id"]]
    (tmp_path / "val.json").write_text(json.dumps(content))
    config = tiny.config(
        "val", tmp_path / "cache", annotations=tmp_path / "val.json", images=tmp_path / "val", level="logits"
    )
    rois = extract.run(config).image(image["id"])
    stored = decode_unturned(tmp_path / "val" / image["file_name"])
    expected = np.rot90(stored, -1) if turned else stored
    (direct,) = load_detector(config).forward([Image(image["id"], expected)], "logits").rois
    np.testing.assert_allclose(rois.boxes, direct.boxes[: len(rois)], atol=1e-3)
    assert ("are turned by their EXIF orientation (6)" in caplog.text) == turned
