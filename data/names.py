"""Names that stand in files from anywhere: of classes, pictures and splits."""

import re

# Control characters would break tables and steer a terminal; halves of a surrogate pair can't be written to any file.
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def shown(text):
    """A text for people in which nothing can steer a terminal: control characters and their like stand as escapes."""
    return _UNFIT.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def flaw(name, longest=200):
    """What makes a name unusable, in words; None where nothing does. Every script and every punctuation is fine."""
    if not isinstance(name, str):
        return f"it is {type(name).__name__}, not text"
    if not name.strip():
        return "it is empty"
    if len(name) > longest:
        return f"it is {len(name):,} characters long, {longest} at most are taken"
    return "it holds control characters or broken Unicode" if _UNFIT.search(name) else None
