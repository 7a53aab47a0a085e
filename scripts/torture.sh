#!/usr/bin/env bash
# The long tests: ingest killed at many random moments, and whatever else is marked slow.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/test.sh" -m slow "$@"
