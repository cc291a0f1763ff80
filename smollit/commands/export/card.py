"""The model card of an export: README.md with the Hub's metadata."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from huggingface_hub import ModelCardData, hf_hub_download, metadata_load
from transformers import PretrainedConfig

from smollit.commands.export.run import ExportForm, Settings, TrainedRun, versions
from smollit.paths import is_path
from smollit.training.logs.table import Row

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SHOWN = ("loss", "perplexity", "token_accuracy", "rewards/accuracies", "rewards/margins")
MAX_POINTS = 20
USE = """```python
from transformers import pipeline

chat = pipeline("text-generation", model="{name}")
print(chat([{{"role": "user", "content": "Hello!"}}], max_new_tokens=128{stops})[0]["generated_text"])
```"""


def model_card(
    run: TrainedRun | None,
    *,
    model_name: str,
    config: PretrainedConfig,
    name: str,
    form: ExportForm,
    stop_texts: Sequence[str] = (),
) -> str:
    """The text of README.md.

    Args:
        run: The run that trained the weights, if it is known.
        model_name: Hub id or local folder of the model that training started from.
        config: Its configuration.
        name: Hub id or folder that users will load.
        form: Whether the export is a model or an adapter.
        stop_texts: Texts that end a response, where no single token does.
    """
    source = source_metadata(model_name)
    settings = run.settings() if run else {}
    base = model_name if is_hub_id(model_name) else source.get("base_model")
    metadata = ModelCardData(
        base_model=base,
        license=source.get("license") or config.to_dict().get("license"),
        datasets=[each for each in data_sets(settings) if is_hub_id(each)] or None,
        library_name="peft" if form == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["smollit", *([run.method.lower()] if run and run.method else [])],
    )
    started = base if isinstance(base, str) else Path(model_name).name
    method = f" by {run.method}" if run and run.method else ""
    made = f"`{started}`, fine-tuned{method} with smollit {versions()['smollit']}."
    title = run.folder.resolve().name if run and name == "export" else name
    stops = f", stop_strings={json.dumps(list(stop_texts))}, tokenizer=chat.tokenizer" if stop_texts else ""
    parts = [f"# {title}", made, "## Use", USE.format(name=name, stops=stops)]
    parts += run_parts(run, settings) if run else []
    parts += ["## Versions", ", ".join(f"{library} {number}" for library, number in versions().items())]
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def run_parts(run: TrainedRun, settings: Settings) -> list[str]:
    """The sections about data, validation and settings, as far as the run folder has them."""
    parts = []
    if data := run.data():
        names = ", ".join(f"`{each}`" for each in data_sets(settings))
        header = ("split", "rows", "used", "truncated", "tokens", "loss tokens")
        keys = ("rows", "kept", "truncated", "tokens", "loss_tokens")
        parts += [
            "## Data",
            *([f"Trained and validated on {names}."] if names else []),
            table(header, [[split, *(f"{counts[key]:,}" for key in keys)] for split, counts in data.items()]),
        ]
    if curve := run.curve():
        said = "" if run.step is None else f"The weights are those of step {run.step:,}."
        columns = [column for column in (f"val/{shown}" for shown in SHOWN) if column in curve[0]]
        rows = [[row["step"], *(f"{float(row[column]):.4f}" for column in columns)] for row in thinned(curve)]
        parts += ["## Validation", *([said] if said else []), table(("step", *columns), rows)]
    if settings:
        parts += ["## Settings", f"```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```"]
    return parts


def source_metadata(model_name: str) -> Settings:
    """The metadata of the source's model card; empty if it has none, or the Hub can't be reached."""
    card = Path(model_name) / "README.md"
    try:
        if not Path(model_name).is_dir():
            card = Path(hf_hub_download(model_name, "README.md"))
        return (metadata_load(card) if card.is_file() else None) or {}
    except (OSError, ValueError):  # of the network, or of its YAML
        return {}


def data_sets(settings: Settings) -> list[str]:
    """Names of the data sets of a config."""
    named = settings.get("data", {}).get("init_args", {}).get("dataset") or []
    parts = named if isinstance(named, list) else [named]
    return [part["dataset"] if isinstance(part, dict) else part for part in parts]


def is_hub_id(name: str) -> bool:
    """Whether a name is one on the Hub: `org/name`, and neither a folder nor a URL."""
    return bool(HUB_ID.fullmatch(name)) and not is_path(name) and not Path(name).exists()


def thinned(curve: list[Row]) -> list[Row]:
    """At most MAX_POINTS rows of a curve, evenly, with the first and the last."""
    if len(curve) <= MAX_POINTS:
        return curve
    last = len(curve) - 1
    return [curve[round(index * last / (MAX_POINTS - 1))] for index in range(MAX_POINTS)]


def table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
