"""Benchmark results: targets, CSV files, and the tables that are filled from them."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pandas as pd
import pytest

from benchmarks import coverage, documents, selection
from benchmarks.provenance import read_results
from benchmarks.recipes import recipes_table
from benchmarks.speed.measure import Timing, result, save
from benchmarks.tables import BINS, format_memory, format_ratio, format_target, format_time, speed_table
from fuse.evaluation.compare import compare_rows
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.protocols import match_rows
from fuse.evaluation.resamples import ap_columns
from tests.fuse_fixtures import CLASSES, annotations
from tests.test_resampling import make_detections


@pytest.mark.parametrize(
    ("bound", "target", "ratio", "met"),
    [
        ("at_least", 2.0, 2.0, True),
        ("at_least", 2.1, 2.0, False),
        ("at_most", 0.5, 0.5, True),
        ("at_most", 0.4, 0.5, False),
        ("seconds_at_most", 3.0, 0.5, True),
        ("seconds_at_most", 2.9, 0.5, False),
        (None, None, 2.0, None),
    ],
)
def test_ratio_and_target_follow_the_bound(bound, target, ratio, met):
    row = result("case", "baseline", Timing(time=3.0, baseline_time=6.0, speedup=2.0), bound, target)
    assert (row.ratio, row.met) == (ratio, met)


@pytest.mark.process
def test_saved_results_replace_those_of_the_same_case(tmp_path):
    first, second = Timing(3.0, 6.0, 2.0, 10**6, 0), Timing(1.0, 6.0, 6.0)
    save("some", [result("a", "x", first), result("b", "x", first, "at_least", 2.5)], tmp_path)
    save("some", [result("c", "x", second), result("b", "x", second, "at_least", 2.5)], tmp_path)
    table = pd.read_csv(tmp_path / "some.csv")
    assert table["case"].tolist() == ["a", "b", "c"] and table["time"].tolist() == [3.0, 1.0, 1.0]
    assert table["met"][1] == True and table["met"].isna().tolist() == [True, False, True]  # noqa: E712
    assert table["memory"][0] == 10**6 and table["memory"].isna().tolist() == [False, True, True]
    assert table[["machine", "commit", "date"]].notna().all(axis=None)
    assert table["date"].str.fullmatch(r"\d{4}-\d\d-\d\d").all()
    assert "| b | x | 1.0 s | 6.0 s | 6× as fast | ≥ 2.5× | yes |  |  |" in speed_table(table)


def test_numbers_are_formatted_for_people():
    assert [format_time(t) for t in (0.00037, 0.334, 5.06, 768.7)] == ["0.37 ms", "334 ms", "5.1 s", "768.7 s"]
    assert [format_ratio(r, "at_least") for r in (13733, 1.514)] == ["13,733× as fast", "1.51× as fast"]
    assert format_ratio(1.08, "at_most") == "1.08× its time"
    assert [format_target(*pair) for pair in ((4000, "at_least"), (1.25, "at_most"), (1, "seconds_at_most"))] == [
        "≥ 4,000×",
        "≤ 1.25×",
        "≤ 1 s",
    ]
    assert format_target(float("nan"), float("nan")) == "" and format_memory(float("nan")) == ""


@pytest.mark.long
def test_documents_have_the_tables_of_the_committed_results(tmp_path):
    (tmp_path / "docs").mkdir()
    pages = ("README.md", "docs/results.md", "docs/performance.md", "docs/reliability.md", "docs/traps.md")
    for page in pages:
        shutil.copy(documents.ROOT / page, tmp_path / page)
    documents.fill_documents(tmp_path)
    for page in pages:
        assert (tmp_path / page).read_text() == (documents.ROOT / page).read_text()


def recipe_rows(seed, recipe, chosen, ap):
    """Results of one head, of the AP given, in every mode and for boxes and masks."""
    row = {"detector": "d", "seed": seed, "recipe": recipe, "chosen": chosen, "seconds": 10.0 + seed}
    row |= {"AP": ap, "AP(0,10)": ap / 2, "machine": "m", "commit": "c", "date": "today"}
    return [row | {"iou_type": i, "mode": m} for i in ("bbox", "segm") for m in ("calibrated", "avg", "cat")]


def test_recipes_are_compared_seed_by_seed():
    rows = []
    for seed, (paper, own) in enumerate([(40.0, 41.0), (30.0, 32.0), (35.0, 38.0)]):
        other = recipe_rows(seed, "3fc_ft", seed == 2, own if seed == 2 else 0.0)
        chosen = recipe_rows(seed, "3fc_lowrank", seed != 2, own if seed != 2 else 0.0)
        rows += recipe_rows(seed, "paper", False, paper) + other + chosen
    lines = recipes_table(pd.DataFrame(rows)).splitlines()
    assert lines[2].startswith("| d | paper | 3fc_ft | 3 | 11 s | 35.0 | 35.0 | 17.5 |")
    assert lines[3].startswith("| d | default | 3fc_ft, 3fc_lowrank | 3 | 11 s | 37.0 | 37.0 | 18.5 |")
    # Differences of 1, 2 and 3 points: their standard error is 0.577, and t is 4.303 with two degrees of freedom.
    assert lines[4].startswith("|  | difference |  |  |  | +2.0 ± 2.5 | +2.0 ± 2.5 | +1.0 ± 1.2 |")
    single = recipes_table(pd.DataFrame(rows[: len(rows) // 3])).splitlines()
    assert single[4].startswith("|  | difference |  |  |  | +1.0 | +1.0 | +0.5 |")


def test_document_without_a_block_is_named(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no block")
    with pytest.raises(ValueError, match=re.escape(f"{page}: has no block results:nms")):
        documents.fill(page, {"nms": lambda: ""})


@pytest.mark.long
def test_intervals_contain_their_own_values_and_no_distant_ones():
    content = annotations(images=12, seed=3)
    dataset, rows = load_annotations(content), [make_detections(content, jitter, 0) for jitter in (0.12, 0.06)]
    matches = list(match_rows("federated", dataset, rows, "segm", 300, lambda found: found))
    columns = [column for column in ap_columns(CLASSES, (0, 10, 100, 1000, np.inf), 1) if column.name in BINS]
    own = [coverage.resample(one, columns, np.ones((12, 1), np.uint16))[:, 0] for one in matches]
    for truth, expected in ((own, True), ([values + 200 * i + 200 for i, values in enumerate(own)], False)):
        found = coverage.contains_truth(matches, columns, np.ones(12, np.uint16), truth, np.random.default_rng(0))
        assert {row for row, _ in found} == {"original", "rhead-cat − original"} and ("original", "AP") in found
        assert set(found.values()) == {expected} and ("original", "AP[1000,-)") not in found, "has no objects"
    drawn = coverage.draw(np.random.default_rng(0), np.array([2, 0, 1], np.uint16), 50)
    assert drawn.shape == (3, 50) and (drawn.sum(axis=0) == 3).all() and not drawn[1].any()


def test_coverage_is_shown_in_percent():
    rows = [{"row": row, "column": name, "coverage": 0.946} for row in ("b", "a") for name in coverage.COLUMNS]
    table = coverage.coverage_table(pd.DataFrame(rows).assign(machine="m", commit="c", date="d"))
    assert table.splitlines()[2] == "| b | 95% | 95% | 95% | 95% | 95% |" and "| a |" in table


@pytest.mark.long
def test_learned_fusion_is_compared_with_each_row():
    content = annotations(images=12, seed=3)
    rows = {"original": 0.2, "a": 0.1, "b": 0.04, "learned": 0.03}
    detections = {name: make_detections(content, jitter, 0) for name, jitter in rows.items()}
    compared = compare_rows(load_annotations(content), detections, CLASSES, samples=20)
    table = selection._rows(compared, "segm", "a").assign(detector="d", machine="m", commit="c", date="d")
    table = table.assign(seconds_holdout=31.0, seconds_select=1402.0)
    own = table.set_index("row")
    assert own.loc["b", "gain_AP"] == pytest.approx(own.loc["learned", "AP"] - own.loc["b", "AP"], abs=2e-3)
    assert own.loc["b", "gain_AP_low"] <= own.loc["b", "gain_AP"] <= own.loc["b", "gain_AP_high"]
    lines = selection.selection_table(table).splitlines()[2:6]
    assert [line.split("|")[1].strip() for line in lines] == [
        "d, masks: original",
        "d, masks: a, chosen",
        "d, masks: b, best on test",
        "d, masks: learned",
    ]
    assert lines[2].split("|")[-3].strip().startswith(f"{own.loc['b', 'gain_AP']:+.1f} [")
    assert "with all its training: d, masks, 31 s + 1,402 s." in selection.selection_table(table)


def test_a_commit_that_looks_like_a_number_stays_text(tmp_path):
    (tmp_path / "a.csv").write_text("row,commit\n1,142e604\n2,0012345\n")
    table = read_results(tmp_path / "a.csv", row=str)
    assert table["commit"].tolist() == ["142e604", "0012345"] and table["row"].tolist() == ["1", "2"]
