"""Text that somebody else wrote, as a terminal or a log may show it. Pure."""


def printable(text: str, *, lines: bool = False) -> str:
    """The text with what would move a cursor, or begin another line, escaped.

    Args:
        text: Such as a queue's name, a reason, an error.
        lines: Whether it may have lines of its own.
    """
    return "".join(
        c if c.isprintable() or (lines and c == "\n") else f"\\x{ord(c):02x}" for c in text
    )
