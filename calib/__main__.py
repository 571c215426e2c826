"""Command line `python -m calib`, installed as `tailcal-train`: trains a head; `--list` prints all methods."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from extract.utils import cli

TRAIN = cli.Command("calib.config:Config", "calib.train:main")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line, with or without `train` before the flags; returns the exit code."""
    if list(sys.argv[1:] if argv is None else argv) == ["--list"]:
        from calib.methods import format_methods

        print(format_methods())
        return 0
    return cli.run("python -m calib", {"": TRAIN, "train": TRAIN}, argv)


if __name__ == "__main__":
    sys.exit(main())
