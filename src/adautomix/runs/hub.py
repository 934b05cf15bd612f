"""Networks in timm's format on the Hugging Face Hub, named `hf-hub:NAME` as in timm.

Only a new run downloads anything, from a name on the command line or in settings. A run that is
resumed or evaluated has its weights already, so that the name in its folder is never looked up.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from adautomix.errors import RunError, one_line

PREFIX = "hf-hub:"


def is_hub_name(path: Path) -> bool:
    """Whether the setting `init` names a network on the Hub."""
    return str(path).startswith(PREFIX)


def hub_network(path: Path) -> dict[str, Any]:
    """Return how timm describes a network on the Hub: "architecture" and "pretrained_cfg".

    Raises:
        RunError: the description cannot be downloaded, or is not one of timm.
    """
    from timm.models import PretrainedCfg, load_model_config_from_hf

    with _explained(path):
        described, architecture, _ = load_model_config_from_hf(_name(path))
        complete = asdict(PretrainedCfg()) | described
        return {"architecture": str(architecture), "pretrained_cfg": complete}


def hub_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of a network on the Hub; nothing but tensors is unpickled.

    Raises:
        RunError: they cannot be downloaded.
    """
    from timm.models import clean_state_dict, load_state_dict_from_hf

    with _explained(path):
        weights = load_state_dict_from_hf(_name(path), weights_only=True)
        if not isinstance(weights, Mapping):
            raise TypeError("it holds no tensors by name")
        return dict(clean_state_dict(dict(weights)))


def _name(path: Path) -> str:
    return str(path).removeprefix(PREFIX)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn any error of a download into one line: timm and the Hub raise many types."""
    try:
        yield
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        raise RunError(
            f"init = {path} cannot be loaded ({reason}): check the name, go online once to cache "
            "it, or name a folder or file"
        ) from None
