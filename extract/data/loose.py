"""Values of JSON as tools write them: numbers as text or as whole floats, missing values as null, NaN or "".

The readers raise ValueError that says what is expected.
"""

from __future__ import annotations

import hashlib
import math
import re
from numbers import Integral, Real

WHOLE = re.compile(r"\s*([+-]?\d{1,19})(\.0*)?\s*", re.ASCII)


def is_missing(value: object) -> bool:
    """Returns whether a value stands for none, as in what pandas writes."""
    return value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and math.isnan(value))


def whole_number(value: object) -> int:
    """Reads 3, 3.0, "3" or "3.0" as 3."""
    if isinstance(value, str) and (match := WHOLE.fullmatch(value)):
        return _in_range(int(match[1]))
    if isinstance(value, Integral) and not isinstance(value, bool):
        return _in_range(int(value))
    if isinstance(value, Real) and not isinstance(value, bool) and float(value).is_integer():
        return _in_range(int(float(value)))
    raise ValueError("a whole number")


def is_text_id(value: object) -> bool:
    """Returns whether an id is text that is no whole number, such as "img_0001"."""
    return isinstance(value, str) and not WHOLE.fullmatch(value)


def identifier(value: object) -> int:
    """Reads what `whole_number` reads; other text becomes a number of 53 bits made of its sha256.

    The number depends on the text alone, so that all files and commands agree, and is exact as a float.
    """
    if isinstance(value, str) and is_text_id(value):
        digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") >> 11
    return whole_number(value)


def image_side(value: object) -> int:
    """Reads a height or a width in pixels; 0 stands for unknown."""
    side = whole_number(value)
    if not 0 <= side < 2**31:
        raise ValueError("a number of pixels")
    return side


def flag(value: object) -> int:
    """Reads 0, 1, false, true and what `whole_number` reads as them."""
    number = int(value) if isinstance(value, bool) else whole_number(value)
    if number not in (0, 1):
        raise ValueError("0 or 1")
    return number


def real_number(value: object) -> float:
    """Reads 0.5 or "0.5"."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError("a number") from None
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:  # an integer of hundreds of digits
            raise ValueError("a number of double precision") from None
    raise ValueError("a number")


def text(value: object) -> str:
    """Reads text; a number becomes its digits. Half a surrogate pair, which JSON can have, is no text."""
    if isinstance(value, str):
        if not value.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError("text that UTF-8 can have")
        return value
    if isinstance(value, Real) and not isinstance(value, bool):
        return str(value)
    raise ValueError("text")


def box(value: object) -> tuple[float, ...]:
    """Reads four numbers."""
    try:
        numbers = tuple(map(real_number, value))  # type: ignore[call-overload]  # a TypeError says that it is no list
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 4:
        raise ValueError("four numbers")
    return numbers


def whole_numbers(value: object) -> list[int]:
    """Reads a list of whole numbers."""
    try:
        return list(map(whole_number, value))  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise ValueError("a list of whole numbers") from None


def is_respelled(value: object, read: object) -> bool:
    """Returns whether a number was written as text, as a float where it is whole, or as true or false."""
    if isinstance(value, list | tuple) and isinstance(read, list | tuple):
        return any(is_respelled(*pair) for pair in zip(value, read, strict=True))
    if isinstance(read, str):
        return False
    return isinstance(value, str | bool) or (type(value) is float and type(read) is int)


def _in_range(number: int) -> int:
    if not -(2**63) <= number < 2**63:
        raise ValueError("a whole number of 64 bits")
    return number
