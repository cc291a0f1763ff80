"""Runs `fit` on the workers of a Ray cluster, with Ray's strategy and environment: the same config as on one machine.

    pip install 'smollit[ray]'
    python configs/launch/ray_train.py --workers 4 --gpu --storage /shared/ray --config configs/sft.yaml

All words that are not the launcher's own go to `fit`. The run folder must be on storage that all workers share. When a
worker dies, Ray starts all of them again, and they resume from the newest checkpoint (`ckpt_path: last`). Workers run
`fit` in a thread, where signals do not arrive: to stop the job at a known step, set `trainer.max_steps` or `max_time`,
and set `trainer.checkpoint_every_n_steps`, which is all that protects a job that Ray stops.
"""

import argparse
import os
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

WORDS = [
    '--trainer.strategy={"class_path": "ray.train.lightning.RayDDPStrategy"}',
    '--trainer.plugins=[{"class_path": "ray.train.lightning.RayLightningEnvironment"}]',
]


def fit(settings: dict[str, Any]) -> None:
    """What each worker does."""
    from smollit.main import main

    os.chdir(settings["folder"])
    try:
        main(["fit", *settings["words"], *WORDS])
    except SystemExit as left:  # Ray would take it for the end of the job
        if left.code:
            raise RuntimeError(f"fit ended with exit code {left.code}") from left


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, required=True, help="number of processes, over all machines")
    parser.add_argument("--gpu", action="store_true", help="one GPU for each")
    parser.add_argument("--storage", help="folder for Ray's own records, which all machines share")
    parser.add_argument("--max-failures", type=int, default=3, help="how often the workers are started again")
    options, words = parser.parse_known_args()
    scaling = ScalingConfig(num_workers=options.workers, use_gpu=options.gpu)
    run = RunConfig(storage_path=options.storage, failure_config=FailureConfig(max_failures=options.max_failures))
    settings = {"folder": os.getcwd(), "words": words}
    TorchTrainer(fit, train_loop_config=settings, scaling_config=scaling, run_config=run).fit()
