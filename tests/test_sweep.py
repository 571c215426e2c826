from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import calib
import fuse
from extract.cache.opening import open_cache
from fuse.__main__ import main
from fuse.detections import Detections
from tests.fuse_fixtures import annotations, tiny_cache, tiny_head, write_tiny

ROWS = [
    "original@0.05", "original@0.0", "props-gt",
    "rhead-only", "rhead-avg", "rhead-det", "rhead-cat", "rhead-cat-thr", "rhead-cat-scale", "rhead-cat@10",
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return folder, *write_tiny(folder)


@pytest.fixture
def arguments(files):
    _, annotation_file, cache, head = files
    return ["--annotations", str(annotation_file), "--cache", str(cache), "--head", str(head)]


@pytest.mark.long
def test_sweep_prints_every_row_of_the_paper_and_writes_it(arguments, tmp_path, capsys):
    out = tmp_path / "sweep"
    assert main(["sweep", *arguments, "--out", str(out), "--tail", "10", "--iou-types", "segm", "bbox"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0].startswith("Evaluated on 6 images; 300 detections per image; bins by training instances")
    assert "AP(0,10) 2 of 2" in lines[1] and "AP[1000,-) 0 of 1" in lines[1]
    assert [line.split()[0] for line in lines[5:15]] == ROWS
    table = pd.read_csv(out / "metrics.csv", index_col=["iou_type", "row"])
    assert table.index.tolist() == [(t, r) for t in ("segm", "bbox") for r in ROWS]
    ap = table.loc["segm"]
    assert ap.loc["rhead-cat", "AP(0,10)"] > ap.loc["original@0.0", "AP(0,10)"] + 10
    assert ap.loc["rhead-cat", "AP[100,1000)"] == pytest.approx(ap.loc["original@0.0", "AP[100,1000)"], abs=1)
    means = ["AP", "bAP", "AP50", "AP75", "AR"]  # a class alone may lose: the oracle ranks RoIs by their foreground
    for iou_type in ("segm", "bbox"):
        oracle, original = table.loc[(iou_type, "props-gt")], table.loc[(iou_type, "original@0.0")]
        assert (oracle[means] >= original[means]).all() and oracle["AP(0,10)"] > original["AP(0,10)"] + 10
    assert len(pd.read_csv(out / "per_class.csv")) == 2 * len(ROWS) * 5
    assert ap.loc["rhead-cat", "AP(0,10)_difference_low"] > 0 and not ap.loc["rhead-cat", "AP(0,10)_within_noise"]
    title = "Box AP of original@0.0 and differences from it, with 95% intervals over images (1,000 resamples)"
    assert title in printed and f"{ap.loc['rhead-cat', 'AP(0,10)_difference']:+.1f} [" in printed
    report = (out / "report.html").read_text()
    assert "over resampled images" in report and "rhead-cat-scale" in report and "<svg" in report and "Box AP" in report
    assert "http://" not in report.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


@pytest.mark.long
def test_a_row_of_the_sweep_is_the_main_command_and_its_file_evaluates_the_same(arguments, files, tmp_path, capsys):
    _, annotation_file, cache, _ = files
    out = tmp_path / "cat"
    assert main([*arguments, "--out", str(out), "--mode", "cat", "--tail", "10"]) == 0
    assert {p.name for p in out.iterdir()} == {
        "detections.json", "metrics.csv", "per_class.csv", "report.html", "run.json",
    }  # fmt: skip
    table = pd.read_csv(out / "metrics.csv", index_col="row")
    assert table.index.tolist() == ["original", "cat"]
    capsys.readouterr()
    options = ["--annotations", str(annotation_file), "--cache", str(cache)]
    assert main(["evaluate", str(out / "detections.json"), *options]) == 0
    text = capsys.readouterr().out
    assert "Evaluated on 6 images, 0 of them without detections" in text
    start = text.splitlines().index("Mask AP") + 1
    header, row = (line.split() for line in text.splitlines()[start : start + 2])
    assert header == table.columns[1:][table.iloc[0, 1:].notna()].tolist()[: len(header)]
    assert row == ["detections.json", *table.loc["cat", header].astype(float).map("{:.1f}".format)]
    low, high = table.loc["cat", ["AP_low", "AP_high"]].astype(float)
    assert f"{table.loc['cat', 'AP']:.1f} [{low:.1f}, {high:.1f}]" in text, "the same resamples"
    assert main(["evaluate", str(out / "detections.json"), *options, "--engine", "lvis"]) == 0
    assert capsys.readouterr().out == text
    found, opened = Detections.from_json(out / "detections.json"), open_cache(str(cache))
    frame = fuse.evaluate(annotation_file, found, opened.classes, iou_type="segm")
    np.testing.assert_allclose(frame.loc["segm"], table.loc["cat", frame.columns].astype(float), atol=1e-9)


@pytest.mark.long
def test_evaluate_takes_counts_from_training_annotations(files, tmp_path, arguments, capsys):
    _, annotation_file, *_ = files
    assert main([*arguments, "--out", str(tmp_path / "o")]) == 0
    content = annotations(40, seed=5)
    (tmp_path / "train.json").write_text(json.dumps(content))
    capsys.readouterr()
    options = ["--annotations", str(annotation_file), "--train-annotations", str(tmp_path / "train.json")]
    assert main(["evaluate", str(tmp_path / "o" / "detections.json"), *options, "--bins", "35"]) == 0
    assert "AP(0,35)" in capsys.readouterr().out


@pytest.mark.long
def test_the_same_command_again_and_another_one(arguments, tmp_path, capsys):
    out = tmp_path / "o"
    assert main([*arguments, "--out", str(out)]) == 0
    first = (out / "detections.json").read_bytes()
    assert main([*arguments, "--out", str(out), "--bins", "10", "100", "1000"]) == 0  # the default, given
    assert (out / "detections.json").read_bytes() == first
    assert main([*arguments, "--out", str(out), "--tail", "10"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "tail ('100' there, '10' now)" in error and "--overwrite" in error
    assert main([*arguments, "--out", str(out), "--tail", "10", "--overwrite"]) == 0


@pytest.mark.long
def test_fixed_ap(arguments, tmp_path, capsys):
    assert main([*arguments, "--out", str(tmp_path / "o"), "--fixed-ap"]) == 0
    assert "fixed AP" in capsys.readouterr().out
    assert len(Detections.from_json(tmp_path / "o" / "detections.json")) > 0


@pytest.mark.long
def test_a_method_is_given_by_name_with_its_hyperparameters(files, tmp_path):
    _, annotation_file, url, _ = files
    command = ["--annotations", str(annotation_file), "--cache", str(url), "--method", "norcal", "--gamma", "0.6"]
    assert main([*command, "--mode", "calibrated", "--out", str(tmp_path / "o")]) == 0
    cache = open_cache(url)
    expected = fuse.detect(cache, calib.posthoc.NorCal(gamma=0.6).fit(cache), mode="calibrated")
    found = Detections.from_json(tmp_path / "o" / "detections.json")
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.category_ids, expected.category_ids)
    assert main(["sweep", *command, "--out", str(tmp_path / "sweep")]) == 0
    rows = pd.read_csv(tmp_path / "sweep" / "metrics.csv", index_col=["iou_type", "row"]).loc["segm"].index
    assert "rhead-cat" in rows
    train = tiny_cache(tmp_path / "train.zarr", annotations(), split="train")
    for method in (["logn"], ["temperature"], ["ncm", "--temperature", "2"], ["norcal", "--variant", "unnormalized"]):
        command[4:] = ["--method", *method, "--fit-cache", train.url]
        assert main([*command, "--out", str(tmp_path / method[0])]) == 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--method norcal --tau 1", 1, "tau is 1.0: method norcal has no tau"),
        ("--method dog", 1, "method is 'dog', expected one of norcal"),
        ("--method norcal --head head", 2, "give one of them"),
        ("--gamma 0.6", 2, "gamma is given without --method"),
        ("--method fracal", 1, "method is 'fracal', which is fitted to labels: give --fit-cache, a train cache"),
        ("--method norcal --variant probs", 2, "variant"),
        ("--method norcal --fit-cache other.zarr", 1, "other.zarr: detector name another, in "),
    ],
)
def test_methods_that_cannot_be_used_are_refused(files, tmp_path, capsys, monkeypatch, options, code, message):
    monkeypatch.chdir(tmp_path)
    tiny_cache(tmp_path / "other.zarr", annotations(), detector="another")
    command = ["--annotations", str(files[1]), "--cache", str(files[2]), *options.split()]
    assert main([*command, "--out", "o"]) == code
    assert message in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "o").exists()


