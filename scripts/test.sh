#!/usr/bin/env bash
# Environment, installation, all checks and tests. Arguments go to pytest: scripts/test.sh -m slow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
enter_environment test
cd "$root"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ $# -eq 0 ]; then
  ruff check .
  ruff format --check .
  mypy
  lint-imports > "$venv/lint-imports.log" || { cat "$venv/lint-imports.log"; exit 1; }
  codespell
  echo "ruff, mypy, import-linter, codespell: clean"
fi
python -m pytest "$@"
