"""Mask AP of detectors with one mask per class: painted after detection, equal to the frameworks' own masks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
import tyro
from hotcoco import mask as coco_mask
from torch import nn

import extract
import fuse
import tests.frameworks.torchvision as builders
from benchmarks.minilvis import detector as minilvis
from extract.cache.mask_store import BoxClassPairs, MaskStore
from extract.config import DetectorSpec
from extract.data.annotations import read_annotations
from extract.data.images import read_image
from extract.detectors import load_detector
from extract.detectors.base import Detector, Image
from extract.detectors.class_map import map_detector
from fuse.__main__ import main
from fuse.commands.mask_config import MaskConfig
from fuse.commands.results_config import EvaluateConfig, MergeConfig
from fuse.detections import Detections
from fuse.painting import MaskPainter
from tests import frameworks
from tests.conftest import CLASSES, Tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # detectron2's anchors
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),  # of mmdetection's cascades
]
ROOT = Path(__file__).parents[1]
BUILDER = "torchvision:tests.test_painting:"


def class_specific() -> nn.Module:
    """torchvision's own heads: class-specific boxes and masks; many classes score high in every image."""
    model = builders.mask_rcnn(num_classes=CLASSES + 1)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.02)
        nn.init.normal_(model.roi_heads.mask_predictor.mask_fcn_logits.weight, std=0.3)
    return model


def shared_masks() -> nn.Module:
    """Class-agnostic boxes and masks."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = minilvis.mask_rcnn(CLASSES, rpn_post_nms_top_n_test=80)
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)
        return model


def shared_boxes() -> nn.Module:
    """Class-agnostic boxes, class-specific masks."""
    model = shared_masks()
    with torch.random.fork_rng():
        torch.manual_seed(4)
        heads = model.roi_heads
        channels = [m for m in heads.mask_predictor.modules() if isinstance(m, nn.Conv2d)][-1].in_channels
        heads.mask_predictor = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels, CLASSES + 1, 1))
        return model


def no_masks() -> nn.Module:
    """Boxes alone."""
    model = class_specific()
    model.roi_heads.mask_roi_pool = model.roi_heads.mask_head = model.roi_heads.mask_predictor = None
    return model


def torchvision_spec(name: str) -> Callable[[Path], DetectorSpec]:
    """Writes the weights of a builder above."""

    def write(folder: Path) -> DetectorSpec:
        torch.save(globals()[name]().state_dict(), folder / "weights.pth")
        return DetectorSpec(f"{BUILDER}{name}", folder / "weights.pth", device="cpu")

    return write


def mmdet_spec(kind: str, **options: object) -> Callable[[Path], DetectorSpec]:
    """Writes a detector of `tests.frameworks.mmdet`."""

    def write(folder: Path) -> DetectorSpec:
        module = frameworks.import_framework("mmdet")
        return module.write_spec(folder, getattr(module, kind)(CLASSES, **options))

    return write


SPECS = {
    "torchvision": torchvision_spec("class_specific"),
    "torchvision, shared boxes": torchvision_spec("shared_boxes"),
    "torchvision, shared masks": torchvision_spec("shared_masks"),
    "detectron2": frameworks.detectron2_spec("class-specific"),
    "detectron2, boxes without area": frameworks.detectron2_spec("boxes without area"),
    "detectron2-c4": frameworks.detectron2_spec("c4, class-specific masks"),
    "detectron2-cascade": frameworks.detectron2_spec("cascade, class-specific masks"),
    "mmdet": mmdet_spec("mask_rcnn", agnostic=False),
    "mmdet-cascade": mmdet_spec("cascade", agnostic=False),
    "mmdet-hybrid": mmdet_spec("hybrid", agnostic=False),
}


def framework_masks(detector: Detector, pixels: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The framework's own masks (P, H, W) of boxes in pixels of the image, all in one pass, without our adapter."""
    predict = {"torchvision": torchvision_masks, "detectron2": detectron2_masks, "mmdet": mmdet_masks}
    with torch.no_grad():
        return predict[detector.description["framework"]](
            detector, pixels, torch.from_numpy(boxes), torch.from_numpy(labels)
        )


def torchvision_masks(detector, pixels, boxes, labels) -> np.ndarray:
    from torchvision.models.detection.roi_heads import maskrcnn_inference

    model, size = detector.model, pixels.shape[:2]
    resized, _ = model.transform([torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255])
    (resized_size,) = resized.image_sizes
    maps, heads = model.backbone(resized.tensors), model.roi_heads
    scale = torch.tensor([new / old for new, old in zip(resized_size, size, strict=True)]).flip(0).repeat(2)
    pooled = heads.mask_roi_pool(maps, [boxes * scale], [resized_size])
    (masks,) = maskrcnn_inference(heads.mask_predictor(heads.mask_head(pooled)), [labels + 1])
    (result,) = model.transform.postprocess([{"boxes": boxes * scale, "masks": masks}], [resized_size], [size])
    return (result["masks"][:, 0] > 0.5).numpy()


