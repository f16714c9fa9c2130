"""Uploads an exported folder to the Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kaizen.errors import ConfigError

NAME = r"[\w.-]+/[\w.-]+"


def check_account(name: str) -> None:
    """Refuse an upload that would fail for its name or for want of an account, before any work.

    Args:
        name: OWNER/NAME of the repository on the hub.

    Raises:
        ConfigError: it is no such name, or nobody is logged in.
    """
    if not re.fullmatch(NAME, name, re.ASCII):
        raise ConfigError("--push", f"is {name!r}; allowed: OWNER/NAME, as my-group/my-model")
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        remedy = "allowed after `hf auth login`, or with a token in HF_TOKEN"
        raise ConfigError("--push", f"is {name!r}, but nobody is logged in; {remedy}")
    with _told(name):
        HfApi().whoami()


def push(folder: Path, name: str, *, public: bool = False) -> str:
    """Upload all files of a folder to the repository OWNER/NAME, which is created if need be; returns its address.

    Args:
        public: whether a new repository is public; one that exists stays as it is.

    Raises:
        ConfigError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _told(name, f"; {folder} is complete, and `hf upload {name} {folder}` uploads it later"):
        address = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of a model")
    return str(address)


@contextmanager
def _told(name: str, then: str = "") -> Iterator[None]:
    """Turn what the hub's library raises into one message."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = _reason(error)
    except Exception as error:  # its HTTP library differs from version to version, and so do the errors
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise
        reason = _reason(error)
    else:
        return
    raise ConfigError("--push", f"is {name!r}, and the hub did not accept it ({reason}){then}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
