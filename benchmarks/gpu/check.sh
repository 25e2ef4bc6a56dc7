#!/usr/bin/env bash
# Checks the package on one card, in less than eight minutes: benchmarks/gpu/check.sh [OPTIONS]
# Takes the Python named by PYTHON, or .venv, or that of the machine if it has all packages; only
# where none has them it makes .venv, which needs a network.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE
has_all() {
	"$1" -c 'import sys; from importlib.util import find_spec
sys.exit(not all(map(find_spec, ("torch", "pydvl", "zarr", "distributed", "peft", "transformers"))))'
} 2> /dev/null
python=
for candidate in "${PYTHON:-}" .venv/bin/python python3; do
	if [[ -n "$candidate" ]] && has_all "$candidate"; then python=$candidate && break; fi
done
if [[ -z "$python" ]]; then
	make install
	python=.venv/bin/python
fi
exec timeout 480 "$python" benchmarks/gpu/check.py "$@"
