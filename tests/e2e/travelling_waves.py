"""A signal that a few steps of training can learn something of, the same on every machine."""

from __future__ import annotations

import numpy as np


def travelling_waves(num_voxels: int) -> dict[str, np.ndarray]:
    """Sixteen runs of three waves through the voxels, with noise; in every other subject they run backwards."""
    rng = np.random.default_rng(5)
    place_KV = rng.uniform(0, 2 * np.pi, (3, num_voxels))
    time_T = np.arange(48)
    signals = {}
    for subject in range(16):
        direction = 1 if subject % 2 else -1
        phase_K = rng.uniform(0, 2 * np.pi, 3)
        speed_K = np.array([0.3, 0.5, 0.9])
        wave_KTV = np.sin(
            direction * speed_K[:, None, None] * time_T[:, None] + phase_K[:, None, None] + place_KV[:, None]
        )
        noise_TV = rng.standard_normal((len(time_T), num_voxels))
        signals[f"sub-{subject:02d}_task-rest"] = (1000 + 20 * (wave_KTV.sum(0) + noise_TV)).astype("f4")
    return signals
