"""Short ids of parametrized tests, so that a failure can be read in a terminal."""

LONGEST_ID, LONGEST_PART = 60, 26
"""Letters of an id, and of what one value adds to it."""


def short(value: object, most: int = LONGEST_PART) -> str:
    """A value as text, cut; pytest numbers ids that are then alike."""
    text = ascii(value)[1:-1] if isinstance(value, str) else str(value)
    return text if len(text) <= most else f"{text[: most - 2]}.."
