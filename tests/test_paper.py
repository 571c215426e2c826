"""`python -m benchmarks.paper`: the paper's figures, the tables on tiny data, and LVIS in a folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fuse
from benchmarks.paper import __main__ as command
from benchmarks.paper import ensembles, inputs, results, scores, setups, statistics
from benchmarks.paper.figures import BIN_COLUMNS, PAPER
from benchmarks.paper.lvis import CONFIGS, NOTES, VERSIONS, lvis
from extract.cache.opening import open_cache
from fuse.config import FusionConfig
from fuse.merge import merge_detections
from tests.fuse_fixtures import annotations, tiny_cache, tiny_head
from tests.toy_cache import toy_cache

CLASSES_IN_VAL = np.array([67, 298, 284, 181])


def write_detector(folder: Path, name: str, seed: int = 0) -> None:
    """Val cache and head of a detector."""
    content = annotations(seed=seed)
    tiny_head(folder / name / "head", tiny_cache(folder / name / "val.zarr", content))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder as `make demo` leaves it, of two detectors."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "minilvis").mkdir()
    for split in ("train", "val", "test"):
        (folder / "minilvis" / f"{split}.json").write_text(json.dumps(annotations()))
    for name in ("plain", "rfs"):
        write_detector(folder, name)
    return folder


@pytest.fixture
def setup(data) -> setups.Setup:
    return dataclasses.replace(setups.mini_lvis(data), ensemble=("plain", "rfs"), scales=())


@pytest.fixture
def lvis_folder(tmp_path) -> Path:
    """LVIS v1 with a cache and a head of the plain detector."""
    for split in ("train", "val"):
        (tmp_path / f"lvis_v1_{split}.json").write_text(json.dumps(annotations()))
    write_detector(tmp_path / "caches", "plain")
    return tmp_path


@pytest.mark.parametrize("table", ["2", "4", "6", "7", "8", "11", "simcal"])
def test_bins_of_the_papers_figures_average_to_ap(table):
    """The check that the corrected tables come with: each AP is the mean over val's classes."""
    for row in PAPER[table].values():
        by_bin = np.array([row[column] for column in BIN_COLUMNS[:4]])
        assert (by_bin * CLASSES_IN_VAL).sum() / CLASSES_IN_VAL.sum() == pytest.approx(row["AP"], abs=0.07)


def test_every_measured_row_of_the_paper_has_its_figures():
    for table, rows in scores.TABLES.items():
        assert set(PAPER[table]) <= {row.name for row in rows}
    assert set(command.TABLES) == set(PAPER) == set(command.NAMES)


def test_classes_of_lvis_are_the_papers():
    table = statistics.lvis_class_table().set_index("row")
    assert {row: {c: float(v) for c, v in table.loc[row].items()} for row in table.index} == PAPER["1"]


def test_classes_per_bin_count_those_of_val(data, tmp_path):
    content = annotations()
    absent = content["annotations"][0]["category_id"]
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] != absent]
    files = {"train": data / "minilvis" / "train.json", "val": tmp_path / "val.json"}
    files["val"].write_text(json.dumps(content))
    table = statistics.class_table(dataclasses.replace(setups.mini_lvis(data), annotations=files)).set_index("row")
    assert table["all"].to_dict() == {"train": 4, "train-on-val": 3}  # one class has no training instance


@pytest.mark.long
def test_score_tables_are_those_of_the_sweep(setup, capsys):
    table = scores.score_table(setup, "6").set_index("row")
    assert list(table.index) == list(PAPER["6"])
    cache = open_cache(str(setup.caches / "plain" / "val.zarr"))
    head = inputs.load_or_train(setup, "plain")
    found = fuse.detect(cache, head, mode="cat")
    expected = fuse.evaluate(setup.annotations["val"], found, cache.classes, iou_type="segm").loc["segm"]
    for column in scores.METRICS:
        np.testing.assert_equal(table.loc["rhead-cat", column], expected[column])
    ablation = command.TABLES["tail"](setup).set_index("row")
    assert ablation.loc["100", "AP"] == table.loc["rhead-cat", "AP"]
    assert ablation.loc["inf", "AP"] == table.loc["rhead-only", "AP"]
    assert capsys.readouterr().out == ""


