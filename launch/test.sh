#!/usr/bin/env bash
# Runs the tests on the CPU, from a fresh machine.
#
#   bash launch/test.sh [pytest arguments]         the fast tests
#   bash launch/test.sh --all [pytest arguments]   every test; installs the torch extra
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=(dev)
for argument in "$@"; do
  if [ "$argument" = --all ]; then
    extras+=(torch)
  fi
done
bash launch/setup.sh "${extras[@]}"
exec .venv/bin/python -m pytest "$@"
