#!/usr/bin/env bash
# Makes the peer's own environment: setup.sh FOLDER [PYTHON]
#
# PyHealth 2.1.0 asks for Python 3.12 or later; its code also runs on 3.11, where a CPU build of
# PyTorch was at hand, so the requirement is ignored there. Every other pin is the package's own.
set -euo pipefail
folder=${1:?usage: setup.sh FOLDER [PYTHON]}
python=${2:-python3.11}
here=$(cd "$(dirname "$0")" && pwd)

"$python" -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0
"$folder/bin/pip" install --quiet -r "$here/requirements.txt"
"$folder/bin/pip" install --quiet --no-deps --ignore-requires-python pyhealth==2.1.0
"$folder/bin/python" -c "import pyhealth, torch; print(pyhealth.__version__, torch.__version__)"
