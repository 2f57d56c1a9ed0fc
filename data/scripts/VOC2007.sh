#!/bin/sh
# sh data/scripts/VOC2007.sh [FOLDER]: ssd.pytorch's name for data/scripts/download.py VOC2007
here=$(dirname "$0")
python=$here/../../.venv/bin/python
[ -x "$python" ] || python=$(command -v python || command -v python3)
exec "$python" "$here/download.py" VOC2007 ${1:+--folder "$1"}