@pytest.mark.long
def test_a_cache_of_fewer_images_is_named(files, tmp_path, capsys):
    _, annotation_file, _, _ = files
    part = {**(content := annotations()), "images": content["images"][:4]}
    cache = tiny_cache(tmp_path / "part.zarr", part)
    command = ["--annotations", str(annotation_file), "--cache", cache.url, "--mode", "original"]
    assert main([*command, "--out", str(tmp_path / "o")]) == 0
    assert "Evaluated on 4 of the 6 images of val.json: those of the cache;" in capsys.readouterr().out


def refused(command, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*command, "--out", str(out)]) == 1
    assert not out.exists()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.long
def test_a_head_of_another_detector_is_refused(files, tmp_path, capsys):
    _, annotation_file, cache, _ = files
    other = tiny_cache(tmp_path / "other.zarr", annotations(), detector="another")
    head = tiny_head(tmp_path / "head", other)
    command = ["--annotations", str(annotation_file), "--cache", str(cache), "--head", str(head)]
    assert "detector name toy, the head was trained for another" in refused(command, tmp_path, capsys)


@pytest.mark.long
def test_a_head_of_another_number_of_stages_is_refused(files, tmp_path, capsys):
    _, annotation_file, cache, _ = files
    head = tiny_head(tmp_path / "head", tiny_cache(tmp_path / "other.zarr", annotations(), stages=3))
    command = ["--annotations", str(annotation_file), "--cache", str(cache), "--head", str(head)]
    assert "stages" in refused(command, tmp_path, capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(annotations(5)), "lacks 1 images of"),
        (lambda c: c["categories"].append({"id": 99, "name": "x"}), "annotations have 6 categories, the class table 5"),
        (lambda c: c["categories"][4].update(id=21), "2 are in one only, the first is category 20 of the class table"),
        (lambda c: c.pop("images"), "missing required field `images`"),
        (lambda c: c["images"][1].update(height=480), "image 17 is 480 high and 64 wide, in "),
        (lambda c: c["annotations"][2].update(image_id=8), "annotation 2: image_id 8 is not in the file"),
    ],
)
def test_annotations_of_something_else_are_refused(files, tmp_path, capsys, change, message):
    _, _, cache, head = files
    content = annotations()
    change(content)
    (tmp_path / "val.json").write_text(json.dumps(content))
    command = ["--annotations", str(tmp_path / "val.json"), "--cache", str(cache), "--head", str(head)]
    assert message in refused(command, tmp_path, capsys)


