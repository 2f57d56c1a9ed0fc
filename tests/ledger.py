"""How hostile files and faults ended, and the tables of them at the end of a test run."""

from collections import Counter, defaultdict

from tabulate import tabulate

HOSTILE = defaultdict(list)  # kind of file -> (ending, seconds, megabytes) of each input
FAULTS = defaultdict(Counter)  # fault -> ending -> number of times


def hostile_table():
    """Return the lines of a table: how the inputs of each kind ended, the slowest and the largest."""
    rows = []
    for kind, inputs in [*sorted(HOSTILE.items()), ("all", sum(HOSTILE.values(), []))]:
        endings, seconds, megabytes = zip(*inputs, strict=True)
        counts = Counter(ending if ending in ("result", "refused") else "failed" for ending in endings)
        counts = [f"{number:,}" for number in (len(inputs), counts["result"], counts["refused"], counts["failed"])]
        rows.append([kind, *counts, f"{max(seconds):.2f} s", f"{max(megabytes):,.0f} MB"])
    headings = ["kind of file", "inputs", "results", "refused", "failed", "slowest", "memory"]
    return tabulate(rows, headings, "plain", disable_numparse=True, colalign=["left"] + ["right"] * 6).splitlines()


def faults_table():
    """Return the lines of a table: fault, times tried, how it ended."""
    rows = []
    for fault, endings in [*sorted(FAULTS.items()), ("all", sum(FAULTS.values(), Counter()))]:
        ended = ", ".join(f"{ending} {count}" for ending, count in endings.most_common())
        rows.append([fault, endings.total(), "" if fault == "all" else ended])
    return tabulate(rows, ["fault", "tried", "how it ended"], "plain").splitlines()
