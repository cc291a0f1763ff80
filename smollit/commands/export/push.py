"""An export on the Hugging Face Hub."""

import logging
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from smollit.errors import first_line

log = logging.getLogger(__name__)


def check_name(name: str | None) -> None:
    """Refuse, before any work, a name that the Hub does not take, and a machine that is offline.

    Raises:
        ValueError: With what to do.
    """
    if name is None:
        return
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"`push_to_hub` must be a name on the Hub such as org/model, got {name!r}") from error
    if constants.HF_HUB_OFFLINE:
        raise ValueError(
            "`push_to_hub` needs the network, and HF_HUB_OFFLINE is set: unset it, or leave out `push_to_hub` and push"
            f" the folder later: hf upload {name} FOLDER"
        )


def push(folder: Path, name: str, *, private: bool) -> None:
    """Upload an export, in one commit.

    Raises:
        ValueError: If the Hub refuses it or can't be reached; the folder stays as it is.
    """
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of smollit")
    except Exception as error:  # of the network, of the Hub, of a missing token
        raise ValueError(
            f"the export is in {folder}, but could not be pushed to {name}: {first_line(error)}. Log in with"
            f" `hf auth login`, check the name, and try again: hf upload {name} {folder}"
        ) from error
    log.info("pushed to %s", commit.commit_url)
