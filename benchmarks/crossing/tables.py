"""Markdown tables of the results in this folder."""

from __future__ import annotations

import pandas as pd

from benchmarks.tables import markdown, provenance_line

SHAPES = {"segm": "masks", "bbox": "boxes"}
FRAMEWORKS = {"torchvision": "torchvision, Mask R-CNN", "detectron2": "detectron2, cascade", "mmdet": "mmdet, HTC"}


def evaluators_table(results: pd.DataFrame) -> str:
    """Formats the AP of every evaluator, in points: by reading of the data, IoU type and cap."""
    return _by_input(results, "AP", "evaluator", 2)


def calibration_table(results: pd.DataFrame) -> str:
    """Formats the calibration error by every evaluator: by reading of the data, IoU type and cap."""
    return _by_input(results, "ECE", "calibration error", 4)


def inference_table(results: pd.DataFrame) -> str:
    """Formats how many of a framework's detections are found, live and from a cache, by threshold."""
    rows = []
    for (framework, version, threshold), table in results.groupby(["framework", "version", "threshold"], sort=False):
        by_path = table.set_index("path")
        cells = [
            f"{row['found']:,} of {row['own_detections']:,}, {row['score_difference']:.0e}"
            for _, row in by_path.loc[["live", "cached"]].iterrows()
        ]
        ap = [by_path["own_AP"].iloc[0], *by_path.loc[["live", "cached"], "AP"]]
        rows.append([f"{FRAMEWORKS[framework]} ({version})", f"{threshold:g}", *cells, *(f"{one:.2f}" for one in ap)])
    header = ["framework", "threshold", "found live, score within", "found from a cache, score within"]
    header += ["its own AP", "AP live", "AP from a cache"]
    return markdown(header, rows) + "\n\n" + provenance_line(results)


def readers_table(results: pd.DataFrame) -> str:
    """Formats how many of a cache's arrays each reader reads to the bit, and what becomes of the others."""
    header = ["reader", "language", "arrays equal to the bit", "others"]
    rows = [
        [f"{r['reader']} ({r['version']})", r["language"], f"{r['equal']} of {r['arrays']}", _text(r["others"])]
        for r in results.to_dict("records")
    ]
    return markdown(header, rows) + "\n\n" + provenance_line(results)


def tools_table(results: pd.DataFrame) -> str:
    """Formats of how many detections each tool has the box, the score and the mask."""
    columns = ["detections", "boxes", "scores", "masks"]
    rows = [[f"{r['tool']} ({r['version']})", *(f"{r[name]}" for name in columns)] for r in results.to_dict("records")]
    return markdown(["tool", *columns], rows) + "\n\n" + provenance_line(results)


def _by_input(results: pd.DataFrame, column: str, title: str, decimals: int) -> str:
    """Formats a figure of every evaluator, one column for each of the inputs."""
    inputs = list(results[["data", "iou_type", "cap"]].drop_duplicates().itertuples(index=False, name=None))
    header = [title, *(f"{data}, {SHAPES[iou_type]}, {cap}" for data, iou_type, cap in inputs)]
    rows = []
    for (evaluator, version), table in results.groupby(["evaluator", "version"], sort=False):
        figures = table.set_index(["data", "iou_type", "cap"])[column]
        name = evaluator if evaluator == "tailcal" else f"{evaluator} ({version})"
        rows.append([name, *(_number(figures.get(key), decimals) for key in inputs)])
    return markdown(header, rows) + "\n\n" + provenance_line(results)


def _number(figure: float | None, decimals: int) -> str:
    """Formats a figure; one that the evaluator does not compute is none, one that was not run is left out."""
    return "" if figure is None else "none" if pd.isna(figure) else f"{figure:.{decimals}f}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
