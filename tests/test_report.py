"""The report: what it shows, that names cannot break it, and how it behaves in a browser."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image as PILImage

from extract.data.bins import BINS
from fuse.detections import Detections
from fuse.drawing import COLOURS
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.errors import error_table
from fuse.evaluation.metrics import evaluate_rows
from fuse.report import charts, thumbnails
from fuse.report import class_details as class_details_module
from fuse.report.class_details import best_of_classes, class_details
from fuse.report.gallery import gallery
from fuse.report.inputs import ReportInputs
from fuse.report.page import write_report
from fuse.report.sections import comparison_table, confused_classes, error_shares
from fuse.report.thumbnails import EDGE, make_thumbnails
from tests.fuse_fixtures import CLASSES, annotations

HOSTILE = "</script><img src=x onerror=alert(1)> & $x_1$ " + "very_long_name_without_spaces" * 3
"""Of the class `ant`."""
PLENTY = 1e9
"""Bytes for images."""
CHROMIUM = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def make_inputs(**changes) -> ReportInputs:
    """Two rows on six images: the second names the rare classes, and loses one object of a frequent one."""
    content, classes = annotations(), CLASSES.copy()
    classes.loc[0, "name"] = HOSTILE
    columns = [(a["image_id"], a["category_id"], a["bbox"]) for a in content["annotations"]]
    image_ids, category_ids = (np.array([column[i] for column in columns]) for i in (0, 1))
    boxes = np.array([[x, y, x + w, y + h] for _, _, (x, y, w, h) in columns], np.float32)
    scores = np.linspace(0.99, 0.3, len(boxes), dtype=np.float32)
    before = np.where(np.isin(category_ids, [3, 4]), 12, category_ids)
    after = category_ids.copy()
    after[np.flatnonzero(category_ids == 12)[0]] = 20
    rows = {name: Detections(image_ids, ids, scores, boxes) for name, ids in (("original", before), ("cat", after))}
    dataset = load_annotations(content)
    tables = evaluate_rows(dataset, rows, classes, iou_types=["bbox"])
    summary = tables.summary.assign(AP_low=tables.summary["AP"] - 2, AP_high=tables.summary["AP"] + 2)
    summary["AP_within_noise"] = [np.nan, True]
    values = {
        "bins": BINS, "baseline": "original", "candidate": "cat", "scope": "On 6 images.", "dataset": dataset,
        "classes": classes, "detections": rows, "errors": error_table(dataset, rows, classes),
        "read_image": lambda _: np.full((48, 64, 3), 90, np.uint8),
        "weight_norms": {"original": np.arange(5.0), "cat": np.ones(5)},
    }  # fmt: skip
    return ReportInputs(summary, tables.per_class, **(values | changes))


@pytest.fixture(scope="module")
def inputs() -> ReportInputs:
    return make_inputs()


@pytest.fixture(scope="module")
def report(inputs, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, inputs)
    return path


@pytest.mark.long
def test_the_page_is_whole_small_and_the_same_again(inputs, report, tmp_path):
    html = report.read_text()
    assert report.stat().st_size < 300_000
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)|url\((?!#)|@import""", html), "nothing from outside"
    assert html.count("<svg") == 6 and html.count("data:image/webp") >= 4
    write_report(tmp_path / "again.html", inputs)
    assert (tmp_path / "again.html").read_text() == html


@pytest.mark.long
def test_names_are_text(report):
    html = report.read_text()
    assert "<img src=x" not in html and "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt; &amp; $x_1$" in html
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', html, flags=re.S)[1]
    assert json.loads(data)["names"][0] == HOSTILE


@pytest.mark.long
def test_without_images_and_weights_it_says_so(tmp_path):
    write_report(tmp_path / "report.html", make_inputs(read_image=None, weight_norms={}, tail=0))
    html = (tmp_path / "report.html").read_text()
    assert html.count("<code>--images</code>") == 2 and "the weights of the two classifiers are not known" in html
    assert "No object of a tail class is annotated" in html and html.count("<svg") == 4


