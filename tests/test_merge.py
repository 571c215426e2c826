"""Merging results of several detectors and views: NMS and weighted box fusion, an image, a dataset, the command."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import extract
import fuse
from extract.detectors.base import ImageDetections
from fuse.__main__ import main
from fuse.detections import Detections
from fuse.ops.nms import batched_nms, class_nms
from tests.conftest import CLASSES, Tiny
from tests.equivalents import EQUIVALENTS
from tests.fuse_fixtures import SIZE, write_tiny

K = 5


def batched_nms_numpy(
    results: list[ImageDetections], iou_threshold: float, max_detections: int | None, num_classes: int = K
) -> np.ndarray:
    """Indices of the concatenated detections that NMS keeps, best first."""
    boxes, labels, scores = map(np.concatenate, zip(*results, strict=True))
    return EQUIVALENTS["batched_nms"]["numpy"](boxes, labels, scores, num_classes, iou_threshold, max_detections)


def random_detections(rng: np.random.Generator, count: int, classes: int = K) -> ImageDetections:
    """Boxes on a coarse grid, for IoUs at the threshold; scores in few steps, for ties and zeros."""
    corner = rng.integers(0, 6, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 5, (count, 2))], axis=1).astype(np.float32)
    return ImageDetections(boxes, rng.integers(0, classes, count), (rng.integers(0, 9, count) / 8).astype(np.float32))


def as_detections(image: ImageDetections, image_id: int = 7, masks: bool = False) -> Detections:
    """Category ids 10, 20 …; masks that identify their detection."""
    rles = [
        {"size": list(SIZE), "counts": f"{image_id}:{s}:{b}"} for s, b in zip(image.scores, image.boxes, strict=True)
    ]
    ids = np.full(len(image.labels), image_id)
    return Detections(ids, 10 * (image.labels + 1), image.scores, image.boxes, rles if masks else None)


def concatenated(detections: list[Detections]) -> Detections:
    columns = (
        np.concatenate([getattr(d, n) for d in detections]) for n in ("image_ids", "category_ids", "scores", "boxes")
    )
    return Detections(*columns, None if detections[0].rles is None else [mask for d in detections for mask in d.rles])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("iou", "limit"), [(0.5, 300), (1 / 3, 12), (0.0, -1), (1.0, None)])
def test_nms_equals_the_reference_with_ties_and_at_the_threshold(seed, iou, limit):
    rng = np.random.default_rng(seed)
    results = [random_detections(rng, int(count)) for count in rng.integers(0, 40, 3)]
    merged, indices = fuse.merge_image(results, K, iou_threshold=iou, max_detections=limit)
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(indices, batched_nms_numpy(results, iou, None if limit == -1 else limit))
    for column, inputs in zip(merged, zip(*results, strict=True), strict=True):
        np.testing.assert_array_equal(column, np.concatenate(inputs)[indices])
        assert column.dtype == inputs[0].dtype


@pytest.mark.parametrize("limit", [0, 1, 300, None])
def test_batched_nms_equals_class_nms_of_scores_per_class(limit):
    result = random_detections(np.random.default_rng(0), 600, classes=70)
    dense = np.zeros((600, 71), np.float32)
    dense[np.arange(600), result.labels] = result.scores
    index = batched_nms(*result, 70, 0.5, limit)
    roi_index, class_index, score = class_nms(result.boxes, dense, 0.5, 0.0, limit)
    np.testing.assert_array_equal(index, roi_index)
    np.testing.assert_array_equal(result.labels[index], class_index)
    np.testing.assert_array_equal(result.scores[index], score)


def test_of_equals_the_earlier_result_is_kept():
    one = ImageDetections(np.array([[0, 0, 4, 4]], np.float32), np.array([2]), np.array([0.5], np.float32))
    nearly = one._replace(boxes=one.boxes + np.float32(0.25))
    for results in ([one, nearly], [nearly, one]):
        merged, indices = fuse.merge_image(results, K)
        assert indices.tolist() == [0] and merged.boxes.tolist() == results[0].boxes.tolist()


def test_weights_scale_the_scores_of_nms():
    one = ImageDetections(np.array([[0, 0, 4, 4]], np.float32), np.array([2]), np.array([0.5], np.float32))
    other = one._replace(scores=np.array([0.75], np.float32))
    assert fuse.merge_image([one, other], K)[1].tolist() == [1]
    merged, indices = fuse.merge_image([one, other], K, weights=(2, 1))
    assert indices.tolist() == [0] and merged.scores.tolist() == [0.5]


def test_fusion_averages_overlapping_boxes_and_lowers_scores_of_single_ones():
    boxes = np.array([[10, 10, 20, 20], [40, 10, 50, 30]], np.float32)
    one = ImageDetections(boxes, np.array([1, 3]), np.array([0.6, 0.8], np.float32))
    other = ImageDetections(boxes[:1] + np.float32(1), np.array([1]), np.array([0.2], np.float32))
    merged, indices = fuse.merge_image([one, other], K, method="wbf", size=SIZE)
    assert indices is None and merged.labels.tolist() == [1, 3] and merged.labels.dtype == np.int64
    np.testing.assert_allclose(merged.scores, [0.4, 0.4], rtol=1e-6)  # the mean; half of what one of two found
    np.testing.assert_allclose(merged.boxes, [boxes[0] + 0.25, boxes[1]], rtol=1e-5)  # 0.6 and 0.2 are 3 to 1
    assert merged.boxes.dtype == merged.scores.dtype == np.float32
    weighted, _ = fuse.merge_image([one, other], K, method="wbf", size=SIZE, weights=(1, 3), max_detections=1)
    np.testing.assert_allclose(weighted.boxes, [boxes[0] + 0.5], rtol=1e-5)
    np.testing.assert_allclose(weighted.scores, [0.3], rtol=1e-6)


def test_fusion_of_boxes_that_the_library_warns_of():
    """Boxes beyond the image are clipped, boxes without area or score are dropped. Warnings are errors here."""
    boxes = np.array([[-5, -5, 10, 10], [60, 40, 70, 50], [3, 3, 3, 9], [80, 0, 90, 9], [1, 1, 9, 9]], np.float32)
    result = ImageDetections(boxes, np.arange(5), np.array([0.5, 0.4, 0.3, 0.2, 0], np.float32))
    merged, _ = fuse.merge_image([result, result], K, method="wbf", size=SIZE)
    np.testing.assert_allclose(merged.boxes, [[0, 0, 10, 10], [60, 40, 64, 48]], rtol=1e-6)
    nothing = ImageDetections(*(column[:0] for column in result))
    merged, _ = fuse.merge_image([nothing, nothing], K, method="wbf", size=SIZE)
    assert [column.shape for column in merged] == [(0, 4), (0,), (0,)]


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (2, 1), (1, 3, 2)]), st.sampled_from([0.3, 0.5, 0.8]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_result_has_one_vote_in_fusion_whatever_it_holds(seed, weights, iou):
    """Boxes on a coarse grid overlap in chains, and results hold some twice."""
    rng = np.random.default_rng(seed)
    results = [random_detections(rng, int(count), classes=2) for count in rng.integers(0, 9, len(weights))]
    twice = [ImageDetections(*(np.concatenate([column, column]) for column in result)) for result in results]
    options = {"method": "wbf", "size": SIZE, "weights": weights, "iou_threshold": iou}
    merged = fuse.merge_image(results, 2, **options)[0]
    for column, again in zip(merged, fuse.merge_image(twice, 2, **options)[0], strict=True):
        np.testing.assert_array_equal(again, column)
    best = np.array([[r.scores[r.labels == label].max(initial=0) for r in results] for label in range(2)])
    bound = best @ np.array(weights) / sum(weights)
    assert (merged.scores <= bound[merged.labels] + 1e-6).all()
    low, high = np.zeros(4), np.array([SIZE[1], SIZE[0]] * 2)
    assert ((merged.boxes >= low) & (merged.boxes <= high)).all()


def test_fusion_of_results_without_repeats_equals_the_library():
    from ensemble_boxes import weighted_boxes_fusion

    rng, scale = np.random.default_rng(5), np.array([SIZE[1], SIZE[0]] * 2)
    for _ in range(20):
        results = [random_detections(rng, 8, classes=8)._replace(labels=np.arange(8)) for _ in range(3)]
        results = [result._replace(scores=rng.uniform(0.1, 1, 8).astype(np.float32)) for result in results]
        merged, _ = fuse.merge_image(results, 8, method="wbf", size=SIZE, weights=(1, 2, 3))
        columns = zip(*((r.boxes / scale, r.scores, r.labels) for r in results), strict=True)
        boxes, scores, labels = weighted_boxes_fusion(*columns, weights=(1, 2, 3), iou_thr=0.5)
        order = np.argsort(-scores)
        np.testing.assert_array_equal(merged.labels, labels[order])
        np.testing.assert_allclose(merged.scores, scores[order], rtol=1e-5)
        np.testing.assert_allclose(merged.boxes, boxes[order] * scale, rtol=1e-4, atol=1e-4)


def test_a_box_that_a_result_holds_twice_counts_once_in_fusion():
    boxes = np.array([[8, 6, 48, 36], [8, 6, 48, 36], [50, 6, 60, 30]], np.float32)
    twice = ImageDetections(boxes, np.zeros(3, np.int64), np.array([1, 1, 0.4], np.float32))
    other = ImageDetections(boxes[:1] + 1, np.zeros(1, np.int64), np.array([0.5], np.float32))
    nothing = ImageDetections(*(column[:0] for column in twice))
    for results, weights, scores in (
        ([twice, nothing], (1, 1), [0.5, 0.2]),
        ([twice, nothing], (2, 1), [2 / 3, 0.8 / 3]),
        ([twice, other], (2, 1), [2.5 / 3, 0.8 / 3]),
        ([twice, other], (1, 1), [0.75, 0.2]),
    ):
        merged, _ = fuse.merge_image(results, 1, method="wbf", size=SIZE, weights=weights)
        np.testing.assert_allclose(merged.scores, scores, rtol=1e-6)


def test_fusion_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ensemble_boxes", None)
    result = random_detections(np.random.default_rng(0), 3)
    with pytest.raises(ImportError, match=r"pip install 'tailcal\[ensemble\]'"):
        fuse.merge_image([result, result], K, method="wbf", size=SIZE)


@pytest.mark.parametrize("masks", [False, True])
def test_a_dataset_is_merged_image_by_image_and_keeps_its_masks(masks):
    rng = np.random.default_rng(1)
    images = {image_id: [random_detections(rng, 30) for _ in range(3)] for image_id in (40, 7, 19)}
    images[19][1] = random_detections(rng, 0)
    results = [concatenated([as_detections(p[i], image_id, masks) for image_id, p in images.items()]) for i in range(3)]
    merged = fuse.merge_detections(results, max_detections=20)
    expected = []
    for image_id in sorted(images):
        every = concatenated([as_detections(result, image_id, masks) for result in images[image_id]])
        expected.append(every.take(batched_nms_numpy(images[image_id], 0.5, 20)))
    expected = concatenated(expected)
    for name in ("image_ids", "category_ids", "scores", "boxes"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(expected, name))
        assert getattr(merged, name).dtype == getattr(expected, name).dtype
    assert merged.rles == expected.rles and (merged.rles is not None) == masks
    fused = fuse.merge_detections(results, method="wbf", sizes=dict.fromkeys(images, SIZE), max_detections=20)
    assert fused.rles is None and np.unique(fused.image_ids).tolist() == sorted(images)


def test_a_result_without_detections_needs_no_masks():
    result = as_detections(random_detections(np.random.default_rng(2), 9), masks=True)
    nothing = result.take(slice(0))
    nothing = Detections(nothing.image_ids, nothing.category_ids, nothing.scores, nothing.boxes)
    assert len(fuse.merge_detections([result, nothing])) == len(fuse.merge_detections([result, result])) > 0
    assert fuse.merge_detections([result, nothing]).rles is not None
    for method in ("nms", "wbf"):
        assert len(fuse.merge_detections([nothing, nothing], method=method, sizes={})) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mean"}, "method is 'mean', expected 'nms' or 'wbf'"),
        ({"weights": (1,)}, r"weights are \(1,\), expected 2, one for each result"),
        ({"weights": (1, 0)}, r"weights are \(1, 0\), expected numbers above 0"),
        ({"weights": (1, np.nan)}, "weights are .*, expected numbers above 0"),
        ({"iou_threshold": 1.5}, "iou_threshold is 1.5, expected 0 to 1"),
        ({"max_detections": -2}, "max_detections is -2, expected at least 0, or -1 or None for all"),
        ({"method": "wbf"}, r"sizes? is None, expected the \(height, width\)"),
    ],
)
def test_options_that_are_refused(options, message):
    result = random_detections(np.random.default_rng(3), 4)
    with pytest.raises(ValueError, match=f"^{message}"):
        fuse.merge_image([result, result], K, **options)
    with pytest.raises(ValueError, match=f"^{message}"):
        fuse.merge_detections([as_detections(result)] * 2, **options)


def test_results_that_are_refused():
    result = random_detections(np.random.default_rng(4), 4)
    data = as_detections(result, masks=True)
    with pytest.raises(ValueError, match=r"^results are 1, expected at least 2$"):
        fuse.merge_detections([data])
    with pytest.raises(
        ValueError, match=r"^result 2 has no masks and result 1 has, expected masks in all results or in"
    ):
        fuse.merge_detections([data, as_detections(result)])
    assert len(fuse.merge_detections([data, as_detections(result)], method="wbf", sizes={7: SIZE}))
    with pytest.raises(ValueError, match=r"^sizes has no image 7, which has detections$"):
        fuse.merge_detections([data, data], method="wbf", sizes={8: SIZE})
    for method in ("nms", "wbf"):
        options = {"method": method, "size": SIZE}
        with pytest.raises(ValueError, match=r"^labels are \d to \d, expected 0 to 0$"):
            fuse.merge_image([result, result], 1, **options)
        with pytest.raises(ValueError, match=r"^scores contain NaN$"):
            fuse.merge_image([result, result._replace(scores=result.scores * np.float32(np.nan))], K, **options)
        with pytest.raises(ValueError, match=r"^boxes, labels and scores have shapes"):
            fuse.merge_image([result, result._replace(scores=result.scores[:1])], K, **options)
    broken = Detections(data.image_ids, data.category_ids, data.scores, data.boxes * np.float32(np.nan))
    with pytest.raises(ValueError, match=r"^image 7: boxes contain NaN$"):
        fuse.merge_detections([broken, broken])


VIEWS = {
    "small": {"detector_options": ("min_size=112", "max_size=112", "_skip_resize=false")},
    "large": {"detector_options": ("min_size=160", "max_size=160", "_skip_resize=false")},
    "flipped": {"flip": 1.0},
    "other": {},  # another detector: weights of another seed
}


@pytest.fixture(scope="module")
def view_files(tiny: Tiny, tmp_path_factory) -> dict[str, Path]:
    """The detections of each view of the tiny dataset, by `python -m extract` and `python -m fuse`."""
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
            patch.setattr("fuse.commands.outputs.report_writer", lambda: None)  # drawing would take longest
            assert main([*arguments, "--mode", "original", "--max-detections", "100"]) == 0
        files[name] = folder / name / "detections.json"
    return files


def command(tiny: Tiny, files: list[Path], out: Path, *options: str) -> list[str]:
    where = ["--annotations", str(tiny.data / "val.json"), "--train-annotations", str(tiny.data / "train.json")]
    return ["merge", *map(str, files), *where, "--out", str(out), *options]


def assert_merged(merged: Detections, results: list[Detections]):
    """Equal to the reference, image by image, masks included."""
    every = concatenated(results)
    assert np.unique(merged.image_ids).tolist() == np.unique(every.image_ids).tolist()
    for image_id in np.unique(every.image_ids):
        views = [result.take(result.image_ids == image_id) for result in results]
        expected = concatenated(views)
        images = [ImageDetections(view.boxes, view.category_ids, view.scores) for view in views]
        kept = batched_nms_numpy(images, 0.5, 150, every.category_ids.max() + 1)
        expected, found = expected.take(kept), merged.take(merged.image_ids == image_id)
        for name in ("category_ids", "scores", "boxes"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert found.rles == expected.rles


def test_test_time_augmentation_from_caches(tiny, view_files, tmp_path, capsys):
    """Table 10: one cache per view, one result per cache, merged."""
    files = [view_files[name] for name in ("small", "large", "flipped")]
    results = [Detections.from_json(file) for file in files]
    assert len({result.boxes.tobytes() for result in results}) == 3
    capsys.readouterr()
    assert main(command(tiny, files, tmp_path / "o", "--max-detections", "150")) == 0
    printed = capsys.readouterr().out
    merged = Detections.from_json(tmp_path / "o" / "detections.json")
    assert_merged(merged, results)
    table = pd.read_csv(tmp_path / "o" / "metrics.csv", index_col="row")
    assert table.index.tolist() == [*map(str, files), "merged"] and set(table["iou_type"]) == {"segm"}
    assert printed.startswith("Evaluated on 12 images, 0 of them without detections; 150 detections per image")
    assert [line.split()[0] for line in printed.splitlines()[-4:]] == table.index.tolist()
    assert {p.name for p in (tmp_path / "o").iterdir()} == {
        "detections.json", "metrics.csv", "per_class.csv", "report.html", "run.json",
    }  # fmt: skip
    for file, result in zip([*files, "merged"], [*results, merged], strict=True):
        alone = fuse.evaluate(tiny.data / "val.json", result, fuse_classes(tiny), iou_type="segm").loc["segm"]
        np.testing.assert_allclose(table.loc[str(file), alone.index].astype(float), alone, atol=1e-9)


def fuse_classes(tiny: Tiny) -> pd.DataFrame:
    from extract.data.annotations import read_annotations

    return read_annotations(tiny.data / "train.json").classes


@pytest.mark.parametrize("method", ["nms", "wbf"])
def test_two_detectors(tiny, view_files, tmp_path, method, capsys):
    """Table 9."""
    files = [view_files["flipped"], view_files["other"]]
    assert main(command(tiny, files, tmp_path / "o", "--method", method, "--max-detections", "50")) == 0
    results = [Detections.from_json(file) for file in files]
    sizes = {i["id"]: (i["height"], i["width"]) for i in json.loads((tiny.data / "val.json").read_text())["images"]}
    expected = fuse.merge_detections(results, method=method, max_detections=50, sizes=sizes)
    merged = Detections.from_json(tmp_path / "o" / "detections.json")
    np.testing.assert_array_equal(merged.scores, expected.scores)
    np.testing.assert_array_equal(merged.category_ids, expected.category_ids)
    assert merged.rles == expected.rles and (merged.rles is None) == (method == "wbf")
    assert np.unique(merged.image_ids, return_counts=True)[1].tolist() == [50] * 12
    assert ("Box AP" if method == "wbf" else "Mask AP") in capsys.readouterr().out


def test_fixed_ap_has_no_cap(tiny, view_files, tmp_path):
    files = [view_files["flipped"], view_files["other"]]
    assert (
        main(command(tiny, files, tmp_path / "o", "--fixed-ap", "--iou-types", "bbox", "--max-detections", "50")) == 0
    )
    merged = Detections.from_json(tmp_path / "o" / "detections.json")
    assert np.unique(merged.image_ids, return_counts=True)[1].min() > 50


def test_the_same_command_again_and_other_inputs(tiny, view_files, tmp_path, capsys):
    files = [view_files["small"], view_files["other"]]
    first = command(tiny, files, tmp_path / "o", "--iou-types", "bbox")
    assert main(first) == 0 and main(first) == 0
    other = command(tiny, files[::-1], tmp_path / "o", "--iou-types", "bbox", "--weights", "1", "2")
    assert main(other) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "weights ('' there, '1, 2' now), detections_fingerprint (" in error and "--overwrite" in error
    assert main([*other, "--overwrite"]) == 0


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Folder of a toy dataset with two files of results, a.json without masks."""
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
        ("a.json b.json", 1, "a.json has no masks and b.json has, expected masks in all results or in none"),
        ("a.json b.json --method wbf --weights 1", 1, r"weights are (1.0,), expected 2, one for each result"),
        ("a.json b.json --method wbf --iou-types segm", 1, "there are no masks to evaluate; use --iou-types bbox"),
        ("a.json b.json --method wbf --iou-threshold 2", 1, "iou_threshold is 2.0, expected 0 to 1"),
        ("a.json c.json", 1, "c.json"),
        ("a.json image.json", 1, "image.json: detections of image_id 8, which the annotations do not have"),
        ("a.json category.json", 1, "category.json: detections of category_id 5, which the annotations do not"),
    ],
)
def test_arguments_that_the_command_refuses(toy, tmp_path, capsys, monkeypatch, arguments, code, message):
    monkeypatch.chdir(toy)
    for field, value in (("image_id", 8), ("category_id", 5)):
        record = json.loads((toy / "a.json").read_text())[0] | {field: value}
        (toy / f"{field.removesuffix('_id')}.json").write_text(json.dumps([record]))
    assert merge_toy(toy, *arguments.split(), "--out", str(tmp_path / "o")) == code
    error = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().err).split())
    assert message in error and not (tmp_path / "o").exists()


def test_the_folder_of_an_input_is_not_overwritten(toy, tmp_path, capsys):
    (tmp_path / "detections.json").write_bytes((toy / "a.json").read_bytes())
    files = [str(tmp_path / "detections.json"), str(toy / "a.json")]
    assert merge_toy(toy, *files, "--out", str(tmp_path), "--overwrite") == 2
    assert "is one of the files to merge" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_help_has_an_example(capsys):
    assert main(["merge", "--help"]) == 0
    assert "Example: python -m fuse merge" in capsys.readouterr().out
