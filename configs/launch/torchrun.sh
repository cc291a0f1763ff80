#!/usr/bin/env bash
# The same command on every machine, with torchrun:  bash configs/launch/torchrun.sh HOST NODES WORDS-OF-FIT...
#   bash configs/launch/torchrun.sh node1 2 --config configs/sft.yaml --data.global_batch_size 64
# HOST      the machine where all meet; port 29500, or $PORT
# NODES     number of machines, each with $DEVICES devices: its number of GPUs if that is not set
# The run folder and data.cache_dir must be on storage that all machines share. When a process dies, all are started
# again and resume from the newest checkpoint (`ckpt_path: last`), up to 3 times. SIGTERM to torchrun finishes the step
# and saves. $TORCHRUN_OPTIONS are more options of torchrun, such as --local-addr.
set -euo pipefail
host=$1 nodes=$2
shift 2
devices=${DEVICES:-$(python -c 'import torch; print(torch.cuda.device_count() or 1)')}
# shellcheck disable=SC2086  # several options
exec python -m torch.distributed.run --nnodes "$nodes" --nproc-per-node "$devices" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$host:${PORT:-29500}" --rdzv-id smollit ${TORCHRUN_OPTIONS:-} \
    -m smollit fit "$@" --trainer.strategy "${STRATEGY:-ddp}" --trainer.num_nodes "$nodes" --trainer.devices "$devices"