@pytest.mark.parametrize("flag", ["--annotations", "--cache", "--head"])
def test_missing_files_are_named(arguments, flag, tmp_path, capsys):
    command = list(arguments)
    command[command.index(flag) + 1] = str(tmp_path / "nowhere")
    assert "nowhere" in refused(command, tmp_path, capsys)


@pytest.mark.long
def test_a_train_cache_is_refused(files, tmp_path, capsys):
    cache = tiny_cache(tmp_path / "train.zarr", annotations(), split="train")
    command = ["--annotations", str(files[1]), "--cache", cache.url, "--mode", "original"]
    assert "is a train cache, whose ground-truth boxes would compete" in refused(command, tmp_path, capsys)


def test_options_out_of_range_are_refused(arguments, tmp_path, capsys):
    for option, message in [("--max-detections 0", "max_detections is 0"), ("--bins 10 5", "bins is (10.0, 5.0)")]:
        assert main([*arguments, "--out", str(tmp_path / "o"), *option.split()]) == 2
        assert message in capsys.readouterr().err


def test_usage_errors_exit_with_2(arguments, tmp_path, capsys):
    assert main(["--cache", "x"]) == 2
    assert main([*arguments, "--out", str(tmp_path / "o"), "--mode", "concat"]) == 2
    assert main(["evaluate"]) == 2
    assert not (tmp_path / "o").exists()


def test_evaluate_needs_a_class_table(files, tmp_path, capsys):
    (tmp_path / "d.json").write_text("[]")
    assert main(["evaluate", str(tmp_path / "d.json"), "--annotations", str(files[1])]) == 2
    assert "--cache or --train-annotations" in capsys.readouterr().err


@pytest.mark.parametrize("mode", [[], ["--mode", "cat"], ["--mode", "det"]])
def test_a_mode_without_the_head_that_it_needs_is_refused(files, tmp_path, capsys, mode):
    command = ["--annotations", str(files[1]), "--cache", str(files[2]), "--out", str(tmp_path / "o"), *mode]
    assert main(command) == 2
    assert "--head" in capsys.readouterr().err and not (tmp_path / "o").exists()


@pytest.mark.parametrize("command", [[], ["sweep"], ["evaluate"]])
def test_help_has_an_example(command, capsys):
    assert main([*command, "--help"]) == 0
    assert "Example: python -m fuse" in capsys.readouterr().out
