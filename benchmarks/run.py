"""Measure this project against what a user would take instead, in one run on this machine.

    python benchmarks/run.py                       # all stages; some ten minutes on two cores
    python benchmarks/run.py --quick               # under two minutes, rougher
    python benchmarks/run.py --only layers video   # some of them
    python benchmarks/run.py --device cuda

Each line is a pair of medians, timed in turn: milliseconds a picture of ours and of the peer, and how many times as
fast ours is. Nothing else should run on the machine meanwhile. The figures go to results.json as well.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

STAGES = ("layers", "network", "training", "video")


def get_args_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, under two minutes")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda; default auto")
    parser.add_argument("--threads", type=int, help="threads of PyTorch on the CPU; default one a core")
    parser.add_argument("--video", default=str(ROOT / "data" / "sample.mp4"), help="for the stage video")
    parser.add_argument("--output", default="results.json", help="default results.json")
    return parser


def main(args):
    import importlib

    import torch

    from benchmarks.measure import HEADER, Settings, machine, measure, product_rate
    from benchmarks.network import GFLOP
    from utils.system import choose_device, choose_precision, keep_freed_memory

    keep_freed_memory()  # as the scripts do; the peers gain by it, too
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    settings = Settings(device, args.quick, args.video)
    where = machine(settings)
    precision = choose_precision("auto", device)
    rates = {
        str(dtype).removeprefix("torch."): product_rate(device, dtype, args.quick)
        for dtype in dict.fromkeys((torch.float32, precision))
    }
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    for name, rate in rates.items():
        print(f"matrix product in {name}: {rate:.0f} GFLOP/s, {rate / GFLOP:.1f} pictures a second at width 1")
    print(HEADER)
    results = []
    for stage in args.only:
        for case in importlib.import_module(f"benchmarks.{stage}").cases(settings):
            results.append(measure(stage, case, settings))
            print(results[-1].line, flush=True)
            report = {"machine": where, "product_gflops": rates, "results": [asdict(result) for result in results]}
            Path(args.output).write_text(json.dumps(report, indent=2) + "\n")  # a later case may fail
    print(f"written to {args.output}")


if __name__ == "__main__":
    arguments = get_args_parser().parse_args()
    from utils.errors import exit_on_input_error

    with exit_on_input_error():
        main(arguments)
