"""The handwritten digits that come with scikit-learn."""

import torch
import torch.nn.functional as F

from adautomix.data.sources.listing import Arrays


def read_digits() -> Arrays:
    """Return the 1,797 digits, enlarged from 8 × 8 to 32 × 32 pixels."""
    from sklearn.datasets import load_digits  # late: it takes a second

    digits = load_digits()
    gray = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    large = F.interpolate(gray, (32, 32), mode="bilinear").round().to(torch.uint8)
    return Arrays(
        "digits",
        tuple(str(name) for name in digits.target_names),
        large.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous(),
        torch.from_numpy(digits.target).long(),
        {"all": torch.arange(len(digits.target))},
        padding=1 / 16,
        flip=False,  # a mirrored digit is no longer that digit
    )
