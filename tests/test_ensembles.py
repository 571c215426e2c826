"""Detections of several detectors and views joined: suppression and fusion, one image, a data set, the command."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import extract
import fuse
from extract.detectors.base import ImageDetections
from fuse.__main__ import main
from fuse.detections import Detections
from fuse.ops.nms import batched_nms, class_nms
from tests.conftest import CLASSES, Tiny
from tests.fuse_fixtures import SIZE, write_tiny

K = 5


def joined_nms_numpy(parts, iou_threshold, max_detections):
    """Indices of the concatenated detections, best first, without those that a better one of their class overlaps."""
    boxes, labels, scores = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order, kept = np.lexsort((labels, -scores)), []
    for i in order[scores[order] > 0]:
        rivals = boxes[[k for k in kept if labels[k] == labels[i]]]
        low, high = np.maximum(boxes[i, :2], rivals[:, :2]), np.minimum(boxes[i, 2:], rivals[:, 2:])
        inter = np.maximum(0, high - low).prod(axis=1)
        union = (boxes[i, 2:] - boxes[i, :2]).prod() + (rivals[:, 2:] - rivals[:, :2]).prod(axis=1) - inter
        if not ((inter / union).astype(np.float64) > iou_threshold).any():
            kept.append(i)
    return np.array(kept[:max_detections], np.int64)


def random_part(rng: np.random.Generator, count: int, classes: int = K) -> ImageDetections:
    """Boxes on a coarse grid, for overlaps on the threshold, and scores in few steps, for ties and zeros."""
    corner = rng.integers(0, 6, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 5, (count, 2))], axis=1).astype(np.float32)
    return ImageDetections(boxes, rng.integers(0, classes, count), (rng.integers(0, 9, count) / 8).astype(np.float32))


def as_detections(part: ImageDetections, image_id: int = 7, masks: bool = False) -> Detections:
    """Category ids 10, 20 …; a mask that tells which detection it is of."""
    rle = [{"size": list(SIZE), "counts": f"{image_id}:{s}:{b}"} for s, b in zip(part.scores, part.boxes, strict=True)]
    ids = np.full(len(part.labels), image_id)
    return Detections(ids, 10 * (part.labels + 1), part.scores, part.boxes, rle if masks else None)


def joined(detections: list[Detections]) -> Detections:
    columns = (
        np.concatenate([getattr(d, n) for d in detections]) for n in ("image_ids", "category_ids", "scores", "boxes")
    )
    return Detections(*columns, None if detections[0].rles is None else [mask for d in detections for mask in d.rles])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("iou", "limit"), [(0.5, 300), (1 / 3, 12), (0.0, -1), (1.0, None)])
def test_suppression_equals_the_reference_with_ties_and_on_the_threshold(seed, iou, limit):
    rng = np.random.default_rng(seed)
    parts = [random_part(rng, int(count)) for count in rng.integers(0, 40, 3)]
    merged, origin = fuse.merge_image(parts, K, iou_threshold=iou, max_detections=limit)
    assert origin.dtype == np.int64
    np.testing.assert_array_equal(origin, joined_nms_numpy(parts, iou, None if limit == -1 else limit))
    for column, inputs in zip(merged, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(column, np.concatenate(inputs)[origin])
        assert column.dtype == inputs[0].dtype


@pytest.mark.parametrize("limit", [0, 1, 300, None])
def test_suppression_equals_that_of_a_score_for_every_class(limit):
    part = random_part(np.random.default_rng(0), 600, classes=70)
    dense = np.zeros((600, 71), np.float32)
    dense[np.arange(600), part.labels] = part.scores
    index = batched_nms(*part, 70, 0.5, limit)
    roi, cls, score = class_nms(part.boxes, dense, 0.5, 0.0, limit)
    np.testing.assert_array_equal(index, roi)
    np.testing.assert_array_equal(part.labels[index], cls)
    np.testing.assert_array_equal(part.scores[index], score)


def test_of_equals_the_earlier_part_is_kept():
    one = ImageDetections(np.array([[0, 0, 4, 4]], np.float32), np.array([2]), np.array([0.5], np.float32))
    nearly = one._replace(boxes=one.boxes + np.float32(0.25))
    for parts in ([one, nearly], [nearly, one]):
        merged, origin = fuse.merge_image(parts, K)
        assert origin.tolist() == [0] and merged.boxes.tolist() == parts[0].boxes.tolist()


def test_weights_of_suppression_decide_who_wins():
    one = ImageDetections(np.array([[0, 0, 4, 4]], np.float32), np.array([2]), np.array([0.5], np.float32))
    other = one._replace(scores=np.array([0.75], np.float32))
    assert fuse.merge_image([one, other], K)[1].tolist() == [1]
    merged, origin = fuse.merge_image([one, other], K, weights=(2, 1))
    assert origin.tolist() == [0] and merged.scores.tolist() == [0.5]


def test_fusion_averages_what_overlaps_and_lowers_what_stands_alone():
    boxes = np.array([[10, 10, 20, 20], [40, 10, 50, 30]], np.float32)
    one = ImageDetections(boxes, np.array([1, 3]), np.array([0.6, 0.8], np.float32))
    other = ImageDetections(boxes[:1] + np.float32(1), np.array([1]), np.array([0.2], np.float32))
    merged, origin = fuse.merge_image([one, other], K, method="wbf", size=SIZE)
    assert origin is None and merged.labels.tolist() == [1, 3] and merged.labels.dtype == np.int64
    np.testing.assert_allclose(merged.scores, [0.4, 0.4], rtol=1e-6)  # the mean; half of what one of two found
    np.testing.assert_allclose(merged.boxes, [boxes[0] + 0.25, boxes[1]], rtol=1e-5)  # 0.6 and 0.2 are 3 to 1
    assert merged.boxes.dtype == merged.scores.dtype == np.float32
    weighted, _ = fuse.merge_image([one, other], K, method="wbf", size=SIZE, weights=(1, 3), max_detections=1)
    np.testing.assert_allclose(weighted.boxes, [boxes[0] + 0.5], rtol=1e-5)
    np.testing.assert_allclose(weighted.scores, [0.3], rtol=1e-6)


def test_fusion_of_what_the_library_would_warn_of():
    """Boxes over the edge are clipped; ones without area or score are left out. Warnings are errors here."""
    boxes = np.array([[-5, -5, 10, 10], [60, 40, 70, 50], [3, 3, 3, 9], [80, 0, 90, 9], [1, 1, 9, 9]], np.float32)
    part = ImageDetections(boxes, np.arange(5), np.array([0.5, 0.4, 0.3, 0.2, 0], np.float32))
    merged, _ = fuse.merge_image([part, part], K, method="wbf", size=SIZE)
    np.testing.assert_allclose(merged.boxes, [[0, 0, 10, 10], [60, 40, 64, 48]], rtol=1e-6)
    nothing = ImageDetections(*(column[:0] for column in part))
    merged, _ = fuse.merge_image([nothing, nothing], K, method="wbf", size=SIZE)
    assert [column.shape for column in merged] == [(0, 4), (0,), (0,)]


def test_fusion_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ensemble_boxes", None)
    part = random_part(np.random.default_rng(0), 3)
    with pytest.raises(ImportError, match=r"pip install 'tailcal\[ensemble\]'"):
        fuse.merge_image([part, part], K, method="wbf", size=SIZE)


@pytest.mark.parametrize("masks", [False, True])
def test_a_data_set_is_joined_image_by_image_and_keeps_its_masks(masks):
    rng = np.random.default_rng(1)
    images = {image_id: [random_part(rng, 30) for _ in range(3)] for image_id in (40, 7, 19)}
    images[19][1] = random_part(rng, 0)
    parts = [joined([as_detections(p[i], image_id, masks) for image_id, p in images.items()]) for i in range(3)]
    merged = fuse.merge(parts, max_detections=20)
    expected = []
    for image_id in sorted(images):
        every = joined([as_detections(part, image_id, masks) for part in images[image_id]])
        expected.append(every.take(joined_nms_numpy(images[image_id], 0.5, 20)))
    expected = joined(expected)
    for name in ("image_ids", "category_ids", "scores", "boxes"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(expected, name))
        assert getattr(merged, name).dtype == getattr(expected, name).dtype
    assert merged.rles == expected.rles and (merged.rles is not None) == masks
    fused = fuse.merge(parts, method="wbf", sizes=dict.fromkeys(images, SIZE), max_detections=20)
    assert fused.rles is None and np.unique(fused.image_ids).tolist() == sorted(images)


def test_a_part_without_detections_needs_no_masks():
    part = as_detections(random_part(np.random.default_rng(2), 9), masks=True)
    nothing = part.take(slice(0))
    nothing = Detections(nothing.image_ids, nothing.category_ids, nothing.scores, nothing.boxes)
    assert len(fuse.merge([part, nothing])) == len(fuse.merge([part, part])) > 0
    assert fuse.merge([part, nothing]).rle is not None
    for method in ("nms", "wbf"):
        assert len(fuse.merge([nothing, nothing], method=method, sizes={})) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mean"}, "method is 'mean', expected 'nms' or 'wbf'"),
        ({"weights": (1,)}, r"weights are \(1,\), expected 2, one for each part"),
        ({"weights": (1, 0)}, r"weights are \(1, 0\), expected numbers above 0"),
        ({"weights": (1, np.nan)}, "weights are .*, expected numbers above 0"),
        ({"iou_threshold": 1.5}, "iou_threshold is 1.5, expected 0 to 1"),
        ({"max_detections": -2}, "max_detections is -2, expected at least 0, or -1 or None for all"),
        ({"method": "wbf"}, r"sizes? is None, expected the \(height, width\)"),
    ],
)
def test_options_that_are_refused(options, message):
    part = random_part(np.random.default_rng(3), 4)
    with pytest.raises(ValueError, match=f"^{message}"):
        fuse.merge_image([part, part], K, **options)
    with pytest.raises(ValueError, match=f"^{message}"):
        fuse.merge([as_detections(part)] * 2, **options)


def test_parts_that_are_refused():
    part = random_part(np.random.default_rng(4), 4)
    data = as_detections(part, masks=True)
    with pytest.raises(ValueError, match=r"^parts are 1, expected at least 2$"):
        fuse.merge([data])
    with pytest.raises(ValueError, match=r"^part 2 has no masks and part 1 has, expected masks in all parts or in"):
        fuse.merge([data, as_detections(part)])
    assert len(fuse.merge([data, as_detections(part)], method="wbf", sizes={7: SIZE}))
    with pytest.raises(ValueError, match=r"^sizes has no image 7, which has detections$"):
        fuse.merge([data, data], method="wbf", sizes={8: SIZE})
    for method in ("nms", "wbf"):
        options = {"method": method, "size": SIZE}
        with pytest.raises(ValueError, match=r"^labels are \d to \d, expected 0 to 0$"):
            fuse.merge_image([part, part], 1, **options)
        with pytest.raises(ValueError, match=r"^scores contain NaN$"):
            fuse.merge_image([part, part._replace(scores=part.scores * np.float32(np.nan))], K, **options)
        with pytest.raises(ValueError, match=r"^boxes, labels and scores have shapes"):
            fuse.merge_image([part, part._replace(scores=part.scores[:1])], K, **options)
    broken = Detections(data.image_ids, data.category_ids, data.scores, data.boxes * np.float32(np.nan))
    with pytest.raises(ValueError, match=r"^image 7: boxes contain NaN$"):
        fuse.merge([broken, broken])


VIEWS = {
    "small": {"detector_options": ("min_size=112", "max_size=112", "_skip_resize=false")},
    "large": {"detector_options": ("min_size=160", "max_size=160", "_skip_resize=false")},
    "mirrored": {"flip": 1.0},
    "other": {},  # another detector: weights of another seed
}


@pytest.fixture(scope="module")
def results(tiny: Tiny, tmp_path_factory) -> dict[str, Path]:
    """One `python -m extract` and one `python -m fuse` for each view of the tiny data set: its detections."""
    import torch
    from safetensors.torch import save_file

    from benchmarks.minilvis.detector import mask_rcnn

    folder = tmp_path_factory.mktemp("views")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_file(mask_rcnn(CLASSES).state_dict(), folder / "other.safetensors")
    files = {}
    for name, changes in VIEWS.items():
        options = (f"num_classes={CLASSES}", *changes.get("detector_options", ()))
        changes = {**changes, "detector_options": options, "level": "logits", "proposals": 30}
        if name == "other":
            changes["weights"] = folder / "other.safetensors"
        cache = extract.run(tiny.config("val", folder / f"{name}.zarr", **changes))
        arguments = ["--cache", cache.url, "--annotations", str(tiny.data / "val.json"), "--out", str(folder / name)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fuse.commands.run._report_writer", lambda: None)  # drawing would take longest
            assert main([*arguments, "--mode", "original", "--max-detections", "100"]) == 0
        files[name] = folder / name / "detections.json"
    return files


def command(tiny: Tiny, files: list[Path], out: Path, *options: str) -> list[str]:
    where = ["--annotations", str(tiny.data / "val.json"), "--train-annotations", str(tiny.data / "train.json")]
    return ["merge", *map(str, files), *where, "--out", str(out), *options]


def assert_joined(merged: Detections, parts: list[Detections]):
    """By the reference, image by image, masks included."""
    every = joined(parts)
    assert np.unique(merged.image_ids).tolist() == np.unique(every.image_ids).tolist()
    for image_id in np.unique(every.image_ids):
        views = [part.take(part.image_ids == image_id) for part in parts]
        expected = joined(views)
        kept = joined_nms_numpy([ImageDetections(v.boxes, v.category_ids, v.scores) for v in views], 0.5, 150)
        expected, found = expected.take(kept), merged.take(merged.image_ids == image_id)
        for name in ("category_ids", "scores", "boxes"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert found.rles == expected.rles


def test_augmentation_at_test_time_from_caches(tiny, results, tmp_path, capsys):
    """Table 10: one cache a view, one result each, joined."""
    files = [results[name] for name in ("small", "large", "mirrored")]
    parts = [Detections.from_json(file) for file in files]
    assert len({part.boxes.tobytes() for part in parts}) == 3
    capsys.readouterr()
    assert main(command(tiny, files, tmp_path / "o", "--max-detections", "150")) == 0
    printed = capsys.readouterr().out
    merged = Detections.from_json(tmp_path / "o" / "detections.json")
    assert_joined(merged, parts)
    table = pd.read_csv(tmp_path / "o" / "metrics.csv", index_col="row")
    assert table.index.tolist() == [*map(str, files), "merged"] and set(table["iou_type"]) == {"segm"}
    assert printed.startswith("Evaluated on 12 images, 0 of them without detections; 150 detections per image")
    assert [line.split()[0] for line in printed.splitlines()[-4:]] == table.index.tolist()
    assert {p.name for p in (tmp_path / "o").iterdir()} == {
        "detections.json", "metrics.csv", "per_class.csv", "report.html", "run.json",
    }  # fmt: skip
    for file, part in zip([*files, "merged"], [*parts, merged], strict=True):
        alone = fuse.evaluate(tiny.data / "val.json", part, fuse_classes(tiny), iou_type="segm").loc["segm"]
        np.testing.assert_allclose(table.loc[str(file)].drop("iou_type").astype(float), alone, atol=1e-9)


def fuse_classes(tiny: Tiny) -> pd.DataFrame:
    from extract.data.annotations import read_annotations

    return read_annotations(tiny.data / "train.json").classes


@pytest.mark.parametrize("method", ["nms", "wbf"])
def test_two_detectors(tiny, results, tmp_path, method, capsys):
    """Table 9."""
    files = [results["mirrored"], results["other"]]
    assert main(command(tiny, files, tmp_path / "o", "--method", method, "--max-detections", "50")) == 0
    parts = [Detections.from_json(file) for file in files]
    sizes = {i["id"]: (i["height"], i["width"]) for i in json.loads((tiny.data / "val.json").read_text())["images"]}
    expected = fuse.merge(parts, method=method, max_detections=50, sizes=sizes)
    merged = Detections.from_json(tmp_path / "o" / "detections.json")
    np.testing.assert_array_equal(merged.scores, expected.scores)
    np.testing.assert_array_equal(merged.category_ids, expected.category_ids)
    assert merged.rles == expected.rles and (merged.rles is None) == (method == "wbf")
    assert np.unique(merged.image_ids, return_counts=True)[1].tolist() == [50] * 12
    assert ("Box AP" if method == "wbf" else "Mask AP") in capsys.readouterr().out


def test_fixed_ap_has_no_cap(tiny, results, tmp_path):
    files = [results["mirrored"], results["other"]]
    assert main(command(tiny, files, tmp_path / "o", "--fixed", "--iou-types", "bbox", "--max-detections", "50")) == 0
    merged = Detections.from_json(tmp_path / "o" / "detections.json")
    assert np.unique(merged.image_ids, return_counts=True)[1].min() > 50


def test_the_same_command_again_and_other_inputs(tiny, results, tmp_path, capsys):
    files = [results["small"], results["other"]]
    first = command(tiny, files, tmp_path / "o", "--iou-types", "bbox")
    assert main(first) == 0 and main(first) == 0
    other = command(tiny, files[::-1], tmp_path / "o", "--iou-types", "bbox", "--weights", "1", "2")
    assert main(other) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "weights () → (1.0, 2.0), detections_fingerprint" in error and "--overwrite" in error
    assert main([*other, "--overwrite"]) == 0


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Folder of a toy data set with two files of its results, a.json without masks."""
    folder = tmp_path_factory.mktemp("toy")
    write_tiny(folder)
    cache = extract.open_cache(str(folder / "val.zarr"))
    for name, masks in (("a", False), ("b", True)):
        fuse.detect(cache, mode="original", masks=masks).to_json(folder / f"{name}.json")
    return folder


