"""Load the network of this folder with timm; `python load_model.py IMAGE` classifies an image."""

import json
import sys
from pathlib import Path

import timm
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

FOLDER = Path(__file__).parent
CONFIG = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))


def load_model() -> torch.nn.Module:
    """The network in evaluation mode, from normalized images `[B, 3, H, W]` to logits `[B, K]`."""
    build = timm.models.model_entrypoint(CONFIG["architecture"])  # create_model looks up hubs too
    model: torch.nn.Module = build(False, **CONFIG["arguments"])
    for path, conv in CONFIG["replaced"].items():
        model.set_submodule(path, torch.nn.Conv2d(**conv) if conv else torch.nn.Identity())
    model.load_state_dict(load_file(FOLDER / "model.safetensors"))
    return model.eval()


def read_image(path: str) -> torch.Tensor:
    """Read the center square of an image file, resized and normalized, `[1, 3, H, W]`."""
    side, safe = CONFIG["image_size"], ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
    upright = ImageOps.exif_transpose(Image.open(path, formats=safe)).convert("RGB")
    square = ImageOps.fit(upright, (side, side), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(side, side, 3)
    normalized = (pixels / 255 - torch.tensor(CONFIG["mean"])) / torch.tensor(CONFIG["std"])
    return normalized.permute(2, 0, 1).unsqueeze(0)


if __name__ == "__main__":
    logits = load_model()(read_image(sys.argv[1])).detach()[0]
    probabilities = logits.sigmoid() if CONFIG.get("multi_label") else logits.softmax(0)
    for probability, index in list(zip(*probabilities.sort(descending=True), strict=True))[:5]:
        print(f"{probability:.4f}  {CONFIG['classes'][index]}")
