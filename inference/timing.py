"""When each picture of a video is shown: the constant frame rate to write it with, and the place of each picture."""

from fractions import Fraction

import numpy as np

# The rates that cameras, broadcasters and screens use; a variable frame rate becomes the slowest that holds it.
USUAL_RATES = [Fraction(rate) for rate in (24, 25, 30, 48, 50, 60, 90, 100, 120, 144, 240)]
USUAL_RATES = sorted(USUAL_RATES + [Fraction(rate * 1000, 1001) for rate in (24, 30, 48, 60, 120, 240)])
DEFAULT_RATE = Fraction(25)
# Sound and picture may part by 40 ms before anybody minds; this leaves room for what containers round.
TOLERANCE = 0.025
# A longer pause between two pictures is a jump of the clock (a recording glued together), not a picture shown so long.
LONGEST_PAUSE = 600.0


def choose_rate(times, tick, told=None):
    """Choose the constant frame rate for pictures shown at given times.

    Args:
        times: float64 [N], seconds, ascending; may be empty.
        tick: resolution of the times in seconds.
        told: Fraction, what the container says the rate is, or None.
    Returns:
        rate: Fraction, frames a second.
        constant: True where every picture lies on its own place of that rate's grid, without gaps.
    """
    if len(times) < 2 or times[-1] <= 0:
        return told or DEFAULT_RATE, True
    average = (len(times) - 1) / times[-1]
    intervals = np.diff(times)
    candidates = [told] if told else []
    # A rate of the usual ones, else the one that most intervals name, else the average: as exact as the times allow.
    for rate in (average, 1 / max(np.median(intervals), tick)):
        candidates += [usual for usual in USUAL_RATES if abs(usual - rate) < 5e-4 * rate]
        candidates.append(Fraction(rate).limit_denominator(1001))
        candidates.append(Fraction(rate).limit_denominator(1_000_000))
    candidates = [rate for rate in candidates if rate <= 1000]
    for rate in candidates:
        if fits(times, np.arange(len(times)), rate, tick):
            return rate, True
    for rate in candidates:
        places = np.rint(times * float(rate))
        if np.diff(places).min() >= 1 and fits(times, places, rate, tick):
            return rate, False
    for rate in USUAL_RATES:
        if rate >= 24 and np.abs(places_of(times, rate) / float(rate) - times).max() <= TOLERANCE:
            return rate, False
    return USUAL_RATES[-1], False


def fits(times, places, rate, tick):
    """Whether pictures on these places of the rate's grid are shown at these times, but for rounding to a tick."""
    return bool(np.abs(times - places / float(rate)).max() <= min(1.01 * tick + 1e-7, 0.35 / rate))


def places_of(times, rate):
    """Place on the grid of each picture, int64 [N]: the nearest that is still free, so that none is lost."""
    wanted = np.rint(np.asarray(times) * float(rate)).astype(np.int64)
    index = np.arange(len(wanted))
    return np.maximum.accumulate(wanted - index) + index


def steady(times):
    """Take jumps of the clock out of ascending times that begin with 0: float64 [N].

    A step longer than LONGEST_PAUSE counts as a usual one, and so does none at all: ffmpeg lists a picture with the
    time of the one before where the clock went back (recordings glued together).
    """
    steps = np.diff(times)
    usual = np.median(steps[steps > 0]) if (steps > 0).any() else 0.0
    return np.cumsum([0.0, *np.where((steps > LONGEST_PAUSE) | (steps == 0), usual, steps)])


class Clock:
    """Turns the time stamps of a stream into seconds from its first picture, whatever the stamps do.

    A jump, backwards or by more than LONGEST_PAUSE, counts as one interval, and so does a picture without a stamp.
    """

    def __init__(self, interval, late=0.0):
        self.interval = interval  # seconds between two pictures, where no stamp says better
        self.late = late  # seconds to take from all stamps but the first
        self.origin = 0.0  # stamp of the first picture, moved by every jump
        self.shown = None  # seconds of the latest picture
        self.latest = None  # its stamp

    def __call__(self, stamp):
        """Seconds from the first picture: float. stamp: seconds on the stream's own clock, or None."""
        first, known = self.shown is None, self.latest is not None
        if stamp is None:
            self.shown = 0.0 if first else self.shown + self.interval
        elif first or not known or not -1 <= stamp - self.latest <= LONGEST_PAUSE:
            self.shown = 0.0 if first else self.shown + self.interval
            self.origin = stamp - self.shown + (self.late if first else 0.0)
        else:
            self.shown = max(self.shown, stamp - self.origin)
        self.latest = self.latest if stamp is None else stamp
        return self.shown
