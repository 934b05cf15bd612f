"""Load the network of this folder with timm; `python load_model.py IMAGE` classifies an image."""

import json
import sys
from pathlib import Path

import timm
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

CONFIG = json.loads(Path(__file__).with_name("config.json").read_text(encoding="utf-8"))


def load_model() -> torch.nn.Module:
    """The network in evaluation mode, from normalized images `[B, 3, H, W]` to logits `[B, K]`."""
    build = timm.models.model_entrypoint(CONFIG["architecture"])  # create_model looks up hubs too
    model: torch.nn.Module = build(False, **CONFIG["arguments"])
    for path, conv in CONFIG["replaced"].items():
        model.set_submodule(path, torch.nn.Conv2d(**conv) if conv else torch.nn.Identity())
    model.load_state_dict(load_file(Path(__file__).with_name("model.safetensors")))
    return model.eval()


def read_image(path: str) -> torch.Tensor:
    """Read an image file, resized and cropped as in evaluation and normalized, `[1, 3, H, W]`."""
    image = ImageOps.exif_transpose(Image.open(path, formats=CONFIG["formats"]))
    if CONFIG["preparation"]["composite"] and image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = ImageOps.fit(image.convert("RGB"), **CONFIG["fit"])
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*image.size, 3)
    normalized = (pixels / 255 - torch.tensor(CONFIG["mean"])) / torch.tensor(CONFIG["std"])
    return normalized.permute(2, 0, 1).unsqueeze(0)


if __name__ == "__main__":
    logits = load_model()(read_image(sys.argv[1])).detach()[0]
    probabilities = logits.sigmoid() if CONFIG.get("multi_label") else logits.softmax(0)
    for probability, index in list(zip(*probabilities.sort(descending=True), strict=True))[:5]:
        print(f"{probability:.4f}  {CONFIG['classes'][index]}")
