"""`init` and `doctor`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from smollit.commands.setup import doctor
from smollit.commands.setup.lock import locked
from smollit.main import main


# promise: init
@pytest.mark.parametrize("kind", ["sft", "dpo", "demo"])
def test_init_writes_a_config_that_works_from_any_folder(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its comments and schema; the next command is printed; a file that exists stays as it is."""
    monkeypatch.chdir(tmp_path)
    main(["init", kind])
    name = "demo-sft.yaml" if kind == "demo" else f"{kind}.yaml"
    text = Path(name).read_text()
    assert f"fit --config {name}" in capsys.readouterr().out and f"fit --config {name}" in text and "  # " in text
    assert Path(text.splitlines()[0].rpartition("=")[2]).is_file()  # the schema
    if kind == "demo":
        init = yaml.safe_load(text)
        assert Path(init["model"]["init_args"]["model_name"]).is_dir()
        main(["inspect", f"--config={name}", f"--data.cache_dir={tmp_path}", "--num_rows=1"])
    with pytest.raises(SystemExit, match=f"{name} exists already"):
        main(["init", kind])
    assert Path(name).read_text() == text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("init", {"torch", "lightning", "transformers"}),
        ("import", {"lightning", "transformers"}),
        ("chat", {"lightning", "datasets"}),
        ("verify", {"lightning", "datasets"}),
        ("doctor", {"lightning", "transformers"}),  # it also says which of them is broken
    ],
)
def test_a_command_starts_without_what_it_does_not_use(name: str, without: set[str]) -> None:
    """Lightning alone takes seconds to import."""
    code = f"import sys; import smollit.main as m; m.commands.find([{name!r}]); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not without & set(found) and "smollit.cli.folders" in found


# promise: doctor
def test_doctor_finds_what_would_fail_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A malicious version and a folder that is a file are wrong, with exit code 1; all else here is fine."""
    good = tmp_path / "runs"
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.platform, "libc_ver", lambda: ("glibc", "2.36"))
    main(["doctor", str(good), "--json"])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert {check["state"] for check in checks.values()} <= {"ok", "note"}
    assert {"torch", "lightning", "precision", "Hub", str(good)} <= set(checks) and not good.exists()
    assert "jemalloc" in checks["allocator"]["text"]
    (tmp_path / "file").touch()
    versions = {"lightning": "2.6.3"}
    monkeypatch.setenv("LD_PRELOAD", "libjemalloc.so.2")
    monkeypatch.setattr(doctor, "version", lambda name: versions.get(name, "99.0"))
    with pytest.raises(SystemExit, match="1"):
        main(["doctor", str(tmp_path / "file")])
    said = capsys.readouterr().out
    assert "WRONG  lightning: 2.6.3: malicious" in said and "WRONG  transformers: 99.0: smollit needs" in said
    assert f"WRONG  {tmp_path}/file: " in said and "allocator" not in said


# promise: lock-file
def test_a_lock_has_the_hash_of_each_package() -> None:
    """Of pip's report: by name; the project itself, a folder without a hash, is left out."""
    report = {
        "install": [
            {"metadata": {"name": "torch", "version": "2.13.0"},
             "download_info": {"archive_info": {"hashes": {"sha256": "ab"}}}},
            {"metadata": {"name": "smollit", "version": "0.2.0"}, "download_info": {"dir_info": {}}},
            {"metadata": {"name": "rich", "version": "15.0.0"},
             "download_info": {"archive_info": {"hashes": {"sha256": "cd"}}}},
        ]
    }  # fmt: skip
    assert list(locked(report)) == ["rich==15.0.0 --hash=sha256:cd", "torch==2.13.0 --hash=sha256:ab"]
