"""Objectives of phases 1 and 2, as pure functions of tensors.

Every loss comes per window and is averaged over windows afterwards, so a global batch has the same
loss however it is divided among ranks.

Shapes: B window, L frame, N = B*L frames, V voxel, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVE_SHARE = 0.1


def elementwise(kind: str, prediction: Tensor, truth: Tensor) -> Tensor:
    """Huber (delta 1), absolute or squared error of each element, float32."""
    prediction, truth = prediction.float(), truth.float()
    if kind == "huber":
        return F.huber_loss(prediction, truth, reduction="none")
    if kind == "l1":
        return (prediction - truth).abs()
    return (prediction - truth).square()


def frame_error(error_BLV: Tensor) -> Tensor:
    """Average over the voxels of each frame, `[B, L]`."""
    return error_BLV.mean(dim=2)


def active_error(error_BLV: Tensor, residual_BLV: Tensor) -> Tensor:
    """Average over each frame's most active tenth of voxels (largest |residual|), `[B, L]`."""
    count = max(1, round(ACTIVE_SHARE * residual_BLV.shape[2]))
    where = residual_BLV.abs().topk(count, dim=2, sorted=False).indices
    return error_BLV.gather(2, where).mean(dim=2)


def window_mean(value_BL: Tensor, counted_BL: Tensor) -> Tensor:
    """Average over the counted frames of each window, `[B]`; 0 where there are none."""
    counted = counted_BL.to(value_BL.dtype)
    return (value_BL * counted).sum(1) / counted.sum(1).clamp(min=1)


def neighbour_contrast(
    own_BLD: Tensor, own_valid_BL: Tensor, all_ALD: Tensor, all_valid_AL: Tensor, first: int, temperature: float
) -> Tensor:
    """InfoNCE: a frame is closer to its neighbours in time than to distant frames and other windows.

    Parameters
    ----------
    own_BLD, own_valid_BL
        Embeddings of this rank's windows, and which frames are real.
    all_ALD, all_valid_AL
        The same of all ranks' windows, in rank order.
    first
        Row of `all_ALD` at which this rank's windows begin.
    temperature
        Divides the cosine similarities.

    Returns
    -------
    Tensor
        `[B]`, mean over a window's frames of -log(neighbours' share of the similarity).
    """
    num_own, num_frames, _ = own_BLD.shape
    anchor_ND = F.normalize(own_BLD.float().flatten(0, 1), dim=1)
    key_MD = F.normalize(all_ALD.float().flatten(0, 1), dim=1)
    window_N = torch.arange(num_own, device=own_BLD.device).repeat_interleave(num_frames) + first
    window_M = torch.arange(len(all_ALD), device=own_BLD.device).repeat_interleave(num_frames)
    time_N = torch.arange(num_frames, device=own_BLD.device).repeat(num_own)
    time_M = torch.arange(num_frames, device=own_BLD.device).repeat(len(all_ALD))
    same_NM = window_N[:, None] == window_M
    distance_NM = (time_N[:, None] - time_M).abs()
    allowed_NM = all_valid_AL.flatten() & ~(same_NM & (distance_NM == 0))
    positive_NM = same_NM & (distance_NM == 1) & allowed_NM
    similarity_NM = anchor_ND @ key_MD.T / temperature
    everything_N = similarity_NM.masked_fill(~allowed_NM, -1e9).logsumexp(1)
    positives_N = similarity_NM.masked_fill(~positive_NM, -1e9).logsumexp(1)
    loss_BL = (everything_N - positives_N).view(num_own, num_frames)
    counted_BL = own_valid_BL & positive_NM.any(1).view(num_own, num_frames)
    return window_mean(loss_BL.masked_fill(~counted_BL, 0.0), counted_BL)


def pair_contrast(
    own_BW: Tensor, own_run_B: Tensor, all_AW: Tensor, all_run_A: Tensor, first: int, temperature: float
) -> Tensor:
    """InfoNCE: two windows of a run are closer than windows of different runs.

    Parameters
    ----------
    own_BW, own_run_B
        Embeddings of this rank's windows, and the runs they come from; rows 2k and 2k + 1 are a pair.
    all_AW, all_run_A
        The same of all ranks' windows, in rank order.
    first
        Row of `all_AW` at which this rank's windows begin, an even number.
    temperature
        Divides the cosine similarities.

    Returns
    -------
    Tensor
        `[B]`, -log(partner's share of the similarity). Further windows of the own run, of another pair, are
        neither positive nor negative.
    """
    row_B = torch.arange(len(own_BW), device=own_BW.device)
    partner_B = (row_B ^ 1) + first
    similarity_BA = F.normalize(own_BW.float(), dim=1) @ F.normalize(all_AW.float(), dim=1).T / temperature
    negative_BA = own_run_B[:, None] != all_run_A
    allowed_BA = negative_BA.scatter(1, partner_B[:, None], True)
    return similarity_BA.masked_fill(~allowed_BA, -1e9).logsumexp(1) - similarity_BA[row_B, partner_B]


def direction_error(forward_B: Tensor, reversed_B: Tensor) -> Tensor:
    """Logistic loss of telling a window from its time reversal by their scores, `[B]`; ln 2 where the scores agree."""
    return F.softplus(reversed_B.float() - forward_B.float())


def trivial_predictions(value_BLX: Tensor, hidden_BL: Tensor, valid_BL: Tensor) -> dict[str, Tensor]:
    """What hidden frames would be by rules that know nothing: the yardstick of masked prediction.

    Parameters
    ----------
    value_BLX
        Voxels or latents of each frame; those of hidden frames are not used.
    hidden_BL, valid_BL
        Hidden frames, and real ones.

    Returns
    -------
    dict
        `mean` (zero: residuals have none), `previous` (nearest earlier visible frame, else the
        nearest later one), `linear` (interpolation between the visible frames on both sides);
        each `[B, L, X]`, meaningful at hidden frames.
    """
    visible_BL = valid_BL & ~hidden_BL
    time_L = torch.arange(value_BLX.shape[1], device=value_BLX.device)
    none = len(time_L)
    earlier_BL = torch.where(visible_BL, time_L, -1).cummax(1).values
    later_BL = torch.where(visible_BL, time_L, none).flip(1).cummin(1).values.flip(1)
    left_BL = torch.where(earlier_BL < 0, later_BL, earlier_BL).clamp(0, none - 1)
    right_BL = torch.where(later_BL == none, earlier_BL, later_BL).clamp(0, none - 1)
    width = (right_BL - left_BL).clamp(min=1)
    share = ((time_L - left_BL).clamp(min=0) / width).clamp(0, 1).to(value_BLX.dtype)[..., None]
    left, right = _frames(value_BLX, left_BL), _frames(value_BLX, right_BL)
    return {"mean": torch.zeros_like(value_BLX), "previous": left, "linear": left + share * (right - left)}


def effective_rank(covariance_DD: Tensor) -> float:
    """Exponential of the entropy of the normalised eigenvalues (Roy & Vetterli 2007); 1 to D."""
    eigenvalues = torch.linalg.eigvalsh(covariance_DD.double()).clamp(min=0)
    share = eigenvalues / eigenvalues.sum().clamp(min=1e-30)
    return float(torch.exp(-(share * share.clamp(min=1e-30).log()).sum()))


def _frames(value_BLX: Tensor, index_BL: Tensor) -> Tensor:
    return value_BLX.gather(1, index_BL[..., None].expand_as(value_BLX))
