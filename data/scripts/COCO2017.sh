#!/bin/sh
# sh data/scripts/COCO2017.sh [FOLDER]: ssd.pytorch's name for data/scripts/download.py COCO2017
here=$(dirname "$0")
python=$here/../../.venv/bin/python
[ -x "$python" ] || python=$(command -v python || command -v python3)
exec "$python" "$here/download.py" COCO2017 ${1:+--folder "$1"}
