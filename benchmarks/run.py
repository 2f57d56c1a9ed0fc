"""Compare the speed of this project with torchvision and plain PyTorch, on this machine.

    python benchmarks/run.py                        # all stages, about five minutes on two cores
    python benchmarks/run.py --quick                # under two minutes, rougher
    python benchmarks/run.py --only layers video --device cuda --output results.json

Ours and the peer are timed in turn. No other program should run. The tables show medians per image. The ratio is the
peer's time divided by ours.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.errors import exit_on_input_error
from utils.flags import Parser, number

STAGES = ("network", "layers", "training", "detector", "video", "evaluation")
GFLOP = 62.8  # of SSD300 at width 1 and 21 classes, per image
HEADERS = ("", "ours, ms", "images/s", "peer, ms", "ratio", "peer", "of matrix product")


def get_args_parser():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer rounds, a smaller batch, a shorter video, no OpenVINO")
    add("--only", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help=f"default: {' '.join(STAGES)}")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    add("--threads", type=number(int, 1), help="of PyTorch (default: one per core)")
    add("--output", metavar="FILE", help="also write the figures as JSON")
    return parser


def main(args):
    """Measure the stages, print a table for each, and write the figures."""
    import torch
    from tabulate import tabulate

    from benchmarks import cases
    from utils.files import whole_file
    from utils.system import choose_device, keep_freed_memory

    keep_freed_memory()  # as the scripts do; the peers gain by it, too
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    machine = cases.describe_machine(device)
    rates = {name: cases.product_rate(device, dtype) for name, dtype in cases.precisions(device).items()}
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    for name, rate in rates.items():
        print(f"matrix product in {name}: {rate:.0f} GFLOP/s, {rate / GFLOP:.1f} images/s at SSD300's {GFLOP} GFLOP")
    results = []
    for stage in args.only:
        rows = []
        for case in getattr(cases, stage)(device, args.quick):
            ours, peer = cases.measure(case, device, seconds=2 if args.quick else 10)
            share = 1000 / ours * GFLOP / rates[case.precision] if case.precision in rates else None
            row = {"stage": stage, "name": case.name, "ours_ms": ours, "peer_ms": peer, "ratio": peer / ours}
            results.append(row | {"peer": case.peer_name, "share_of_product": share})
            figures = f"{ours:.2f}", f"{1000 / ours:.1f}", f"{peer:.2f}", f"{peer / ours:.2f}"
            rows.append([case.name, *figures, case.peer_name, *([f"{share:.0%}"] if share else [])])
        print(f"\n{stage}\n\n{tabulate(rows, HEADERS[: len(rows[0])], 'github', disable_numparse=True)}", flush=True)
    if args.output:
        with whole_file(args.output) as path:
            path.write_text(json.dumps({"machine": machine, "product_gflops": rates, "results": results}, indent=2))


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    with exit_on_input_error():
        main(arguments)