def detectron2_masks(detector, pixels, boxes, labels) -> np.ndarray:
    from detectron2.structures import Boxes, Instances

    height, width = pixels.shape[:2]
    tensor = detector.to_tensor(Image(0, pixels))
    scale = torch.tensor([tensor.shape[2] / width, tensor.shape[1] / height]).repeat(2)
    instances = Instances(tuple(tensor.shape[1:]), pred_boxes=Boxes(boxes * scale), pred_classes=labels)
    instances.number = torch.arange(len(labels))
    (result,) = detector.model.inference([{"image": tensor, "height": height, "width": width}], [instances])
    masks = np.zeros((len(labels), height, width), bool)  # detectron2 leaves out boxes without area
    masks[result["instances"].number] = result["instances"].pred_masks
    return masks


def mmdet_masks(detector, pixels, boxes, labels) -> np.ndarray:
    from mmengine.structures import InstanceData

    model = detector.model
    packed = detector._pipeline({"img": np.ascontiguousarray(pixels[..., ::-1]), "img_id": 0})
    data = model.data_preprocessor({key: [value] for key, value in packed.items()}, False)
    features, (sample,) = model.extract_feat(data["inputs"]), data["data_samples"]
    instances = InstanceData(bboxes=boxes * torch.tensor(sample.scale_factor).repeat(2), labels=labels)
    semantic = []
    if type(model.roi_head).__name__ == "HybridTaskCascadeRoIHead":
        semantic = [model.roi_head.semantic_head(features)[1] if model.roi_head.with_semantic else None]
    (result,) = model.roi_head.predict_mask(features, *semantic, [sample.metainfo], [instances], rescale=True)
    return result.masks.numpy() > 0


@dataclass(frozen=True)
class Setting:
    """A val cache, its detector, and the command line that evaluates it."""

    cache: extract.RoICache
    spec: DetectorSpec
    data: Tiny

    @property
    def inputs(self) -> list[str]:
        """The options that every evaluation needs: methods without training serve for two different rows."""
        inputs = ["--cache", self.cache.url, "--annotations", str(self.data.data / "val.json")]
        return [*inputs, "--method", "norcal", "--max-detections", "30"]

    @property
    def painting(self) -> list[str]:
        """The options that paint masks."""
        spec = self.spec
        files = ["--config-file", str(spec.config_file)] if spec.config_file else []
        files += ["--weights", str(spec.weights), "--images", str(self.data.data / "val"), "--device", "cpu"]
        return ["--detector", spec.detector, *files, *spec.detector_options]

    def image(self, image_id: int) -> np.ndarray:
        """Reads an image of the dataset."""
        annotations = read_annotations(self.data.data / "val.json")
        names = annotations.file_names[int(np.searchsorted(annotations.image_ids, image_id))]
        return read_image(self.data.data / "val", names, (112, 112))


def make_setting(tiny: Tiny, folder: Path, write_spec: Callable[[Path], DetectorSpec], **changes: object) -> Setting:
    spec = write_spec(folder)
    cache = extract.run(tiny.config("val", folder / "val.zarr", level="logits", **vars(spec), **changes))
    assert "masks" not in cache.fields
    return Setting(cache, spec, tiny)


@pytest.fixture(scope="module")
def setting(tiny, tmp_path_factory) -> Setting:
    """torchvision's detector with class-specific boxes and masks; nothing painted yet."""
    return make_setting(tiny, tmp_path_factory.mktemp("painting"), SPECS["torchvision"])


@pytest.fixture
def fresh(setting, tmp_path) -> Setting:
    """A copy of the setting's cache, so that the test has a store of its own."""
    (tmp_path / "val.zarr").symlink_to(setting.cache.url)
    return replace(setting, cache=extract.open_cache(str(tmp_path / "val.zarr")))


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def decoded(rles: list[dict]) -> np.ndarray:
    """(P, H, W) bool."""
    return np.stack([np.asarray(coco_mask.decode(rle), bool) for rle in rles])


