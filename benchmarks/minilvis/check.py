"""See quickly whether a detector shows the long tail: AP per bin of training instances, and its oracle's.

    python -m benchmarks.minilvis.check --weights benchmarks/minilvis/weights/plain.safetensors

The oracle keeps the detector's proposals, boxes and masks and gives each proposal its true label. This is a
check during training; the library's own evaluation makes the figures that count.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hotcoco
import numpy as np
import torch
from hotcoco import mask as rle
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image
from tqdm import tqdm

from benchmarks.minilvis.dataset import Split, load
from benchmarks.minilvis.detector import load_weights

BIN_EDGES = (1, 10, 100, 1000, np.inf)  # training instances
CANDIDATES = 6000  # per image, best first, that enter NMS: more than 300 detections ever need
MAX_DETECTIONS = 300
DEPLOYED_THRESHOLD = 0.05  # the usual score threshold, whose cost is shown


@dataclass(frozen=True)
class Config:
    """What to check."""

    weights: Path
    data: Path = Path(__file__).parents[2] / "data" / "minilvis"
    split: str = "val"
    images: int | None = None
    """Only the first so many images."""


def evaluate(detector, split: Split) -> dict[str, dict[str, list[float]]]:
    """{"detector", "threshold", "oracle"} -> {"bbox", "segm"} -> AP in percent: four bins, then all."""
    rows = {"detector": [], "oracle": []}
    for index in tqdm(range(len(split)), desc="check", leave=False):
        image_id = split.annotations["images"][index]["id"]
        target = split.target(index)
        both = _detect_both(detector, split.tensor(index), target["boxes"], target["labels"])
        for name, found in zip(("detector", "oracle"), both, strict=True):
            rows[name] += _records(found, image_id, split.category_ids)
    # In greedy NMS a lower score never touches a higher one: what a threshold leaves, zero leaves too.
    rows["threshold"] = [one for one in rows["detector"] if one["score"] > DEPLOYED_THRESHOLD]
    return {name: {kind: bin_ap(split, found, kind) for kind in ("bbox", "segm")} for name, found in rows.items()}


def bin_ap(split: Split, records: list[dict], iou_type: str) -> list[float]:
    """AP in percent of the four bins, and of all classes, by the federated LVIS rules."""
    if not records:
        return [0.0] * len(BIN_EDGES)
    if iou_type == "segm":  # with a bbox there, masks would be put into size ranges by their boxes
        records = [{key: value for key, value in one.items() if key != "bbox"} for one in records]
    truth = hotcoco.LVIS(copy.deepcopy(split.annotations))
    evaluation = hotcoco.LVISEval(truth, hotcoco.LVISResults(truth, records, max_dets=MAX_DETECTIONS), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])  # (T, R, K, areas, caps); -1: no ground truth
    per_class = np.where(precision[:, :, :, 0, -1] > -1, precision[:, :, :, 0, -1], np.nan).mean((0, 1)) * 100
    categories = sorted(split.annotations["categories"], key=lambda one: one["id"])
    bins = np.digitize([one["instance_count"] for one in categories], BIN_EDGES) - 1
    scored = ~np.isnan(per_class)
    means = [per_class[scored & (bins == b)] for b in range(len(BIN_EDGES) - 1)] + [per_class[scored]]
    return [round(float(part.mean()), 2) if len(part) else float("nan") for part in means]


@torch.no_grad()
def _detect_both(detector, image: torch.Tensor, true_boxes: torch.Tensor, true_labels: torch.Tensor):
    """Yield the detections of the detector, then of its oracle.

    Each: boxes (D, 4) xyxy px, classes (D,) 0…K-1, scores (D,), masks (D, H, W) bool.
    """
    heads = detector.roi_heads
    images, _ = detector.transform([image])
    features = detector.backbone(images.tensors)
    proposals, _ = detector.rpn(images, features)
    pooled = heads.box_roi_pool(features, proposals, images.image_sizes)
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    boxes = heads.box_coder.decode(deltas[:, :4].contiguous(), proposals)[:, 0]
    boxes = clip_boxes_to_image(boxes, image.shape[-2:])
    scores = logits.softmax(1)[:, 1:]
    for one in (scores, _oracle_scores(proposals[0], true_boxes, true_labels, scores.shape[1])):
        roi, classes, score = _class_nms(boxes, one)
        yield boxes[roi], classes, score, _masks(heads, features, boxes[roi], images.image_sizes)


def _oracle_scores(proposals, true_boxes, true_labels, num_classes: int) -> torch.Tensor:
    """(R, K): every proposal is sure of its true label; among equals the RPN's order decides."""
    overlap, match = box_iou(proposals, true_boxes).max(1)
    found = torch.nonzero(overlap >= 0.5)[:, 0]
    scores = torch.zeros(len(proposals), num_classes)
    scores[found, true_labels[match[found]] - 1] = 1 - 1e-4 * found.float()
    return scores


def _class_nms(boxes, scores):
    """(roi, class, score) of the best detections, best first."""
    roi, classes = torch.nonzero(scores > 0, as_tuple=True)
    score, order = scores[roi, classes].sort(descending=True)
    roi, classes, score = roi[order[:CANDIDATES]], classes[order[:CANDIDATES]], score[:CANDIDATES]
    keep = batched_nms(boxes[roi], score, classes, 0.5)[:MAX_DETECTIONS]
    return roi[keep], classes[keep], score[keep]


def _masks(heads, features, boxes, image_sizes) -> torch.Tensor:
    if not len(boxes):
        return torch.zeros(0, *image_sizes[0], dtype=torch.bool)
    pooled = heads.mask_roi_pool(features, [boxes], image_sizes)
    masks = heads.mask_predictor(heads.mask_head(pooled))[:, :1].sigmoid()
    return paste_masks_in_image(masks, boxes, image_sizes[0])[:, 0] >= 0.5


def _records(found, image_id: int, category_ids: np.ndarray) -> Iterator[dict]:
    boxes, classes, scores, masks = found
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    encoded = rle.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy().astype(np.uint8)))
    categories = category_ids[classes].tolist()
    for box, category, score, mask in zip(boxes, categories, scores.tolist(), encoded, strict=True):
        segmentation = {"size": mask["size"], "counts": mask["counts"].decode()}
        yield {
            "image_id": image_id,
            "category_id": category,
            "bbox": box,
            "score": score,
            "segmentation": segmentation,
        }


def main(config: Config) -> None:
    """Print one line per row and kind of AP."""
    split = load(config.data, config.split, config.images)
    result = evaluate(load_weights(config.weights, len(split.category_ids)), split)
    print(f"{'':16}  (0,10) [10,100) [100,1000) [1000,)   all")
    for name, kinds in result.items():
        for kind, values in kinds.items():
            print(f"{name:11}{kind:5}" + "".join(f"{value:9.2f}" for value in values))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
