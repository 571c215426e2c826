"""What a command's output was made with: the same command resumes, a changed one is refused."""

from __future__ import annotations

from collections.abc import Mapping

from extract.utils.errors import shown


def refuse_changes(
    location: object,
    stored: Mapping[str, object],
    current: Mapping[str, object],
    error: type[ValueError] = ValueError,
) -> None:
    """Raises an error that names every option in which `stored` and `current` differ; returns if none does.

    Args:
        location: path or URL of the output; the message begins with it.
        stored: options that the output was made with, flat or nested.
        current: options of this run. An option that one of the two lacks counts as None.
        error: class of the error.
    """
    stored, current = flatten(stored), flatten(current)
    changes = [
        f"{name} ({shown(stored.get(name))} there, {shown(current.get(name))} now)"
        for name in dict.fromkeys([*current, *stored])
        if stored.get(name) != current.get(name)
    ]
    if changes:
        raise error(f"{location}: was made with other options: {', '.join(changes)}; --overwrite starts anew")


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Returns nested mappings as one dict, keys joined by dots."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat
