"""`python -m extract` on a tiny Mini-LVIS: what the caches hold, interruption, and bad input."""

from __future__ import annotations

import json
import logging
import platform
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from safetensors.torch import save_file

import calib
import extract
import fuse
import tests.frameworks.torchvision as builders
from calib.head_types import build_head
from extract.__main__ import COMMANDS
from extract.cache.creation import create_cache
from extract.cache.format import IMAGES_PER_BLOCK, layers_above
from extract.cache.writer import CacheWriter
from extract.data.annotations import Annotations, read_annotations
from extract.data.images import flip_boxes, read_image
from extract.detectors import load_detector
from extract.detectors.base import Image
from extract.detectors.torchvision import TorchvisionDetector
from extract.extractor import Extractor
from extract.holdout import held_out_images, training_part
from extract.matching import GroundTruth, match
from extract.preparation import find_existing
from extract.recall import proposal_recall
from extract.utils.cli import run as run_command
from extract.utils.prefetch import prefetch
from extract.verify import forward, worst_logit_error
from tests.conftest import CLASSES
from tests.toy_cache import change_attributes


@pytest.fixture(scope="module")
def caches(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    return {split: extract.run(tiny.config(split, folder / f"{split}.zarr")) for split in ("train", "val")}


def command(*arguments: object) -> int:
    return run_command("python -m extract", COMMANDS, [str(a) for a in arguments])


def flags(config: extract.Config) -> list[str]:
    """The command line of a config."""
    return [
        *("--detector", config.detector, "--weights", config.weights),
        *("--annotations", config.annotations, "--images", config.images, "--out", config.out),
        *("--split", config.split, "--train-annotations", config.train_annotations),
        *("--proposals", config.proposals, "--device", config.device, *config.detector_options),
    ]


def ground_truth(annotations: Annotations, position: int) -> GroundTruth:
    own = annotations.image_slice(position)
    return GroundTruth(annotations.boxes[own], annotations.labels[own], annotations.ids[own], annotations.crowd[own])


def test_val_cache_is_what_the_live_detector_gives(tiny, caches):
    detector = load_detector(tiny.config("val", "unused"))
    annotations, cache = read_annotations(tiny.data / "val.json"), caches["val"]
    assert cache.images["image_id"].tolist() == annotations.image_ids.tolist() and not cache.images["flipped"].any()
    everything = lambda i, p: (np.arange(60), np.empty((0, 4), np.float32))  # noqa: E731
    for position in (0, 7):
        image_id = int(annotations.image_ids[position])
        pixels = read_image(tiny.data / "val", annotations.file_names[position], (112, 112))
        forward = detector.forward([Image(image_id, pixels)], "pooled", everything)
        (live,), (masks,) = forward.rois, forward.masks()
        stored = cache.image(image_id)
        assert len(stored) == 60
        np.testing.assert_allclose(stored.logits, live.logits, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(stored.boxes, live.boxes, atol=1e-3)
        np.testing.assert_allclose(stored.features, live.features, rtol=1e-2, atol=1e-2)
        assert (np.abs(stored.masks.astype(int) - masks) <= 1).all()


def test_train_cache_keeps_objects_matches_and_some_background(tiny, caches):
    annotations, cache = read_annotations(tiny.data / "train.json"), caches["train"]
    assert 0 < cache.images["flipped"].mean() < 1
    for position, rois in enumerate(cache):
        own = annotations.image_slice(position)
        assert rois.gt_ids[rois.is_gt, 0].tolist() == annotations.ids[own].tolist()
        assert rois.labels[rois.is_gt, 0].tolist() == annotations.labels[own].tolist()
        np.testing.assert_allclose(rois.proposals[rois.is_gt, 0], annotations.boxes[own], atol=1e-3)
        gt = ground_truth(annotations, position)
        labels, ious, _ = match(rois.proposals[:, 0], gt, 0.5, cache.num_classes)
        np.testing.assert_allclose(ious, rois.ious[:, 0], atol=1e-4)
        np.testing.assert_array_equal(labels, rois.labels[:, 0])
        background = rois.labels[:, 0] == cache.num_classes
        assert (rois.ious[background, 0] >= 0.1 - 1e-4).all() and background.sum() <= 64


def test_class_table_counts_the_training_set(tiny, caches):
    content = json.loads((tiny.data / "train.json").read_text())
    for cache in caches.values():
        stated = {c["id"]: (c["name"], c["frequency"], c["instance_count"]) for c in content["categories"]}
        assert {r.category_id: (r.name, r.frequency, r.instance_count) for r in cache.classes.itertuples()} == stated


@pytest.mark.parametrize("split", ["train", "val"])
def test_logits_follow_from_the_stored_features(caches, split):
    assert worst_logit_error(caches[split]) < 5e-3


def test_levels(tiny, tmp_path):
    for level, shape in {"embedding": (1, 256), "logits": None}.items():
        cache = extract.run(tiny.config("val", tmp_path / level, level=level, min_images_per_class=1))
        assert cache.fields.get("features") == shape and cache.level == level
        error = worst_logit_error(cache)
        assert error is None if level == "logits" else error < 5e-3
    cache = extract.open_cache(str(tmp_path / "embedding"))
    rois, layers = cache[0], layers_above(cache.level, cache.fc_layers())
    assert len(layers) == 1 and forward(layers, rois.features[:, 0]).shape == rois.logits[:, 0].shape


def test_a_box_head_with_convolutions(tiny, tmp_path, caplog):
    """Pooled features enter the fully connected layers, so that a head can start from the detector's own."""
    caplog.set_level(logging.INFO, "extract")
    detector, options = "torchvision:tests.frameworks.torchvision:convolutions", (f"num_classes={CLASSES}",)
    save_file(builders.convolutions(CLASSES).state_dict(), tmp_path / "weights.safetensors")
    changes = {"detector": detector, "weights": tmp_path / "weights.safetensors", "detector_options": options}
    changes |= {"min_images_per_class": 1, "proposals": 20, "masks": False}
    config = tiny.config("train", tmp_path / "train.zarr", **changes)
    cache = extract.run(config)
    stated = "feature level pooled behind the box head's convolutions trains --head-type 2fc_rand 3fc_rand linear 3fc"
    assert stated in caplog.text
    assert "val caches of this detector hold no masks: AP of boxes, and of masks if fuse paints them" in caplog.text
    assert cache.fields["features"] == (1, 24, 7, 7) and cache.detector["pooled_after_convolutions"]
    assert 0 < worst_logit_error(cache) < 5e-3
    head = build_head(cache, "3fc_ft", 8, 0, {})
    assert head.info.widths == (24 * 49, 48, CLASSES + 1) and head.info.pooled_after_convolutions
    rois, live = cache[0], load_detector(config)
    np.testing.assert_allclose(head.logits(rois), rois.logits.astype(np.float32), rtol=2e-3, atol=5e-3)
    fuse.CalibratedDetector(live, head)
    older = calib.Head(replace(head.info, pooled_after_convolutions=False))
    with pytest.raises(ValueError, match="pooled features after the box head's convolutions, the head was trained for"):
        fuse.CalibratedDetector(live, older)
    embedding = extract.run(replace(config, out=str(tmp_path / "embedding.zarr"), level="embedding"))
    assert "pooled_after_convolutions" not in embedding.detector, "as in caches of earlier versions"


def test_flipped_images_come_back_in_the_coordinates_of_the_original(tiny, tmp_path):
    """Flipping the file as well must undo flipping the image: same features, flipped boxes."""
    config = tiny.config("val", tmp_path / "a", flip=1.0, min_images_per_class=1)
    flipped = replace(config, out=str(tmp_path / "b"), images=tmp_path / "images", flip=0.0)
    shutil.copytree(config.images, flipped.images)
    for file in flipped.images.iterdir():
        PILImage.open(file).transpose(PILImage.Transpose.FLIP_LEFT_RIGHT).save(file)
    for a, b in zip(extract.run(config), extract.run(flipped), strict=True):
        assert a.flipped and not b.flipped
        np.testing.assert_array_equal(a.features, b.features)
        np.testing.assert_allclose(a.boxes, flip_boxes(b.boxes, b.width), atol=1e-3)
        np.testing.assert_array_equal(a.masks, b.masks[:, :, ::-1])


def folder_bytes(folder) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def interrupt(monkeypatch, error: BaseException) -> None:
    """Lets the forward pass of the second block fail."""
    forward, seen = TorchvisionDetector.forward, []

    def interrupted(self, images, *arguments):
        if len(seen) >= IMAGES_PER_BLOCK:
            raise error
        seen.extend(images)
        return forward(self, images, *arguments)

    monkeypatch.setattr(TorchvisionDetector, "forward", interrupted)


def test_resumed_equals_uninterrupted(tiny, tmp_path, monkeypatch):
    whole = tiny.config("train", tmp_path / "whole")
    extract.run(whole)
    broken = replace(whole, out=str(tmp_path / "broken"))
    interrupt(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        extract.run(broken)
    with pytest.raises(extract.CacheError, match="not finished, 16 of 30 images are done"):
        extract.open_cache(broken.out)
    assert not [t for t in threading.enumerate() if t.name.startswith(("prefetch", "background"))]
    monkeypatch.undo()
    extract.run(broken)
    assert folder_bytes(tmp_path / "whole") == folder_bytes(tmp_path / "broken")


def test_an_older_version_or_another_file_of_the_same_tensors_is_resumed(tiny, tmp_path):
    import torch
    from safetensors.torch import load_file

    config = tiny.config("train", tmp_path / "cache")
    before = extract.run(config).detector
    assert set(before["settings"]) == {"input_size", "pixel_mean", "pixel_std", "channel_order", "options"}
    torch.save({"model": load_file(config.weights)}, tmp_path / "checkpoint.pth")
    other = replace(config, weights=tmp_path / "checkpoint.pth")
    assert extract.run(other).detector == before, "finished already"
    older = {key: value for key, value in before.items() if key not in ("tensors_sha256", "settings")}
    change_attributes(config.out, detector=older)
    assert extract.run(config).detector == older
    with pytest.raises(extract.CacheError, match="made with other options: detector.weights_sha256"):
        extract.run(other)


def test_a_renamed_config_file_of_the_same_content_is_resumed(tiny, tmp_path):
    cache = extract.run(tiny.config("val", tmp_path / "cache", min_images_per_class=1))
    stored = {**cache.detector, "name": "cascade", "config_sha256": "c1"}
    change_attributes(cache.url, detector=stored)
    assert find_existing(cache.url, replace(cache.header, detector={**stored, "name": "renamed"})).detector == stored
    with pytest.raises(extract.CacheError, match="options: detector.name .'cascade' there, 'renamed' now., detector.c"):
        find_existing(cache.url, replace(cache.header, detector={**stored, "name": "renamed", "config_sha256": "c2"}))


@pytest.mark.parametrize("split", ["train", "val"])
def test_overlapped_extraction_writes_the_bytes_of_a_sequential_one(tiny, caches, tmp_path, split):
    config, finished = tiny.config(split, tmp_path / "cache"), caches[split]
    annotations, classes = read_annotations(config.annotations), finished.classes.reset_index()
    extractor = Extractor(config, annotations, load_detector(config))
    blocks = [extractor.extract_block(b) for b in range(extractor.num_blocks)]
    images, fc_layers = finished.images.drop(columns="roi_count"), extractor.detector.fc_layers("pooled")
    capacity = extractor.max_rois_per_image
    writer = create_cache(config.out, blocks[0][0], finished.header, classes, images, capacity, fc_layers)
    for block, rois in enumerate(blocks):
        writer.write_block(block, rois)
    writer.finish()
    assert folder_bytes(tmp_path / "cache") == folder_bytes(Path(finished.url))


def test_an_error_while_storing_ends_the_extraction(tiny, tmp_path, monkeypatch):
    config, seen = tiny.config("train", tmp_path / "cache", batch_size=1), []
    forward = TorchvisionDetector.forward

    def slow(self, images, *arguments):
        seen.extend(images)
        if len(seen) > IMAGES_PER_BLOCK + 1:
            assert failed.wait(10)
        return forward(self, images, *arguments)

    failed = threading.Event()

    def broken(self, block, rois):
        failed.set()
        raise extract.CacheError("no space left")

    monkeypatch.setattr(TorchvisionDetector, "forward", slow)
    monkeypatch.setattr(CacheWriter, "write_block", broken)
    with pytest.raises(extract.CacheError, match="no space left"):
        extract.run(config)
    assert len(seen) < 30, "it is raised before the next block is done"


def test_prefetch_keeps_the_order_and_stops_where_it_fails():
    begun = []

    def read(item):
        begun.append(item)
        if item == 7:
            raise ValueError("seven")
        return 10 * item

    results = prefetch(read, range(100), threads=4, depth=3)
    assert [next(results) for _ in range(7)] == [0, 10, 20, 30, 40, 50, 60]
    with pytest.raises(ValueError, match="seven"):
        next(results)
    assert max(begun) < 12, "reads no further ahead than its depth"


def test_object_store(tiny, caches):
    """fsspec's memory file system stands for s3:// and its like."""
    for split, whole in caches.items():
        config = tiny.config(split, f"memory://bucket/{split}.zarr")
        assert command(*flags(config)) == 0
        with pytest.raises(extract.CacheError, match="other options: proposals"):
            extract.run(replace(config, proposals=50))
        cache = extract.open_cache(config.out)
        assert cache.fingerprint == whole.fingerprint
    head = calib.train_head(extract.open_cache("memory://bucket/train.zarr"), steps=2)
    remote, local = (fuse.detect(c, head, mode="cat", tail=100) for c in (cache, caches["val"]))
    assert len(remote) and remote.rles == local.rles
    np.testing.assert_array_equal(remote.scores, local.scores)


def test_same_command_again_and_changed_command(tiny, caches):
    config = tiny.config("val", caches["val"].url)
    assert extract.run(config).fingerprint == caches["val"].fingerprint
    with pytest.raises(extract.CacheError, match="other options: proposals .60 there, 50 now.; --overwrite"):
        extract.run(replace(config, proposals=50))
    other = tiny.data / "train_as_val.json"
    shutil.copy(tiny.data / "train.json", other)
    with pytest.raises(extract.CacheError, match="provenance.annotations_sha256"):
        extract.run(replace(config, annotations=other, images=tiny.data / "train"))


def test_recall_is_that_of_a_plain_count(tiny, caches):
    annotations = read_annotations(tiny.data / "val.json")
    table = proposal_recall(caches["val"], annotations, limits=(10, 60, 100))
    assert table.loc["all", "objects"] == len(annotations.ids) == table["objects"].iloc[:-1].sum()
    assert list(table.columns) == ["objects", "AR@10", "AR@60"], "60 proposals have no AR@100"
    with pytest.raises(ValueError, match="is a train cache"):
        proposal_recall(caches["train"], read_annotations(tiny.data / "train.json"))
    found = 0.0
    for threshold in np.arange(0.5, 1.0, 0.05):
        for position, rois in enumerate(caches["val"]):
            gt = ground_truth(annotations, position)
            labels, _, ids = match(rois.proposals[:, 0], gt, threshold, CLASSES)
            found += len(np.unique(ids[labels < CLASSES]))
    expected = found / 10 / len(annotations.ids) * 100
    assert table.loc["all", "AR@60"] == pytest.approx(expected, abs=0.5)
    assert table.loc["all", "AR@10"] < table.loc["all", "AR@60"]
    means = table["AR@60"].iloc[:-1] @ table["objects"].iloc[:-1].to_numpy() if table["AR@60"].notna().all() else None
    assert means is None or means / len(annotations.ids) == pytest.approx(table.loc["all", "AR@60"])


@pytest.mark.process  # h5py runs `uname` when it is imported
def test_command_line(tiny, caches, tmp_path, capsys):
    out, config = tmp_path / "c.zarr", tiny.config("val", tmp_path / "c.zarr", min_images_per_class=1)
    arguments = [*flags(config), "--min-images-per-class", 1]
    assert command(*arguments, "--estimate") == 0 and not out.exists()
    assert command(*arguments) == 0
    assert "of them in it" in capsys.readouterr().out
    assert command("inspect", out) == 0
    inspected = capsys.readouterr().out
    assert "RoI cache" in inspected and re.search(r"^input size +\d+ \d+$", inspected, re.MULTILINE)
    assert re.search(
        r"^pixel mean .*\npixel std .*\nchannel order +RGB\noptions +num_classes=", inspected, re.MULTILINE
    )
    assert command("verify", out) == 0 and "intact, logits equal to within" in capsys.readouterr().out
    assert command("recall", out, "--annotations", config.annotations) == 0
    recall = capsys.readouterr().out
    assert "objects" in recall and "NaN" not in recall
    assert re.search(r"^Bins without objects are left out: .*\[1000,-\)\.$", recall, re.MULTILINE)
    assert command("export", out, tmp_path / "c.h5") == 0
    assert command("import", tmp_path / "c.h5", tmp_path / "d.zarr") == 0
    assert extract.open_cache(tmp_path / "d.zarr").fingerprint == extract.open_cache(out).fingerprint


def test_usage(capsys):
    assert command("--help") == 0 and "Other commands: inspect, browse, convert, verify" in capsys.readouterr().out
    assert command("inspect", "--help") == 0
    capsys.readouterr()
    assert command("--no-such-flag", 1) == 2
    assert command("--split", "test") == 2
    assert command("inspekt") == 2
    expected = "no command 'inspekt'; it has inspect, browse, convert, verify, recall, export, import"
    assert expected in capsys.readouterr().err


@pytest.mark.process
def test_version_is_what_a_bug_report_needs(capsys, monkeypatch):
    monkeypatch.setattr("extract.utils.cli.PACKAGES", ("zarr", "no_such_package"))
    assert command("--version") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "python -m extract"
    report = dict(line.split(maxsplit=1) for line in lines[1:])
    assert report.keys() == {"tailcal", "python", "platform", "CPUs", "zarr"}
    assert report["tailcal"] == version("tailcal") and report["zarr"] == version("zarr")
    assert report["python"] == platform.python_version() and int(report["CPUs"]) >= 1


@pytest.mark.process
@pytest.mark.parametrize("arguments", ["--version", "--help"])
def test_a_closed_pipe_ends_a_command_quietly(arguments):
    """As in `python -m extract --version | head -1`."""
    command = [sys.executable, "-m", "extract", arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.process
def test_version_imports_no_framework():
    code = (
        "import sys; from extract.__main__ import main; main(['--version']); "
        "assert not {'torch', 'torchvision', 'numba', 'zarr'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def put_in_two_folders(content: dict) -> None:
    """Gives the first two images one name in different folders."""
    name = content["images"][0]["file_name"]
    for i, image in enumerate(content["images"][:2]):
        image["file_name"] = f"cam{i}/{name}"


def change_json(tiny, tmp_path, change):
    content = json.loads((tiny.data / "val.json").read_text())
    change(content)
    path = tmp_path / "val.json"
    path.write_text(json.dumps(content))
    return {"annotations": path}


BAD_INPUT = {
    "no annotations": (lambda t, p: {"annotations": p / "no.json"}, "no.json: no such annotation file"),
    "no training counts": (lambda t, p: {"train_annotations": None}, "a val cache needs --train-annotations"),
    "no device": (lambda t, p: {"device": "abacus"}, "device 'abacus' cannot be used"),
    "builder options": (
        lambda t, p: {"detector_options": ("num_classes=many",)},
        "detector builder .* failed with options {'num_classes': 'many'}",
    ),
    "nothing annotated": (
        lambda t, p: {**change_json(t, p, lambda c: c.update(annotations=[])), "min_images_per_class": 1},
        "no image has an annotation",
    ),
    "no images": (lambda t, p: {"images": p}, "has no "),
    "a name in two folders": (
        lambda t, p: change_json(t, p, put_in_two_folders),
        r"has no cam0/(.*png); \1 may be of image \d+ or of image \d+ .cam1/\1.: give the folder",
    ),
    "anything to repair with --strict": (
        lambda t, p: {**change_json(t, p, lambda c: c["annotations"][0].update(bbox=[1, 1, 0, 9])), "strict": True},
        "val.json: 1 of .* boxes have no area and are left out, such as annotation .*; --strict refuses this",
    ),
    "no weights": (lambda t, p: {"weights": p / "no.pth"}, "no.pth: no such weights file"),
    "other classes": (
        lambda t, p: {"detector_options": ("num_classes=13",)},
        "weights of another model: .*has shape .13",
    ),
    "fewer categories": (
        lambda t, p: change_json(t, p, lambda c: c["categories"].append({"id": 9999, "name": "new"})),
        "categories of .* differ in 1 entries, such as 9999 'new', which only .*val.json has",
    ),
    "negative size": (lambda t, p: {"proposals": 0}, "proposals is 0, expected at least 1"),
    "flip": (lambda t, p: {"flip": 1.5}, r"flip is 1.5, expected a probability in \[0, 1\]"),
    "another size": (
        lambda t, p: change_json(t, p, lambda c: [i.update(height=224) for i in c["images"]]),
        "image is 112×112, the annotations have 112×224",
    ),
    "out is a file": (lambda t, p: {"out": str(t.weights)}, "is a file, a RoI cache is a folder"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input(tiny, tmp_path, name):
    change, message = BAD_INPUT[name]
    out = tmp_path / "out.zarr"
    with pytest.raises((ValueError, OSError), match=message) as error:
        extract.run(replace(tiny.config("val", out), **change(tiny, tmp_path)))
    assert "\n" not in str(error.value)
    assert not out.exists(), "nothing half-written stays"


def test_neighbours_in_a_batch_do_not_matter(tiny, tmp_path):
    """Images of other sizes in the same batch would be padded, which changes features."""
    content = json.loads((tiny.data / "val.json").read_text())
    images = tmp_path / "images"
    images.mkdir()
    content["annotations"] = []
    for i, image in enumerate(content["images"]):
        size = (96, 144) if i % 2 else (144, 128)
        image.update(width=size[0], height=size[1])
        with PILImage.open(tiny.data / "val" / image["file_name"]) as pixels:
            pixels.resize(size).save(images / image["file_name"])
    (tmp_path / "val.json").write_text(json.dumps(content))
    config = tiny.config("val", tmp_path / "a", images=images, annotations=tmp_path / "val.json", masks=False)
    one = extract.run(replace(config, batch_size=1))
    many = extract.run(replace(config, out=str(tmp_path / "b"), batch_size=12))
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a.proposals, b.proposals, atol=1e-3)
        np.testing.assert_allclose(a.logits, b.logits, atol=2e-3)


def test_two_objects_in_one_place_and_images_not_annotated_exhaustively(tiny, tmp_path):
    content = json.loads((tiny.data / "train.json").read_text())
    first = content["annotations"][0]
    other = next(c["id"] for c in content["categories"] if c["id"] != first["category_id"])
    content["annotations"].append({**first, "id": 10**6, "category_id": other})
    partial = next(i for i in content["images"] if i["id"] != first["image_id"])
    partial["not_exhaustive_category_ids"] = [other]
    (tmp_path / "train.json").write_text(json.dumps(content))
    options = {"annotations": tmp_path / "train.json", "train_annotations": None}
    cache = extract.run(tiny.config("train", tmp_path / "cache", **options))
    rois = cache.image(first["image_id"])
    found = dict(zip(rois.gt_ids[rois.is_gt, 0].tolist(), rois.labels[rois.is_gt, 0].tolist(), strict=True))
    ids = cache.classes["category_id"].tolist()
    assert found[first["id"]] == ids.index(first["category_id"]) and found[10**6] == ids.index(other)
    assert cache.num_classes not in cache.image(partial["id"]).labels, "its background is ignored"


def test_unreadable_image(tiny, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(tiny.data / "val", images)
    victim = sorted(images.iterdir())[0]
    for damaged in (b"", b"hello", victim.read_bytes()[:100]):
        victim.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{victim.name}: not a readable image"):
            extract.run(tiny.config("val", tmp_path / "out.zarr", images=images))


def test_bad_input_on_the_command_line(tiny, tmp_path, capsys):
    config = tiny.config("val", tmp_path / "out.zarr", weights=tmp_path / "no.safetensors")
    assert command(*flags(config)) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ") and captured.out == ""
    assert command("inspect", tmp_path / "nothing") == 1
    assert "nothing: no RoI cache there" in capsys.readouterr().err


def test_a_val_file_may_list_fewer_categories_than_the_training_file(tiny, caches, tmp_path):
    content = json.loads((tiny.data / "val.json").read_text())
    dropped = {content["categories"][1]["id"], content["categories"][5]["id"]}
    content["categories"] = [c for c in content["categories"] if c["id"] not in dropped]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] not in dropped]
    for image in content["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [i for i in image[key] if i not in dropped]
    (tmp_path / "val.json").write_text(json.dumps(content))
    cache = extract.run(tiny.config("val", tmp_path / "val.zarr", annotations=tmp_path / "val.json", level="logits"))
    whole = caches["val"]
    assert cache.classes.equals(whole.classes)
    labels, expected = cache.read("labels"), whole.read("labels")
    kept = ~np.isin(expected, np.flatnonzero(cache.classes["category_id"].isin(dropped))) & (expected >= 0)
    np.testing.assert_array_equal(labels[kept], expected[kept])
    recall = proposal_recall(cache, read_annotations(tmp_path / "val.json"))
    assert recall.loc["all", "objects"] == len(content["annotations"])


def test_a_holdout_cache_has_the_held_out_training_images_as_a_val_cache_has_its_own(tiny, caches, tmp_path, caplog):
    config = replace(tiny.config("train", tmp_path / "h.zarr"), split="holdout", train_annotations=None)
    holdout = extract.run(config)
    annotations = read_annotations(tiny.data / "train.json")
    assert holdout.images["image_id"].tolist() == annotations.image_ids[held_out_images(annotations)].tolist()
    assert holdout.split == "val" and not holdout.read("is_gt").any() and "masks" in holdout.fields
    assert (np.diff(holdout.offsets) == 60).all() and not holdout.images["flipped"].any()
    assert holdout.classes.equals(caches["train"].classes) and "the file evaluated on" not in caplog.text
    part = training_part(caches["train"], holdout)
    assert len(part) + len(holdout) == len(caches["train"]) == len(annotations.image_ids)
    with pytest.raises(ValueError, match=r"made with other options: split \('holdout' there, 'val' now\)"):
        extract.run(replace(config, split="val", train_annotations=config.annotations))
    with pytest.raises(ValueError, match="rois_per_class is 4: a holdout cache keeps the top proposals"):
        replace(config, rois_per_class=4)
