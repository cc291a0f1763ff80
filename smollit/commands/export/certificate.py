"""Write the certificate of an export: what was exported, from what, and what was verified."""

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from smollit.commands.certificate import FILE, PROBE, Certificate, probe_loss, sha256
from smollit.commands.export.run import TrainedRun, versions, without_folders
from smollit.data.template.template import ChatTemplate

CHECKS = (
    "weights, read back, equal the trained ones to the bit, and logits to rounding",
    "a chat renders and texts tokenize and decode as in training",
)


def write_certificate(
    folder: Path,
    model: PreTrainedModel | None,
    *,
    source: str,
    template: ChatTemplate,
    run: TrainedRun | None,
    stop_texts: Sequence[str] = (),
) -> None:
    """Write the certificate, last of all files. `model` is None for an adapter alone."""
    text = template.render(PROBE).text
    ids = template.encode([text])[0]
    certificate: Certificate = {
        "source": without_folders(source),
        "versions": versions(),
        "template": {
            "name": template.name,
            "sha256": sha256(template.source),
            "tokenizer": template.tokenizer_hash,
            "assistant_turns": template.span_source,
        },
        "probe": {"text": sha256(text), "ids": sha256(ids)},
        "stop_strings": list(stop_texts),
    }
    if model is not None:
        certificate["probe"]["loss"] = probe_loss(model, ids)
        certificate |= {
            "dtype": str(model.dtype).removeprefix("torch."),
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "stop_ids": model.generation_config.eos_token_id if model.generation_config else None,
            "checks": CHECKS,
        }
    if run is not None:
        loss_mask = "loss spans verified on every row that is counted as used"
        certificate |= {"method": run.method, "step": run.step, "settings": run.settings()}
        certificate |= {"data": {"splits": run.data(), "content": dict(run.content), "loss_mask": loss_mask}}
    certificate["files"] = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    (folder / FILE).write_text(json.dumps(certificate, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
