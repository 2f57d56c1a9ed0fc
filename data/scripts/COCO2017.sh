#!/bin/sh
# sh data/scripts/COCO2017.sh [FOLDER]: see download_coco.py, which also runs where there is no sh.
here=$(dirname "$0")
python=$here/../../.venv/bin/python # the README's environment, where it was made
[ -x "$python" ] || python=$(command -v python || command -v python3)
exec "$python" "$here/download_coco.py" --year 2017 "$@"
