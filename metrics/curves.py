"""pr_curves.png: precision over recall of every class."""

import math
from importlib import import_module

import numpy as np


def write_curves(path, result, title):
    """Draw every class's precision over recall (VOCResult) into a PNG, one small panel for each class.

    The AP in a panel's title is the area. Classes without ground truth have no curve.
    """
    # Not pyplot: it would look for a display and keep global state.
    figure_class = import_module("matplotlib.figure").Figure
    shown = [of_class for of_class in result.classes if of_class.objects]
    columns = min(5, max(1, len(shown)))
    lines = max(1, math.ceil(len(shown) / columns))
    figure = figure_class(figsize=(2.6 * columns + 0.6, 2.3 * lines + 1.1), layout="constrained")
    figure.suptitle(title, fontsize=13, parse_math=False)
    figure.supxlabel("recall", fontsize=11)
    figure.supylabel("precision", fontsize=11)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
    for panel, of_class in zip(panels, shown, strict=False):
        _draw_curve(panel, of_class)
    for panel in list(panels)[len(shown) :]:
        panel.set_visible(False)
    figure.savefig(path, dpi=110)


def _draw_curve(panel, of_class):
    counted = of_class.matches.outcome >= 0
    precision = of_class.precision[counted]
    # A curve begins at recall 0, where the first detection's precision holds.
    recall, precision = (
        np.append(0, of_class.recall[counted]),
        np.append(precision[:1] if len(precision) else 0, precision),
    )
    panel.plot(recall, precision, color="#1f5fa8", linewidth=1.4)
    panel.fill_between(recall, precision, color="#1f5fa8", alpha=0.15, linewidth=0)
    # A class's name is text: parsed as mathematics, "$" would end the report in an error.
    panel.set_title(f"{of_class.name}  AP {of_class.ap_area:.3f}", fontsize=10, parse_math=False)
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1.03)
    panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    panel.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
