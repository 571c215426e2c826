"""What it costs to import each package and to start each command, and that none brings a framework it does not need.

    python -m benchmarks.speed.imports

Every import is a fresh process, in turn with one that imports nothing but NumPy.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import tyro

from benchmarks.speed.measure import Pair, keep, row, seconds

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


def main(rounds: int = 5) -> None:
    """Prints and keeps the table."""
    rows = []
    for name, code in IMPORTS.items():
        loaded = frameworks(code)
        assert not loaded, f"{name} brings {loaded}"
        times = np.array([(_start(code), _start("import numpy")) for _ in range(rounds)])
        ours, other = np.median(times, axis=0)
        reached = {"reach": "< 1 s", "reached": "yes" if ours < 1 else "no"}
        rows.append(row(name, "import numpy", Pair(ours, other, other / ours, 0, 0)) | reached | {"memory": ""})
        rows[-1]["ratio"] = f"{ours / other:.3g}× its time"
    keep("imports", rows)


def frameworks(code: str) -> str:
    """Which frameworks are loaded after some code."""
    ask = f"import sys\ntry:\n {code}\nfinally:\n print('loaded:', *sorted(set(sys.modules) & set({FRAMEWORKS!r})))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    return done.stdout.rsplit("loaded:", 1)[1].strip()


def _start(code: str) -> float:
    return seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
