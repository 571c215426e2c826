"""Benchmark results: targets, CSV files, and the tables that are filled from them."""

from __future__ import annotations

import re
import shutil

import pandas as pd
import pytest

from benchmarks import documents
from benchmarks.recipes import recipes_table
from benchmarks.speed.measure import Timing, result, save
from benchmarks.tables import format_memory, format_ratio, format_target, format_time, speed_table


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


def test_documents_have_the_tables_of_the_committed_results(tmp_path):
    (tmp_path / "docs").mkdir()
    pages = ("README.md", "docs/results.md", "docs/performance.md")
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
