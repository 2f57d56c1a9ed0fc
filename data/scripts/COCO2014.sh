#!/bin/sh
# sh data/scripts/COCO2014.sh [FOLDER]: ssd.pytorch's name for data/scripts/download.py COCO2014
here=$(dirname "$0")
python=$here/../../.venv/bin/python
[ -x "$python" ] || python=$(command -v python || command -v python3)
exec "$python" "$here/download.py" COCO2014 ${1:+--folder "$1"}