def test_rows_of_detectors_that_a_dataset_lacks_are_named(setup, capsys):
    rows = scores.available(setup, scores.TABLES["7"])
    assert [row.detector for row in rows] == ["htc"] * 3
    assert "Mini-LVIS has no detector htc_dcn: row 'htc-x101-ms-dcn' is left out" in capsys.readouterr().out
    assert scores.available(setup, [scores.Row("x", "htc_best")])[0].detector == "htc"


@pytest.mark.long
def test_ensembles_merge_detectors_and_views(setup):
    for name in setup.ensemble:
        flipped = setup.caches / name / "val_flip.zarr"
        if not flipped.exists():
            shutil.copytree(setup.caches / name / "val.zarr", flipped)
    table = ensembles.ensemble_table(setup).set_index("row")
    assert list(table.index[:2]) == ["plain", "rfs"] and table.loc["plain", "split"] == "val"
    cat = {"cat": FusionConfig(mode="cat")}
    found = [
        merge_detections([inputs.detect(setup, name, "val", cat, view=fuse.View(flip=flip))["cat"] for flip in (0, 1)])
        for name in setup.ensemble
    ]
    merged = merge_detections(found)
    classes = open_cache(str(setup.caches / "plain" / "val.zarr")).classes
    expected = fuse.evaluate(setup.annotations["val"], merged, classes, iou_type="segm").loc["segm", "AP"]
    assert table.loc[ensembles.ALL_VIEWS, "AP"] == expected


def test_heads_are_trained_once_with_their_options(setup, tmp_path):
    own = dataclasses.replace(setup, caches=tmp_path, steps=2)
    toy_cache(tmp_path / "plain" / "train.zarr")
    options = inputs.HeadOptions(head_type="2fc_rand", lr=0.03)
    assert options.folder(own, "plain") == tmp_path / "plain" / "heads" / "2fc_rand-2-0.03"
    assert inputs.HeadOptions(steps=2).folder(own, "plain") == tmp_path / "plain" / "head"
    head = inputs.load_or_train(own, "plain", options)
    assert (head.name, head.info.config["steps"], head.info.config["lr"]) == ("2fc_rand", 2, 0.03)
    shutil.rmtree(tmp_path / "plain" / "train.zarr")
    assert inputs.load_or_train(own, "plain", options).name == "2fc_rand"


@pytest.mark.process  # git gives the commit
def test_files_keep_rows_of_other_datasets_and_tables_compare_them(tmp_path):
    def rows(names: list[str]) -> pd.DataFrame:
        figures = {column: 1.25 for column in scores.METRICS}
        return pd.DataFrame([{"row": name, "detector": "plain", **figures} for name in names])

    results.save("2", rows(["mrcnn-r50-thr", "gone"]), "Mini-LVIS", ["2"], tmp_path)
    results.save("2", rows(["mrcnn-r50"]), "LVIS v1", ["2", "--lvis", "a folder"], tmp_path)
    path = results.save("2", rows(["mrcnn-r50-thr"]), "Mini-LVIS", ["2"], tmp_path)
    table = pd.read_csv(path)
    assert path.name == "table_02.csv"
    assert sorted(zip(table["dataset"], table["row"], strict=True)) == [
        ("LVIS v1", "mrcnn-r50"),
        ("Mini-LVIS", "mrcnn-r50-thr"),
    ]
    assert "python -m benchmarks.paper 2 --lvis 'a folder'" in table["command"].tolist()
    assert table[["seed", "versions", "machine", "commit", "date"]].notna().all(axis=None)
    lines = results.document_table("2", tmp_path).splitlines()
    assert lines[2] == "| mrcnn-r50-thr | paper | 0.0 | 5.4 | 16.6 | 25.1 | 13.1 |"
    assert lines[3] == "|  | Mini-LVIS | 1.2 | 1.2 | 1.2 | 1.2 | 1.2 |"
    assert lines[5] == "|  | LVIS v1 | 1.2 | 1.2 | 1.2 | 1.2 | 1.2 |"
    assert results.document_table("lr", tmp_path) == "Not measured yet: `python -m benchmarks.paper lr`."


