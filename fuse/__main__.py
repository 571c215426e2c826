"""`python -m fuse`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from extract.utils import cli
from fuse.commands.config import Config, ExportConfig, PredictConfig, SweepConfig
from fuse.commands.results_config import EvaluateConfig, MergeConfig
from fuse.commands.select_config import SelectConfig

COMMANDS = {
    "": cli.Command(Config, "fuse.commands.detect:run"),
    "sweep": cli.Command(SweepConfig, "fuse.commands.detect:sweep"),
    "select": cli.Command(SelectConfig, "fuse.commands.select:select"),
    "evaluate": cli.Command(EvaluateConfig, "fuse.commands.results:evaluate_file"),
    "merge": cli.Command(MergeConfig, "fuse.commands.results:merge_files"),
    "predict": cli.Command(PredictConfig, "fuse.commands.predict:predict"),
    "export": cli.Command(ExportConfig, "fuse.commands.export:export"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return cli.run("python -m fuse", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
