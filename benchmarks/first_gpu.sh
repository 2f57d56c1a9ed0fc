#!/usr/bin/env bash
# Test all code that uses a GPU, at most five minutes per row:
#
#     bash benchmarks/first_gpu.sh                 # on cuda
#     bash benchmarks/first_gpu.sh cpu             # a rehearsal; synchronization is not checked
#
# A failure does not stop the other rows. The table at the end shows what passed; each row has a log in first_gpu/.
set -uo pipefail
cd "$(dirname "$0")/.."
device=${1:-cuda}
out=first_gpu
work=$(mktemp -d)
export device out work PYTHONPATH=.:tests
trap 'rm -rf "$work"' EXIT
rm -rf "$out" && mkdir "$out"
table=()

try() { # name, command...
    local name=$1 start=$SECONDS
    shift
    echo "== $name" >&2
    if timeout 300 bash -c '"$@"' _ "$@" >"$out/${name// /_}.log" 2>&1; then result=passed; else result="FAILED ($out/${name// /_}.log)"; fi
    table+=("$(printf '%-44s %4d s  %s' "$name" $((SECONDS - start)) "$result")")
}

train() { # flags: a narrow network on images of the bundled clip
    python train.py --dataset "$work/data" --basenet none --width 0.25 --batch_size 8 --warmup 2 \
        --max_iter 20 --print_every 5 --num_workers 2 --schedule cosine --lr 0.001 "$@"
}

compare() { # two results.json of eval.py: the same mAP within two points
    python -c "
import json, sys
a, b = (json.load(open(path))['voc']['reference']['mAP_11_points'] for path in sys.argv[1:])
print(a, b)
sys.exit(abs(a - b) > 0.02)" "$@"
}

same_boxes() { # two files of JSON lines: the detections that score over 0.7 are the same within 2 pixels
    python -c "
import json, sys
a, b = ([json.loads(line)['detections'] for line in open(path)] for path in sys.argv[1:])
assert len(a) == len(b) > 100
sure, lost = 0, 0
for ours, theirs in zip(a, b):
    for one in (one for one in ours if one['score'] > 0.7):
        sure += 1
        close = (max(abs(x - y) for x, y in zip(one['box'], other['box'])) < 2 for other in theirs if other['label'] == one['label'])
        lost += not any(close)
print(sure, lost)
sys.exit(sure < 50 or lost > 0.02 * sure)" "$@"
}

detect() { # device, name
    python Object_Detection.py data/sample.mp4 --device "$1" --precision float32 --threshold 0.5 \
        --output "$work/$2.mp4" --json "$work/$2.jsonl" --overwrite
}

score() { # device, name
    python eval.py --dataset "$work/data" --split val --device "$1" --precision float32 --save_folder "$work/$2"
}

export -f train compare same_boxes detect score

python -c "
from pathlib import Path
from clip_images import make_clip_images
folder = make_clip_images(Path('$work/data'))
lists = folder / 'ImageSets' / 'Main'
(lists / 'val.txt').write_text((lists / 'train.txt').read_text())" || exit 2

if [ "$device" = cuda ]; then
    try "CUDA tests" python -m pytest -q -n 0 tests/inference/test_detector.py tests/training/test_engine.py -k "cuda or Cuda or CUDA"
fi
try "clip on the CPU" detect cpu cpu
try "clip on $device" detect "$device" device
try "the same boxes" same_boxes "$work/cpu.jsonl" "$work/device.jsonl"
for precision in float32 bfloat16 float16; do
    [ "$device$precision" = cpufloat16 ] && continue # PyTorch can't train in float16 on a CPU
    try "training in $precision" train --device "$device" --precision $precision --save_folder "$work/$precision"
done
try "training with --ema and validation" train --device "$device" --ema 0.9 --val_split val --eval_every 10 \
    --save_every 10 --save_folder "$work/ema"
try "--resume auto" train --device "$device" --ema 0.9 --val_split val --eval_every 10 --save_every 10 --max_iter 30 \
    --save_folder "$work/ema" --resume auto
try "training on the CPU" train --device cpu --precision float32 --save_every 20 --save_folder "$work/cpu"
try "its state resumed on $device" train --device "$device" --precision float32 --save_every 20 --max_iter 30 \
    --save_folder "$work/cpu" --resume auto
try "crops pre-training" train --device "$device" --crop_passes 2 --save_folder "$work/crops"
try "--compile" train --device "$device" --compile --max_iter 10 --save_folder "$work/compiled"
try "eval.py on the CPU" score cpu eval_cpu
try "eval.py on $device" score "$device" eval_device
try "the same mAP" compare "$work/eval_cpu/results.json" "$work/eval_device/results.json"
try "benchmarks" python benchmarks/run.py --quick --device "$device" --output "$out/benchmarks.json"

printf '%s\n' "${table[@]}" | tee "$out/table.txt"
! grep -q FAILED "$out/table.txt"
