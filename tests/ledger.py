"""What was tried on hostile files and on the machine, how it ended, and the tables of it at the end of a test run."""

from collections import Counter, defaultdict
from dataclasses import dataclass

HOSTILE = {}  # kind of file -> Tally
FAULTS = defaultdict(Counter)  # fault -> how it ended -> times


@dataclass
class Tally:
    """How the inputs of one kind ended; seconds and megabytes: of the worst."""

    results: int = 0
    refused: int = 0
    failed: int = 0
    seconds: float = 0.0
    megabytes: float = 0.0

    def __add__(self, other):
        return Tally(
            self.results + other.results,
            self.refused + other.refused,
            self.failed + other.failed,
            max(self.seconds, other.seconds),
            max(self.megabytes, other.megabytes),
        )


def count_input(kind, tally):
    HOSTILE[kind] = HOSTILE.get(kind, Tally()) + tally


def hostile_table():
    """Lines: kind of file, inputs, how they ended, the slowest and the largest."""
    rows = [*sorted(HOSTILE.items()), ("all", sum(HOSTILE.values(), Tally()))]
    heading = ("kind of file", "inputs", "results", "refused", "failed", "slowest", "memory")
    lines = ["{:<34} {:>7} {:>8} {:>8} {:>7} {:>9} {:>9}".format(*heading)]
    for kind, tally in rows:
        inputs = tally.results + tally.refused + tally.failed
        lines.append(
            f"{kind:<34} {inputs:>7,} {tally.results:>8,} {tally.refused:>8,} {tally.failed:>7,} "
            f"{tally.seconds:>7.2f} s {tally.megabytes:>6,.0f} MB"
        )
    return lines


def faults_table():
    """Lines: fault, times tried, how each ended; and the sum."""
    width = max(map(len, FAULTS)) + 2
    lines = [f"{'fault':{width}}tried  how each ended"]
    for fault, endings in sorted(FAULTS.items()):
        ended = ", ".join(f"{ending} {count}" for ending, count in endings.most_common())
        lines.append(f"{fault:{width}}{endings.total():5}  {ended}")
    return [*lines, f"{sum(endings.total() for endings in FAULTS.values())} faults in all"]
