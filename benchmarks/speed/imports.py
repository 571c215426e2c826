"""Time to import each package and to start each command, checked to load no framework that is not needed.

    python -m benchmarks.speed.imports

Every import is a fresh process, in turn with one that imports only NumPy.
"""

from __future__ import annotations

import subprocess
import sys

import tyro

from benchmarks.speed.measure import Result, result, save, seconds, timing

IMPORTS = {
    "import extract": "import extract",
    "import calib": "import calib",
    "import fuse": "import fuse",
    "extract.open_cache": "from extract import open_cache",
    "fuse.class_nms": "from fuse import class_nms",
    "fuse.evaluate": "from fuse import evaluate",
    "python -m extract --help": "import extract.__main__; extract.__main__.main(['--help'])",
    "python -m calib.train --help": "import calib.__main__; calib.__main__.main(['--help'])",
    "python -m fuse --help": "import fuse.__main__; fuse.__main__.main(['--help'])",
}
FRAMEWORKS = ("torch", "torchvision", "detectron2", "mmdet", "mmengine")
BASELINE = "import numpy"
TARGET = 1
"""Seconds."""


def main(rounds: int = 5) -> None:
    """Times all imports and saves the results."""
    save("imports", [time_import(case, code, rounds) for case, code in IMPORTS.items()])


def time_import(case: str, code: str, rounds: int) -> Result:
    """Checks which frameworks are loaded, then times processes that run the code."""
    loaded = loaded_frameworks(code)
    assert not loaded, f"{case} loads {loaded}"
    pairs = [(_start(code), _start(BASELINE)) for _ in range(rounds)]
    return result(case, BASELINE, timing(pairs), "seconds_at_most", TARGET)


def loaded_frameworks(code: str) -> str:
    """Returns the names of the frameworks that are loaded after running the code in a new process."""
    show = f"print('loaded:', *sorted(set(sys.modules) & set({FRAMEWORKS!r})))"
    program = f"import sys\ntry:\n {code}\nfinally:\n {show}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.rsplit("loaded:", 1)[1].strip()


def _start(code: str) -> float:
    return seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
