#!/usr/bin/env bash
# What only a GPU can show, in one call, without network: tests, exactness of every switch, and speed against TRL.
#   bash benchmarks/gpu.sh --out FOLDER [--python PYTHON] [--wheels FOLDER] [--data FOLDER] [--tokenizer FOLDER]
#                          [--model-135m FOLDER] [--model-1.7b FOLDER] [--parts "tests switches-sft ..."]
# --out        where all JSON and logs go; $OUT if left out
# --python     one with torch, lightning and transformers; python3 if left out
# --wheels     a folder of .whl files (datasets, jsonargparse, trl, ...): all are unpacked beside it, without their
#              dependencies, into a folder that goes with this call; nothing on the machine is changed
# --data       holds ultrachat_200k/ and ultrafeedback_binarized/; sample rows if left out
# --tokenizer  for models with random weights; the package's tiny one if left out
# --model-...  real weights; a model of this size with random weights if left out: speed and memory are the same, and
#              losses say only whether both tools agree
# --parts      of: tests switches-sft switches-dpo compare-135m compare-1.7b; all if left out. About 1, 5, 6, 4 and 6
#              minutes on an H100.
# Folders are relative to the repository's root.
# A step that fails is named at the end; the others still run. The exit code is the number of failed steps.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" || exit 1

out=${OUT:-} python=python3 wheels='' data='' tokenizer='' model_135m='' model_17b=''
parts='tests switches-sft switches-dpo compare-135m compare-1.7b'
while (($#)); do
    if (($# < 2)); then echo "gpu.sh: $1 needs a value" >&2; exit 2; fi
    case $1 in
        --out) out=$2 ;;
        --python) python=$2 ;;
        --wheels) wheels=$2 ;;
        --data) data=$2 ;;
        --tokenizer) tokenizer=$2 ;;
        --model-135m) model_135m=$2 ;;
        --model-1.7b) model_17b=$2 ;;
        --parts) parts=$2 ;;
        *) echo "gpu.sh: unknown option $1; the first lines of this file list them" >&2; exit 2 ;;
    esac
    shift 2
done
if [[ -z $out ]]; then echo "gpu.sh: give --out FOLDER, or set OUT" >&2; exit 2; fi
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false SMOLLIT_CACHE="$work/cache" HF_DATASETS_CACHE="$work/datasets"
export PYTHONPATH="$work/site:$root:$root/benchmarks${PYTHONPATH:+:$PYTHONPATH}"

failed=()
# step NAME COMMAND...: runs it, keeps what it says in $out/NAME.log, and goes on whatever happens.
step() {
    local name=$1 start=$SECONDS code
    shift
    echo "== $name: $*"
    "$@" 2>&1 | tee "$out/$name.log"
    code=${PIPESTATUS[0]}
    if ((code)); then failed+=("$name (exit code $code)"); fi
    echo "== $name: exit code $code, $((SECONDS - start)) s"
}

# compare NAME TASK MODEL: the last line that it prints is its JSON; warnings may follow.
compare() {
    local name=$1 task=$2 model=$3
    step "$name" "$python" benchmarks/compare_trl.py --task "$task" --model "$model" "${data_option[@]}" --json
    grep '^{"' "$out/$name.log" | tail -n 1 > "$out/$name.json"
    if [[ ! -s $out/$name.json ]]; then rm "$out/$name.json"; fi
}

# model_of SIZE FOLDER: sets $model to the folder, or to one with random weights.
model_of() {
    local size=$1 given=$2
    model=$given
    if [[ -n $given ]]; then return; fi
    model=$work/$size
    if [[ ! -d $model ]]; then
        echo "== no real weights of $size were given: random ones"
        step "make-$size" "$python" -m compare.random_model "$size" "$model" "${tokenizer_option[@]}"
    fi
}

# wants PART: whether it was asked for.
wants() { [[ " $parts " == *" $1 "* ]]; }

# switches TASK: fp32 to 1e-5; bf16-mixed to 2e-2, since bf16 has 8 bits, for those that change what is computed.
switches() {
    local task=$1
    model_of 135M "$model_135m"
    step "switches-$task-fp32" "$python" benchmarks/switches.py --task "$task" --model "$model" "${data_option[@]}" \
        --precision 32-true --json "$out/switches-$task-fp32.json"
    step "switches-$task-bf16" "$python" benchmarks/switches.py --task "$task" --model "$model" "${data_option[@]}" \
        --precision bf16-mixed --json "$out/switches-$task-bf16.json" \
        --only documents flex "packing, documents" "packing, flex" compile together
}

if [[ -n $wheels ]]; then
    step wheels "$python" -m pip install --quiet --no-index --no-deps --target "$work/site" "$wheels"/*.whl
fi
data_option=() tokenizer_option=()
if [[ -n $data ]]; then data_option=(--data "$data"); fi
if [[ -n $tokenizer ]]; then tokenizer_option=(--tokenizer "$tokenizer"); fi
# shellcheck disable=SC2016  # Python, not the shell
about='import torch, transformers, lightning; assert torch.cuda.is_available(), "no CUDA device"
print(torch.cuda.get_device_name(), "torch", torch.__version__, "transformers", transformers.__version__)'
step about "$python" -c "$about"

if wants tests; then step tests "$python" -m pytest -p no:cacheprovider -m gpu tests/gpu; fi
if wants switches-sft; then switches sft; fi
if wants switches-dpo; then switches dpo; fi
if wants compare-135m; then
    model_of 135M "$model_135m"
    compare sft-135M sft "$model"
    compare dpo-135M dpo "$model"
fi
if wants compare-1.7b; then
    model_of 1.7B "$model_17b"
    compare sft-1.7B sft "$model"
    compare dpo-1.7B dpo "$model"
fi

echo "== model FLOPs utilisation: the step's least products against the rate of a large one (bf16)"
for name in sft-135M dpo-135M sft-1.7B dpo-1.7B; do
    if [[ -s $out/$name.json ]]; then "$python" -m compare.utilisation "$out/$name.json"; fi
done | tee "$out/utilisation.txt"
echo "== results are in $out"
if ((${#failed[@]})); then printf 'FAILED: %s\n' "${failed[@]}" | tee "$out/failed.txt"; else echo "all steps passed"; fi
exit "${#failed[@]}"
