"""The libraries that the benchmarks compare with."""

from importlib.util import find_spec

from adautomix.errors import UsageError

PEERS = ("openmixup", "timm", "torchvision", "kornia")


def is_installed(peer: str) -> bool:
    """Whether a library can be imported; openmixup needs mmcv beside it."""
    needed = ("openmixup", "mmcv") if peer == "openmixup" else (peer,)
    return all(find_spec(name) is not None for name in needed)


def require_peer(name: str) -> None:
    """Check that a library is installed.

    Raises:
        UsageError: the library is unknown or not installed.
    """
    if name not in PEERS:
        raise UsageError(f"unknown peer {name!r}: use one of {', '.join(PEERS)}")
    if not is_installed(name):
        by_script = name == "openmixup"
        remedy = "sh benchmarks/install_openmixup.sh python" if by_script else f"pip install {name}"
        raise UsageError(f"{name} is not installed: run `{remedy}`")
