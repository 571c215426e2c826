"""The paper's figures, and those of its extended version (SimCal, ECCV 2020): table → row → column → figure."""

from __future__ import annotations

from benchmarks.tables import BINS, FREQUENCIES

BIN_COLUMNS = BINS[:5]
"""AP of the four bins of training instances and of all classes."""
TEST_COLUMNS = ["AP", *FREQUENCIES]
CLASS_COLUMNS = ["(0,10)", "[10,100)", "[100,1000)", "[1000,-)", "all"]
MODEL_COLUMNS = ["box AP", "mask AP"]
RECALL_COLUMNS = ["AP", "AR@1000"]

Figures = dict[str, dict[str, float]]
"""Row → column → figure."""


def _figures(columns: list[str], rows: dict[str, tuple[float, ...]]) -> Figures:
    return {row: dict(zip(columns, values, strict=True)) for row, values in rows.items()}


BASELINE = (0.0, 13.3, 21.4, 27.0, 18.0)
PAPER: dict[str, Figures] = {
    "1": _figures(CLASS_COLUMNS, {"train": (294, 453, 302, 181, 1230), "train-on-val": (67, 298, 284, 181, 830)}),
    "2": _figures(BIN_COLUMNS, {"mrcnn-r50-thr": (0.0, 5.4, 16.6, 25.1, 13.1), "mrcnn-r50": BASELINE}),
    "3": _figures(RECALL_COLUMNS, {"all": (18.0, 51.0), "all, of COCO": (32.8, 55.9)}),
    "4": _figures(BIN_COLUMNS, {"mrcnn-r50": BASELINE, "props-gt": (39.7, 45.1, 31.4, 29.3, 36.6)}),
    "5": _figures(MODEL_COLUMNS, {"cascaded-mrcnn": (28.6, 25.9), "htc": (31.3, 29.3)}),
    "6": _figures(
        BIN_COLUMNS,
        {
            "mrcnn-r50": BASELINE,
            "rhead-only": (8.5, 20.8, 17.6, 19.3, 18.4),
            "rhead-avg": (8.5, 20.9, 19.6, 24.6, 20.3),
            "rhead-det": (8.6, 22.0, 16.7, 25.2, 19.8),
            "rhead-cat": (8.6, 22.0, 19.6, 26.6, 21.1),
            "rhead-cat-thr": (8.5, 20.8, 20.1, 26.7, 20.9),
            "rhead-cat-scale": (8.5, 21.3, 19.9, 26.7, 21.0),
        },
    ),
    "7": _figures(
        BIN_COLUMNS,
        {
            "htc-x101": (7.1, 30.5, 30.7, 33.9, 29.4),
            "htc-x101, calibration": (16.0, 30.6, 29.8, 33.5, 29.8),
            "htc-x101-ms-dcn": (5.6, 33.0, 33.7, 37.0, 31.9),
            "htc-x101-ms-dcn, calibration": (12.7, 32.1, 33.6, 37.0, 32.1),
        },
    ),
    "8": _figures(
        BIN_COLUMNS,
        {
            "mrcnn-r50": BASELINE,
            "mrcnn-r50, img-sample": (7.7, 23.2, 21.4, 26.2, 22.0),
            "mrcnn-r50, calibration": (8.6, 22.0, 20.2, 26.7, 21.3),
            "htc-x101": (5.6, 33.0, 33.7, 37.0, 31.9),
            "htc-x101, img-sample": (10.3, 32.4, 33.4, 36.6, 31.9),
            "htc-x101, calibration": (12.7, 32.1, 33.6, 37.0, 32.1),
        },
    ),
    "9": _figures(
        ["AP"],
        {
            "htc_dcn": (31.9,),
            "htc_x101_32": (31.4,),
            "htc_cos": (30.7,),
            "htc_r101": (30.0,),
            "ensemble, best calibrated": (34.2,),
            "multi-scale, best calibrated": (35.2,),
        },
    ),
    "10": _figures(
        TEST_COLUMNS,
        {
            "best baseline of LVIS's authors": (20.5, 9.8, 21.1, 30.0),
            "best single": (22.89, 5.90, 25.65, 35.26),
            "best single, calibrated": (23.94, 10.31, 25.26, 35.16),
            "ensemble, best calibrated": (26.11, 11.94, 27.98, 37.05),
            "multi-scale, best calibrated": (26.67, 10.59, 28.70, 39.21),
        },
    ),
    "11": _figures(
        BIN_COLUMNS,
        {
            "from scratch, no semantic branch": (1.4, 23.9, 25.3, 30.4, 24.0),
            "pre-trained, no semantic branch": (3.9, 25.0, 27.0, 31.2, 25.3),
            "pre-trained, semantic branch": (3.7, 27.2, 27.4, 31.8, 26.4),
        },
    ),
    "heads": _figures(["AP(0,10)"], {"2fc_rand": (8.6,), "3fc_rand": (9.1,), "3fc_ft": (13.2,)}),
    "length": _figures(["AP"], {"1,000": (20.3,), "5,000": (21.4,), "11,000": (21.6,), "30,000": (22.0,)}),
    "lr": {},
    "tail": {},
    "simcal": _figures(
        BIN_COLUMNS, {"mrcnn-r50-ag": BASELINE, "mrcnn-r50-ag, calibration": (13.3, 23.2, 20.7, 26.2, 22.2)}
    ),
}
"""Mask AP on LVIS v0.5, val but for Table 10, which is the test set's; the last five are the extended paper's."""
