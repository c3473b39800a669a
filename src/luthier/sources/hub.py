"""`hub://org/name` (or `hub://org/name@revision`): a model of the Hugging Face hub. Safetensors, JSON and text files only."""

import re
from pathlib import Path

FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def hub_path(source: str) -> Path:
    """Where a snapshot of the model lies, fetched if it is not yet there. The environment's HF_HOME and HF_ENDPOINT apply."""
    found = NAME.fullmatch(source.removeprefix("hub://"))
    if not found:
        raise ValueError(f"{source!r} names no model of the hub; write hub://org/name or hub://org/name@revision")
    name, revision = found.groups()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
    except RevisionNotFoundError:
        raise ValueError(f"{source}: the hub has {name}, but no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise ValueError(f"{source}: the hub has no model {name!r}, or it is private or gated (then set HF_TOKEN)") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        cause = type(error.__cause__ or error).__name__
        raise ConnectionError(
            f"{source}: the hub cannot be reached ({cause}) and no copy of {name} is here; "
            "check the network, or give a folder that holds config.json and model.safetensors"
        ) from None
