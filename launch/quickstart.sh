#!/usr/bin/env bash
# Two-stage PEMT on the embedded playground, from a fresh machine to a table and an HTML report.
#
#   bash launch/quickstart.sh [options of launch/quickstart.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup.sh
exec .venv/bin/python launch/quickstart.py --workdir=runs/quickstart "$@"
