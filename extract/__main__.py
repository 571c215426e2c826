"""`python -m extract`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from extract.command_configs import (
    BrowseConfig,
    ConvertConfig,
    ExportConfig,
    ImportConfig,
    InspectConfig,
    RecallConfig,
    VerifyConfig,
)
from extract.config import Config
from extract.utils.cli import Command, run

COMMANDS = {
    "": Command(Config, "extract.extraction:command"),
    "inspect": Command(InspectConfig, "extract.commands:inspect"),
    "browse": Command(BrowseConfig, "extract.commands:browse"),
    "convert": Command(ConvertConfig, "extract.convert:command"),
    "verify": Command(VerifyConfig, "extract.commands:verify"),
    "recall": Command(RecallConfig, "extract.recall:report"),
    "export": Command(ExportConfig, "extract.commands:export_file"),
    "import": Command(ImportConfig, "extract.commands:import_file"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return run("python -m extract", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
