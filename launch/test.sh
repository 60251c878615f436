#!/usr/bin/env bash
# Runs the tests on the CPU, from a fresh machine.
#
#   bash launch/test.sh [pytest arguments]         the fast tests
#   bash launch/test.sh --all [pytest arguments]   every test; installs the torch extra
#
# PEMT_TEST_PROCESSES: number of processes, 2 if unset; 0 runs the tests in pytest's own process.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=(dev)
for argument in "$@"; do
  if [ "$argument" = --all ]; then
    extras+=(torch)
  fi
done
bash launch/setup.sh "${extras[@]}"
# Two processes: each test keeps about one core busy. A module stays in one of them.
exec .venv/bin/python -m pytest -n "${PEMT_TEST_PROCESSES:-2}" --dist loadscope "$@"
