#!/usr/bin/env bash
# What only a GPU can show, in one call of under 8 minutes, without network:  bash benchmarks/gpu.sh --out FOLDER
# `--help` lists the options, benchmarks/README.md the parts; `--dry` tries all of it on a CPU with a tiny model.
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/compare/gpu_parts.py" "$@"
