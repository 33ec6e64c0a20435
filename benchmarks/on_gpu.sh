#!/usr/bin/env bash
# What only a GPU shows, in at most 8 minutes: the tests that need one, then every real experiment's step at true size.
# Its JSON lines go to standard output; docs/performance.md keeps those of the cards that were at hand.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
status=0
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} timeout 120 "$PYTHON" -m pytest -q -m gpu tests >&2 || status=$?
timeout 360 "$PYTHON" benchmarks/on_gpu.py --seconds "${SECONDS_GIVEN:-300}"
exit "$status"
