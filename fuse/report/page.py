"""Writes the report.

Charts are SVG that matplotlib draws; sorting, hovering and themes are a hundred lines of JavaScript in `page.js`. The
charts of a dataset of LVIS's size are then a few hundred kilobytes. Plotly's bundle alone has 3 to 4 MB, of the 5 MB
that a page may have; the gallery and the thumbnails need these.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jinja2
from markupsafe import Markup

from extract.utils.files import write_bytes
from extract.utils.progress import FIRST_LINE, progress_bar
from fuse.evaluation.intervals import iou_title
from fuse.report import charts, class_details, sections
from fuse.report.gallery import gallery
from fuse.report.inputs import ReportInputs
from fuse.report.thumbnails import Best, make_thumbnails

FOLDER = Path(__file__).parent
MAX_BYTES = 4_900_000
"""Of the page, so that it can be sent by mail. Images become fewer and smaller where the classes need the place."""
GALLERY_BYTES, THUMBNAIL_BYTES = 2_000_000, 1_500_000
"""Of the images, where there is place."""


def write_report(path: str | os.PathLike, inputs: ReportInputs) -> None:
    """Writes a report that needs no other file and no network."""
    best = class_details.best_of_classes(inputs)
    charted: dict[str, Callable[[], object]] = {
        "iou_sections": lambda: [_iou_section(inputs, name) for name in inputs.summary.index.unique("iou_type")],
        "confusions": lambda: Markup(charts.confusions(inputs)),
        "confused": lambda: sections.confused_classes(inputs),
        "own_scores": lambda: Markup(charts.own_scores(inputs)),
        "weight_norms": lambda: Markup(charts.weight_norms(inputs)),
    }
    with progress_bar(total=len(charted) + 2, desc="report", unit="part", delay=FIRST_LINE) as bar:
        parts: dict[str, object] = {}
        for name, make in charted.items():
            parts[name] = make()
            bar.update()
        bare = _render(inputs, parts | {"gallery": {}, "data": _class_data(inputs, best, 0)})
        place = min(1.0, max(0, MAX_BYTES - len(bare)) / (GALLERY_BYTES + THUMBNAIL_BYTES))
        parts["gallery"] = gallery(inputs, place * GALLERY_BYTES)
        bar.update()
        parts["data"] = _class_data(inputs, best, place * THUMBNAIL_BYTES)
        bar.update()
    write_bytes(path, _render(inputs, parts))


def _render(inputs: ReportInputs, parts: Mapping[str, object]) -> bytes:
    loader = jinja2.FileSystemLoader(FOLDER)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.get_template("page.html.jinja").render(
        parts,
        inputs=inputs,
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup((FOLDER / "page.js").read_text(encoding="utf-8")),
    )
    return html.encode()


def _iou_section(inputs: ReportInputs, iou_type: str) -> dict[str, object]:
    """Returns what the template shows of an IoU type."""
    columns, rows = sections.comparison_table(inputs, iou_type)
    gained, lost = sections.changed_classes(inputs, iou_type)
    tables = inputs.tables(iou_type)
    return {
        "iou_type": iou_type,
        "title": iou_title(iou_type),
        "columns": columns,
        "rows": rows,
        "marked": any(cell.within_noise for _, cells in rows for cell in cells),
        "intervals": any(cell.interval for _, cells in rows for cell in cells),
        "bin_intervals": charts.bin_intervals(inputs, iou_type) is not None,
        "ap_by_count": Markup(charts.ap_by_count(inputs, iou_type)),
        "points": [charts.plotted_classes(tables[row]) for row in inputs.rows],
        "per_bin": Markup(charts.per_bin(inputs, iou_type)),
        "changed": {"Gained": gained, "Lost": lost},
        "errors": Markup(charts.errors(inputs, iou_type)),
        "error_titles": list(sections.ERROR_COLUMNS.values()),
        "error_shares": sections.error_shares(inputs, iou_type),
    }


def _class_data(inputs: ReportInputs, best: Best, max_bytes: float) -> Markup:
    """Returns what the script reads: the rows, what a click on each class shows, and thumbnails of `max_bytes`."""
    thumbnails = make_thumbnails(inputs, best, max_bytes)
    details = class_details.class_details(inputs, best, thumbnails)
    return _json({"rows": inputs.rows, "thumbnails": thumbnails.urls, **details})


def _json(value: object) -> Markup:
    """Returns JSON that no text in it can end early inside of an HTML element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))
