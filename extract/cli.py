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
    if arguments[:1] == ["--version"]:
        print(f"{prog} ({DISTRIBUTION} {_version()})")
        return 0
    name = arguments.pop(0) if arguments and arguments[0] in commands else ""
    if name == "" and "" not in commands:
        return _usage(prog, commands, arguments)
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
    except (ValueError, OSError, ImportError, MemoryError) as error:
        if sys.flags.dev_mode:
            raise
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
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


def _usage(prog: str, commands: Mapping[str, Command], arguments: list[str]) -> int:
    asked = not arguments or arguments[0] in ("-h", "--help")
    lines = [
        f"usage: {prog} COMMAND …",
        *(f"  {name:<10} {_first_line(c.config)}" for name, c in commands.items()),
    ]
    if not asked:
        lines.insert(0, f"error: unknown command {arguments[0]!r}")
    print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def _first_line(config: type) -> str:
    return (config.__doc__ or "").strip().splitlines()[0]


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "not installed"
