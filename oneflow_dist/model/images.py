"""Between patches and trunk rows: a linear adapter."""

# Shapes: I images, P patches of E elements, D trunk width.

from __future__ import annotations

from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from oneflow_dist.config import ImageConfig
from oneflow_dist.model.embeddings import Modulation, spread
from oneflow_dist.model.linear import Linear, RMSNorm


class ImageAdapter(nn.Module):
    """Noisy patches in, their velocity out. Each has the time of image `patch_image`."""

    def __init__(self, width: int, image: ImageConfig, norm_eps: float):
        super().__init__()
        self.embed = Linear(image.patch_elements, width)
        self.norm = RMSNorm(width, eps=norm_eps)
        self.modulation = Modulation(width, num_parts=2) if image.time_conditioning == "adaln" else None
        self.out = Linear(width, image.patch_elements)  # zero at the start

    def encode(
        self, patches: Float32[Tensor, "P E"], time_embedding: Float[Tensor, "I D"], patch_image: Int64[Tensor, "P"]
    ) -> Float[Tensor, "P D"]:
        """The row of each patch, with its time added unless the blocks are modulated by it."""
        rows = self.embed(patches.to(self.embed.weight.dtype))
        return rows if self.modulation is not None else rows + spread(time_embedding, patch_image)

    def decode(
        self, rows: Float[Tensor, "P D"], time_embedding: Float[Tensor, "I D"], patch_image: Int64[Tensor, "P"]
    ) -> Float[Tensor, "P E"]:
        """Velocity of each patch from the trunk's output on its row."""
        hidden = self.norm(rows)
        if self.modulation is not None:
            shift, scale = (spread(part, patch_image) for part in self.modulation(time_embedding))
            hidden = hidden * scale + shift
        return self.out(hidden)