def assert_frameworks_masks(setting: Setting, detections: Detections, images: int = 3) -> None:
    """Compares, pixel for pixel, the masks of some images with those of the framework at the same boxes."""
    assert len(np.unique(detections.category_ids)) > 1
    detector, flipped = load_detector(setting.spec), setting.cache.images.set_index("image_id")["flipped"]
    for image_id in np.unique(detections.image_ids)[:images].tolist():
        part = detections.take(detections.image_ids == image_id)
        labels = np.searchsorted(setting.cache.classes["category_id"], part.category_ids).astype(np.int64)
        pixels, boxes = setting.image(image_id), part.boxes
        if flipped[image_id]:
            pixels, boxes = pixels[:, ::-1], extract.data.images.flip_boxes(boxes, 112)
        outputs = labels if setting.cache.class_map is None else setting.cache.class_map.to_outputs(labels)
        expected = np.zeros((len(part), 112, 112), bool)
        expected[outputs >= 0] = framework_masks(detector, pixels, boxes[outputs >= 0], outputs[outputs >= 0])
        found = decoded(part.rles)
        assert found.any()
        np.testing.assert_array_equal(found, expected[:, :, ::-1] if flipped[image_id] else expected)


@pytest.mark.long
@pytest.mark.parametrize("kind", SPECS)
def test_masks_equal_the_frameworks(kind, tiny, tmp_path, capsys):
    changes = {"masks": False} if "shared masks" in kind else {}
    setting = make_setting(tiny, tmp_path, SPECS[kind], proposals=40, **changes)
    run(*setting.inputs, "--mode", "calibrated", "--out", tmp_path / "out", *setting.painting)
    assert "Mask AP" in capsys.readouterr().out
    detections = Detections.from_json(tmp_path / "out" / "detections.json")
    assert len(detections) > 100
    if "without area" in kind:
        assert (detections.boxes[:, 2:] == detections.boxes[:, :2]).any()
    assert_frameworks_masks(setting, detections)


def test_flipped_images_are_painted_flipped(tiny, tmp_path):
    setting = make_setting(tiny, tmp_path, SPECS["torchvision"], proposals=40, flip=1)
    assert setting.cache.images["flipped"].all()
    run(*setting.inputs, "--mode", "calibrated", "--out", tmp_path / "out", *setting.painting)
    assert_frameworks_masks(setting, Detections.from_json(tmp_path / "out" / "detections.json"))


@pytest.mark.long
def test_masks_follow_their_class_and_are_empty_without_output(tiny, tmp_path):
    annotations = read_annotations(tiny.data / "val.json")
    names = annotations.classes["name"].tolist()
    (tmp_path / "names.txt").write_text("\n".join(["N/A", *names[:0:-1]]))  # the first class has no output
    setting = make_setting(tiny, tmp_path, SPECS["torchvision"], classes=tmp_path / "names.txt")
    assert setting.cache.class_map.outputs == (-1, *range(11, 0, -1))
    run(*setting.inputs, "--mode", "calibrated", "--out", tmp_path / "out", *setting.painting)
    assert_frameworks_masks(setting, Detections.from_json(tmp_path / "out" / "detections.json"))

    image_id, classes = int(setting.cache.images["image_id"][0]), annotations.classes["category_id"].to_numpy()[:2]
    pairs = BoxClassPairs(np.array([image_id] * 2), classes, np.float32([[20, 20, 80, 80]] * 2))
    detector = map_detector(load_detector(setting.spec), setting.cache.class_map)
    painter = MaskPainter(detector, setting.cache, annotations, tiny.data / "val")
    (painted,) = painter.paint(MaskStore(setting.cache).by_block(pairs))
    empty, other = decoded([{"size": [112, 112], "counts": text} for text in painted.counts])
    assert not empty.any() and other.any()


