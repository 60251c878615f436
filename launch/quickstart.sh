#!/usr/bin/env bash
# Two-stage PEMT on the embedded playground, from a fresh machine to a table and an HTML report.
#
#   bash launch/quickstart.sh [options of launch/quickstart.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup.sh
# Compiled programs are kept, so that a second run starts faster.
: "${JAX_COMPILATION_CACHE_DIR:=$PWD/.cache/jax}"
: "${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:=0.1}"
export JAX_COMPILATION_CACHE_DIR JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS
exec .venv/bin/python launch/quickstart.py --workdir=runs/quickstart "$@"
