"""Colours as people see them: CIELAB, protanopia, deuteranopia and contrast."""

import numpy as np

# Machado, Oliveira and Fernandes 2009, severity 1, in linear RGB.
NORMAL = np.eye(3)
PROTANOPIA = np.array(
    [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]
)
DEUTERANOPIA = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
WHITE = np.array([0.95047, 1.0, 1.08883])  # D65


def linear(colour) -> np.ndarray:
    """sRGB from 0 to 255 as linear intensities."""
    channels = np.asarray(colour) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(intensities: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB."""
    relative = TO_XYZ @ np.clip(intensities, 0, 1) / WHITE
    x, y, z = np.where(relative > 216 / 24389, np.cbrt(relative), (24389 / 27 * relative + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def least_difference(one, two) -> float:
    """The least CIELAB distance of two colours over normal vision, protanopia and deuteranopia."""
    return min(
        float(np.linalg.norm(lab(eye @ linear(one)) - lab(eye @ linear(two))))
        for eye in (NORMAL, PROTANOPIA, DEUTERANOPIA)
    )


def contrast(one, two) -> float:
    """The contrast ratio of WCAG 2."""
    dark, light = sorted(TO_XYZ[1] @ linear(colour) for colour in (one, two))
    return float((light + 0.05) / (dark + 0.05))