@pytest.mark.long
def test_rows_of_a_sweep_are_painted_once_and_read_from_then_on(fresh, tmp_path, capsys, caplog):
    boxes = tmp_path / "boxes"
    with caplog.at_level("INFO"):
        run("sweep", *fresh.inputs, "--out", boxes)
    (line,) = [message for message in caplog.messages if "no masks" in message]
    assert line.endswith("boxes are evaluated")
    for option in ("--detector torchvision:tests.test_painting:class_specific", "--weights …", "--images …"):
        assert option in line
    assert "Box AP" in capsys.readouterr().out

    painted, predict = [], MaskPainter._predict

    def counted(self, output, boxes, labels):
        painted.extend(zip([output.rois[0].image_id] * len(labels), labels.tolist(), boxes.tolist(), strict=True))
        return predict(self, output, boxes, labels)

    masks, later, again = tmp_path / "masks", tmp_path / "later", tmp_path / "again"
    types = ["--iou-types", "segm", "bbox"]
    with patch.object(MaskPainter, "_predict", counted):
        run("sweep", *fresh.inputs, *types, "--out", masks, *fresh.painting)
        first = len(painted)
        run("sweep", *fresh.inputs, *types, "--out", again, *fresh.painting)
    assert first == len(painted) == len({str(one) for one in painted}) > 300
    tables = [pd.read_csv(out / "metrics.csv", index_col=["iou_type", "row"]) for out in (masks, again, boxes)]
    assert len(tables[0].loc["segm"]) == 10 and tables[0].loc["segm", "AP"].between(0, 100).all()
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0].loc[["bbox"]], tables[2])

    run(*fresh.inputs, "--mode", "calibrated", "--out", later)  # without the detector
    assert_frameworks_masks(fresh, Detections.from_json(later / "detections.json"), images=1)
    capsys.readouterr()
    run(*fresh.inputs, "--mode", "calibrated", "--out", tmp_path / "none", "--masks", "none")
    assert "Box AP" in capsys.readouterr().out
    assert main([*fresh.inputs, "--gamma", "0.1", "--mode", "calibrated", "--out", str(tmp_path / "gamma")]) == 1
    error = capsys.readouterr().err
    assert "masks are not painted yet: add --detector torchvision:tests.test_painting:class_specific" in error


def test_an_interrupted_run_paints_only_the_rest(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr("extract.cache.mask_store.IMAGES_PER_BLOCK", 4)
    arguments = [*fresh.inputs, "--mode", "calibrated", "--out", str(tmp_path / "out"), *fresh.painting]
    images, load = [], MaskPainter._load

    def loaded(self, image_id):
        images.append(image_id)
        return load(self, image_id)

    write = MaskStore.write
    monkeypatch.setattr(MaskPainter, "_load", loaded)

    def interrupted(self, *part):
        write(self, *part)
        raise KeyboardInterrupt

    with patch.object(MaskStore, "write", interrupted):
        assert main(arguments) == 130
    images.clear()
    run(*arguments)
    assert len(images) == 1 + 8, "one to check the detector"
    assert_frameworks_masks(fresh, Detections.from_json(tmp_path / "out" / "detections.json"), images=5)


def test_other_detectors_images_and_options_are_refused(fresh, tiny, tmp_path, capsys):
    def error(*arguments: object) -> str:
        assert main([*fresh.inputs, "--out", str(tmp_path / "out"), *map(str, arguments)]) == 1
        return capsys.readouterr().err

    spec = fresh.spec
    images = ("--images", tiny.data / "val")
    given = ("--detector", spec.detector, "--weights", spec.weights)
    with pytest.raises(ValueError, match="weights is given without --detector"):
        MaskConfig(weights="x")
    assert "images: give the folder of the images that " in error(*given)
    assert "no masks: " in error("--iou-types", "segm")
    other = torch.load(spec.weights)
    other["roi_heads.box_predictor.cls_score.bias"] += 1
    torch.save(other, tmp_path / "other.pth")
    assert "detector tensors" in error("--detector", spec.detector, "--weights", tmp_path / "other.pth", *images)
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}: has no " in error(*given, "--images", tmp_path / "empty")
    assert not (tmp_path / "out").exists() and not MaskStore(fresh.cache)


def test_the_boxes_of_a_cache_tell_its_detector(setting):
    """Equal weights in a detector of another input size propose other boxes."""
    annotations = read_annotations(setting.data.data / "val.json")
    detector = load_detector(setting.spec)
    MaskPainter(detector, setting.cache, annotations, setting.data.data / "val").check()
    with pytest.raises(ValueError, match=r"the detector proposes \d+% of the boxes in the cache, expected almost all"):
        MaskPainter(detector.resized(200, 300), setting.cache, annotations, setting.data.data / "val").check()
    with pytest.raises(ValueError, match="lacks 12 images of"):
        MaskPainter(
            detector, setting.cache, replace(annotations, image_ids=annotations.image_ids + 900), Path()
        ).check()


def test_a_detector_without_masks_is_refused(tiny, tmp_path, capsys):
    setting = make_setting(tiny, tmp_path, torchvision_spec("no_masks"))
    arguments = [*setting.inputs, "--mode", "calibrated", "--out", str(tmp_path / "out"), *setting.painting]
    assert main(arguments) == 1
    assert "predicts no masks; use --masks none" in capsys.readouterr().err
    run(*arguments, "--masks", "none")


