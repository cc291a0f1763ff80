"""A second start finds the tokenized rows by the remembered hashes of their files, and reads none of them again."""

import json
import logging
import os
import time
from pathlib import Path

import pytest

from smollit.data import ChatDataModule
from smollit.data.sources.hashes import HASHES
from tests.data.conftest import chats, ready


def start(tmp_path: Path) -> ChatDataModule:
    return ready(tmp_path, str(tmp_path / "mine.jsonl"), train_split="all[:200]", val_split="all[200:]")


# promise: second-start
# case: data-01 data-12
def test_a_second_start_reads_only_the_first_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows 120 to 299 of 300 are broken after the first start, and the file is remembered as the same: nobody notices.

    The first rows are read: they say what the columns and the format are. prepare_data() runs in one process, and
    setup() in each: together they name each split's format once.
    """
    clock = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: clock() + 10**10)  # the file has been unchanged for 10 s
    file, memory = tmp_path / "mine.jsonl", tmp_path / "cache" / HASHES
    lines = [json.dumps(chats(1)[0])] * 300
    file.write_text("\n".join(lines))
    start(tmp_path)
    ((name, entry),) = json.loads(memory.read_text()).items()
    file.write_text("\n".join(lines[:120] + ["x" * len(line) for line in lines[120:]]))
    stat = os.stat(file)
    state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    memory.write_text(json.dumps({name: [*state, entry[-1]]}))
    caplog.clear()  # an earlier test may have set the level
    with caplog.at_level(logging.INFO):
        again = start(tmp_path)
    assert (len(again.examples["train"]), len(again.examples["val"])) == (200, 100)
    for split in ("all[:200]", "all[200:]"):
        assert caplog.text.count(f"{split}: Messages: `messages` (role/content)") == 1
    memory.unlink()
    with pytest.raises(ValueError, match=r"mine\.jsonl:121: not JSON"):
        start(tmp_path)
