"""Between latents and trunk rows: a linear patch adapter."""

# Shapes: I images, C H W latent, P rows of an image, D trunk width.

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from oneflow_dist.config import ImageConfig
from oneflow_dist.model.embeddings import Modulation


class ImageAdapter(nn.Module):
    """Patches of noisy latents in, velocity of the same patches out."""

    def __init__(self, width: int, image: ImageConfig, norm_eps: float):
        super().__init__()
        self.image = image
        patch_elements = image.channels * image.patch_size**2
        self.embed = nn.Linear(patch_elements, width)
        self.norm = nn.RMSNorm(width, eps=norm_eps)
        self.modulation = Modulation(width, num_parts=2) if image.time_conditioning == "adaln" else None
        self.out = nn.Linear(width, patch_elements)  # zero at the start

    def encode(self, latents: Float[Tensor, "I C H W"], time_embedding: Float[Tensor, "I D"]) -> Float[Tensor, "I P D"]:
        """Rows of each image, with its time added unless the blocks are modulated by it."""
        rows = self.embed(patchify(latents, self.image).to(self.embed.weight.dtype))
        return rows if self.modulation is not None else rows + time_embedding[:, None]

    def decode(self, rows: Float[Tensor, "I P D"], time_embedding: Float[Tensor, "I D"]) -> Float[Tensor, "I C H W"]:
        """Velocity of each image from the trunk's output on its rows."""
        hidden = self.norm(rows)
        if self.modulation is not None:
            shift, scale = self.modulation(time_embedding)
            hidden = hidden * scale[:, None] + shift[:, None]
        return unpatchify(self.out(hidden), self.image)


def patchify(latents: Float[Tensor, "I C H W"], image: ImageConfig) -> Float[Tensor, "I P E"]:
    """Cut each latent into patches, row by row; a patch lists its elements by (row, column, channel)."""
    rows, columns = image.grid
    size = image.patch_size
    patches = latents.reshape(-1, image.channels, rows, size, columns, size)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(-1, rows * columns, size * size * image.channels)


def unpatchify(patches: Float[Tensor, "I P E"], image: ImageConfig) -> Float[Tensor, "I C H W"]:
    """The inverse of `patchify`."""
    rows, columns = image.grid
    size = image.patch_size
    latents = patches.reshape(-1, rows, columns, size, size, image.channels)
    return latents.permute(0, 5, 1, 3, 2, 4).reshape(-1, *image.shape)