@pytest.mark.long
def test_errors_before_and_after(report, inputs):
    assert "points of AP50 lost" in report.read_text()
    shares = {one["name"]: one["cells"] for one in error_shares(inputs, "bbox")}
    assert list(shares) == ["(0,10)", "[10,100)", "[100,1000)", "[1000,-)", "all"]
    before, after = (inputs.errors.loc["bbox", row]["confused(0,10)"] for row in inputs.rows)
    assert shares["(0,10)"][0] == (f"{before:.1f} → {after:.1f}", after, "", False) and before > after
    assert [cell.text for cell in shares["all"][:3]] == ["–"] * 3 and "→" in shares["all"][3].text


def write(path: Path, inputs: ReportInputs) -> Path:
    write_report(path, inputs)
    return path


def lvis_inputs(classes: int = 1230, images: int = 400, per_image: int = 60) -> ReportInputs:
    """As many classes as LVIS has, and images of its size: two rows that differ on rare classes."""
    rng = np.random.default_rng(0)
    counts = np.unique(np.geomspace(1, 26_000, 4 * classes).round().astype(int))[:classes]
    table = pd.DataFrame({"category_id": np.arange(1, classes + 1), "instance_count": np.resize(counts, classes)})
    table["name"] = [f"class_with_a_long_name_{i:04d}" for i in range(classes)]
    table["image_count"] = table["instance_count"]
    table["frequency"] = np.where(table["instance_count"] > 100, "f", "r")
    content = {"images": [], "annotations": [], "categories": table[["category_id", "name"]].to_dict("records")}
    content["categories"] = [{"id": one["category_id"], "name": one["name"]} for one in content["categories"]]
    for i in range(1, images + 1):
        content["images"].append({"id": i, "height": 480, "width": 640})
        for category in rng.choice(classes, 10, replace=False) + 1:
            x, y, w, h = (rng.random(4) * (400, 300, 200, 150) + (0, 0, 30, 30)).tolist()
            record = {"id": len(content["annotations"]) + 1, "image_id": i, "category_id": int(category)}
            content["annotations"].append({**record, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
    objects = content["annotations"]
    xywh = np.array([one["bbox"] for one in objects])
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32)
    image_ids, ids = (np.array([one[key] for one in objects]) for key in ("image_id", "category_id"))
    noise = len(objects) * (per_image // 10 - 1)
    rows = {}
    for name, error in (("original", 0.6), ("calibrated", 0.3)):
        wrong = rng.random(len(ids)) < error
        found = np.where(wrong, rng.integers(1, classes + 1, len(ids)), ids)
        rows[name] = Detections(
            np.concatenate([image_ids, rng.integers(1, images + 1, noise)]),
            np.concatenate([found, rng.integers(1, classes + 1, noise)]),
            np.concatenate([rng.random(len(ids)), 0.5 * rng.random(noise)]).astype(np.float32),
            np.concatenate([boxes, boxes[rng.integers(0, len(boxes), noise)] + 40]),
        )
    dataset = load_annotations(content)
    tables = evaluate_rows(dataset, rows, table, iou_types=["bbox"])
    gradient = np.linspace(0, 255, 640 * 480 * 3).reshape(480, 640, 3)
    photograph = (gradient + 30 * rng.random((480, 640, 3))).clip(0, 255).astype(np.uint8)
    return ReportInputs(
        *tables,
        bins=BINS,
        baseline="original",
        candidate="calibrated",
        scope=f"On {images} images.",
        dataset=dataset,
        classes=table,
        detections=rows,
        read_image=lambda _: photograph,
        weight_norms={name: 1 + np.log(table["instance_count"].to_numpy()) for name in rows},
        errors=error_table(dataset, rows, table),
    )


@pytest.mark.long
def test_charts_have_room_beside_long_names(inputs):
    """matplotlib warns of axes for which the names leave no place."""
    rows = {row: f"{'of a long path/' * 6}{row}/detections.json" for row in inputs.rows}
    tables = [one.rename(index=rows, level="row") for one in (inputs.summary, inputs.per_class, inputs.errors)]
    renamed = {
        name: {rows[row]: of for row, of in getattr(inputs, name).items()} for name in ("detections", "weight_norms")
    }
    names = [f"{'long_name_of_a_class' * 3}{i}" for i in range(len(CLASSES))]
    changes = dict(zip(("summary", "per_class", "errors"), tables, strict=True)) | renamed
    baseline, candidate = rows.values()
    classes = inputs.classes.assign(name=names)
    found = replace(inputs, **changes, baseline=baseline, candidate=candidate, classes=classes, tail=1e9)
    drawn = [charts.confusions(found), charts.own_scores(found), charts.weight_norms(found)]
    drawn += [draw(found, "bbox") for draw in (charts.ap_by_count, charts.per_bin, charts.errors)]
    assert all(one.startswith("<svg") for one in drawn)


@pytest.mark.long
@pytest.mark.parametrize(("classes", "images"), [(1_230, 400), (13_204, 100)], ids=["LVIS", "13,204 classes"])
def test_a_report_of_many_classes_is_small(tmp_path, classes, images):
    page = write(tmp_path / "report.html", lvis_inputs(classes, images))
    assert page.stat().st_size < 5_000_000 and page.read_text().count("data:image/webp") > 100


def test_tables(inputs):
    columns, rows = comparison_table(inputs, "bbox")
    assert columns[0] == "AP(0,10)" and "AP_low" not in columns and "APs" not in columns
    cell = dict(zip(columns, rows[1][1], strict=True))["AP"]
    ap = inputs.summary.loc[("bbox", "cat"), "AP"]
    assert cell == (f"{ap:.1f}", ap, f"{ap - 2:.1f} – {ap + 2:.1f}", True)
    assert not rows[0][1][columns.index("AP")].within_noise
    ant = next(one for one in confused_classes(inputs) if one["name"] == HOSTILE)
    assert ant["figures"][2:4] == [0, ant["figures"][1]] and ant["taken_for"] == [f"dog ×{ant['figures'][1]}", ""]
    best = best_of_classes(inputs)
    details = class_details(inputs, best, make_thumbnails(inputs, best, PLENTY))
    assert details["found"][0][0] == [] and details["found"][1][0][0][2:] == ("right", 0), "the first thumbnail"
    assert 0 in {there for _, _, there, _ in details["found"][0][3]}, "the label of what is there"


def test_thumbnails_show_the_detections(inputs):
    best = best_of_classes(inputs)
    made = make_thumbnails(inputs, best, PLENTY)
    shown = [made.positions[row] for row in inputs.rows]
    assert all(shown[0][i] == shown[1][i] for i in shown[0].keys() & shown[1].keys()), "the rows have the same boxes"
    assert len({*shown[0].values(), *shown[1].values()}) == len(made.urls) == len(shown[0].keys() | shown[1].keys())
    image = np.asarray(PILImage.open(io.BytesIO(base64.b64decode(made.urls[0].partition(",")[2]))), int)
    assert image.shape == (EDGE, EDGE, 3)
    outline = (np.abs(image - tuple(bytes.fromhex(COLOURS[0][1:]))) < 60).all(axis=2)
    rows, columns = np.nonzero(outline)
    middle = (EDGE - 1) / 2
    assert abs(rows.mean() - middle) < 3 and abs(columns.mean() - middle) < 3 and not outline[30:42, 30:42].any()
    assert make_thumbnails(make_inputs(read_image=None), best, PLENTY) == ([], {"original": {}, "cat": {}})


def test_thumbnails_take_no_more_place_than_they_may(inputs, monkeypatch):
    best = best_of_classes(inputs)
    every = make_thumbnails(inputs, best, PLENTY).urls
    assert make_thumbnails(inputs, best, len(every[0]) + len(every[1])).urls == every[:2]
    monkeypatch.setattr(thumbnails, "MAX_THUMBNAILS", 1)
    made = make_thumbnails(inputs, best, PLENTY)
    assert made.urls == every[:1]
    (ant,) = made.positions["cat"]
    assert inputs.outcomes["cat"].found_labels[ant] == 0
    far = replace(inputs.detections["cat"], boxes=inputs.detections["cat"].boxes + np.float32(1e9))
    make_thumbnails(make_inputs(detections={"original": far, "cat": far}), best, PLENTY)


def test_a_large_gallery_has_smaller_images():
    noise = np.random.default_rng(0).integers(0, 255, (600, 900, 3), np.uint8)
    found = make_inputs(read_image=lambda _: noise)

    def size(max_bytes: float) -> int:
        images = [image for group in gallery(found, max_bytes).values() for image in group]
        return sum(len(url) for image in images for url in image.drawn)

    large = size(PLENTY)
    assert 0 < size(large // 2) <= large // 2


def test_of_many_classes_fewer_detections_are_listed(inputs, monkeypatch):
    monkeypatch.setattr(class_details_module, "MAX_LISTED", 10)
    assert max(map(len, best_of_classes(inputs)["cat"])) == 2


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium; what CI lacks is an error."""
    missing = [] if importlib.util.find_spec("playwright") else ["playwright"]
    missing += [] if chromium() else ["Debian's package chromium-headless-shell"]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"the browser's tests need {' and '.join(missing)}")
    assert not missing
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(browser, report):
    """The report at 400 pixels; errors on its console and requests to the network fail the test."""
    one = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme="light")
    problems: list[str] = []
    one.on("console", lambda message: problems.append(message.text))
    one.on("pageerror", lambda error: problems.append(str(error)))
    one.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else problems.append(request.url)
    )
    one.goto(report.as_uri())
    yield one
    one.close()
    assert problems == []


def colours(page) -> list[str]:
    return page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")


@pytest.mark.process
@pytest.mark.long
def test_nothing_overflows_a_narrow_window(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    wide = """[...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll, script, datalist, #tip') &&
        one.getBoundingClientRect().right > 400).map(one => one.outerHTML.slice(0, 80))"""
    assert page.evaluate(wide) == []
    sizes = "[...document.querySelectorAll('.chart svg text')].map(one => one.getBoundingClientRect().height)"
    assert min(page.evaluate(sizes)) >= 8, "text of charts is legible"


@pytest.mark.process
@pytest.mark.long
def test_pointing_names_a_class_and_clicking_shows_its_detections(page):
    chart = page.locator(".chart[data-points]").first
    chart.scroll_into_view_if_needed()
    dots = chart.locator("[data-points] path[d*=h0]")
    assert dots.count() == 2, "before and after"
    after = dots.nth(1).get_attribute("d").split("M")[1:]
    assert len(after) == 4, "one class has no ground truth"
    x, y = (float(one) for one in after[0].removesuffix("h0").split())
    on_screen = "(svg, [x, y]) => new DOMPoint(x, y).matrixTransform(svg.getScreenCTM())"
    at = chart.locator("svg").evaluate(on_screen, [x, y])
    page.mouse.move(at["x"], at["y"])
    tip = page.locator("#tip")
    assert tip.is_visible() and tip.inner_text().startswith(HOSTILE[:20]) and "3 training instances" in tip.inner_text()
    page.mouse.click(at["x"], at["y"])
    assert page.locator("#details h3").inner_text() == HOSTILE
    assert page.locator("#details li").first.inner_text().endswith("right")
    widths = page.locator("#details li img").evaluate_all("images => images.map(one => one.naturalWidth)")
    assert widths and set(widths) == {72}, "its detections, cut out of their images"
    page.mouse.move(1, 1)
    assert not tip.is_visible()
    page.locator("#class").fill("dog")
    page.locator("#class").blur()
    assert page.locator("#details h3").inner_text() == "dog"


@pytest.mark.process
@pytest.mark.long
def test_columns_sort(page):
    table = page.locator("table.sortable").first
    header = table.locator("thead th", has_text=re.compile(r"^AP\(0,10\)$"))
    rows = table.locator("tbody th")
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending" and rows.all_inner_texts() == ["cat", "original"]
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "ascending" and rows.all_inner_texts() == ["original", "cat"]
    assert table.locator("abbr").count() == 1 and "–" in table.locator("td small").first.inner_text()


@pytest.mark.process
@pytest.mark.long
def test_themes(page):
    light = colours(page)
    page.emulate_media(color_scheme="dark")
    dark = colours(page)
    assert light != dark
    button = page.locator("#theme")
    button.click()
    assert button.inner_text() == "Theme: light" and colours(page) == light
    axis = page.evaluate("getComputedStyle(document.querySelector('.chart svg text')).fill")
    assert axis == light[1], "charts have the colour of the page's text"
    button.click()
    assert button.inner_text() == "Theme: dark" and colours(page) == dark
