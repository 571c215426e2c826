"""`python -m calib`: what this package does on the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from calib.config import Config
from extract import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m calib train …`, the same as `python -m calib.train …`; returns the exit code."""
    return cli.run("python -m calib", {"train": cli.Command(Config, "calib.train:main")}, argv)


if __name__ == "__main__":
    sys.exit(main())
