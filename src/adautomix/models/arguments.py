"""Check the arguments that build a network, which may come from an untrusted file.

`timm.create_model` also takes names of hubs and folders (`hf-hub:…`, `local-dir:…`) and arguments
that load weights (`pretrained`, `checkpoint_path`, …). A run folder or an exported folder needs
neither: only what the constructor of the network takes is accepted, and only plain values.
"""

import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any

from adautomix.errors import UsageError, unknown_name

_WORD = re.compile(r"[\w.+-]{0,64}")
_CONV_ARGUMENTS = {"in_channels", "out_channels", "kernel_size", "stride", "padding", "bias"}
_NEVER = {"self", "kwargs", "device", "dtype"}


def check_build_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Check that arguments do nothing but describe the layers of a timm network.

    Args:
        name: a timm architecture, with or without a weights tag.
        arguments: keyword arguments for `timm.create_model`.

    Raises:
        UsageError: timm has no such architecture, its constructor has no such argument, or a
            value is not a number, a word, or a list or table of these.
    """
    allowed = constructor_arguments(name)
    for argument, value in arguments.items():
        if argument not in allowed:
            listing = f"it is no argument of the constructor of {name}"
            problem = unknown_name("argument", argument, allowed, listing)
            raise UsageError(f"model {name}: {problem}")
        if not is_plain(value):
            raise UsageError(
                f"model {name}: {argument} = {value!r} is not a number, a word or a list of these"
            )


def constructor_arguments(name: str) -> set[str]:
    """The names of all arguments that the network classes beside an architecture's own take.

    Raises:
        UsageError: timm has no such architecture.
    """
    import timm
    from timm.models import model_entrypoint

    if not isinstance(name, str) or not timm.is_model(name):  # a file may hold any value
        listing = "timm.list_models() lists them all"
        raise UsageError(unknown_name("timm model", str(name), timm.list_models(), listing))
    module = sys.modules[model_entrypoint(name).__module__]
    classes = filter(inspect.isclass, vars(module).values())
    signatures = (inspect.signature(cls.__init__).parameters for cls in classes)
    names = {
        name for parameters in signatures if "num_classes" in parameters for name in parameters
    }
    return (names | {"img_size"}) - _NEVER


def is_plain(value: Any, depth: int = 4) -> bool:
    """Whether a value is a number, a word without slashes or colons, or a list or table of them."""
    if value is None or isinstance(value, bool | int | float):
        return True
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    return (
        isinstance(value, list | tuple) and depth > 0 and all(is_plain(v, depth - 1) for v in value)
    )


def check_replacements(replaced: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Check the arguments of the convolutions that replace modules of a timm network.

    Raises:
        UsageError: an argument is not one of those that `build_model` writes, or is no number.
    """
    for path, conv in replaced.items():
        if not set(conv or ()) <= _CONV_ARGUMENTS or not is_plain([*(conv or {}).values()]):
            raise UsageError(f"the replacement of {path} takes other arguments than a convolution")
