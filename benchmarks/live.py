"""What calibration costs live: a framework's own inference against the calibrated detector, in turn, on one image size.

    OMP_NUM_THREADS=1 python -m benchmarks.live                 # each framework's Mask R-CNN R50-FPN, 1,230 classes
    python -m benchmarks.live --device cuda

Weights are random, but the classifier's are scaled so that its scores are peaked, most of them background and some tens
of them above 0.05, as a trained one's are. Writes the median of the pairs' ratios to `benchmarks/results/live.csv`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from calib.heads import Head, HeadInfo
from extract.config import DetectorSpec
from extract.detectors import FRAMEWORKS, load_detector
from extract.detectors.base import Detector, Image
from fuse.live import CalibratedDetector

RESULTS = Path(__file__).parent / "results" / "live.csv"
CLASSES = 1230
CASES = ((0.05, "3fc_ft"), (0.05, "linear"), (0.0, "3fc_ft"))
"""Score threshold, and kind of the calibrated head."""
LOGIT_DEVIATION, BACKGROUND_LOGIT = 2.5, 13.0


@dataclass(frozen=True)
class Config:
    """What to time."""

    frameworks: tuple[str, ...] = tuple(FRAMEWORKS)
    rounds: int = 3
    """Pairs of runs; the median of their ratios is reported."""
    thresholds: tuple[float, ...] = (0.05, 0.0)
    height: int = 800
    width: int = 1216
    device: str = "cpu"


def main(config: Config) -> None:
    """Prints the table and keeps it."""
    rows = []
    pixels = np.random.default_rng(0).integers(0, 256, (config.height // 8, config.width // 8, 3))
    image = pixels.repeat(8, 0).repeat(8, 1).astype(np.uint8)
    for framework in config.frameworks:
        detector, classifier, background, own = BUILD[framework](config)
        spread(detector, classifier, background, image)
        for threshold, kind in (case for case in CASES if case[0] in config.thresholds):
            live = CalibratedDetector(detector, make_head(detector, kind), score_threshold=threshold)
            row = compare(lambda: own(image, threshold), lambda: live(image), config.rounds)  # noqa: B023
            rows.append({"": f"{framework}, {kind}", "threshold": str(threshold), **row})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    if RESULTS.is_file():  # a run of some cases keeps the rows of the others
        before = pd.read_csv(RESULTS, dtype=str, index_col=0).rename_axis("").reset_index()
        table = pd.concat([table, before]).drop_duplicates(["", "threshold"]).sort_values("threshold", kind="stable")
        table = table.sort_values("", key=lambda names: names.str.split(",").str[0], kind="stable")
    table.to_csv(RESULTS, index=False)
    print(table.to_string(index=False))


def compare(own: Callable, live: Callable, rounds: int) -> dict[str, str]:
    """Seconds of both, run in turn, and the median of their ratios."""
    live(), own()
    pairs = np.array([(seconds(own), seconds(live)) for _ in range(rounds)])
    ratio = np.median(pairs[:, 1] / pairs[:, 0])
    own_s, live_s = np.median(pairs, axis=0)
    return {"framework's own, s": f"{own_s:.2f}", "calibrated, s": f"{live_s:.2f}", "ratio": f"{ratio:.3f}"}


def seconds(function: Callable) -> float:
    """Time of one call: of the processor, which what else runs there hardly disturbs, or of the clock with a GPU."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = clock()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


def make_head(detector: Detector, kind: str) -> Head:
    """A random head of the detector's sizes: only its cost matters here."""
    level = "pooled" if kind == "3fc_ft" else "embedding"
    (layers,) = detector.fc_layers(level)
    kept = layers if kind == "3fc_ft" else layers[-1:]
    widths = (kept[0][0].shape[1], *(len(bias) for _, bias in kept))
    (rois,) = detector.forward([Image(0, np.zeros((64, 64, 3), np.uint8))], level).rois
    head = Head(
        HeadInfo(
            kind=kind,
            level=level,
            feature_shape=tuple(rois.features.shape[2:]),
            widths=widths,
            frozen_layers=0,
            category_ids=tuple(range(CLASSES)),
            names=tuple(map(str, range(CLASSES))),
            instance_counts=tuple(np.arange(CLASSES).tolist()),
            stages=detector.stages,
            stage_average=detector.description["stage_average"],
            detector=detector.description["name"],
            weights_sha256=detector.description["weights_sha256"],
        )
    )
    with torch.no_grad():
        for linear, (weight, bias) in zip((m for m in head.modules() if isinstance(m, nn.Linear)), kept, strict=True):
            linear.weight.copy_(torch.from_numpy(weight))
            linear.bias.copy_(torch.from_numpy(bias))
    return head.eval()


