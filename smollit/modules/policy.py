"""PolicyModule: the model that is trained. It is loaded, sharded, and generates responses."""

import math
import os
from pathlib import Path
from typing import Any, Literal, Self

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from smollit.batch import Batch
from smollit.functional.attention import AttentionSetting
from smollit.models.adapters import ADAPTERS, Adapter, Quantize, add_adapter, quantize
from smollit.models.causal_lm import CPU, CausalLM
from smollit.models.checkpoint import POLICY, load_weights, trained_weights
from smollit.models.compile import compile_layers
from smollit.models.in_memory import adapter_of, on_disk
from smollit.models.recompute import GradientCheckpointing
from smollit.models.sharding import shard, unwrap
from smollit.models.vocabulary import fit_vocabulary
from smollit.modules.loading import saved_settings
from smollit.modules.stage_metrics import StageMetricsModule

START = "give that of its start, or start a new run in another `trainer.default_root_dir`"


class PolicyModule(StageMetricsModule):
    """A LightningModule with a causal language model, the policy.

    Args:
        model_name: Hub id or local folder of the model to train.
        adapter: Small weights to train instead of the model's, by class: `LoRA`, `RSLoRA`, `DoRA`, or `Peft` for
            others. Its arguments are below `model.adapter`. null trains all weights.
        quantize: Store the frozen weights below `adapter` in 4 bits, by bitsandbytes: `nf4`, or `nf4-dq`, which
            quantizes the scales too. The embeddings, the head and the norms stay as they are. null leaves all of them.
        init_from: A checkpoint whose weights a new run starts from, at step 0; null uses those of `model_name`.
        attention: How documents are separated. `auto` takes the first of `varlen` (on CUDA in half precision),
            `documents`, `sdpa`, `eager` and `rows` that is right for the model; it is verified when the model is
            loaded. `varlen` and `documents` need no padding and no mask, the first in one call per layer; `sdpa` and
            `eager` mask padded sequences, and so does `flex_attention`, which is for GPUs; `rows` computes a padded row
            for each chat or response, without packing, for models with layers that are not attention.
        chunk_size: Tokens per chunk of the LM head: bounds peak logits memory.
        gradient_checkpointing: true recomputes layers in the backward pass: less memory, about a third more time;
            `selective` keeps matrix products and recomputes the cheaper operations.
        compile: Compile the policy with torch.compile, in place: checkpoints stay the same.
        dropout: Dropout of the policy, wherever the model has some, in attention above all; null keeps the model's.
        max_new_tokens: Maximum number of generated tokens per prompt, for `predict`.
        temperature: Sampling temperature for `predict`; 0 decodes greedily.
    """

    weights: Literal["pretrained", "random"] = "pretrained"
    restores_weights = False  # set by SmollitTrainer: a checkpoint's weights follow, so `init_from` is not read
    skipped_rows: frozenset[int] = frozenset()  # of `predict`, whose responses are there already
    policy: nn.Module  # a CausalLM, or its FSDP wrapper; None until configure_model()

    def __init__(
        self,
        model_name: str = "HuggingFaceTB/SmolLM-135M",
        *,
        adapter: Adapter | None = None,
        quantize: Quantize | None = None,
        init_from: str | None = None,
        attention: AttentionSetting = "auto",
        chunk_size: int = 512,
        gradient_checkpointing: GradientCheckpointing = False,
        compile: bool = False,
        dropout: float | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
    ) -> None:
        super().__init__()
        if dropout is not None and not 0 <= dropout < 1:
            raise ValueError(f"`model.dropout` must be at least 0 and below 1, got {dropout}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"`model.temperature` must be at least 0 and finite, got {temperature}")
        for name, number in (("chunk_size", chunk_size), ("max_new_tokens", max_new_tokens)):
            if number < 1:
                raise ValueError(f"`model.{name}` must be at least 1, got {number}")
        # What is not plain is ignored: see torch.load(weights_only=True).
        self.save_hyperparameters(ignore=["model_name", "reference_name", "optimizer", "loss", "schedule", "adapter"])
        # From Python also a model in memory; the annotation is what a config can say.
        self.adapter: Adapter | None = ADAPTERS.make(adapter) or adapter_of(model_name)
        model_name = on_disk(model_name, may_be_frozen=self.adapter is not None)
        self.save_hyperparameters({"model_name": model_name})
        if self.adapter is not None:
            self.save_hyperparameters({"adapter": ADAPTERS.as_settings(self.adapter)})
            self.strict_loading = False  # checkpoints hold the trained weights alone
        elif quantize is not None:
            raise ValueError("`model.quantize` freezes the weights in 4 bits: set `model.adapter` too, such as LoRA")
        self.quantize = quantize
        self.model_name = os.path.expanduser(model_name)
        self.init_from = init_from
        self.attention: AttentionSetting = attention
        self.chunk_size = chunk_size
        self.gradient_checkpointing: GradientCheckpointing = gradient_checkpointing
        self.compile_policy = compile
        self.dropout = dropout
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.policy = None  # type: ignore[assignment]
        self.one_dimensional: frozenset[str] = frozenset()  # names of the policy's norms and biases

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's reads neither version 0.1 nor relative folders
        cls, checkpoint_path: str | Path, map_location: torch.device | str | None = None, **settings: Any
    ) -> Self:
        """The module that wrote a checkpoint, with its weights, from any folder.

        Args:
            checkpoint_path: A checkpoint: a file, or a folder of shards.
            map_location: Device of the weights; null keeps them in CPU memory.
            **settings: Arguments that replace the saved ones: `model_name`, where the model's folder has moved.

        Raises:
            ValueError: If the checkpoint can't be read, or does not belong to the model or the reference.
        """
        path = Path(checkpoint_path)
        checkpoint, saved = saved_settings(path, settings)
        module = cls(**saved)
        module.restores_weights = True
        module.configure_model()
        load_weights(unwrap(module.policy), path, module.model_name)
        module.on_load_checkpoint(checkpoint)
        return module.to(map_location) if map_location is not None else module

    def configure_model(self) -> None:
        """Load the policy, and shard it if the strategy requires it. Lightning may call this twice."""
        if self.policy is not None:
            return
        model = self.load(
            self.model_name,
            self.weights,
            gradient_checkpointing=self.gradient_checkpointing,
            dropout=self.dropout,
        )
        if self.init_from and not self.restores_weights:
            load_weights(model, Path(self.init_from), self.model_name)
        if self.adapter is not None:
            self.add_adapter(model)
        if self.compile_policy:
            compile_layers(model)
        # FSDP makes every weight one-dimensional.
        self.one_dimensional = frozenset(name for name, weight in model.named_parameters() if weight.ndim < 2)
        self.policy = self.shard(model)

    def load(
        self,
        model_name: str,
        weights: Literal["pretrained", "random"] = "pretrained",
        *,
        gradient_checkpointing: GradientCheckpointing = False,
        dropout: float | None = None,
    ) -> CausalLM:
        """Load a whole model into CPU memory, in the run's precision, with an embedding for each token of the data."""
        with CPU:  # new tensors: Lightning calls configure_model where they are made on the GPU
            model = CausalLM(
                model_name,
                weights=weights,
                dtype=self.weights_dtype(),
                attention=self.attention,
                device=self.trainer.strategy.root_device if self.trainer_or_none else CPU,
                compute_dtype=self.compute_dtype(),
                chunk_size=self.chunk_size,
                gradient_checkpointing=gradient_checkpointing,
                dropout=dropout,
            )
            if self.token_source is not None:
                fit_vocabulary(model.model, self.token_source.vocabulary_size, self.token_source.add_tokens)
        return model

    def add_adapter(self, model: CausalLM) -> None:
        """Freeze the model, in 4 bits if `quantize` says so, and put the adapter into it.

        Raises:
            ValueError: If tokens were added whose embeddings would stay untrained, or weights in 4 bits are sharded.
        """
        assert self.adapter is not None
        grows = self.token_source is not None and self.token_source.add_tokens
        if grows and not self.adapter.vocabulary:
            raise ValueError(
                "`data.add_tokens` adds embeddings, which `model.adapter` leaves untrained: set"
                " `model.adapter.vocabulary: true`"
            )
        trainer = self.trainer_or_none
        if self.quantize is not None:
            if self.device_mesh is not None or (trainer is not None and isinstance(trainer.strategy, FSDPStrategy)):
                raise ValueError("`model.quantize` can't be sharded: set `trainer.strategy: ddp`")
            device = trainer.strategy.root_device if trainer is not None else CPU
            quantize(model.model, self.quantize, device=device, compute_dtype=self.compute_dtype())
        with CPU:
            add_adapter(model.model, self.adapter)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With an adapter, save the trained weights alone; Lightning's WeightAveraging restores whole modules."""
        if self.adapter is not None and "averaging_state" not in checkpoint:
            checkpoint["state_dict"] = trained_weights(self.policy, checkpoint["state_dict"], prefix=POLICY)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another adapter: `strict_loading` does not see that weights of one are lacking.

        Raises:
            ValueError: If the checkpoint was made without this adapter, or with another one.
        """
        super().on_load_checkpoint(checkpoint)
        if self.policy is None:
            return
        before = checkpoint.get("hyper_parameters", {}).get("adapter")
        if self.adapter is not None:
            wanted, saved = trained_weights(self.policy, self.policy.state_dict()), checkpoint["state_dict"]
            other = [n for n, w in wanted.items() if POLICY + n not in saved or saved[POLICY + n].shape != w.shape]
            if other:
                raise ValueError(f"the checkpoint lacks {len(other)} weights of `model.adapter`: {other[:2]}; {START}")
        elif before is not None:
            raise ValueError(f"the checkpoint was made with the adapter {before}, and `model.adapter` is null: {START}")

    def shard(self, model: CausalLM) -> nn.Module:
        """The model, sharded if the strategy requires it."""
        return shard(model, self.device_mesh["data_parallel"] if self.device_mesh else None)

    def compute_dtype(self) -> torch.dtype:
        """dtype of matrix products and attention."""
        precision = str(self.trainer.precision) if self.trainer_or_none else "32-true"
        return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision, self.weights_dtype())

    def weights_dtype(self) -> torch.dtype:
        """fp32, unless the trainer's precision ends in `-true`: a bf16 weight loses small updates.

        Raises:
            ValueError: If the precision is `16-true`.
        """
        precision = str(self.trainer.precision) if self.trainer_or_none else "32-true"
        if precision == "16-true":
            raise ValueError(
                "`trainer.precision: 16-true` can't be trained: fp16 weights lose small updates and overflow."
                " Use 16-mixed or bf16-true"
            )
        return {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[tuple[int, list[int]]]:
        """(row number, token ids of the response) for each prompt; nothing if all of them are in `skipped_rows`."""
        rows = batch.example_ids.tolist()
        if self.skipped_rows.issuperset(rows):
            return []
        if self.token_source is None:
            raise ValueError("`predict` needs a data module with `stop_ids()`: see TokenSource in smollit.batch")
        stop_ids = self.token_source.stop_ids()
        responses = unwrap(self.policy).generate(
            batch, self.max_new_tokens, stop_ids, self.temperature, seed=torch.initial_seed()
        )
        return list(zip(rows, responses, strict=True))
