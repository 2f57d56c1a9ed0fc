"""Random damage to bytes, trees of values and PyTorch's files, reproducible by the generator that is passed in."""

import copy
import io
import re
import struct
import zipfile

import torch

NUMBERS = (0, 1, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1)
DIGITS = re.compile(rb"-?\d+(\.\d+)?")
# What a value in a file may be replaced by. Each has broken some reader somewhere.
HOSTILE = (
    None, True, False, 0, -1, 1, 0.5, -0.0, 2**31, 2**63, 2**64, 10**40, 10**400, 1e38, 1e39, 1e308, -1e308, 5e-324,
    float("nan"), float("inf"), "", " ", "0", "1e999", "nan", "\0", "a\nb", "../../x", "/etc/passwd", "C:\\x", "..",
    "<script>alert(1)</script>", "&amp;", "{}", "{0.__class__}", "{x!r:>99999}", "%s%n", "$x_{", "$(touch x)",
    "\x1b[2J", "\ud800", "\u202e", "größe 大小 حجم", "a" * 300, "x" * 100_000, [], {}, [[]], [None], {"id": []},
    [1, 2, 3], [1, 2, 3, "4"], ["1", "2", "3", "4"], "1234", [1e308] * 4, [[1, 2], 3, 4, 5],
)  # fmt: skip
HOSTILE_TENSORS = (
    torch.zeros(1).expand(2**40), torch.zeros(1).expand(16, 3, 3, 3), torch.zeros(16), torch.full((16,), float("nan")),
    torch.full((16,), 1e38), torch.zeros(16, dtype=torch.complex64), torch.zeros(16, dtype=torch.int8),
    torch.zeros(16, dtype=torch.float64), torch.zeros(()), torch.zeros(0), torch.zeros(16).to_sparse(),
    torch.zeros(16, device="meta"), torch.quantize_per_tensor(torch.zeros(16), 0.1, 0, torch.qint8),
    torch.nn.Parameter(torch.zeros(16)),
)  # fmt: skip


def mutate_bytes(rng, seeds, tokens=(b"",)):
    """Return one of the seeds with 1 to 20 random changes. tokens: byte strings that mean something in the format."""
    data = rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 8, 20))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + int(len(data) ** rng.random()))  # short blocks more often than long ones
        near, block = min(end, start + 16), data[start:end]
        digits = DIGITS.search(data, start)
        number = struct.pack(rng.choice(("<I", ">I")), rng.choice(NUMBERS))[: rng.choice((1, 2, 4, 4))]
        token, half = rng.choice(tokens), len(block) // 2
        flipped = bytes(byte ^ 1 << rng.randrange(8) for byte in block[:1])
        first, last, new = rng.choice((
            (start, start + 1, flipped), (start, start + 1, flipped), (start, near, rng.randbytes(near - start)),
            (start, start + len(number), number), (start, start, rng.randbytes(rng.randint(1, 40))),
            (start, start, token), (start, near, token), (*(digits.span() if digits else (start, start)), token),
            (start, end, b""), (start, len(data), b""), (end, end, block[:4096] * rng.choice((1, 1, 2, 50))),
            (start, end, block[half:] + block[:half]),
            (start, len(data), rng.choice(seeds)[start:]),  # goes on as another seed
        ))  # fmt: skip
        data = data[:first] + new + data[last:]
    return data


def mutate_value(rng, value, hostile=HOSTILE, spared=()):
    """Return a copy of a tree of dicts and lists with 1 to 3 random nodes replaced, removed, doubled or renamed.

    spared: keys of `value` that stay as they are, with all below them.
    """
    tree = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = [(node, key) for path, node, key in _places(tree, ()) if path[1:2] not in {(key,) for key in spared}]
        node, key = rng.choice(places)
        change = rng.random()
        if change < 0.65 or node is tree:
            node[key] = copy.deepcopy(rng.choice(hostile))
        elif change < 0.8:
            del node[key]
        elif change < 0.9:
            other, other_key = rng.choice(places)
            node[key] = copy.deepcopy(other[other_key])
        elif isinstance(node, dict):
            node[rng.choice(("", "id", "x" * 50, key))] = node.pop(key)
        else:
            node.insert(key, copy.deepcopy(node[key]))
    return tree[0]


def _places(node, path):
    """Yield (path, container, key) of all nodes below a container."""
    for key, value in list(node.items()) if isinstance(node, dict) else list(enumerate(node)):
        yield (*path, key), node, key
        if isinstance(value, dict | list) and len(path) < 12:
            yield from _places(value, (*path, key))


def stored(contents, zipped=True):
    """Return the bytes that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(contents, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def repacked(data, change, compression=zipfile.ZIP_STORED):
    """Return a zip file, with right checksums, whose records are what change(name, content) makes of them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for record in old.infolist():
            new.writestr(record.filename, change(record.filename, old.read(record)))
    return buffer.getvalue()
