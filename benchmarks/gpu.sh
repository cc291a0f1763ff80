#!/usr/bin/env bash
# Everything that only a GPU can show, in one call: bash benchmarks/gpu.sh [PYTHON]
# Runs the tests marked `gpu` (fsdp, bf16-mixed, 16-mixed, clipping by norm) with the given Python, which must have
# smollit's dependencies, and then the demo on the GPU in bf16-mixed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
"$python" -c 'import torch; assert torch.cuda.is_available(), "no CUDA device"; print(torch.cuda.get_device_name())'
"$python" -m pytest -m gpu tests/gpu
run=$(mktemp -d)
"$python" -m smollit fit --config configs/demo/sft.yaml --trainer.default_root_dir "$run/sft" \
    --trainer.accelerator gpu --trainer.precision bf16-mixed
"$python" -m smollit fit --config configs/demo/dpo.yaml --trainer.default_root_dir "$run/dpo" \
    --trainer.accelerator gpu --trainer.precision bf16-mixed \
    --model.model_name "$run/sft/export" --model.reference_name "$run/sft/export"
"$python" -m smollit.tools.learned "$run/sft" "$run/dpo"
