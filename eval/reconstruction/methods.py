"""What is put beside what: predictions of frames by the model and by rules that know little, task by task.

Shapes: B window, L frame, V voxel, D latent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from training.networks.model import BoldModel

Task = Literal["itself", "hidden", "ahead"]
TASKS: dict[Task, str] = {
    "itself": "every frame, nothing hidden",
    "hidden": "hidden frames from the others",
    "ahead": "each frame from those before it",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A way to predict frames.

    Attributes
    ----------
    key : str
        Name in files: task and rule.
    task : str
        What is predicted from what, a key of `TASKS`.
    label : str
        For people.
    is_ours : bool
        Whether it is the model.
    """

    key: str
    task: Task
    label: str
    is_ours: bool = False


def methods_of(phase: int, causal: bool, latent: int) -> tuple[Method, ...]:
    """The methods that a pre-trained model of a phase can be compared in, the model last in each task."""
    found = [
        Method(key="itself_mean", task="itself", label="mean image"),
        Method(key="itself_pca", task="itself", label=f"PCA, {latent} components"),
        Method(key="itself_ours", task="itself", label=f"our model, {latent} latents", is_ours=True),
    ]
    if phase == 2:
        found += [
            Method(key="hidden_mean", task="hidden", label="mean image"),
            Method(key="hidden_previous", task="hidden", label="nearest earlier frame that is seen"),
            Method(key="hidden_linear", task="hidden", label="linear interpolation"),
            Method(key="hidden_ours", task="hidden", label="our model", is_ours=True),
        ]
    if phase == 2 and causal:
        found += [
            Method(key="ahead_mean", task="ahead", label="mean image"),
            Method(key="ahead_previous", task="ahead", label="previous frame"),
            Method(key="ahead_ours", task="ahead", label="our model", is_ours=True),
        ]
    return tuple(found)


def predictions_of(
    model: BoldModel, inputs: dict[str, Any], hidden_BL: Tensor | None, pca_DV: Tensor
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Predict the frames of a batch by every method, one after the other, so that few are in memory at once.

    Parameters
    ----------
    model
        Of phase 1 or 2.
    inputs
        Arguments of its `forward`.
    hidden_BL
        Phase 2: frames to hide.
    pca_DV
        Orthonormal components of training frames.

    Yields
    ------
    key : str
        Of the method.
    truth, prediction : torch.Tensor, shape (B, L, V)
        Residuals, in units of each voxel's SD over its run.
    counted : torch.Tensor, shape (B, L)
        Frames that the task is about.
    """
    import torch
    from torch.nn import functional as F

    from training.networks.pooling import valid_frames
    from training.pretraining.objectives import trivial_predictions

    out = model(**inputs)
    truth_BLV = out["residual"]
    valid_BL = valid_frames(inputs["num_valid"], truth_BLV.shape[1])
    nothing_BLV = torch.zeros_like(truth_BLV)
    yield "itself_mean", truth_BLV, nothing_BLV, valid_BL
    yield "itself_pca", truth_BLV, (truth_BLV @ pca_DV.T) @ pca_DV, valid_BL
    yield "itself_ours", truth_BLV, out["reconstruction"].float(), valid_BL
    if hidden_BL is None:
        return
    for rule, guess_BLV in trivial_predictions(truth_BLV, hidden_BL, valid_BL).items():
        yield f"hidden_{rule}", truth_BLV, guess_BLV, hidden_BL
    yield "hidden_ours", truth_BLV, model(**inputs, hidden=hidden_BL)["reconstruction"].float(), hidden_BL
    if "expected" in out:
        later_BL = valid_BL.clone()
        later_BL[:, 0] = False  # has nothing before it in the window
        yield "ahead_mean", truth_BLV, nothing_BLV, later_BL
        yield "ahead_previous", truth_BLV, F.pad(truth_BLV[:, :-1], (0, 0, 1, 0)), later_BL
        yield "ahead_ours", truth_BLV, model.decode(out["expected"]).float(), later_BL
