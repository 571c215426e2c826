"""What the commands write: tables, the report and the manifest of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from extract.utils.files import write_bytes
from fuse.commands.config import DETECTIONS_FILE, CacheConfig
from fuse.commands.folder import ERRORS_FILE, METRICS_FILE, PER_CLASS_FILE, REPORT_FILE, new_results
from fuse.commands.manifest import MANIFEST_FILE
from fuse.commands.results_config import MergeConfig, ResultsConfig
from fuse.commands.select_config import SelectConfig
from fuse.config import EvaluationConfig
from fuse.defaults import ENGINE, TAIL
from fuse.detections import Detections
from fuse.evaluation.compare import compare_rows
from fuse.evaluation.dataset import EvaluationDataset
from fuse.evaluation.protocols import capped
from fuse.evaluation.row_comparison import RowComparison
from fuse.evaluation.tables import errors_text, results_text
from fuse.gallery import ReadImage
from fuse.report.inputs import ReportInputs

_LOG = logging.getLogger(__name__)


class Comparison(NamedTuple):
    """The two rows that the report compares class by class."""

    baseline: str
    candidate: str


class ReportSource(NamedTuple):
    """What the report shows besides the tables; its fields are those of `ReportInputs`.

    Attributes:
        dataset: the ground truth.
        classes: the class table.
        detections: of all rows.
        read_image: for the gallery and the thumbnails of detections; None leaves them out.
        weight_norms: of the baseline's and the candidate's classifier; None where they are not known.
    """

    dataset: EvaluationDataset
    classes: pd.DataFrame
    detections: Mapping[str, Detections]
    read_image: ReadImage | None = None
    weight_norms: tuple[np.ndarray, np.ndarray] | None = None


def evaluate_all(
    config: CacheConfig | ResultsConfig,
    annotations: EvaluationDataset,
    detections: Mapping[str, Detections],
    classes: pd.DataFrame,
    baseline: str | None = None,
) -> RowComparison:
    """Evaluates rows of detections, by name, with the config's options. The baseline is the first row by default."""
    options: dict[str, Any] = {"samples": config.bootstrap, "errors": config.errors, **config.row_options}
    return compare_rows(annotations, detections, classes, baseline=baseline, progress=True, **options)


def write_results(
    config: CacheConfig | MergeConfig | SelectConfig,
    manifest: bytes,
    tables: RowComparison,
    scope: str,
    comparison: Comparison,
    source: ReportSource,
    next_command: str,
    saved: Detections | None = None,
    folder: Path | None = None,
) -> None:
    """Writes the detections, the tables, the report and, last, the manifest; prints the summary.

    Args:
        config: of the command.
        manifest: of `new_manifest`.
        tables: of `evaluate_all`.
        scope: which images are evaluated.
        comparison: the rows that the report compares.
        source: what the report shows besides the tables.
        next_command: what follows, for the last line.
        saved: the detections to keep, if any.
        folder: where to write; by default the config's.
    """
    text = describe_results(config, tables, scope)
    with new_results(folder or config.out) as folder:
        if saved is not None:
            saved.to_json(folder / DETECTIONS_FILE, source.dataset.text_ids)
        write_bytes(folder / PER_CLASS_FILE, tables.per_class.to_csv().encode())
        has_report = _write_report(folder / REPORT_FILE, config, tables, comparison, source, text.splitlines()[0])
        if tables.errors is not None:
            write_bytes(folder / ERRORS_FILE, tables.errors.to_csv().encode())
            text += f"\n\n{errors_text(tables.errors)}"
        write_bytes(folder / METRICS_FILE, tables.metrics.to_csv().encode())
        write_bytes(folder / MANIFEST_FILE, manifest)
    print(text)
    files = [METRICS_FILE, PER_CLASS_FILE, *([DETECTIONS_FILE] if saved is not None else [])]
    _LOG.info("%s has %s%s", config.out, ", ".join(files), f"; look at {REPORT_FILE}" if has_report else "")
    _LOG.info("next: %s", next_command)


def write_unevaluated(
    config: CacheConfig | MergeConfig | SelectConfig,
    manifest: bytes,
    detections: Detections,
    scope: str,
    text_ids: Mapping[int, str] | None = None,
) -> None:
    """Writes the detections in a test set, whose annotations are not known, and says so; arguments as above."""
    with new_results(config.out) as folder:
        detections.to_json(folder / DETECTIONS_FILE, text_ids)
        write_bytes(folder / MANIFEST_FILE, manifest)
    file = config.out / DETECTIONS_FILE
    print(f"{config.annotations} has no annotations, so no AP: {len(detections):,} detections on {scope} in {file}")


def _write_report(
    file: Path,
    config: CacheConfig | MergeConfig | SelectConfig,
    tables: RowComparison,
    comparison: Comparison,
    source: ReportSource,
    scope: str,
) -> bool:
    """Writes the report; returns False, and says so, without the packages that it needs."""
    write_report = report_writer()
    if write_report is None:
        _LOG.info("no report.html: it needs the packages of tailcal[report]")
        return False
    cap = None if config.fixed_ap else config.max_detections
    capped_rows = capped(str(config.protocol), [source.detections[row] for row in comparison], cap)
    rows = dict(zip(comparison, capped_rows, strict=True))
    norms = dict(zip(comparison, source.weight_norms, strict=True)) if source.weight_norms else {}
    options: dict[str, Any] = source._asdict() | {"detections": rows, "weight_norms": norms}
    options |= {"tail": getattr(config, "tail", TAIL), "bins": config.bin_edges, "scope": scope}
    options["errors"] = _errors(config, tables, comparison, source)
    write_report(file, tables.metrics, tables.per_class, **comparison._asdict(), **options)
    return True


def _errors(
    config: CacheConfig | MergeConfig | SelectConfig,
    tables: RowComparison,
    comparison: Comparison,
    source: ReportSource,
) -> pd.DataFrame:
    """Returns the table of `fuse.error_table` of the rows that the report compares, at least."""
    if tables.errors is not None:
        return tables.errors
    rows = {row: source.detections[row] for row in comparison}
    options = config.row_options | {"engine": ENGINE}  # errors are of native matches in any case
    found = compare_rows(source.dataset, rows, source.classes, samples=0, errors=True, progress=True, **options)
    assert found.errors is not None, "they were asked for"
    return found.errors


def describe_results(config: EvaluationConfig, tables: RowComparison, scope: str) -> str:
    """Returns the text that a command prints; arguments as of `write_results`."""
    assert config.protocol is not None, "resolve_protocol sets it"
    return results_text(
        tables,
        scope,
        bins=config.bin_edges,
        protocol=config.protocol,
        fixed_ap=config.fixed_ap,
        max_detections=config.max_detections,
    )


def report_writer() -> Callable[..., None] | None:
    """Returns `fuse.report.page.write_report`, given fields of `ReportInputs`; None without matplotlib and Jinja2."""
    try:
        from fuse.report.page import write_report
    except ModuleNotFoundError:
        return None

    def write(path: Path, summary: pd.DataFrame, per_class: pd.DataFrame, **options: Any) -> None:
        write_report(path, ReportInputs(summary, per_class, **options))

    return write
