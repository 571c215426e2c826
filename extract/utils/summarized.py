"""Objects that show themselves as a short table: as text, and as HTML in a notebook."""

from __future__ import annotations


class Summarized:
    """An object whose repr is its `summary`, a line per row."""

    def summary(self) -> list[tuple[str, str]]:
        """Returns what `repr` shows: (name, text), the kind of object first."""
        raise NotImplementedError

    def __repr__(self) -> str:
        rows = self.summary()
        width = max(len(name) for name, _ in rows) + 1
        return "\n".join(f"{name:<{width}} {text}" for name, text in rows)

    def _repr_html_(self) -> str:
        import html  # here, because importing it takes 2 ms, and only notebooks call this

        rows = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in self.summary())
        return f"<table>{''.join(rows)}</table>"