def spread(detector: Detector, classifier: nn.Linear, background: int, image: np.ndarray) -> None:
    """Scores like those of a trained detector: a few classes stand out of each RoI, background most of all."""
    (rois,) = detector.forward([Image(0, image)], "embedding").rois
    length = float(rois.features.float().norm(dim=-1).mean())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nn.init.normal_(classifier.weight, std=LOGIT_DEVIATION / length)
    nn.init.zeros_(classifier.bias)
    classifier.weight.data[background] = 0
    classifier.bias.data[background] = BACKGROUND_LOGIT


def torchvision_detector(config: Config) -> tuple[Detector, nn.Linear, int, Callable]:
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    from extract.detectors.torchvision import TorchvisionDetector
    from extract.utils.devices import resolve_device

    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES + 1)
    model.roi_heads.detections_per_img = 300
    detector = TorchvisionDetector(model.to(resolve_device(config.device)))

    def own(image: np.ndarray, threshold: float) -> None:
        model.roi_heads.score_thresh = threshold
        with torch.inference_mode():
            model([torch.from_numpy(image).to(detector.device).permute(2, 0, 1).float() / 255])

    return detector, model.roi_heads.box_predictor.cls_score, 0, own


def detectron2_detector(config: Config) -> tuple[Detector, nn.Linear, int, Callable]:
    from detectron2 import model_zoo
    from detectron2.config import get_cfg
    from detectron2.data.transforms import ResizeShortestEdge
    from detectron2.modeling import build_model

    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"))
    options = {"MODEL.DEVICE": config.device, "MODEL.PIXEL_STD": [3e4] * 3, "TEST.DETECTIONS_PER_IMAGE": 300}
    cfg.merge_from_list([part for pair in options.items() for part in pair])
    torch.manual_seed(0)
    model = build_model(cfg)
    resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    detector = _reloaded("detectron2", cfg.dump(), ".yaml", {"model": model.state_dict()}, config.device)

    def own(image: np.ndarray, threshold: float) -> None:
        inner = detector.model
        inner.roi_heads.box_predictor.test_score_thresh = threshold
        with torch.inference_mode():
            resized = resize.get_transform(image).apply_image(image).astype("float32")
            tensor = torch.as_tensor(resized.transpose(2, 0, 1))
            inner([{"image": tensor, "height": image.shape[0], "width": image.shape[1]}])

    return detector, detector.model.roi_heads.box_predictor.cls_score, CLASSES, own


def mmdet_detector(config: Config) -> tuple[Detector, nn.Linear, int, Callable]:
    from benchmarks import mmcv_ext

    mmcv_ext.install()
    import mmdet
    from mmdet.apis import inference_detector
    from mmdet.registry import MODELS
    from mmengine.config import Config as MmengineConfig
    from mmengine.registry import DefaultScope

    configs = Path(mmdet.__file__).parent / ".mim" / "configs"
    cfg = MmengineConfig.fromfile(configs / "lvis" / "mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py")
    cfg.model.backbone.init_cfg = None
    for head in (cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
        head.num_classes = CLASSES
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(cfg.model)
    detector = _reloaded("mmdet", cfg.pretty_text, ".py", {"state_dict": model.state_dict()}, config.device)

    def own(image: np.ndarray, threshold: float) -> None:
        inner = detector.model
        inner.cfg = cfg
        inner.roi_head.test_cfg.score_thr, inner.roi_head.test_cfg.max_per_img = threshold, 300
        with DefaultScope.overwrite_default_scope("mmdet"):
            inference_detector(inner, image)

    return detector, detector.model.roi_head.bbox_head.fc_cls, CLASSES, own


def _reloaded(framework: str, config_text: str, suffix: str, checkpoint: dict, device: str) -> Detector:
    """The detector as a user loads it, from a config file and a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        config_file, weights = Path(folder, f"model{suffix}"), Path(folder, "model.pth")
        config_file.write_text(config_text)
        torch.save(checkpoint, weights)
        return load_detector(DetectorSpec(framework, weights, config_file, device=device))


BUILD = {"torchvision": torchvision_detector, "detectron2": detectron2_detector, "mmdet": mmdet_detector}

if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
