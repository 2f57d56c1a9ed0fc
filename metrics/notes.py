"""One-line notes about what an evaluation left out: how many, and the first names."""

from utils.errors import printable

_NAMES_SHOWN = 5


def note(names, text):
    """[] without names, else a list of one line: text, its ``{}`` filled with their number, and the first names."""
    names = [printable(str(name)[:100]) for name in names]
    if not names:
        return []
    more = ", ..." if len(names) > _NAMES_SHOWN else ""
    text = text.replace("{}", str(len(names)), 1)  # not format(): the text may name a folder that holds braces
    return [f"{text}: {', '.join(names[:_NAMES_SHOWN])}{more}"]
