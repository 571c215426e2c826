"""`python -m fuse`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from extract.utils import cli

COMMANDS = {
    "": cli.Command("fuse.commands.config:Config", "fuse.commands.detect:run"),
    "sweep": cli.Command("fuse.commands.config:SweepConfig", "fuse.commands.detect:sweep"),
    "select": cli.Command("fuse.commands.select_config:SelectConfig", "fuse.commands.select:select"),
    "evaluate": cli.Command("fuse.commands.results_config:EvaluateConfig", "fuse.commands.results:evaluate_file"),
    "merge": cli.Command("fuse.commands.results_config:MergeConfig", "fuse.commands.results:merge_files"),
    "predict": cli.Command("fuse.commands.live_config:PredictConfig", "fuse.commands.predict:predict"),
    "export": cli.Command("fuse.commands.live_config:ExportConfig", "fuse.commands.export:export"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return cli.run("python -m fuse", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
