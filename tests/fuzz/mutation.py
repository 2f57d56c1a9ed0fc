"""Damage and malice, deterministic by the random generator that is passed in: of bytes, of values, of XML trees."""

import copy
import re
import struct

NUMBERS = (0, 1, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1)
# What a value in a file may be replaced by. Each has broken some reader somewhere.
HOSTILE = (
    None, True, False, 0, -1, 1, 0.5, -0.0, 2**31, 2**63, 2**64, 10**40, 10**400, 1e38, 1e39, 1e308, -1e308, 5e-324,
    float("nan"), float("inf"), "", " ", "0", "1e999", "nan", "\0", "a\nb", "../../x", "/etc/passwd", "C:\\x", "..",
    "<script>alert(1)</script>", "&amp;", "{}", "{0.__class__}", "{x!r:>99999}", "%s%n", "$x_{", "$(touch x)",
    "\x1b[2J", "\ud800",
    "größe 大小 حجم", "a" * 300, "x" * 100_000, [], {}, [[]], [None], {"id": []}, [1, 2, 3], [1, 2, 3, "4"],
    ["1", "2", "3", "4"], "1234", [1e308] * 4, [[1, 2], 3, 4, 5],
)  # fmt: skip


def mutate_bytes(rng, seeds, tokens=()):
    """One of the seeds with one to twenty random changes: flips, cuts, insertions, moved and doubled blocks.

    tokens: byte strings that mean something in the format, to be inserted or put over what is there.
    """
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 8, 20))):
        rng.choice(_CHANGES)(rng, data, seeds, tokens)
    return bytes(data)


def _block(rng, data, longest=None):
    """(start, end) of a random block, small ones more often than large ones."""
    if not data:
        return 0, 0
    start = rng.randrange(len(data))
    longest = min(longest or len(data), len(data) - start)
    return start, start + rng.randint(1, max(1, int(longest ** rng.random())))


def _flip(rng, data, *_):
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set_bytes(rng, data, *_):
    start, end = _block(rng, data, 16)
    data[start:end] = rng.randbytes(end - start)


def _set_number(rng, data, *_):
    start, _ = _block(rng, data)
    number = struct.pack(rng.choice(("<I", ">I")), rng.choice(NUMBERS))
    number = number[: rng.choice((1, 2, 4))] if rng.random() < 0.5 else number
    data[start : start + len(number)] = number


def _truncate(rng, data, *_):
    del data[_block(rng, data)[0] :]


def _insert(rng, data, *_):
    start, _ = _block(rng, data)
    data[start:start] = rng.randbytes(rng.randint(1, 40))


def _insert_token(rng, data, _, tokens):
    if tokens:
        start, end = _block(rng, data, 12)
        data[start : end if rng.random() < 0.5 else start] = rng.choice(tokens)


def _replace_digits(rng, data, _, tokens):
    """Put a token in place of a number that is written in digits."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data)) if tokens else None
    if found:
        place = rng.choice(found)
        data[place.start() : place.end()] = rng.choice(tokens)


def _delete(rng, data, *_):
    start, end = _block(rng, data)
    del data[start:end]


def _double(rng, data, *_):
    start, end = _block(rng, data, 4096)
    data[end:end] = data[start:end] * rng.choice((1, 1, 2, 50))


def _swap(rng, data, *_):
    """Exchange two neighbouring blocks of random length."""
    if len(data) >= 3:
        a, b, c = sorted(rng.sample(range(len(data)), 3))
        data[a:c] = data[b:c] + data[a:b]


def _splice(rng, data, seeds, *_):
    """Go on as another seed."""
    other = rng.choice(seeds)
    share = rng.random()
    data[int(share * len(data)) :] = other[int(share * len(other)) :]


_CHANGES = (
    _flip,
    _flip,
    _set_bytes,
    _set_number,
    _truncate,
    _insert,
    _insert_token,
    _replace_digits,
    _delete,
    _double,
    _swap,
    _splice,
)


def mutate_value(rng, value, hostile=HOSTILE, keep=lambda path: True):
    """A copy of a tree of dicts and lists with one to three random nodes replaced, removed, doubled or renamed.

    keep: of the paths (tuples of keys and indices) that may be chosen.
    """
    tree = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = [(node, key) for path, node, key in _places(tree, ()) if keep(path)]
        node, key = rng.choice(places)
        change = rng.random()
        if change < 0.65:
            node[key] = copy.deepcopy(rng.choice(hostile))
        elif change < 0.8 and node is not tree:
            del node[key]
        elif change < 0.9:
            other, other_key = rng.choice(places)
            node[key] = copy.deepcopy(other[other_key])
        elif isinstance(node, dict):
            node[rng.choice(("", "id", "x" * 50, key))] = node.pop(key)
        elif node is not tree:
            node.insert(key, copy.deepcopy(node[key]))
    return tree[0]


def _places(node, path):
    """Yields (path, container, key) of all nodes below a container."""
    items = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
    for key, value in items:
        inner = (*path, key)
        yield inner, node, key
        if isinstance(value, dict | list) and len(inner) < 12:
            yield from _places(value, inner)


def mutate_xml(rng, root, texts):
    """Change one to four elements of an ElementTree element in place: its text, its name, its number, its place."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        parents = [element for element in root.iter() if len(element)] or [root]
        parent = rng.choice(parents)
        if not len(parent):
            return
        child = rng.choice(list(parent))
        change = rng.randrange(5)
        if change == 0:
            child.text = rng.choice(texts)
        elif change == 1:
            leaf = rng.choice([element for element in root.iter() if not len(element)])
            leaf.text = rng.choice(texts)
        elif change == 2:
            parent.remove(child)
        elif change == 3:
            parent.insert(rng.randrange(len(parent)), copy.deepcopy(child))
        else:
            child.tag = rng.choice(("object", "name", "bndbox", "size", "x"))
