"""Files that version 0.1.0 wrote, opened by today's library; see `data/legacy/README.md`."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import calib
import extract
import fuse
from extract.__main__ import main as extract_main

LEGACY = Path(__file__).parent / "data" / "legacy"
CACHES = ("torchvision-train", "torchvision-val", "detectron2-val", "mmdet-val")
HEADS = {
    "linear": "torchvision-val",
    "2fc_rand": "torchvision-val",
    "3fc_rand": "torchvision-val",
    "3fc_ft": "torchvision-val",
    "detectron2-linear": "detectron2-val",
    "mmdet-linear": "mmdet-val",
}
"""Folder of a head → the cache that it scores."""
EXPORTS = {
    "torchvision": ("cat", "cat-thr", "cat-scale", "avg", "new", "original"),
    "detectron2": ("cat", "cat-thr", "new"),
    "mmdet": ("cat", "cat-thr", "new"),
}
"""Framework → modes that its detector was exported with."""
CLASSES = 6

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # detectron2's anchors
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),  # mmdetection's masks
]


def torchvision_model() -> nn.Module:
    """The torchvision detector of the files, without weights. Its name and its layers stay what they are."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    body = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU())
    body.out_channels = 4
    return FasterRCNN(
        body,
        rpn_anchor_generator=AnchorGenerator(((16, 28),), ((0.75, 1.33),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        box_head=TwoMLPHead(4 * 7 * 7, 16),
        box_predictor=FastRCNNPredictor(16, CLASSES + 1),
        rpn_post_nms_top_n_test=40,
        box_score_thresh=0.0,
        min_size=80,
        max_size=128,
    )


@pytest.fixture(scope="module")
def caches(tmp_path_factory) -> Path:
    """A folder with the caches unpacked."""
    folder = tmp_path_factory.mktemp("legacy")
    for name in CACHES:
        shutil.unpack_archive(LEGACY / "caches" / f"{name}.zarr.zip", folder)
    return folder


def expected(*parts: str) -> dict[str, np.ndarray]:
    """What the files were found to hold when they were written."""
    with np.load(LEGACY.joinpath(*parts), allow_pickle=False) as arrays:
        return dict(arrays)


def assert_holds(cache: extract.RoICache, arrays: dict[str, np.ndarray]) -> None:
    """The cache has this fingerprint, this many images, and these RoIs of some of them, to the last bit."""
    assert cache.fingerprint == str(arrays.pop("fingerprint"))
    assert len(cache) == arrays.pop("images")
    for key, values in arrays.items():
        image_id, field = key.split(".")
        found = np.asarray(getattr(cache.image(int(image_id)), field))
        assert found.dtype == values.dtype, key
        np.testing.assert_array_equal(found, values, err_msg=key)


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_is_read(name, caches):
    assert_holds(extract.open_cache(str(caches / f"{name}.zarr")), expected("caches", f"{name}.npz"))


@pytest.mark.long
@pytest.mark.parametrize("name", CACHES)
def test_an_hdf5_file_is_imported(name, tmp_path):
    pytest.importorskip("h5py")
    url = str(tmp_path / "imported.zarr")
    assert extract_main(["import", str(LEGACY / "caches" / f"{name}.h5"), url]) == 0
    assert_holds(extract.open_cache(url), expected("caches", f"{name}.npz"))


@pytest.mark.parametrize("name", HEADS)
def test_a_head_scores_as_it_did(name, caches):
    head = calib.load_head(LEGACY / "heads" / name)
    assert_scores(head, caches / f"{HEADS[name]}.zarr", name)


@pytest.mark.parametrize("begun", ["3fc_ft", "unfinished"])
def test_a_training_is_resumed_or_recognised_as_finished(begun, caches, tmp_path):
    out = shutil.copytree(LEGACY / "heads" / begun, tmp_path / begun)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    calib.train_head(str(caches / "torchvision-train.zarr"), out=str(out))
    after = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    if begun == "unfinished":
        assert "checkpoint.safetensors" in before and "checkpoint.safetensors" not in after
        # A training that starts anew writes other records.
        assert after["metrics.jsonl"].startswith(before["metrics.jsonl"])
    else:
        assert after == before
    assert_scores(calib.load_head(out), caches / "torchvision-val.zarr", "3fc_ft")


def assert_scores(head: calib.Head, url: Path, name: str) -> None:
    """The head gives the scores that head `name` gave."""
    cache, arrays = extract.open_cache(str(url)), expected("heads", f"{name}.npz")
    for image_id, scores in arrays.items():
        np.testing.assert_allclose(head.scores(cache.image(int(image_id))), scores, atol=1e-5)


@pytest.mark.framework
@pytest.mark.parametrize(("framework", "mode"), [(name, mode) for name, modes in EXPORTS.items() for mode in modes])
def test_an_exported_detector_detects_as_it_did(framework, mode):
    detect = LOADERS[framework](LEGACY / "exports" / framework / mode, LEGACY / "exports" / framework / "model.pth")
    with Image.open(LEGACY / "exports" / "image.png") as image:
        found = dict(zip(("boxes", "labels", "scores"), detect(np.array(image)), strict=True))
    arrays = expected("exports", framework, f"{mode}.npz")
    np.testing.assert_allclose(found["scores"], arrays["scores"], atol=1e-4)
    np.testing.assert_array_equal(found["labels"], arrays["labels"])
    np.testing.assert_allclose(found["boxes"], arrays["boxes"], atol=1e-2)


Detect = Callable[[np.ndarray], tuple[Tensor, Tensor, Tensor]]
"""An RGB image → boxes, labels and scores, as the framework gives them."""


def load_torchvision(folder: Path, weights: Path) -> Detect:
    pytest.importorskip("torchvision")
    from fuse.plugins.torchvision import calibrated

    with TemporaryDirectory() as export:
        for file in (folder / "calibration.json", weights):
            shutil.copy(file, export)
        model = calibrated(torchvision_model(), export)

    def detect(pixels: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        (found,) = model([torch.from_numpy(pixels).permute(2, 0, 1).float() / 255])
        return found["boxes"], found["labels"], found["scores"]

    return detect


def load_detectron2(folder: Path, weights: Path) -> Detect:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of detectron2, when it is imported
        pytest.importorskip("detectron2.modeling")
        from detectron2.config import get_cfg
        from detectron2.engine import DefaultPredictor

        import fuse.plugins.detectron2  # noqa: F401, makes the config's keys known

    cfg = get_cfg()
    cfg.merge_from_file(str(folder / "model.yaml"))
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = str(weights), "cpu"
    predictor = DefaultPredictor(cfg)

    def detect(pixels: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        found = predictor(np.ascontiguousarray(pixels[..., ::-1]))["instances"]
        return found.pred_boxes.tensor, found.pred_classes, found.scores

    return detect


def load_mmdet(folder: Path, weights: Path) -> Detect:
    with warnings.catch_warnings(record=True):  # init_detector changes the filters, and warns of class names
        warnings.simplefilter("ignore")  # of the frameworks about each other, when they are imported
        pytest.importorskip("mmcv")
        from benchmarks import mmcv_ext

        mmcv_ext.install()
        pytest.importorskip("mmdet")
        from mmdet.apis import inference_detector, init_detector

        with TemporaryDirectory() as temporary:
            config = shutil.copy(folder / "model.py.txt", Path(temporary) / "model.py")
            model = init_detector(str(config), str(weights), device="cpu", palette="random")

    def detect(pixels: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        found = inference_detector(model, np.ascontiguousarray(pixels[..., ::-1])).pred_instances
        return found.bboxes, found.labels, found.scores

    return detect


LOADERS = {"torchvision": load_torchvision, "detectron2": load_detectron2, "mmdet": load_mmdet}


@pytest.mark.long
def test_an_exported_program_scores_as_it_did():
    arrays = expected("exports", "torchvision", "scores.npz")
    program = torch.export.load(LEGACY / "exports" / "torchvision" / "scores.pt2").module()
    scores = program(torch.from_numpy(arrays["features"]), torch.from_numpy(arrays["logits"]))
    np.testing.assert_allclose(scores, arrays["scores"], atol=1e-5)


def test_results_are_read():
    found, arrays = fuse.Detections.from_json(LEGACY / "detections.json"), expected("detections.npz")
    assert len(found) == len(arrays["image_id"])
    for name, column in {
        "image_id": "image_ids",
        "category_id": "category_ids",
        "score": "scores",
        "box": "boxes",
    }.items():
        np.testing.assert_array_equal(getattr(found, column), arrays[name], err_msg=name)
    assert [mask["counts"] for mask in found.rles] == arrays["counts"].tolist()
    assert [mask["size"] for mask in found.rles] == arrays["size"].tolist()
