"""`python -m fuse predict`: files and folders, image ids, drawings, and resuming."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

import calib
import extract
import fuse.__main__
from calib.scoring import Original
from extract.detectors import load_detector
from fuse.commands.predictions import LINES_FILE
from fuse.learned import LearnedFusion
from fuse.learned_io import save_learned
from fuse.live import CalibratedDetector
from tests.image_kinds import ORIENTATION


@pytest.fixture(scope="module")
def setting(tiny, tmp_path_factory):
    """The config of the detector, a cache and a head of it, and the image files by name."""
    folder = tmp_path_factory.mktemp("predict")
    options = {"level": "embedding", "min_images_per_class": 1}
    train = extract.run(tiny.config("train", folder / "train.zarr", **options))
    calib.train_head(train, head_type="linear", steps=5, out=str(folder / "head"))
    return tiny.config("val", "unused"), train, folder / "head", sorted((tiny.data / "val").iterdir())


def run(setting, out: Path, *images: Path, **options: object) -> int:
    """Runs the command; images are files or folders."""
    config, _, head, _ = setting
    flags = {"head": head, "detector": config.detector, "weights": config.weights, "device": "cpu", "out": out}
    flags["max_detections"] = 20
    parts = ["predict", "--images", *images] if images else ["predict"]
    for name, value in (flags | options).items():
        flag = "--" + name.replace("_", "-")
        parts += [] if value is None else [flag] if value is True else [flag, value]
    return fuse.__main__.main([str(part) for part in (*parts, *config.detector_options)])


def results(out: Path) -> list[dict]:
    return json.loads((out / "predictions.json").read_text())


def test_a_learned_fusion_detects_as_in_python(setting, tmp_path):
    config, train, head, files = setting
    original, scorer = Original.from_description(train.detector), calib.load_head(head)
    weights = np.random.default_rng(0).uniform(0.2, 1, (4, train.num_classes)).astype(np.float32)
    save_learned(
        LearnedFusion((original, scorer), weights, scorer.instance_counts, scorer.class_map), tmp_path / "learned"
    )
    options = {"head": tmp_path / "learned", "mode": "calibrated"}
    assert run(setting, tmp_path / "out", files[0], **options) == 0
    live = CalibratedDetector(load_detector(config), tmp_path / "learned", mode="calibrated", max_detections=20)
    ((expected, _),) = live.predict([files[0]])
    assert [record["score"] for record in results(tmp_path / "out")] == pytest.approx(expected.scores.tolist())


def test_files(setting, tmp_path, capsys):
    config, train, head, files = setting
    for i in range(2):
        shutil.copy(files[i], tmp_path / f"{i}.png")
    images, out = [tmp_path / "0.png", tmp_path / "1.png"], tmp_path / "out"
    assert run(setting, out, *images, save_images=True) == 0
    records = results(out)
    assert len(records) == 40 and {r["file_name"] for r in records} == set(map(str, images))
    assert {r["name"] for r in records} <= set(train.classes["name"]) and records[0]["segmentation"]["size"] == [
        112,
        112,
    ]
    assert "image_id" not in records[0] and sorted(p.name for p in out.iterdir()) == [
        "0.png",
        "1.png",
        "predictions.json",
    ]
    with PILImage.open(out / "0.png") as drawn:
        assert drawn.width == 2 * 560 + 8 and drawn.height > 560, "below a title"
    (tmp_path / "b").mkdir()
    shutil.copy(files[0], tmp_path / "b" / "0.png")
    assert run(setting, tmp_path / "out2", *images, tmp_path / "b" / "0.png", save_images=True) == 1
    assert "two of the images would be drawn into" in capsys.readouterr().err
    assert run(setting, tmp_path / "out2", *images, tmp_path / "no.png") == 1
    assert "no.png: no such image or folder" in capsys.readouterr().err
    assert not (tmp_path / "out2").exists()
    assert run(setting, out, *images) == 1
    assert "out: holds predictions.json; use --overwrite" in capsys.readouterr().err
    assert run(setting, tmp_path, *images, save_images=True) == 1
    assert "whose 0.png is one of the images: give another folder" in capsys.readouterr().err
    assert run(setting, out) == 2
    assert "images is empty, expected at least one file or folder" in " ".join(capsys.readouterr().err.split())
    assert run(setting, out, *images, overwrite=True, iou_threshold=0.3, stage_average="logits") == 0
    live = CalibratedDetector(load_detector(config), head, iou_threshold=0.3, max_detections=20)
    expected = [score for detected, _ in live.predict(images) for score in detected.scores.tolist()]
    np.testing.assert_allclose([record["score"] for record in results(out)], expected, atol=1e-5)


def test_a_method(setting, tmp_path, capsys):
    config, train, _, files = setting
    options = {"head": None, "method": "norcal", "mode": "calibrated"}
    assert run(setting, tmp_path / "out", files[0], **options) == 2
    assert "give --fit-cache" in " ".join(capsys.readouterr().err.split())
    assert run(setting, tmp_path / "out", files[0], **options, fit_cache=train.url) == 0
    live = CalibratedDetector(
        load_detector(config), calib.posthoc.NorCal().fit(train), mode="calibrated", max_detections=20
    )
    ((expected, _),) = live.predict(files[0])
    assert [record["score"] for record in results(tmp_path / "out")] == expected.scores.tolist()


def test_folders(setting, tmp_path, capsys, caplog):
    folder = tmp_path / "photos"
    for name in ("b.png", "a/b.PNG", "a/c.png", ".hidden/d.png", "._b.png", "readme.txt", "runs/x/predicted.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(setting[3][0], folder / name)
    out = folder / "runs" / "x"
    with caplog.at_level(logging.INFO):
        assert run(setting, out, folder, folder / "b.png", save_images=True, tail=10**6) == 0
        assert "12 of 12 classes are tail classes" in caplog.text
    names = list(dict.fromkeys(Path(r["file_name"]).relative_to(folder).as_posix() for r in results(out)))
    assert names == ["b.png", "a/b.PNG", "a/c.png"]
    assert f"{folder}: 3 images; 2 other files are left out, such as {folder}/._b.png" in caplog.text
    assert re.search(r"3 images: about \d+\.\d minutes at [\d.]+ images per second", caplog.text)
    assert (out / "b.png").is_file() and (out / "a" / "b.png").is_file() and (out / "a" / "c.png").is_file()
    assert run(setting, folder, folder) == 1
    assert "photos, which is a folder of images: give another folder" in capsys.readouterr().err
    assert run(setting, tmp_path / "out", folder / ".hidden" / "..", tmp_path / "photos" / "a") == 0
    (tmp_path / "empty").mkdir()
    assert run(setting, tmp_path / "out2", tmp_path / "empty") == 1
    assert "empty: has no image: no file with one of the suffixes .jpg .jpeg .png" in capsys.readouterr().err


def test_results_of_annotated_images_are_evaluated(setting, tiny, tmp_path, capsys, caplog):
    config, train, head, files = setting
    shutil.copytree(tiny.data / "val", tmp_path / "val")
    content = json.loads((tiny.data / "val.json").read_text())
    first, second, third = content["images"][:3]
    shutil.copy(files[0], tmp_path / "val" / "other.png")
    (tmp_path / "val" / second["file_name"]).unlink()
    # The annotations are of this image before its EXIF orientation turns it; torchvision leaves it so, too.
    exif = PILImage.Exif()
    exif[ORIENTATION] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (80, 112, 3), np.uint8)
    PILImage.fromarray(pixels).save(tmp_path / "val" / third["file_name"], format="png", exif=exif)
    third["height"] = 80
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != third["id"]]
    (tmp_path / "val.json").write_text(json.dumps(content))
    options = {"annotations": tmp_path / "val.json", "mode": "calibrated"}
    assert run(setting, tmp_path / "out", tmp_path / "val", **options) == 0
    assert (
        f"val.json names 11 of the 12 images; the others are left out, such as {tmp_path}/val/other.png" in caplog.text
    )
    assert f"1 of the 12 images of {tmp_path}/val.json are not given, such as image {second['id']}" in caplog.text
    records = results(tmp_path / "out")
    assert {r["image_id"] for r in records} == {image["id"] for image in content["images"]} - {second["id"]}
    live = CalibratedDetector(load_detector(config), head, mode="calibrated", max_detections=20)
    ((expected, _),) = live.predict(tmp_path / "val" / first["file_name"])
    assert [r["score"] for r in records if r["image_id"] == first["id"]] == expected.scores.tolist()
    sizes = {tuple(r["segmentation"]["size"]) for r in records if r["image_id"] == third["id"]}
    assert sizes == {(80, 112)}
    capsys.readouterr()
    evaluate = ["evaluate", tmp_path / "out" / "predictions.json", "--annotations", tmp_path / "val.json"]
    assert fuse.__main__.main([str(part) for part in (*evaluate, "--cache", train.url)]) == 0
    assert "12 images, 1 of them without detections" in capsys.readouterr().out
    content["annotations"][0]["bbox"][2] = 1e4
    (tmp_path / "val.json").write_text(json.dumps(content))
    assert run(setting, tmp_path / "out2", tmp_path / "val", strict=True, **options) == 1
    assert "1 of" in (refusal := capsys.readouterr().err) and "are clipped, such as annotation" in refusal
    assert "--strict refuses this" in refusal and not (tmp_path / "out2").exists()
    content["categories"][0]["name"] = "another"
    (tmp_path / "val.json").write_text(json.dumps(content))
    assert run(setting, tmp_path / "out2", tmp_path / "val", **options) == 1
    assert f"category {content['categories'][0]['id']} is 'another', " in capsys.readouterr().err


def test_an_interrupted_run_resumes(setting, tmp_path, monkeypatch, caplog, capsys):
    caplog.set_level(logging.INFO)
    files = setting[3][:5]
    assert run(setting, tmp_path / "whole", *files) == 0
    calls = interrupt_third_call(monkeypatch)
    out = tmp_path / "out"
    assert run(setting, out, *files) == 130
    assert "out: stopped after 2 images; the same command resumes" in caplog.text
    assert sorted(path.name for path in out.iterdir()) == [LINES_FILE]
    with (out / LINES_FILE).open("ab") as file:
        file.write(b'{"image":"cut sho')  # a kill in the middle of a line
    assert run(setting, out, *files, tail=7) == 1
    assert "out: was made with other options: tail ('100' there, '7' now)" in capsys.readouterr().err
    assert run(setting, out, *files) == 0
    assert "resuming: 2 of 5 images are done" in caplog.text and len(calls) == 3 + 3
    assert sorted(path.name for path in out.iterdir()) == ["predictions.json"]
    assert (out / "predictions.json").read_bytes() == (tmp_path / "whole" / "predictions.json").read_bytes()
    calls.clear()
    old = (out / "predictions.json").read_bytes()
    assert run(setting, out, *files, overwrite=True, tail=7) == 130
    assert "the same command resumes" in caplog.text
    assert (out / "predictions.json").read_bytes() == old, "the old one stays until the new one is whole"
    assert run(setting, out, *files, overwrite=True, tail=7) == 0 and len(calls) == 3 + 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    for seconds, removed in ((1, False), (-1, True)):
        (out / LINES_FILE).write_text("newer, or left by a process that was killed when it had finished")
        written = (out / "predictions.json").stat().st_mtime_ns + seconds * 10**9
        os.utime(out / LINES_FILE, ns=(written, written))
        (tmp_path / ".out.lock").touch()
        assert run(setting, out, *files) == 1
        assert "holds predictions.json; use --overwrite" in capsys.readouterr().err
        assert (out / LINES_FILE).exists() != removed and not (tmp_path / ".out.lock").exists()
    (out / "predictions.json").rename(out / LINES_FILE)
    assert run(setting, out, *files) == 1
    assert f"{LINES_FILE}: damaged: " in capsys.readouterr().err


def test_overwrite_replaces_predictions_and_drawings_as_a_whole(setting, tmp_path, monkeypatch):
    files, out, other = setting[3][:3], tmp_path / "out", tmp_path / "other"
    assert run(setting, out, *files, save_images=True) == 0
    old = contents(out)
    shutil.copytree(out, other)
    PILImage.new("RGB", (4, 4)).save(other / "mine.png")
    interrupt_third_call(monkeypatch)
    options = {"save_images": True, "max_drawn": 1, "overwrite": True}
    assert run(setting, out, *files[:2], **options) == 130 and contents(out) == old
    assert run(setting, out, *files[:1], **options) == 0, "other options than those of the interrupted run"
    names = [files[0].with_suffix(".png").name, "predictions.json"]
    assert sorted(contents(out)) == sorted(names), "drawings of images that are no longer given are gone"
    assert contents(out)[names[0]] != old[names[0]]
    assert run(setting, other, *files[:1], **options) == 0
    assert set(contents(other)) == {*old, "mine.png"}, "other images in the folder stay, and it is not replaced"
    assert contents(other)["predictions.json"] == contents(out)["predictions.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def interrupt_third_call(monkeypatch) -> list:
    """Interrupts the third call of `CalibratedDetector.predict`; returns the images of all calls."""
    predict, calls = CalibratedDetector.predict, []

    def interrupted(self, image):
        calls.append(image)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(self, image)

    monkeypatch.setattr(CalibratedDetector, "predict", interrupted)
    return calls


def contents(folder: Path) -> dict[str, bytes]:
    """The content of the files in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