@pytest.mark.long
@pytest.mark.parametrize("method", ["nms", "wbf"])
def test_merged_boxes_are_painted(fresh, method, tmp_path, capsys):
    if method == "wbf":
        pytest.importorskip("ensemble_boxes")
    for mode in ("original", "calibrated"):
        run(*fresh.inputs, "--mode", mode, "--out", tmp_path / mode, "--masks", "none")
    files = [tmp_path / mode / "detections.json" for mode in ("original", "calibrated")]
    inputs = ["merge", *files, "--annotations", tiny_annotations(fresh), "--cache", fresh.cache.url, "--method", method]
    run(*inputs, "--out", tmp_path / "boxes")
    painting = ["--detector-weights" if option == "--weights" else option for option in fresh.painting]
    run(*inputs, "--out", tmp_path / "masks", *painting)
    out = capsys.readouterr().out
    assert out.splitlines().count("Mask AP") == 1
    assert_frameworks_masks(fresh, Detections.from_json(tmp_path / "masks" / "detections.json"))
    options = {"detections": tuple(files), "annotations": files[0], "out": tmp_path, "train_annotations": files[0]}
    with pytest.raises(ValueError, match="detector is given without --cache"):
        MergeConfig(**options, detector="mmdet", images=tmp_path)


@pytest.mark.long
def test_results_without_masks_get_those_that_are_painted(fresh, tiny, tmp_path, capsys, caplog):
    """`fuse evaluate` and `fuse merge` read the store that a notebook, or they themselves, have filled."""
    caplog.set_level("INFO")
    for gamma in ("0.6", "0.5"):
        run(*fresh.inputs, "--gamma", gamma, "--mode", "calibrated", "--out", tmp_path / gamma, "--masks", "none")
    file, other = (tmp_path / gamma / "detections.json" for gamma in ("0.6", "0.5"))
    inputs = ["--annotations", tiny_annotations(fresh), "--cache", fresh.cache.url, "--max-detections", "30"]

    def evaluated(*arguments: object) -> str:
        capsys.readouterr(), caplog.clear()
        run("evaluate", file, *inputs, *arguments)
        return capsys.readouterr().out

    boxes = evaluated()
    assert "Box AP" in boxes and "masks" not in caplog.text
    detections, detector = Detections.from_json(file), load_detector(fresh.spec)
    with pytest.raises(ValueError, match="360 of 360 masks are not painted yet: give their detector"):
        fuse.paint_masks(detections, fresh.cache)
    with pytest.raises(ValueError, match="annotations and images: give both with a detector"):
        fuse.paint_masks(detections, fresh.cache, detector)
    files = tiny_annotations(fresh), tiny.data / "val"
    few = fuse.paint_masks(detections.take(slice(0, 9)), fresh.cache, detector, *files)
    assert len(few.rles) == 9
    assert evaluated() == boxes
    assert "351 of 360 masks are not painted yet; boxes are evaluated; to paint masks, add --detector" in caplog.text
    assert main(list(map(str, ["evaluate", file, *inputs, "--iou-types", "segm"]))) == 1
    assert "351 of 360 masks are not painted yet: add --detector" in capsys.readouterr().err

    masks = evaluated(*fresh.painting)
    assert "Mask AP" in masks and evaluated() == masks and evaluated("--masks", "none") == boxes
    rows = fuse.paint_masks({"file": detections, "few": few}, fresh.cache)
    assert_frameworks_masks(fresh, rows["file"])
    assert rows["few"] is few
    fuse.paint_masks(Detections.from_json(other), fresh.cache, detector, *files)
    run("merge", file, other, *inputs, "--out", tmp_path / "merged")
    assert "Mask AP" in capsys.readouterr().out
    elsewhere = replace(detections, image_ids=detections.image_ids + 900)
    with pytest.raises(ValueError, match="the cache has no image"):
        fuse.paint_masks(elsewhere, fresh.cache, detector, *files)


def test_a_detectors_own_options_follow_the_file_of_results():
    inputs = ["a.json", "--annotations", "v.json", "--cache", "c", "--detector", "detectron2"]
    config = tyro.cli(EvaluateConfig, args=[*inputs, "--images", "i", "MODEL.X", "3"])
    assert (config.detections, config.detector_options) == (Path("a.json"), ("MODEL.X", "3"))


def tiny_annotations(setting: Setting) -> Path:
    return setting.data.data / "val.json"


@pytest.mark.process
@pytest.mark.long
def test_processes_share_the_painting(fresh, tmp_path):
    arguments = [*fresh.inputs, "--mode", "calibrated", "--out", str(tmp_path / "out"), *fresh.painting]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "fuse"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("Mask AP") == 1 and done.stderr.count("painting ") == 1
    assert not [name for name in MaskStore(fresh.cache)._files.names() if "request" in name]
    assert_frameworks_masks(fresh, Detections.from_json(tmp_path / "out" / "detections.json"), images=2)
