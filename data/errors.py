"""The one error that a user's mistake ends in, and the way a script ends on it, or on Ctrl-C."""

import signal
import sys
from contextlib import contextmanager

from .names import shown


class InputError(Exception):
    """What the user gave can't be used: a file, a folder, a flag.

    Its message is a single line that names the file (or flag) and the remedy. Scripts print it to stderr and
    end with exit code 2; anything else that escapes is a bug of ours and keeps its traceback.
    """


@contextmanager
def exit_on_input_error():
    """Turn an InputError into one line on stderr and exit code 2 (for scripts, around their main()).

    Ctrl-C, where a script has no end of its own for it, gives one line as well, and 128 plus the signal's number.
    What a message quotes from a file can't steer the terminal: control characters are shown as escapes.
    """
    try:
        yield
    except InputError as error:
        print(f"error: {shown(' '.join(str(error).split()))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
