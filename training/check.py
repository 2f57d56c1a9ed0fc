"""A look at the data set before a run: what is in it, what is wrong with it, and whether it can be trained on.

Better to hear in the first minute that a picture is damaged than in the middle of the night.
"""

from utils.errors import InputError

from .findings import examine

UNUSABLE_SHARE = 0.05  # of the pictures; above it something larger is wrong than a few damaged files
EXAMPLES = 3  # that are named of each kind of problem


def check_pictures(pictures, class_names, say, num_workers=4, name_all=False):
    """Read a data set once, say what is in it, and decide whether it can be trained on.

    What was read is remembered: the next time only new and changed files are. In a job of several processes all of
    them must call it; each reads a share, and all decide the same.

    Args:
        pictures: a VOCDetection or COCODetection.
        class_names: of the run, without background.
        say: prints a text.
        num_workers: threads that read (OpenCV decodes outside Python's lock).
        name_all: name every place of a problem, not only the first ones.

    Returns:
        The indices of the usable pictures, in order.

    Raises:
        InputError: no pictures, an unknown class, no objects, or more than UNUSABLE_SHARE of the pictures unusable.
    """
    if not len(pictures):
        raise InputError(f"{pictures.root}: the split lists no pictures; name another one with --train_split")
    findings = examine(pictures, class_names, num_workers, say)
    title = f"{pictures.root}, {_splits(pictures)}: {len(pictures):,} pictures"
    say("\n".join([title, "", *class_table(findings), "", *problem_table(findings, name_all), ""]))
    refuse(pictures, findings)
    left_out = len(pictures) - len(findings.usable)
    say(
        f"decision: goes on with {len(findings.usable):,} pictures and {findings.num_objects:,} objects"
        + (f"; {left_out:,} of the {len(pictures):,} pictures of the list are left out" if left_out else "")
    )
    return findings.usable


def refuse(pictures, findings):
    """Raise InputError where the data set can't be trained on."""
    failed, total = findings.failed, len(pictures)
    if len(failed) > UNUSABLE_SHARE * total:
        raise InputError(
            f"{pictures.root}: {len(failed):,} of {total:,} pictures can't be used, so the data set is probably "
            "incomplete: fetch or unpack it again, repair these pictures, or take them out of the split. "
            f"The first: {failed[0]}"
        )
    if findings.unknown:
        more = f", and {len(findings.unknown) - EXAMPLES} more" if len(findings.unknown) > EXAMPLES else ""
        raise InputError(
            f"{pictures.root}: not in the class list: class {', '.join(findings.unknown[:EXAMPLES])}{more}; "
            "name all classes with --classes, or rename or remove these objects"
        )
    if not findings.num_objects:
        aside = f" ({findings.set_aside:,} are marked difficult or crowds)" if findings.set_aside else ""
        raise InputError(
            f"{pictures.root}: not one object to train on in {total:,} pictures{aside}; "
            "annotate some, or name another split with --train_split"
        )


def class_table(findings):
    """Lines: for each class its objects to train on, the pictures that hold them, and its difficult objects."""
    difficult = sum(row[3] for row in findings.class_rows)
    rows = [*findings.class_rows, ("all", findings.num_objects, findings.holders, difficult)]
    cells = [("class", "objects", "in pictures", "difficult")]
    cells += [(name, *(f"{number:,}" for number in numbers)) for name, *numbers in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, *numbers in cells:
        padded = (number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *padded]))
    if findings.set_aside:
        lines.append("the difficult ones (in COCO, crowds) aren't trained on and not among the objects")
    return lines


def problem_table(findings, name_all=False):
    """Lines: how often each kind of problem occurs, what is done about it, and the first places (or all)."""
    width = max(len(f"{len(problem.places):,}") for problem in findings.problems)
    lines = []
    for problem in findings.problems:
        count = len(problem.places)
        lines.append(f"{count:>{width},}  {problem.name}" + (f": {problem.treatment}" if count else ""))
        named = count if name_all else EXAMPLES
        lines += [" " * (width + 6) + place for place in problem.places[:named]]
        if count > named:
            lines.append(" " * (width + 6) + f"and {count - named:,} more (--check_only names them all)")
    return lines


def _splits(pictures):
    """The split's name as --train_split takes it: "2007_trainval 2012_trainval", "train", "train2017"."""
    if isinstance(pictures.image_set, str):
        return pictures.image_set
    return " ".join("_".join(filter(None, pair)) for pair in pictures.image_set)
