"""Measure this project against what a user would take instead, on this machine.

    python benchmarks/run.py                        # all stages, some ten minutes on two cores
    python benchmarks/run.py --quick                # under two minutes, rougher
    python benchmarks/run.py --only layers video    # some of the stages
    python benchmarks/run.py --device cuda --output results.json

Ours and the peer are timed in turn. The tables show medians per image, and how many times as fast ours is (ratio).
Nothing else should run meanwhile.
"""

import json
import platform
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.errors import exit_on_input_error
from utils.flags import Parser, number

STAGES = ("network", "layers", "training", "detector", "video", "evaluation")
GFLOP = 62.8  # of SSD300 at width 1 and 21 classes, per image; a multiplication and an addition are two


def get_args_parser():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer rounds, a smaller batch, a shorter video, no OpenVINO")
    add("--only", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help=", ".join(STAGES))
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    add("--threads", type=number(int, 1), help="of PyTorch and OpenCV (default: one per core)")
    add("--output", metavar="FILE", help="also write the figures as JSON")
    return parser


def main(args):
    """Measure the stages, print a table for each, and write the figures."""
    import cv2
    import torch
    from tabulate import tabulate

    from benchmarks import cases
    from utils.files import whole_file
    from utils.system import choose_device, keep_freed_memory

    keep_freed_memory()  # as the scripts do; the peers gain by it, too
    if args.threads:
        torch.set_num_threads(args.threads)
        cv2.setNumThreads(args.threads)
    device = choose_device(args.device)
    machine = describe_machine(device)
    rates = {cases.name(dtype): product_rate(device, dtype) for dtype in cases.precisions(device)}
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    for precision, rate in rates.items():
        print(
            f"matrix product in {precision}: {rate:.0f} GFLOP/s, or {rate / GFLOP:.1f} images/s at {GFLOP} GFLOP each"
        )
    results = []
    for stage in args.only:
        rows = []
        for case in getattr(cases, stage)(device, args.quick):
            ours, peer = measure(case, device, 2 if args.quick else 20)
            share = GFLOP / ours * 1000 / rates[case.precision] if case.precision in rates else None
            keys = "stage", "name", "ours_ms", "peer_ms", "ratio", "peer", "share_of_product"
            results.append(
                dict(zip(keys, (stage, case.name, ours, peer, peer / ours, case.peer_name, share), strict=True))
            )
            cells = f"{ours:.2f}", f"{1000 / ours:.1f}", f"{peer:.2f}", f"{peer / ours:.2f}", case.peer_name
            rows.append([case.name, *cells, *([f"{share:.0%}" if share else ""] if stage == "network" else [])])
        headers = [stage, "ours, ms", "images/s", "peer, ms", "ratio", "peer", "of matrix product"][: len(rows[0])]
        print(f"\n{tabulate(rows, headers, tablefmt='github', disable_numparse=True)}", flush=True)
    if args.output:
        with whole_file(args.output) as path:
            path.write_text(
                json.dumps({"machine": machine, "product_gflops": rates, "results": results}, indent=2) + "\n"
            )


def measure(case, device, seconds):
    """Return the median milliseconds per image of ours and of the peer, timed in turn for `seconds`, at least twice."""
    sides = case.ours, case.peer
    for side in sides:
        side()  # memory is allocated, kernels are chosen
    times, end = [], time.perf_counter() + seconds
    while len(times) < 2 or (time.perf_counter() < end and len(times) < 200):
        times.append([milliseconds(side, device) / case.images for side in sides])
    return [median(side) for side in zip(*times, strict=True)]


def milliseconds(function, device):
    """Return the wall time of a call, including the work that it leaves to the device."""
    import torch

    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return (time.perf_counter() - start) * 1000


def product_rate(device, dtype):
    """Return the best measured rate of a matrix product in GFLOP/s."""
    import torch

    side = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    return 2 * side**3 / min(milliseconds(lambda: a @ b, device) for _ in range(10)) / 1e6


def describe_machine(device):
    import torch

    machine = {"device": platform.processor() or platform.machine()}
    ...


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    with exit_on_input_error():
        main(arguments)
