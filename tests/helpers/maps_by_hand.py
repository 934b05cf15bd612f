"""Saliency maps, pixel by pixel in numpy."""

from typing import Any

import numpy as np
from torch import Tensor


def gray_by_hand(image: Tensor) -> np.ndarray[Any, Any]:
    red, green, blue = image.double().numpy()
    return np.asarray(0.299 * red + 0.587 * green + 0.114 * blue)


def spectral_residual_by_hand(gray: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    spectrum = np.fft.fft2(gray)
    log, phase = np.log(np.abs(spectrum)), np.angle(spectrum)
    padded = np.pad(log, 1, mode="edge")
    residual = np.empty_like(log)
    for y in range(log.shape[0]):
        for x in range(log.shape[1]):
            residual[y, x] = log[y, x] - padded[y : y + 3, x : x + 3].mean()
    return np.abs(np.fft.ifft2(np.exp(residual + 1j * phase)))


def surrounding_mean_by_hand(gray: np.ndarray[Any, Any], y: int, x: int, half: int) -> float:
    height, width = gray.shape
    box = gray[max(y - half + 1, 0) : y + half + 1, max(x - half + 1, 0) : x + half + 1]
    assert box.size <= height * width
    return float((box.sum() - gray[y, x]) / (box.size - 1))


def fine_grained_by_hand(gray: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    for axis in (0, 1, 0, 1):
        padded = np.pad(gray, [(int(axis == 0),) * 2, (int(axis == 1),) * 2], mode="reflect")
        before, behind = (np.roll(padded, step, axis) for step in (1, -1))
        smooth = (before + 2 * padded + behind) / 4
        gray = smooth[1:-1] if axis == 0 else smooth[:, 1:-1]
    brighter, darker = np.zeros_like(gray), np.zeros_like(gray)
    for half in (12, 24, 48, 28, 56, 112):
        for y in range(gray.shape[0]):
            for x in range(gray.shape[1]):
                contrast = gray[y, x] - surrounding_mean_by_hand(gray, y, x, half)
                brighter[y, x] += max(contrast, 0)
                darker[y, x] += max(-contrast, 0)
    return np.asarray(brighter / brighter.max() + darker / darker.max())
