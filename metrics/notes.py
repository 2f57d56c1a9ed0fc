"""One-line notes about what an evaluation left out: how many, and the first names."""

_NAMES_SHOWN = 5


def note(names, text):
    """[] without names, else a list of one line: text, its ``{}`` filled with their number, and the first names."""
    names = [str(name) for name in names]
    if not names:
        return []
    more = ", ..." if len(names) > _NAMES_SHOWN else ""
    return [f"{text.format(len(names))}: {', '.join(names[:_NAMES_SHOWN])}{more}"]
