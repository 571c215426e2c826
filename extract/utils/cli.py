"""Command lines: flags from a Config dataclass, errors in one line, exit codes, `--version`.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import gc
import inspect
import logging
import os
import platform
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from pkgutil import resolve_name

from extract.utils.memory_limit import LIBRARIES, enforced_limit, require_memory, return_freed_memory

DISTRIBUTION = "tailcal"
PACKAGES = ("torch", "torchvision", "detectron2", "mmdet", "mmcv", "zarr", "numba", "numpy", "hotcoco", "lvis")
"""Packages whose versions `--version` prints."""


@dataclass(frozen=True)
class Command:
    """One command of a program.

    Attributes:
        config: "module:name" of a frozen dataclass; its fields become flags, its docstring becomes the help text.
        function: "module:name" of what is called with the config. Both are imported only when the command runs.
    """

    config: str
    function: str


def run(prog: str, commands: Mapping[str, Command], argv: Sequence[str] | None = None) -> int:
    """Runs a program of several commands and returns the exit code.

    Expected errors become one line on stderr; PYTHONDEVMODE in the environment, or -X dev, keeps their traceback.

    Args:
        prog: name of the program in messages; that of its console script if it was started by that.
        commands: by name; the command "" runs if no name is given.
        argv: arguments, by default those of the process.
    """
    try:
        code = _run(prog, commands, list(sys.argv[1:] if argv is None else argv))
        return_freed_memory()  # when the process ends, PyTorch reads more of its files, which a limit includes
        sys.stdout.flush()  # here, not when the interpreter ends, which would print a traceback
    except BrokenPipeError:  # as in `… | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _run(prog: str, commands: Mapping[str, Command], arguments: list[str]) -> int:
    if Path(sys.argv[0]).name.startswith(DISTRIBUTION):
        prog = Path(sys.argv[0]).name
    if arguments[:1] == ["--version"]:
        print(version_report(prog))
        return 0
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    if name not in commands:
        known = ", ".join(filter(None, commands))
        print(f"error: {prog} has no command {name!r}; it has {known or 'none, only options'}", file=sys.stderr)
        return 2
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    # PIL's, of images of more than 89 megapixels; of more than twice as many it raises.
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")
    try:
        config = _parse(prog, name, commands, arguments)
        limit = getattr(config, "memory_limit", None)
        require_memory(limit, LIBRARIES, "the libraries alone")
        with enforced_limit(limit):
            resolve_name(commands[name].function)(config)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        # Users can mend two kinds of RuntimeError; the others are faults of the program. Frameworks raise
        # NotImplementedError for what a device lacks, such as detectron2's deformable convolution on a CPU.
        expected = not isinstance(error, RuntimeError) or isinstance(error, NotImplementedError)
        expected |= "out of memory" in str(error)
        if sys.flags.dev_mode or not expected:
            raise
        print("error: " + (" ".join(str(error).split()) or "out of memory"), file=sys.stderr)
        return 1
    return 0


def version_report(prog: str) -> str:
    """Returns what a bug report needs: versions of program, Python and packages, platform and number of CPUs.

    Reads the packages' metadata without importing them. Packages that are not installed are left out.
    """
    try:
        own = version(DISTRIBUTION)
    except PackageNotFoundError:
        own = "not installed"
    lines = [
        (DISTRIBUTION, own),
        ("python", platform.python_version()),
        ("platform", platform.platform()),
        ("CPUs", str(os.cpu_count())),
        *_package_versions(),
    ]
    return "\n".join([prog, *(f"{name:<12} {text}" for name, text in lines)])


def _package_versions() -> Iterator[tuple[str, str]]:
    """Yields the installed packages of `PACKAGES` and their versions, with the distribution if its name differs."""
    distributions = packages_distributions()
    for package in PACKAGES:
        for name in dict.fromkeys(distributions.get(package, ())):
            yield package, version(name) + (f" ({name})" if name != package else "")


def _parse(prog: str, name: str, commands: Mapping[str, Command], arguments: list[str]) -> object:
    # What is imported stays, and looking through it for garbage takes a twentieth of the time of --help.
    gc.disable()
    try:
        return _parsed(prog, name, commands, arguments)
    finally:
        if not gc.get_freeze_count():  # once in a process, so that what it does later is garbage as ever
            gc.freeze()
        gc.enable()


def _parsed(prog: str, name: str, commands: Mapping[str, Command], arguments: list[str]) -> object:
    import tyro

    kind = resolve_name(commands[name].config)
    description = inspect.cleandoc(kind.__doc__ or "")
    others = [other for other in commands if other != name and other]
    if name == "" and others:
        description += f"\n\nOther commands: {', '.join(others)} (`{prog} COMMAND --help`)"
    try:
        return tyro.cli(
            kind,
            prog=f"{prog} {name}".strip(),
            description=description,
            args=arguments,
        )
    except ValueError as error:  # of a config's checks; tyro prints it itself from version 1.0.16 on
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from None
