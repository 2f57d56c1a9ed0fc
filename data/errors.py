"""The one error that a user's mistake ends in, and the way a script ends on it."""

import re
import sys
from contextlib import contextmanager


class InputError(Exception):
    """What the user gave can't be used: a file, a folder, a flag.

    Its message is a single line that names the file (or flag) and the remedy. Scripts print it to stderr and
    end with exit code 2; anything else that escapes is a bug of ours and keeps its traceback.
    """


@contextmanager
def exit_on_input_error():
    """Turn an InputError into one line on stderr and exit code 2 (for scripts, around their main()).

    What a message quotes from a file can't steer the terminal: control characters are shown as escapes.
    """
    try:
        yield
    except InputError as error:
        line = " ".join(str(error).split())
        line = re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", line)
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