def test_lvis_is_measured_from_a_folder(lvis_folder):
    own = lvis(lvis_folder)
    assert own.name == "LVIS v1" and own.steps == 12_000 and own.tail("htc") == 10 and own.test_split == "val"
    table = scores.score_table(own, "2")
    assert list(table["row"]) == ["mrcnn-r50-thr", "mrcnn-r50"] and table["AP"].notna().all()
    assert statistics.class_table(own)["all"].tolist() == [4, 4]


@pytest.mark.parametrize(
    ("table", "missing", "message"),
    [
        ("1", ".", "is no folder, expected one with the annotations, images and weights of LVIS"),
        ("1", "lvis_v1_train.json", "has no lvis_v0.5_train.json or lvis_v1_train.json"),
        ("1", "lvis_v1_val.json", "lvis_v1_val.json: is missing, expected the annotations of LVIS v1 val"),
        ("8", None, "weights/rfs.pth: is missing, expected the weights of detector rfs: Mask R-CNN R50-FPN with"),
        ("9", None, "weights/htc_dcn.pth: is missing, expected the weights of detector htc_dcn: Hybrid Task Cascade"),
        ("heads", None, "weights/plain.pth: is missing"),
        ("3", "caches", "weights/plain.pth: is missing"),
    ],
)
def test_missing_files_of_lvis_are_one_line(lvis_folder, table, missing, message, capsys):
    if missing == ".":
        shutil.rmtree(lvis_folder)
    elif missing is not None:
        path = lvis_folder / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert command.main([table, "--lvis", str(lvis_folder)]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ") and message in captured.err


def test_a_folder_of_two_versions_is_refused(lvis_folder, capsys):
    shutil.copy(lvis_folder / "lvis_v1_train.json", lvis_folder / "lvis_v0.5_train.json")
    assert command.main(["1", "--lvis", str(lvis_folder)]) == 1
    assert "has lvis_v0.5_train.json and lvis_v1_train.json, expected one version per folder" in capsys.readouterr().err


def test_unknown_tables_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["12"])
    assert "invalid choice: '12'" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_missing_is_made_and_views_are_those_of_live_inference(tiny, tmp_path):
    files = setups.DetectorFiles(setups.MASK_RCNN, tiny.weights, options=("num_classes=12",))
    splits = ("train", "val", "test")
    own = setups.Setup(
        name="tiny",
        annotations={split: tiny.data / f"{split}.json" for split in splits},
        images={split: tiny.data / split for split in splits},
        caches=tmp_path,
        detectors={"a": files},
        ensemble=("a", "a"),
        scales=((128, 128),),
        steps=2,
        proposals=300,
    )
    table = ensembles.test_table(own).set_index("row")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "head",
        "test.zarr",
        "test_128.zarr",
        "test_flip.zarr",
        "train.zarr",
    ]
    assert set(table["split"]) == {"test"} and table["AP"].notna().all()
    views = ensembles.views_of(own)
    cached = ensembles.detect_member(own, "a", "test").calibrated_views
    live = ensembles.detect_live(own, "a", "test", views)
    assert len(live) == len(cached) == 12 * 300
    # A cache has fewer proposals, and features and logits as float16.
    np.testing.assert_allclose(np.sort(live.scores)[-3:], np.sort(cached.scores)[-3:], rtol=1e-3)


@pytest.mark.framework
@pytest.mark.parametrize("version", VERSIONS)
def test_model_zoo_configs_have_lvis_classes(version, lvis_folder):
    pytest.importorskip("mmdet")
    from mmengine.config import Config, DictAction

    for split in ("train", "val"):
        (lvis_folder / f"lvis_v1_{split}.json").rename(lvis_folder / f"lvis_{version}_{split}.json")
    own = lvis(lvis_folder)
    assert own.detectors.keys() == CONFIGS.keys() == NOTES.keys()
    parser = ArgumentParser()
    parser.add_argument("--options", nargs="*", action=DictAction, default={})
    for name, files in own.detectors.items():
        config = Config.fromfile(str(files.config_file))
        config.merge_from_dict(parser.parse_args(["--options", *files.options]).options)
        parts = [config.model.roi_head[part] for part in ("bbox_head", "mask_head")]
        heads = [head for part in parts for head in (part if isinstance(part, list) else [part])]
        assert [head.num_classes for head in heads] == [VERSIONS[version]] * len(heads), name
        assert config.model.roi_head.get("semantic_head") is None or name not in ("plain", "htc_no_semantic")
