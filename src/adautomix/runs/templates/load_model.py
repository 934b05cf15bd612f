"""Load the network of this folder with timm; `python load_model.py IMAGE` classifies an image."""

import json
import sys
from importlib import import_module
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
CONFIG = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
sys.path.insert(0, str(HERE))
reading = import_module("adautomix_decoder.reading")


def load_model() -> torch.nn.Module:
    """The network in evaluation mode, from normalized images `[B, 3, H, W]` to logits `[B, K]`."""
    build = timm.models.model_entrypoint(CONFIG["architecture"])  # create_model looks up hubs too
    model: torch.nn.Module = build(False, **CONFIG["arguments"])
    for path, conv in CONFIG["replaced"].items():
        model.set_submodule(path, torch.nn.Conv2d(**conv) if conv else torch.nn.Identity())
    model.load_state_dict(load_file(HERE / "model.safetensors"))
    return model.eval()


def read_image(path: str) -> torch.Tensor:
    """Read an image file exactly as `adautomix predict` does: normalized, `[1, 3, H, W]`."""
    image = reading.read_prepared(path, CONFIG["image_size"], **CONFIG["preparation"])
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*image.size, 3)
    mean, std = (torch.tensor(CONFIG[key], dtype=torch.float64) for key in ("mean", "std"))
    return (pixels * (1 / (255 * std)).float() - (mean / std).float()).permute(2, 0, 1)[None]


if __name__ == "__main__":
    logits = load_model()(read_image(sys.argv[1])).detach()[0] / CONFIG["temperature"]
    probabilities = logits.sigmoid() if CONFIG["multi_label"] else logits.softmax(0)
    for probability, index in list(zip(*probabilities.sort(descending=True), strict=True))[:5]:
        print(f"{probability:.4f}  {CONFIG['classes'][index]}")
