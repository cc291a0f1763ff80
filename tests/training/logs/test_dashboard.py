"""TensorBoard as a person lays it out: loss first, curves that belong together in one chart, settings, texts."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

RUN = {"log_every_n_steps": 2, "val_every_n_steps": 4, "max_epochs": 2, "logger": True}


# promise: dashboard
@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.slow
def test_tensorboard_is_laid_out(fit: Any, tmp_path: Path, kind: str) -> None:
    """The charts name curves that exist, loss first and memory last; the first group of the first page has the metrics
    that matter; HPARAMS has the settings, and metrics whose points are those of the curves; a resume adds nothing."""
    for steps in (4, 8):
        fit(tmp_path / "run", kind=kind, **RUN, max_steps=steps)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    scalars = events.Tags()["scalars"]
    (tensor,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(tensor.tensor_proto.string_val[0])
    curves = [
        tag.strip("^$").replace("\\", "") for c in layout.category for chart in c.chart for tag in chart.multiline.tag
    ]
    with_callback = {name for name in curves if name.startswith(("throughput/", "memory/"))}
    assert set(curves) - with_callback <= set(scalars)
    assert layout.category[0].chart[0].multiline.tag[:] == ["^train/loss$", "^val/loss$"]
    assert curves[-1] == "memory/peak_gib"
    if kind == "dpo":
        assert ["^train/rewards/chosen$", "^train/rewards/rejected$"] in [
            list(chart.multiline.tag) for category in layout.category for chart in category.chart
        ]
    assert sorted(scalars)[0] == "key_metrics/loss_train"
    assert [e.value for e in events.Scalars("key_metrics/loss_val")] == [e.value for e in events.Scalars("val/loss")]
    content = {tag: HParamsPluginData.FromString(data) for tag, data in events.PluginTagToContent("hparams").items()}
    start = content["_hparams_/session_start_info"].session_start_info.hparams
    assert start["learning_rate"].number_value == pytest.approx(1e-3)
    assert start["loss"].string_value == {"sft": "NLL", "dpo": "DPO"}[kind]
    metrics = {info.name.tag for info in content["_hparams_/experiment"].experiment.metric_infos}
    assert {"train/loss", "val/loss"} <= metrics <= set(scalars)
    assert "about/data/text_summary" in events.Tags()["tensors"]