def merge_toy(folder: Path, *arguments: str) -> int:
    where = ["--annotations", str(folder / "val.json"), "--cache", str(folder / "val.zarr")]
    return main(["merge", *arguments, *where])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("a.json", 2, "detections is 1 file, expected at least 2"),
        ("a.json ./a.json", 2, "a.json more than once, expected different files"),
        ("a.json b.json --method mean", 2, "invalid choice 'mean'"),
        ("a.json b.json", 1, "a.json has no masks and b.json has, expected masks in all parts or in none"),
        ("a.json b.json --method wbf --weights 1", 1, r"weights are (1.0,), expected 2, one for each part"),
        ("a.json b.json --method wbf --iou-types segm", 1, "there are no masks to evaluate; use --iou-types bbox"),
        ("a.json b.json --method wbf --iou-threshold 2", 1, "iou_threshold is 2.0, expected 0 to 1"),
        ("a.json c.json", 1, "c.json"),
        ("a.json image.json", 1, "image.json: detections of image_id 8, which the annotations do not have"),
        ("a.json category.json", 1, "category.json: detections of category_id 5, which the annotations do not"),
    ],
)
def test_what_the_command_refuses(toy, tmp_path, capsys, monkeypatch, arguments, code, message):
    monkeypatch.chdir(toy)
    for field, value in (("image_id", 8), ("category_id", 5)):
        record = json.loads((toy / "a.json").read_text())[0] | {field: value}
        (toy / f"{field.removesuffix('_id')}.json").write_text(json.dumps([record]))
    assert merge_toy(toy, *arguments.split(), "--out", str(tmp_path / "o")) == code
    error = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().err).split())
    assert message in error and not (tmp_path / "o").exists()


def test_the_folder_of_a_part_is_not_written_over(toy, tmp_path, capsys):
    (tmp_path / "detections.json").write_bytes((toy / "a.json").read_bytes())
    files = [str(tmp_path / "detections.json"), str(toy / "a.json")]
    assert merge_toy(toy, *files, "--out", str(tmp_path), "--overwrite") == 2
    assert "is one of the files to merge" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_help_has_an_example(capsys):
    assert main(["merge", "--help"]) == 0
    assert "Example: python -m fuse merge" in capsys.readouterr().out
