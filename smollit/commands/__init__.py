"""The commands and what each does, for `python -m smollit --help`. (A leaf: the standard library only.)"""

COMMANDS = {
    "fit": "Train, or go on training.",
    "validate": "Measure the validation split.",
    "test": "Measure the test split.",
    "predict": "Answer the prompts of a split.",
    "inspect": "Show what is trained: rows with trained tokens marked, lengths, what was cut or dropped, warnings.",
    "estimate": "Say what a run will need: memory by part and whether it fits, tokens, steps, time.",
    "export": "Write a checkpoint as a Hugging Face folder, read it back and compare.",
}
HEAD = """usage: smollit <command> --config <file.yaml> [--config <file.yaml> ...] [--setting value ...]

Fine-tune small language models on chats (SFT) and on preferences (DPO), by config alone.

commands:
"""
TAIL = """
python -m smollit <command> --help lists a command's settings. Example:
  python -m smollit fit --config configs/sft.yaml --trainer.max_steps 100
"""


def overview() -> str:
    """The text of `--help`: what can be done, without loading what does it."""
    width = max(map(len, COMMANDS))
    return HEAD + "".join(f"  {name:<{width}}  {what}\n" for name, what in COMMANDS.items()) + TAIL
