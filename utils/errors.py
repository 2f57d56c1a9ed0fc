"""InputError, the exception for a user's mistakes, how scripts report it, and printed text."""

import errno
import os
import re
import signal
import sys
from contextlib import contextmanager

# Control characters and bidirectional overrides can change a terminal; lone surrogates can't be encoded.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNUSABLE = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS)


class InputError(Exception):
    """Invalid user input: a file, a folder or a flag.

    The message is a single line that names the file (or flag) and the remedy. Scripts print it to stderr and exit with
    code 2. Any other exception that escapes is a bug and keeps its traceback.
    """


@contextmanager
def exit_on_input_error():
    """Run a script's main(): print an InputError as one line and exit with code 2.

    For Ctrl-C and SIGTERM, print one line and exit with 128 plus the signal's number. Unprintable characters in the
    message are escaped, and so are letters that stdout can't encode.
    """

    def interrupt(number, frame):  # the default handler of SIGTERM exits without cleaning up
        raise KeyboardInterrupt(number)

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except InputError as error:
        print_error(error)
        sys.exit(2)
    except OSError as error:  # from pathlib: the path is too long or not accessible
        if not error.filename or error.errno not in _UNUSABLE:
            raise
        print_error(f"{error.filename}: {error.strerror}; choose another path")
        sys.exit(2)
    except (KeyboardInterrupt, ImportError) as error:
        # An extension module that is interrupted while it loads raises ImportError.
        interruption = error.__cause__ if isinstance(error, ImportError) else error
        if not isinstance(interruption, KeyboardInterrupt):
            raise
        number = signal.SIGTERM if interruption.args else signal.SIGINT
        say(f"interrupted by {number.name}", sys.stderr)
        sys.exit(128 + number)
    finally:
        signal.signal(signal.SIGTERM, previous)


def print_error(*errors):
    """Print each InputError, or its message, to stderr as a single line."""
    for error in errors:
        say(f"error: {' '.join(str(error).split())}", sys.stderr)


def say(text, file=None):
    """Print lines to stdout, or to `file`, with unprintable characters escaped."""
    print_or_drop("\n".join(printable(line) for line in text.split("\n")), file or sys.stdout)


def print_or_drop(text, file):
    """Print and flush. If the output is closed (`| head -1`) or full, the run continues and the rest is dropped."""
    try:
        print(text, file=file, flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)


def printable(text):
    """Return `text` with control characters, bidirectional overrides and lone surrogates escaped."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def name_problem(name, max_length=200):
    """Return what makes a class or image name from a file invalid, as a phrase, or None if it is valid."""
    if not isinstance(name, str):
        return f"it is {type(name).__name__}, not text"
    if not name.strip():
        return "it is empty"
    if len(name) > max_length:
        return f"it has {len(name):,} characters (at most {max_length} are allowed)"
    return "it contains control characters or invalid Unicode" if _UNPRINTABLE.search(name) else None


def count(number, noun):
    """Return "1 image" or "1,000 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
