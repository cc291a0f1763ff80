"""The command `export`: its arguments."""

from dataclasses import dataclass
from pathlib import Path

from smollit.commands.command import Command, ConfiguredRun
from smollit.commands.export.export import ExportDtype, export
from smollit.commands.export.push import check_name, push
from smollit.commands.export.run import ExportForm, TrainedRun, method_of
from smollit.data.tokenized import TokenizedDataModule
from smollit.models import CausalLM
from smollit.models.checkpoint import load_weights
from smollit.models.vocabulary import fit_vocabulary
from smollit.modules import FineTuningModule
from smollit.training.checkpoints.files import check_readable
from smollit.training.checkpoints.lineage import RUN_STATE


@dataclass(kw_only=True)
class ExportCommand(Command):
    """Write a checkpoint as a Hugging Face folder, read it back and compare.

    Args:
        ckpt_path: The checkpoint; `last` or null takes the newest in the run folder, `best` the one that
            `trainer.keep_best` keeps.
        output: Folder to write; null takes `export` in the run folder.
        dtype: dtype of the weights; `auto` takes that of the model that training started from.
        form: `model` writes a whole model, with `model.adapter` merged into it; `adapter` writes the adapter alone, for
            peft.
        push_to_hub: Name on the Hugging Face Hub to upload the export to, such as org/model; null uploads nothing.
        private: Make a new repository on the Hub private.
    """

    ckpt_path: str | None = None
    output: str | None = None
    dtype: ExportDtype = "auto"
    form: ExportForm = "model"
    push_to_hub: str | None = None
    private: bool = True

    def run(self, run: ConfiguredRun) -> None:
        """Load the policy on the CPU from the checkpoint, and export it."""
        check_name(self.push_to_hub)
        checkpoint = run.find_checkpoint(self.ckpt_path or "last")
        output = Path(self.output or run.folder / "export")
        export(
            policy_of(run.model, run.datamodule, checkpoint),
            run.model.model_name,
            template=run.datamodule.template,
            output=output,
            name=self.push_to_hub,
            dtype=self.dtype,
            adapter=run.model.adapter,
            form=self.form,
            run=run_of(run.folder, run.model, checkpoint),
        )
        if self.push_to_hub is not None:
            push(output, self.push_to_hub, private=self.private)


def policy_of(model: FineTuningModule, data: TokenizedDataModule, checkpoint: Path) -> CausalLM:
    """The policy of a checkpoint, on the CPU."""
    policy = CausalLM(model.model_name, weights=model.weights)
    fit_vocabulary(policy.model, data.vocabulary_size, data.add_tokens)
    if model.adapter is not None:
        model.add_adapter(policy)
    load_weights(policy, checkpoint, model.model_name)
    return policy


def run_of(folder: Path, model: FineTuningModule, checkpoint: Path) -> TrainedRun:
    """What a run folder and a checkpoint say of the run that made it."""
    state = check_readable(checkpoint)
    content = state.get(RUN_STATE, {}).get("content", {})  # a checkpoint may hold weights alone
    return TrainedRun(folder, method_of(model), state.get("global_step"), content)
