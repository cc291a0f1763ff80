"""A written export, read back and compared with the model and the template that it was made from."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from smollit.commands.certificate import PROBE
from smollit.data.template.template import ChatTemplate

# Largest relative error of logits: of sums in another order in fp32 on a CPU, and of products in 10 bits or fewer.
EXACT, ROUNDED = 1e-3, 5e-2
# Where tokenizers that were rebuilt from their vocabulary differ: digits, whitespace, accents, other scripts, emoji.
TEXTS = ["", " leading", "12345.678", "a  b\n\n\tc ", "naïve café — “quotes”", "日本語 русский", "👩‍💻 don't"]


def compare(folder: Path, model: PreTrainedModel, template: ChatTemplate) -> None:
    """Read the folder back: weights equal to the bit, logits to rounding, the same rendered text and tokens.

    Raises:
        RuntimeError: If anything differs.
    """
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    expected, found = model.state_dict(), reloaded.state_dict()
    differing = [name for name in expected if name not in found or not torch.equal(expected[name], found[name])]
    if differing or expected.keys() != found.keys():
        raise RuntimeError(f"the export does not read back the same: {differing or sorted(expected.keys() ^ found)}")
    ids = compare_tokenizer(AutoTokenizer.from_pretrained(folder), template)
    with torch.no_grad():
        errors = relative_errors(reloaded.eval()(ids).logits, model(ids).logits)
    # A product of the same weights in other memory may round differently.
    if not (errors <= (EXACT if model.dtype == torch.float32 else ROUNDED)).all():
        raise RuntimeError(
            f"the exported model gives other logits than the trained one (relative error {errors.max():.1g})"
        )


def relative_errors(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The error of logits at each position, relative to their size: [..., V], [..., V] -> [...]."""
    difference, size = (found.float() - expected.float()).norm(dim=-1), expected.float().norm(dim=-1)
    return difference / size.clamp(min=torch.finfo(size.dtype).tiny)


def compare_tokenizer(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> torch.Tensor:
    """The token ids of a chat, [1, T], if the tokenizer renders and splits texts as the template of the run does.

    Raises:
        RuntimeError: If it does not.
    """
    text = template.render(PROBE).text
    if tokenizer.apply_chat_template(PROBE, tokenize=False) != text:
        raise RuntimeError("the exported tokenizer renders a chat differently from the one used in training")
    expected = template.encode([text, *TEXTS])
    if [tokenizer(each, add_special_tokens=False)["input_ids"] for each in [text, *TEXTS]] != expected:
        raise RuntimeError("the exported tokenizer gives other tokens than the one used in training")
    if [tokenizer.decode(ids) for ids in expected] != [template.tokenizer.decode(ids) for ids in expected]:
        raise RuntimeError("the exported tokenizer decodes tokens differently from the one used in training")
    return torch.tensor(expected[:1])
