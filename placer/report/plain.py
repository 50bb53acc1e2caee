"""Text that may be anybody's, as a page or a terminal may have it."""


def shown(text: str) -> str:
    """The same, with ? for what is no sign: an escape sequence, half of a surrogate pair."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in text)


def plain(text: str) -> str:
    """On one line."""
    return shown(" ".join(text.split()))
