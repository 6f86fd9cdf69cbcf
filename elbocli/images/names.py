"""Names of files in folders and archives: paths with '/', cleaned of all that leads elsewhere."""

from __future__ import annotations


def clean(name: str) -> str:
    """Clean a path of an archive of '.', '..', leading slashes and backslashes."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def printable(name: str) -> str:
    """A name for people, with escapes for characters that would move their cursor or are no text."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)


def hidden(name: str) -> bool:
    """Whether any part of a path is hidden (begins with a dot), or is macOS's or Windows' own."""
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in name.split("/"))
