"""Command-line flags: argparse types that refuse invalid values, in one line."""

import argparse
import math
import sys

from utils.errors import print_error


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the description as it is written, and defaults other than None and False."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or "default" in action.help:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are a single line, without the usage; exit code 2."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=Formatter)

    def error(self, message):
        print_error(f"{message} (see --help)")
        sys.exit(2)


def number(kind, minimum=-math.inf, maximum=math.inf, *, above=-math.inf, below=math.inf):
    """Return an argparse type for a finite number of `kind` (int or float) within the bounds.

    Args:
        minimum, maximum: smallest and largest allowed value.
        above, below: exclusive bounds.
    """
    bounds = {"at least": minimum, "greater than": above, "at most": maximum, "below": below}
    wanted = " and ".join(f"{words} {bound}" for words, bound in bounds.items() if abs(bound) < math.inf) or "finite"
    noun = "a whole number" if kind is int else "a number"

    def parse(text):
        try:
            value = kind(text)
            finite = math.isfinite(value)  # an int can be too large for it
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {noun}") from None
        if not (finite and minimum <= value <= maximum and above < value < below):
            raise argparse.ArgumentTypeError(f"found {text}, expected {noun} {wanted}")
        return value

    return parse


def boolean(text):
    """Parse `--cuda True` and `--cuda False`, as in ssd.pytorch."""
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"found {text!r}, expected True or False")
