"""`python -m extract`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from extract.cli import Command, run
from extract.config import Config, ExportConfig, ImportConfig, InspectConfig, RecallConfig, VerifyConfig

COMMANDS = {
    "": Command(Config, "extract.extraction:command"),
    "inspect": Command(InspectConfig, "extract.housekeeping:inspect"),
    "verify": Command(VerifyConfig, "extract.housekeeping:verify"),
    "recall": Command(RecallConfig, "extract.recall:report"),
    "export": Command(ExportConfig, "extract.housekeeping:export_file"),
    "import": Command(ImportConfig, "extract.housekeeping:import_file"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return run("python -m extract", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
