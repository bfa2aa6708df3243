"""A U-Net around the trunk, on packed pieces of any shapes: its middle is the transformer."""

# Shapes: I pieces, P patches, N elements (pixels) of all patches, n of either, K neighbours of an element with itself,
# C channels of a latent, c of the U-Net, D trunk width.

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from oneflow_dist.containers import PackedPieces
from oneflow_dist.modality import ModalityConfig, Sides, on_axes
from oneflow_dist.model.embeddings import Modulation, spread
from oneflow_dist.model.linear import Linear, RMSNorm


class Skips(NamedTuple):
    """What goes past the trunk."""

    elements: Float[Tensor, "N c"]
    patches: Float[Tensor, "P c2"]
    near_elements: Int64[Tensor, "N K"]
    near_patches: Int64[Tensor, "P K"]


class UNet(nn.Module):
    """Residual blocks of convolutions on elements, then on patches, into the trunk; the same out of it, with skips.

    Pieces of different shapes make no tensor [I, C, H, W]: a convolution is a look at an element's neighbours and one
    product, so packs need no padding and may be empty. Elements lie patch by patch; going down, the elements of a patch
    become its channels.

    Source: arXiv:2408.11039, section 3.4, with norms over channels in place of groups.
    """

    def __init__(self, width: int, modality: ModalityConfig, norm_eps: float):
        super().__init__()
        channels, size = modality.adapter_width, math.prod(modality.patch)
        self.patch = on_axes(modality.patch)
        self.reach = on_axes((3,) * modality.dimensions)
        num_near = 3**modality.dimensions
        options = {"width": width, "num_near": num_near, "norm_eps": norm_eps}
        self.enter = Linear(num_near * modality.channels, channels)
        self.elements_in = ResidualBlock(channels, **options)
        self.down = Linear(size * channels, 2 * channels)
        self.patches_in = ResidualBlock(2 * channels, **options)
        self.to_trunk = Linear(2 * channels, width)
        self.norm = RMSNorm(width, eps=norm_eps)
        self.from_trunk = Linear(width, 2 * channels)
        self.join_patches = Linear(4 * channels, 2 * channels)
        self.patches_out = ResidualBlock(2 * channels, **options)
        self.up = Linear(2 * channels, size * channels)
        self.join_elements = Linear(2 * channels, channels)
        self.elements_out = ResidualBlock(channels, **options)
        self.last = Linear(num_near * channels, modality.channels)  # zero at the start; without a norm, see `decode`

    def encode(
        self, patches: Float[Tensor, "P E"], pieces: PackedPieces, time: Float[Tensor, "I D"]
    ) -> tuple[Float[Tensor, "P D"], Skips]:
        """The row of each patch, and what goes past the trunk."""
        near_elements, near_patches = (neighbours(pieces, patch, self.reach) for patch in (self.patch, (1, 1, 1)))
        x = self.enter(look_around(patches.reshape(-1, self.last.out_features), near_elements))
        elements = self.elements_in(x, near_elements, time, pieces.patch_piece)
        x = self.down(elements.reshape(-1, self.down.in_features))
        x = self.patches_in(x, near_patches, time, pieces.patch_piece)
        return self.to_trunk(x), Skips(elements, x, near_elements, near_patches)

    def decode(
        self, rows: Float[Tensor, "P D"], pieces: PackedPieces, time: Float[Tensor, "I D"], skips: Skips
    ) -> Float[Tensor, "P E"]:
        """Velocity of each patch: most of it is the noise of the elements, whose size a norm would take away."""
        x = self.join_patches(torch.cat([self.from_trunk(self.norm(rows)), skips.patches], dim=-1))
        x = self.patches_out(x, skips.near_patches, time, pieces.patch_piece)
        x = torch.cat([self.up(x).reshape(-1, self.join_elements.out_features), skips.elements], dim=-1)
        x = self.elements_out(self.join_elements(x), skips.near_elements, time, pieces.patch_piece)
        x = self.last(look_around(x, skips.near_elements))
        return x.reshape(-1, math.prod(self.patch) * self.last.out_features)


