"""A window that shows frames while they are made."""

import os
import subprocess
import sys

from utils.errors import InputError

TITLE = "Object detection (q ends)"
NO_KEY = -1
ENDING_KEYS = {ord("q"), 27}  # 27 is Esc
OPEN_A_WINDOW = "import cv2; cv2.namedWindow('test'); cv2.waitKey(1); cv2.destroyAllWindows()"


def ask_for_display():
    """Raise InputError where no window can be opened.

    OpenCV ends the whole process where a display is named but doesn't answer, so another process tries first.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise InputError("--show needs a display, and there is none (DISPLAY is not set); leave --show out")
    trial = subprocess.run([sys.executable, "-c", OPEN_A_WINDOW], capture_output=True, check=False, timeout=60)
    if trial.returncode == 0:
        return
    if b"not implemented" in trial.stderr:
        raise InputError("--show: this OpenCV has no windows; pip install opencv-python in place of -headless")
    raise InputError("--show: no window can be opened on this display; leave --show out, or check DISPLAY")


class Display:
    """A window. `closed` is True once its user pressed q or Esc, or closed it."""

    def __init__(self):
        self.closed = False

    def show(self, frame, wait=False):
        """Show a frame: uint8 RGB [H, W, 3]. wait: until a key is pressed."""
        import cv2

        cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL)
        cv2.imshow(TITLE, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        key = NO_KEY
        while key == NO_KEY and not self.closed:
            key = cv2.waitKey(50 if wait else 1)
            self.closed |= key & 0xFF in ENDING_KEYS if key != NO_KEY else False
            self.closed |= cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1
            if not wait:
                break

    def close(self):
        """Close the window."""
        import cv2

        cv2.destroyAllWindows()
