"""The commands on exhaustive datasets, on test sets without annotations and on small sets with empty bins."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fuse
from extract.__main__ import main as extract_main
from extract.cache.opening import open_cache
from extract.data.loose import identifier
from fuse.__main__ import main
from fuse.detections import Detections
from tests.fuse_fixtures import CLASSES, annotations, as_coco, tiny_cache, tiny_head


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An exhaustive dataset with its cache and head; a test set: the same images without annotations."""
    folder = tmp_path_factory.mktemp("coco")
    content = as_coco(annotations())
    content["annotations"][4]["iscrowd"] = 1
    (folder / "val.json").write_text(json.dumps(content))
    (folder / "test.json").write_text(json.dumps({**content, "annotations": []}))
    (folder / "lvis.json").write_text(json.dumps(annotations()))
    cache = tiny_cache(folder / "val.zarr", annotations())
    tiny_head(folder / "head", cache)
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr("fuse.commands.outputs.report_writer", lambda: None)  # drawing would take longest


CACHE = ["--cache", "val.zarr", "--head", "head"]
COCO_LT = ["--bins", "20", "400", "8000"]


@pytest.mark.long
def test_a_fusion_is_evaluated_by_the_protocol_of_coco(tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    assert main([*CACHE, "--annotations", "val.json", *COCO_LT, "--tail", "10", "--out", str(tmp_path)]) == 0
    assert "val.json: no image has neg_category_ids or " in caplog.text
    assert "; exhaustive annotations, COCO's protocol" in caplog.text
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Evaluated on 6 images; 100 detections per image;")
    assert lines[0].endswith("COCO's protocol (exhaustive annotations).")
    assert {"AP(0,20)", "AP[20,400)", "APs", "AP50", "AR@10", "ARs"} <= set(lines[4].split())
    found = Detections.from_json(tmp_path / "detections.json")
    assert np.unique(found.image_ids, return_counts=True)[1].max() <= 100
    table = pd.read_csv(tmp_path / "metrics.csv", index_col="row")
    options = {"bins": (0, 20, 400, 8000, float("inf")), "iou_type": "segm", "engine": "pycocotools"}
    expected = fuse.evaluate("val.json", found, open_cache("val.zarr").classes, **options).loc["segm"]
    np.testing.assert_allclose(table.loc["cat", expected.index].astype(float), expected, rtol=0, atol=1e-9)
    assert table.loc["cat", "AP(0,20)"] > table.loc["original", "AP(0,20)"] + 10
    assert "APs" in (tmp_path / "report.html").read_text()


@pytest.mark.long
def test_every_command_takes_an_exhaustive_dataset(tmp_path, capsys, no_report, caplog):
    caplog.set_level("INFO")
    where = ["--annotations", "val.json", *COCO_LT, "--iou-types", "bbox"]
    assert main(["sweep", *CACHE, *where, "--out", str(tmp_path / "sweep")]) == 0
    files = []
    for mode in ("original", "calibrated"):
        assert main([*CACHE, *where, "--mode", mode, "--out", str(tmp_path / mode)]) == 0
        files.append(str(tmp_path / mode / "detections.json"))
    capsys.readouterr()
    outputs = []
    for engine in ("native", "hotcoco", "pycocotools"):
        assert main(["evaluate", files[0], *where, "--cache", "val.zarr", "--engine", engine]) == 0
        outputs.append(capsys.readouterr().out)
    assert len(set(outputs)) == 1 and "COCO's protocol" in outputs[0]
    assert main(["merge", *files, *where, "--cache", "val.zarr", "--out", str(tmp_path / "both")]) == 0
    assert "100 detections per image" in capsys.readouterr().out
    steps = [record.getMessage() for record in caplog.records if record.getMessage().startswith("next: ")]
    assert len(steps) == 7, "each command says what to run next"
    assert steps[0].startswith("next: python -m fuse predict --detector … --config-file … --head head --save-images")
    assert steps[3] == "next: the same command with --errors, which says where the errors are"
    merged = f"{tmp_path / 'both' / 'detections.json'} --annotations val.json --cache val.zarr --errors"
    assert steps[-1] == f"next: python -m fuse evaluate {merged}"
    assert extract_main(["recall", "val.zarr", "--annotations", "val.json", *COCO_LT]) == 0
    recall = capsys.readouterr().out
    assert "(0,20)" in recall and "[400,8000)" in recall


@pytest.mark.long
def test_ids_that_are_text_and_missing_sizes_through_all_commands(folder, tmp_path, capsys, no_report):
    content = json.loads((folder / "lvis.json").read_text())
    images = content["images"]
    texts = {image["id"]: f"img_{image['id']:04d}" for image in images}
    numbers = {old: identifier(text) for old, text in texts.items()}
    numbered = {
        **content,
        "images": [{**image, "id": numbers[image["id"]]} for image in images],
        "annotations": [{**a, "image_id": numbers[a["image_id"]]} for a in content["annotations"]],
    }
    cache = tiny_cache(tmp_path / "val.zarr", numbered)
    tiny_head(tmp_path / "head", cache)
    for record in content["annotations"]:
        record["image_id"] = texts[record["image_id"]]
    for image in images:
        image["id"] = texts[image["id"]]
    del images[0]["height"]
    (tmp_path / "val.json").write_text(json.dumps(content))
    where = ["--annotations", str(tmp_path / "val.json"), "--cache", cache.url]
    names = []
    for mode in ("original", "calibrated"):
        out = tmp_path / mode
        assert main([*where, "--head", str(tmp_path / "head"), "--mode", mode, "--out", str(out)]) == 0
        names.append(str(out / "detections.json"))
        assert {record["image_id"] for record in json.loads((out / "detections.json").read_text())} <= set(
            texts.values()
        )
    lines = capsys.readouterr().out.replace("~", "").splitlines()
    row = lines[-lines[::-1].index("Mask AP") :][2]
    assert main(["evaluate", names[1], *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("Mask AP") + 2].split()[1:] == row.split()[1:]
    assert main(["merge", *names, *where, "--out", str(tmp_path / "both")]) == 0
    merged = json.loads((tmp_path / "both" / "detections.json").read_text())
    assert {record["image_id"] for record in merged} <= set(texts.values())
    assert main(["evaluate", names[1], *where[:2], "--train-annotations", where[1]]) == 1
    assert "1 of 6 images have no height and width, such as image img_" in capsys.readouterr().err


@pytest.mark.long
def test_protocol_and_cap_can_be_set(tmp_path, capsys, no_report):
    where = [*CACHE, "--iou-types", "bbox", "--out", str(tmp_path)]
    assert main([*where, "--annotations", "lvis.json", "--protocol", "exhaustive", "--max-detections", "7"]) == 0
    assert "7 detections per image" in (text := capsys.readouterr().out) and "COCO's protocol" in text
    assert main([*where, "--annotations", "lvis.json"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "protocol ('exhaustive' there, 'federated' now)" in error
    assert "max_detections ('7' there, '300' now)" in error
    assert main([*where, "--annotations", "val.json", "--engine", "lvis", "--overwrite"]) == 1
    assert "engine is 'lvis', expected 'native' or 'hotcoco' or 'pycocotools'" in capsys.readouterr().err


@pytest.mark.long
def test_folders_from_before_the_protocol_was_an_option_are_continued(tmp_path, no_report):
    command = [*CACHE, "--iou-types", "bbox", "--annotations", "lvis.json", "--out", str(tmp_path)]
    assert main(command) == 0
    manifest = json.loads((tmp_path / "run.json").read_text())
    assert manifest.pop("protocol") == "federated"
    (tmp_path / "run.json").write_text(json.dumps(manifest))
    assert main(command) == 0


@pytest.mark.long
def test_detections_in_a_test_set_are_written_and_not_evaluated(tmp_path, capsys, no_report):
    test, val = tmp_path / "test", tmp_path / "val"
    command = [*CACHE, "--tail", "10", "--max-detections", "50"]
    assert main([*command, "--annotations", "test.json", "--out", str(test)]) == 0
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    assert line.startswith("test.json has no annotations, so no AP: ") and "detections on 6 images in" in line
    assert {path.name for path in test.iterdir()} == {"detections.json", "run.json"}
    assert main([*command, "--annotations", "val.json", "--out", str(val)]) == 0
    assert (test / "detections.json").read_bytes() == (val / "detections.json").read_bytes()
    files = [str(folder / "detections.json") for folder in (test, val)]
    merge = ["merge", *files, "--annotations", "test.json", "--cache", "val.zarr", "--out", str(tmp_path / "both")]
    assert main(merge) == 0
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"detections.json", "run.json"}


@pytest.mark.long
def test_a_folder_never_holds_results_of_two_runs(tmp_path, monkeypatch, no_report):
    """A stop in the middle of writing leaves the earlier results; a test set takes the place of evaluated ones."""
    command = [*CACHE, "--iou-types", "bbox", "--out", str(tmp_path), "--overwrite"]
    assert main([*command, "--annotations", "val.json"]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("fuse.commands.outputs.describe_results", lambda *_: exit(130))
        assert main([*command, "--annotations", "val.json", "--tail", "10"]) == 130
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert main([*command, "--annotations", "val.json"]) == 0
    assert main([*command, "--annotations", "test.json"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"detections.json", "run.json"}


@pytest.mark.parametrize("command", ["sweep --cache val.zarr --out o", "evaluate empty.json --cache val.zarr"])
def test_commands_that_only_evaluate_refuse_a_test_set(folder, capsys, command):
    (folder / "empty.json").write_text("[]")
    assert main([*command.split(), "--annotations", "test.json"]) == 1
    assert "error: test.json: has no annotations, so nothing can be evaluated" in capsys.readouterr().err
    assert not (folder / "o").exists()


def test_evaluation_of_a_test_set_in_python_has_no_figures():
    nothing = Detections(np.zeros(0, int), np.zeros(0, int), np.zeros(0, np.float32), np.zeros((0, 4), np.float32))
    for protocol in ("federated", "exhaustive"):
        assert fuse.evaluate("test.json", nothing, CLASSES, protocol=protocol).isna().all(axis=None)


@pytest.mark.parametrize(
    ("tail", "text"),
    [
        ("5000", "tail is 5000: 5 of 5 classes are tail classes (they have 3 to 4000 training instances), so the orig"),
        ("3", "tail is 3: 0 of 5 classes are tail classes (they have 3 to 4000 training instances), so the calibrated"),
        ("4000", None),
    ],
)
def test_a_bound_that_makes_all_or_no_classes_tail_classes_is_said(tmp_path, caplog, no_report, tail, text):
    command = [*CACHE, "--annotations", "val.json", "--iou-types", "bbox", "--out", str(tmp_path)]
    assert main([*command, "--tail", tail]) == 0
    assert text in caplog.text if text else "tail classes" not in caplog.text


def test_columns_without_ground_truth_are_named_and_left_out_of_the_table(tmp_path, capsys, no_report):
    command = [*CACHE, "--annotations", "lvis.json", "--iou-types", "bbox", "--out", str(tmp_path)]
    assert main([*command, "--bins", "2", "10", "1000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith(
        "AP(0,2) 0 of 0, AP[2,10) 2 of 2, AP[10,1000) 2 of 2, AP[1000,-) 0 of 1, AP 4 of 5. "
        "Columns without any are left out: AP(0,2), AP[1000,-)."
    )
    assert lines[4].split()[:3] == ["AP[2,10)", "AP[10,1000)", "AP"] and "NaN" not in "".join(lines)
    assert "AP(0,2)" in pd.read_csv(tmp_path / "metrics.csv").columns
