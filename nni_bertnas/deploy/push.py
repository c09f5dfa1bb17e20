"""Upload an exported folder to the Hugging Face hub."""

import os
from pathlib import Path

from nni_bertnas.data.loading import check_links
from nni_bertnas.errors import ConfigError


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a folder; the token is the one that `hf auth login` kept, or HF_TOKEN.

    Args:
        folder: What `bertnas export` wrote, with its model card.
        repository: `owner/name`; made where it is not there.
        private: Whether a new one is.

    Returns:
        The address of what was uploaded.

    Raises:
        ConfigError: The folder is no export, the hub is not reachable, or it refuses.
    """
    if not (folder / "README.md").is_file():
        raise ConfigError(f"{folder} has no model card; export a study's student: bertnas export STUDY --to hf")
    check_links(folder, str(folder), deep=True)
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        raise ConfigError("the hub is switched off by HF_HUB_OFFLINE; unset it to push")
    from huggingface_hub import HfApi  # takes a moment to load

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        found = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="bertnas push")
    except Exception as error:  # of the network's libraries, which differ by version
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{repository}: {api.endpoint} did not take it ({text}); check network and token") from error
    return str(found)
