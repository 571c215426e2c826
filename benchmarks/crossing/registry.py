"""The evaluators by name, and the files of their results."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from benchmarks.crossing import array_evaluators, calibration, evaluators
from benchmarks.crossing.inputs import Inputs

RESULTS = Path(__file__).parents[1] / "results"


class Evaluator(NamedTuple):
    """An evaluator.

    Attributes:
        package: on PyPI.
        function: from `Inputs` to the figure.
        federated: whether it takes LVIS's fields; others compute the same of federated and of exhaustive data.
    """

    package: str
    function: Callable[[Inputs], float]
    federated: bool = False


class Measure(NamedTuple):
    """A figure that evaluators compute.

    Attributes:
        column: its name.
        file: of its results.
        evaluators: by name.
    """

    column: str
    file: Path
    evaluators: dict[str, Evaluator]


AP = Measure(
    "AP",
    RESULTS / "crossing.csv",
    {
        "tailcal": Evaluator("tailcal", evaluators.tailcal, federated=True),
        "lvis": Evaluator("lvis", evaluators.lvis, federated=True),
        "hotcoco `LVISEval`": Evaluator("hotcoco", evaluators.hotcoco_lvis, federated=True),
        "faster-coco-eval `lvis_style`": Evaluator(
            "faster-coco-eval", evaluators.faster_coco_eval_lvis, federated=True
        ),
        "tidecv": Evaluator("tidecv", array_evaluators.tidecv, federated=True),
        "pycocotools": Evaluator("pycocotools", evaluators.pycocotools),
        "hotcoco `COCOeval`": Evaluator("hotcoco", evaluators.hotcoco),
        "faster-coco-eval": Evaluator("faster-coco-eval", evaluators.faster_coco_eval),
        "torchmetrics": Evaluator("torchmetrics", array_evaluators.torchmetrics),
        "supervision": Evaluator("supervision", array_evaluators.supervision),
    },
)
ECE = Measure(
    "ECE",
    RESULTS / "crossing_calibration.csv",
    {
        "the definition, on pycocotools' matches": Evaluator("pycocotools", calibration.formula),
        "hotcoco `calibration`": Evaluator("hotcoco", calibration.hotcoco),
        "netcal `ECE`": Evaluator("netcal", calibration.netcal),
    },
)
MEASURES = (AP, ECE)


def installed_version(package: str) -> str:
    """Returns a package's version; "", and says so, if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        print(f"{package} is not installed")
        return ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what evaluators print and warn of."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