class ResidualBlock(nn.Module):
    """Two convolutions beside an identity; the piece's time shifts and scales the first one's input."""

    def __init__(self, channels: int, *, width: int, num_near: int, norm_eps: float):
        super().__init__()
        self.first_norm = RMSNorm(channels, eps=norm_eps)
        self.modulation = Modulation(width, num_parts=2, part_width=channels)
        self.first = Linear(num_near * channels, channels)
        self.last_norm = RMSNorm(channels, eps=norm_eps)
        self.last = Linear(num_near * channels, channels)  # zero at the start

    def forward(
        self,
        x: Float[Tensor, "n c"],
        near: Int64[Tensor, "n K"],
        time: Float[Tensor, "I D"],
        patch_piece: Int64[Tensor, "P"],
    ) -> Float[Tensor, "n c"]:
        shift, scale = (spread(part, patch_piece)[:, None] for part in self.modulation(time))
        h = self.first_norm(x).reshape(len(patch_piece), len(x) // max(1, len(patch_piece)), x.shape[1])
        h = self.first(look_around(F.silu(h * scale + shift).reshape(x.shape), near))
        return x + self.last(look_around(F.silu(self.last_norm(h)), near))


def look_around(x: Float[Tensor, "n c"], near: Int64[Tensor, "n K"]) -> Float[Tensor, "n _"]:
    """Each element with its neighbours, side by side; zeros where there is none. With a product it is a convolution."""
    return _LookAround.apply(x, near)


class _LookAround(torch.autograd.Function):
    """Whoever is my neighbour at an offset sees me at the opposite one: so the gradient is a look around, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, near: Tensor) -> Tensor:
        ctx.save_for_backward(near)
        return F.pad(x, (0, 0, 0, 1)).index_select(0, near.flatten()).reshape(len(x), near.shape[1] * x.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (near,) = ctx.saved_tensors
        num_near = near.shape[1]
        parts = F.pad(grad, (0, 0, 0, 1)).reshape((len(grad) + 1) * num_near, grad.shape[1] // num_near)
        opposite = num_near - 1 - torch.arange(num_near, device=near.device)
        seen = parts.index_select(0, (near * num_near + opposite).flatten())
        return seen.reshape(len(grad), num_near, parts.shape[1]).sum(1), None


def neighbours(pieces: PackedPieces, patch: Sides, reach: Sides) -> Int64[Tensor, "n K"]:
    """For every element those around it and itself, in the same piece; n where there is none.

    Args:
        patch: elements of a patch along time, height and width; (1, 1, 1) for patches themselves.
        reach: 3 along the axes that pieces have, else 1.
    """
    patch_piece, device = pieces.patch_piece, pieces.patch_piece.device
    size, num_near = math.prod(patch), math.prod(reach)
    num_patches = pieces.grid.prod(1)
    first = (num_patches.cumsum(0) - num_patches)[patch_piece]
    grid = pieces.grid[patch_piece]
    rest = torch.arange(len(patch_piece), device=device) - first
    inner, offset = torch.arange(size, device=device), torch.arange(num_near, device=device)
    index, within = first.new_zeros(len(first), size, num_near), first.new_zeros(len(first), size, num_near)
    is_there = torch.ones_like(index, dtype=torch.bool)
    for axis in range(3):
        after_patch, after_reach = math.prod(patch[axis + 1 :]), math.prod(reach[axis + 1 :])
        after_grid = grid[:, axis + 1 :].prod(1)
        place = rest // after_grid
        rest = rest - place * after_grid
        to = (place * patch[axis])[:, None] + inner // after_patch % patch[axis]
        to = to[:, :, None] + offset // after_reach % reach[axis] - reach[axis] // 2
        side = grid[:, axis, None, None]
        is_there &= (to >= 0) & (to < side * patch[axis])
        index = index * side + to // patch[axis]
        within = within * patch[axis] + to % patch[axis]
    index = (index + first[:, None, None]) * size + within
    return torch.where(is_there, index, len(first) * size).flatten(0, 1)
