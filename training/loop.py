"""The training loop: one place that reads from top to bottom."""

import os
import signal
from contextlib import contextmanager

from utils.errors import InputError
from utils.system import choose_device

from .distributed import any_rank, join, leave
from .log import Log
from .run import Run


def train(args):
    """Run train.py's command line from the first (or the resumed) iteration to the last.

    Raises:
        InputError: data or weights can't be used, the loss isn't finite, or a checkpoint can't be written.
    """
    check(args)
    device = choose_device("cpu" if args.device == "auto" and not args.cuda else args.device)
    ranks = join(device, args.batch_size)
    try:
        _train(args, device, ranks)
    except KeyboardInterrupt:  # asked twice, or outside the loop, as in the training on crops
        ranks.say("stopped at once; the same command with --resume auto goes on from what was saved")
        raise
    finally:
        leave()


def check(args):
    """Raise InputError for settings that make no sense, before anything is read."""
    for name in ("batch_size", "accumulate", "print_every", "save_every", "eval_every", "keep", "crop_size"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: it must be 1 or more")
    for name in ("max_iter", "start_iter", "warmup", "crop_passes", "num_workers", "low_resolution_iter", "freeze"):
        if (getattr(args, name) or 0) < 0:
            raise InputError(f"--{name} {getattr(args, name)}: it must be 0 or more")
    if args.crop_size < 16:
        raise InputError(f"--crop_size {args.crop_size}: it must be 16 or more")
    if args.lr <= 0 or args.width <= 0 or args.max_expand < 1:
        raise InputError("--lr and --width must be greater than 0, and --max_expand 1 or more")
    if not 0 < args.min_crop <= 1:
        raise InputError(f"--min_crop {args.min_crop}: it must be greater than 0, and 1 at most")
    if args.frame_aspect is not None and not 0.1 <= args.frame_aspect <= 10:
        raise InputError(f"--frame_aspect {args.frame_aspect}: it must lie between 0.1 and 10")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    part = args.batch_size // (args.accumulate * world)
    if part < 1 or (args.basenet == "none" and part < 2):
        raise InputError(
            f"--batch_size {args.batch_size} leaves {part} pictures a part for {args.accumulate} parts on {world} "
            "processes; BatchNorm (--basenet none) needs 2 or more, and every part 1"
        )


def _train(args, device, ranks):
    run = Run(args, device, ranks)
    first, log_state = run.resume()
    log = Log(
        run.folder,
        first,
        run.max_iter,
        print_every=args.print_every,
        batch_size=args.batch_size,
        paths=run.pictures.image_path,
        writes=ranks.writes,
        scored=not (log_state or {}).get("unscored"),
    )
    if log_state is not None and first == log_state["iteration"]:
        log.restore(log_state)
        if log_state.get("unscored"):
            run.validate(first, log)

    with stop_signals() as stop, log:
        for iteration, (batch, indices) in enumerate(run.batches(first), start=first):
            rate = run.learning_rate(iteration)
            losses, positives = run.step(batch, rate)
            log.step(iteration, rate, losses, positives, indices)
            done = iteration + 1
            ends = done == run.max_iter
            # Several ranks have to agree, which makes the host wait: only where it does so anyway.
            stopping = (ranks.world == 1 or done % args.print_every == 0) and any_rank(stop.requested, device)
            to_score = done % args.eval_every == 0 or ends
            if to_score and not stopping:
                run.validate(done, log)
            if done % args.save_every == 0 or ends or stopping:
                run.save(done, log, unscored=to_score and stopping)
            if stopping:
                ranks.say(f"stopped by {stop.name} after iteration {done}; go on with --resume auto")
                raise SystemExit(128 + stop.number)
    log.close()
    if ranks.writes:
        run.finish()


@contextmanager
def stop_signals():
    """Within it SIGTERM and Ctrl-C only set a flag, so that the iteration ends and the state is saved first."""

    class Stop:
        requested, number, name = False, 0, ""

        def __call__(self, number, frame):
            if self.requested:  # asked twice: the user doesn't want to wait
                raise KeyboardInterrupt
            self.requested, self.number, self.name = True, number, signal.Signals(number).name

    stop = Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
