"""Draws docs/images/inspect_*.svg: what `python -m smollit inspect` shows of the sample rows.

python docs/make_inspect_pictures.py                      # rows and tokenizer that ship with smollit
python docs/make_inspect_pictures.py --shared ../shared   # real rows, and SmolLM2's own tokenizer
"""

import argparse
import re
from collections.abc import Callable
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console

from smollit.commands.inspect.command import InspectCommand
from smollit.commands.inspect.split_view import SplitView
from smollit.data.encoding.counts import count_examples
from smollit.data.encoding.encoder import Encoder
from smollit.data.encoding.options import EncodeOptions
from smollit.data.formats.detection.detect import detect_format
from smollit.data.formats.types import Kind
from smollit.data.sources.mixture import load_source
from smollit.data.template.template import load_template
from smollit.data.template.tokenize import load_tokenizer

HERE = Path(__file__).parent
PACKAGE = Path(str(files("smollit")))
WIDTH, NUM_ROWS, MAX_LENGTH = 100, 200, 1024
WEB_FONT = re.compile(r"@font-face \{.*?\}", re.DOTALL)
Row = dict[str, Any]
RATED: Row = {
    "instruction": "Which planet is the largest?",
    "completions": [
        {"response": "Jupiter. It has more mass than all other planets together.", "score": 9},
        {"response": "Jupiter.", "score": 7},
        {"response": "It is either Jupiter or Saturn.", "score": 4},
        {"response": "The Sun.", "score": 1},
    ],
}
CALL: Row = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
REASONED: Row = {
    "tools": [{"type": "function", "function": {"name": "weather", "description": "The weather of a city."}}],
    "messages": [
        {"role": "user", "content": "Do I need an umbrella in Rome?"},
        {"role": "assistant", "reasoning_content": "I need the weather.", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "reasoning_content": "No rain, so no umbrella.", "content": "No, it is sunny."},
    ],
}
# ChatML that prints tools, reasoning and tool calls, as templates of reasoning models do.
REASONING_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>\n{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RATED_FORMAT = {
    "mapping": {"prompt": "instruction", "responses": "completions.response", "chosen_if": "highest completions.score"},
    "pairs_of": "all",
}


def draw_all(output: Path, shared: Path | None = None) -> list[Path]:
    """Write the pictures, and say which.

    Args:
        output: Folder of the pictures.
        shared: Folder with real rows and tokenizers; the samples of the package without it.
    """
    folder, tokenizer = PACKAGE / "data" / "samples", PACKAGE / "models" / "tiny"
    names = ("ultrachat", "ultrafeedback")
    if shared is not None:
        folder, tokenizer = shared / "data", shared / "models" / "smollm2-tokenizer" / "instruct-135M"
        names = ("ultrachat_200k", "ultrafeedback_binarized")
    chats, pairs = str(folder / names[0]), str(folder / names[1])
    output.mkdir(parents=True, exist_ok=True)
    template = output / "reasoning.jinja"
    template.write_text(REASONING_TEMPLATE, encoding="utf-8")
    views = {
        "inspect_chat": make_view(chats, "train_sft", "chat", str(tokenizer), "chatml"),
        "inspect_pair": make_view(pairs, "train_prefs", "preference", str(tokenizer), "chatml"),
        "inspect_responses": view_of([RATED], "rated", "preference", str(tokenizer), "chatml", **RATED_FORMAT),
        "inspect_reasoning": view_of([REASONED], "tools", "chat", str(tokenizer), str(template)),
        "inspect_article": make_view(chats, "train_sft", "chat", str(tokenizer), "article"),
        "inspect_broken": make_view(pairs, "train_prefs", "preference", str(tokenizer), "chatml", same_responses),
    }
    template.unlink()
    return [draw(view, output / f"{name}.svg") for name, view in views.items()]


def make_view(
    dataset: str, split: str, kind: Kind, tokenizer: str, template: str, change: Callable[[Row], Row] | None = None
) -> SplitView:
    """The first rows of a split, each changed if asked, encoded as training encodes them."""
    head = load_source(dataset, split).head(NUM_ROWS)
    return view_of([change(row) for row in head] if change else head, split, kind, tokenizer, template)


def view_of(head: list[Row], split: str, kind: Kind, tokenizer: str, template: str, **how_to_read: Any) -> SplitView:
    """Rows, encoded as training encodes them."""
    rows = Dataset.from_list(head)
    encoder = Encoder(
        load_template(load_tokenizer(tokenizer), template),
        EncodeOptions(kind, MAX_LENGTH),
        detect_format(rows.column_names, head, kind=kind, **how_to_read),
    )
    examples = rows.map(encoder, batched=True, with_indices=True, remove_columns=rows.column_names)
    good = examples.filter(lambda problem: problem == "", input_columns="problem")
    return SplitView(
        name=split,
        num_rows=len(rows),
        row=rows.__getitem__,
        encoder=encoder,
        examples=good,
        report=count_examples(examples),
    )


def same_responses(row: Row) -> Row:
    """What the article's step does: it writes one response into both columns."""
    return {**row, "rejected": row["chosen"]}


def draw(view: SplitView, path: Path) -> Path:
    """One row of a split and what is said about all, as an SVG that loads nothing from elsewhere."""
    console = Console(record=True, width=WIDTH, force_terminal=True, color_system="truecolor", file=StringIO())
    InspectCommand(num_rows=1).show(view, console)
    console.print()  # the picture's lower edge cuts into its last line
    svg = console.export_svg(title="python -m smollit inspect", unique_id=path.stem, font_aspect_ratio=0.602)
    path.write_text(WEB_FONT.sub("", svg).replace("Fira Code", "DejaVu Sans Mono"), encoding="utf-8")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, help="folder with real rows and tokenizers")
    for picture in draw_all(HERE / "images", parser.parse_args().shared):
        print(picture)
