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
report=()
for argument in "$@"; do
  if [ "$argument" = --all ]; then
    extras+=(torch)
    report=(--durations=60 --durations-min=5)
  fi
done
bash launch/setup.sh "${extras[@]}"
# Two processes: each test keeps about one core busy. A module stays in one of them; ordered by
# name, modules that start processes of their own are not left to the end, where a core would wait.
exec .venv/bin/python -m pytest -n "${PEMT_TEST_PROCESSES:-2}" --dist loadscope \
  --no-loadscope-reorder ${report[@]+"${report[@]}"} "$@"
