#!/usr/bin/env bash
# What only a GPU can show, in one call of under 8 minutes, without network:  bash benchmarks/gpu.sh --out FOLDER
# `--help` lists the options, benchmarks/README.md the parts; `--dry` tries all of it on a CPU with a tiny model.
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m compare.gpu_parts "$@"
