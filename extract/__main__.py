"""`python -m extract`."""

import sys

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


def main() -> None:
    """Console script `tailcal-extract`."""
    sys.exit(run("python -m extract", COMMANDS))


if __name__ == "__main__":
    main()
