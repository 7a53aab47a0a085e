"""BrainNetCNN: convolutions whose neighbourhood is the connectivity matrix's rows and columns.

Kawahara et al. 2017, "BrainNetCNN: Convolutional neural networks for brain networks; towards predicting
neurodevelopment", NeuroImage 146. Shapes: B subject, C channel, P region, K output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eval.baselines.network_inputs import Singles

SLOPE = 1 / 3
"""Of the leaky rectifiers, as in the paper."""


class EdgeToEdge(nn.Module):
    """Each edge (i, j) from all edges that share a region with it: a filter on row i plus one on column j."""

    def __init__(self, num_regions: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.row = nn.Conv2d(channels_in, channels_out, (1, num_regions))
        self.column = nn.Conv2d(channels_in, channels_out, (num_regions, 1))

    def forward(self, edges_BCPP: Tensor) -> Tensor:
        """`(B, C, P, P)` to `(B, C', P, P)`."""
        filtered: Tensor = self.row(edges_BCPP) + self.column(edges_BCPP)
        return filtered


class EdgeToNode(nn.Module):
    """Each region from the edges it has: a filter on its row plus one on its column."""

    def __init__(self, num_regions: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.row = nn.Conv2d(channels_in, channels_out, (1, num_regions))
        self.column = nn.Conv2d(channels_in, channels_out, (num_regions, 1))

    def forward(self, edges_BCPP: Tensor) -> Tensor:
        """`(B, C, P, P)` to `(B, C', P)`."""
        nodes: Tensor = self.row(edges_BCPP)[..., 0] + self.column(edges_BCPP)[..., 0, :]
        return nodes


class NodeToGraph(nn.Module):
    """The whole graph from its regions: one filter over all of them."""

    def __init__(self, num_regions: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.nodes = nn.Conv1d(channels_in, channels_out, num_regions)

    def forward(self, nodes_BCP: Tensor) -> Tensor:
        """`(B, C, P)` to `(B, C')`."""
        graph: Tensor = self.nodes(nodes_BCP)[..., 0]
        return graph


class BrainNetCNN(nn.Module):
    """Edge-to-edge, edge-to-node, node-to-graph, then a linear readout.

    The paper's smaller variant (one edge-to-edge layer), with fewer channels: evaluations have tens to thousands of
    subjects.

    Parameters
    ----------
    num_regions, num_outputs : int
        P and K.
    mean, scale : numpy.ndarray, shape (P, P)
        Of each edge over the subjects that are learnt from; matrices are standardised with them.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, num_regions: int, num_outputs: int, mean: Singles, scale: Singles) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("scale", torch.from_numpy(scale))
        self.layers = nn.Sequential(
            EdgeToEdge(num_regions, 1, 16),
            nn.LeakyReLU(SLOPE),
            EdgeToNode(num_regions, 16, 32),
            nn.LeakyReLU(SLOPE),
            nn.Dropout(0.5),
            NodeToGraph(num_regions, 32, 64),
            nn.LeakyReLU(SLOPE),
            nn.Dropout(0.5),
            nn.Linear(64, num_outputs),
        )

    def forward(self, matrix_BPP: Tensor, num_frames_B: Tensor) -> Tensor:
        """Outputs `(B, K)`; `num_frames` is not looked at."""
        standardised_BPP = (matrix_BPP - self.mean) / self.scale
        output_BK: Tensor = self.layers(standardised_BPP[:, None])
        return output_BK
