#!/usr/bin/env bash
# Makes .venv and installs what is needed, once: a second call installs nothing and prints nothing.
#
#   bash launch/setup.sh [dev] [torch] [bench] [gpu | tpu | plan]
#
# Each argument adds requirements-ARGUMENT.txt. PEMT_PYTHON names the Python to use (>= 3.11).
# What an interrupted call left behind is mended by the next one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "$*" >&2
  exit 1
}

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  local candidate
  for candidate in "${PEMT_PYTHON:-python3}" python3 python3.13 python3.12 python3.11 python3.14
  do
    if command -v "$candidate" >/dev/null && is_new_enough "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  fail "No Python >= 3.11 was found; install one, or name it: PEMT_PYTHON=/path/to/python3."
}

# pip writes RECORD last, so a distribution without it was cut short; it would count as installed.
# Folders that begin with ~ are old versions that pip had put aside.
remove_unfinished() {
  local folder
  for folder in .venv/lib*/python3*/site-packages/*.dist-info; do
    if [ -d "$folder" ] && [ ! -e "$folder/RECORD" ]; then
      rm -rf "$folder"
    fi
  done
  rm -rf .venv/lib*/python3*/site-packages/~*
}

make_environment() {
  local python
  if is_new_enough .venv/bin/python &&
    compgen -G '.venv/lib*/python3*/site-packages/pip-*.dist-info/RECORD' >/dev/null; then
    return
  fi
  python=$(find_python)
  echo "Making .venv with $python." >&2
  "$python" -m venv --clear .venv ||
    fail "$python could not make .venv; install its venv module (Debian: apt install python3-venv)."
}

# Prints the fingerprint of a requirement file in this environment.
fingerprint() {
  { .venv/bin/python -V; cat "$1"; } | cksum
}

# Prints the requirement file of an extra; the name `base` stands for requirements.txt.
file_of() {
  if [ "$1" = base ]; then
    echo requirements.txt
  else
    echo "requirements-$1.txt"
  fi
}

install() {
  local name file
  local wanted=() files=() arguments=()
  for name in base "$@"; do
    file=$(file_of "$name")
    [ -f "$file" ] || fail "Unknown extra '$name'; choose from dev, torch, bench, gpu, tpu, plan."
    if [ "$(cat ".venv/.installed-$name" 2>/dev/null)" != "$(fingerprint "$file")" ]; then
      wanted+=("$name")
    fi
    files+=("$file")
    arguments+=(-r "$file")
  done
  if [ ! -e .venv/.installing ] && [ ${#wanted[@]} -eq 0 ]; then
    return
  fi
  echo "Installing ${files[*]} into .venv (once; one to three minutes)." >&2
  if [ -e .venv/.installing ]; then
    remove_unfinished
  fi
  touch .venv/.installing
  .venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-input \
    "${arguments[@]}" || fail "pip could not install; read its message and run the command again."
  for name in base "$@"; do
    fingerprint "$(file_of "$name")" >".venv/.installed-$name"
  done
  rm -f .venv/.installing
}

mkdir -p .cache
if command -v flock >/dev/null; then
  exec 9>.cache/setup.lock
  flock 9
fi
make_environment
install "$@"
