"""From Python: `export` and `chat` as functions. Training is `SmollitTrainer.fit`, or that of Lightning's Trainer."""

from pathlib import Path

from torch import nn

from smollit.commands.chat.speaker import Message, Sampling, Speaker
from smollit.commands.export.command import policy_of, run_of
from smollit.commands.export.export import ExportDtype
from smollit.commands.export.export import export as write_export
from smollit.commands.export.run import ExportForm, TrainedRun, method_of
from smollit.data import ChatDataModule
from smollit.modules import FineTuningModule

__all__ = ["Speaker", "chat", "export"]


def export(
    module: FineTuningModule,
    data: ChatDataModule,
    output: str | Path,
    *,
    ckpt_path: str | Path | None = None,
    dtype: ExportDtype = "auto",
    form: ExportForm = "model",
) -> Path:
    """Write a trained model as a Hugging Face folder, read it back and compare, as the command `export` does.

    Args:
        module: The module that was trained.
        data: Its data module, whose tokenizer and chat template go into the folder.
        output: The folder; an earlier export there is replaced.
        ckpt_path: A checkpoint whose weights are exported; None takes those that the module has now.
        dtype: dtype of the weights; `auto` takes that of the model that training started from.
        form: `model` merges an adapter into the model; `adapter` writes the adapter alone.

    Returns:
        The folder.

    Raises:
        ValueError: If the module has no weights, or the folder holds something else.
    """
    trainer, output = module.trainer_or_none, Path(output)
    folder = Path(trainer.default_root_dir) if trainer else output.parent
    policy: nn.Module = module.policy
    if ckpt_path is not None:
        policy, run = policy_of(module, data, Path(ckpt_path)), run_of(folder, module, Path(ckpt_path))
    elif policy is not None:
        run = TrainedRun(folder, method_of(module), module.step_of_weights if trainer else None)
    else:
        raise ValueError("the module has no weights yet: call `fit` first, or give `ckpt_path`")
    write_export(
        policy,
        module.model_name,
        template=data.template,
        output=output,
        dtype=dtype,
        adapter=module.adapter,
        form=form,
        run=run,
    )
    return output


def chat(
    model: str | Path | Speaker,
    messages: str | list[Message],
    *,
    temperature: float | None = None,
    max_new_tokens: int = 512,
) -> str:
    """The response of a model to a message, or to a conversation.

    Args:
        model: An export, a run folder that holds one, a name on the Hub, or what `Speaker.load` has loaded of one.
        messages: A message of the user, or all messages so far, as {"role": ..., "content": ...}.
        temperature: Sampling temperature; 0 decodes greedily; None takes the model's own generation settings.
        max_new_tokens: Maximum number of tokens of the response.

    Raises:
        ValueError: If there is no such model, or the conversation does not fit into it.
    """
    speaker = model if isinstance(model, Speaker) else Speaker.load(str(model))
    conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    return "".join(speaker.respond(conversation, Sampling(temperature, max_new_tokens)))
