"""The rows that everybody is measured with."""


def prompt(number: int) -> str:
    """Return the prompt of a row."""
    return f"Summarise in one sentence:\nrow {number} " + "lorem ipsum dolor sit amet " * 8
