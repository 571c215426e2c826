"""The frame of every command: flags from a Config dataclass, one line for an error, and the exit codes.

0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DISTRIBUTION = "tailcal"


@dataclass(frozen=True)
class Command:
    """One job of a program.

    Attributes:
        config: frozen dataclass; its fields become flags, its docstring the help text.
        function: "module:function", imported only when the command runs; called with the config.
    """

    config: type
    function: str


def run(prog: str, commands: Mapping[str, Command], argv: Sequence[str] | None = None) -> int:
    """Runs a program of several commands; the one named "" is the main job, done where no command is named.

    Returns the exit code. Errors of the expected kinds become one line on stderr; with the environment's
    PYTHONDEVMODE or -X dev they keep their traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if Path(sys.argv[0]).name.startswith(DISTRIBUTION):
        prog = Path(sys.argv[0]).name
    if arguments[:1] == ["--version"]:
        print(f"{prog} ({DISTRIBUTION} {_version()})")
        return 0
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    if name not in commands:
        known = ", ".join(filter(None, commands))
        print(f"error: {prog} has no command {name!r}; it has {known or 'none, only options'}", file=sys.stderr)
        return 2
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        config = _parse(prog, name, commands, arguments)
        module, function = commands[name].function.split(":")
        getattr(import_module(module), function)(config)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BrokenPipeError:
        return 1
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        # Of the RuntimeErrors only "out of memory" is the user's to mend; the rest are faults of the program.
        foreseen = not isinstance(error, RuntimeError) or "out of memory" in str(error)
        if sys.flags.dev_mode or not foreseen:
            raise
        print("error: " + (" ".join(str(error).split()) or "out of memory"), file=sys.stderr)
        return 1
    return 0


def _parse(prog: str, name: str, commands: Mapping[str, Command], arguments: list[str]):
    import tyro

    description = inspect.cleandoc(commands[name].config.__doc__ or "")
    others = [other for other in commands if other != name and other]
    if name == "" and others:
        description += f"\n\nOther commands: {', '.join(others)} (`{prog} COMMAND --help`)"
    return tyro.cli(
        commands[name].config,
        prog=f"{prog} {name}".strip(),
        description=description,
        args=arguments,
    )


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "not installed"
