"""Keys as people set them, and the search for them in what a study leaves behind."""

from collections.abc import Iterable
from pathlib import Path

KEYS = {
    "WANDB_API_KEY": "bertnas0secret1wandb2key3bertnas0secret1",
    "HF_TOKEN": "hf_bertnasSecretHubToken",
    "HUGGING_FACE_HUB_TOKEN": "hf_bertnasSecretOldHubToken",
    "BERTNAS_TEST_PASSWORD": "bertnas-secret-password",
}


def check_no_keys(root: Path, said: Iterable[str] = ()) -> None:
    """That no file under a folder, however it is called, and nothing that was said holds a key."""
    count = 0
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            count += 1
            content = path.read_bytes()
            for name, key in KEYS.items():
                assert key.encode() not in content, f"{name} stands in {path}"
    assert count > 50
    assert not [name for name, key in KEYS.items() if any(key in text for text in said)]
