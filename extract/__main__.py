"""`python -m extract`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from extract.utils.cli import Command, run

COMMANDS = {
    "": Command("extract.config:Config", "extract.extraction:command"),
    "inspect": Command("extract.command_configs:InspectConfig", "extract.commands:inspect"),
    "browse": Command("extract.command_configs:BrowseConfig", "extract.commands:browse"),
    "convert": Command("extract.command_configs:ConvertConfig", "extract.convert:command"),
    "verify": Command("extract.command_configs:VerifyConfig", "extract.commands:verify"),
    "recall": Command("extract.command_configs:RecallConfig", "extract.recall:report"),
    "export": Command("extract.command_configs:ExportConfig", "extract.commands:export_file"),
    "import": Command("extract.command_configs:ImportConfig", "extract.commands:import_file"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return run("python -m extract", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
