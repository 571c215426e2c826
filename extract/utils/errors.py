"""Messages of errors that other code raises."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """Returns an exception's message in one line; the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
