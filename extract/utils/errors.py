"""Phrases of messages: errors of other code in one line, long values shortened, long lists cut."""

from __future__ import annotations

from collections.abc import Collection
from numbers import Integral

MAX_VALUE_LENGTH, MAX_LISTED = 60, 3
MAX_LINE_LENGTH = 500
"""Of an exception of other code, which may repeat what it has read."""


def one_line(error: BaseException) -> str:
    """Returns an exception's message in one line, shortened; the name of its class if it has none."""
    return shortened(" ".join(str(error).split()), MAX_LINE_LENGTH) or type(error).__name__


def shortened(value: object, length: int = MAX_VALUE_LENGTH) -> str:
    """Returns `str(value)`; leaves out the middle of a long one, so that paths and hashes still differ."""
    text, half = str(value), length // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"


def shown(value: object) -> str:
    """Returns `repr(value)`, shortened."""
    return shortened(repr(value))


def other_version(version: object, readable: int) -> str:
    """Returns that a file has another format version than the one that this library reads, and whether it is newer."""
    newer = " (written by a newer version)" if isinstance(version, Integral) and int(version) > readable else ""
    return f"version {version}, this library reads {readable}{newer}"


def listed(items: Collection[str]) -> str:
    """Lists the first items, and counts the others."""
    more = len(items) - MAX_LISTED
    text = ", ".join(list(items)[:MAX_LISTED])
    return f"{text} and {more} more" if more > 0 else text
