"""Between patches and trunk rows: an adapter for each modality."""

# Shapes: I pieces, S sequences, P patches of E elements (V of velocity), D trunk width.

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from oneflow_dist.containers import PackedPieces
from oneflow_dist.modality import ModalityConfig
from oneflow_dist.model.embeddings import Modulation, TimeEmbedding, spread
from oneflow_dist.model.linear import Linear, RMSNorm
from oneflow_dist.model.understanding import Understanding, load_understanding
from oneflow_dist.model.unet import Skips, UNet


class Encoded(NamedTuple):
    """What an adapter makes of the patches of a pack."""

    rows: Float[Tensor, "P D"]  # into the trunk
    time: Float[Tensor, "I D"]  # embedded; of nothing for what is only ever given
    skips: Skips | None = None  # past the trunk


class Adapter(nn.Module):
    """Noisy patches in, their velocity out; each has the time of its piece. Ranks run it on no patches, too.

    Where insertion heads know the text time, the velocity does too: it depends on what text may still come, and so on
    how likely that is. As there, it modulates what comes out of the trunk, and the trunk knows nothing of it.

    Linear, of two layers, or a U-Net around the trunk (arXiv:2408.11039, section 3.4).
    """

    def __init__(self, width: int, modality: ModalityConfig, norm_eps: float, knows_text: bool = False):
        super().__init__()
        self.is_added = modality.time_conditioning == "added"
        self.time = TimeEmbedding(width)
        self.text_modulation = Modulation(width, num_parts=2) if knows_text else None
        self.unet = UNet(width, modality, norm_eps) if modality.adapter == "unet" else None
        if self.unet is None:
            self.embed = TwoLayers(modality.patch_elements, modality.adapter_width, width)
            self.norm = RMSNorm(width, eps=norm_eps)
            self.modulation = None if self.is_added else Modulation(width, num_parts=2)
            self.velocity = TwoLayers(width, modality.adapter_width, modality.patch_elements)  # zero at the start

    def encode(self, pieces: PackedPieces) -> Encoded:
        """The row of each patch, with its time added unless the blocks are modulated by it."""
        time = self.time(pieces.time)
        patches, skips = pieces.patches.to(time.dtype), None
        if self.unet is None:
            rows = self.embed(patches)
        else:
            rows, skips = self.unet.encode(patches, pieces, time)
        return Encoded(rows + spread(time, pieces.patch_piece) if self.is_added else rows, time, skips)

    def decode(
        self,
        rows: Float[Tensor, "P D"],
        pieces: PackedPieces,
        encoded: Encoded,
        text_time: Float[Tensor, "S D"] | None,
    ) -> Float32[Tensor, "P V"]:
        """Velocity of each patch from the trunk's output on its row."""
        if encoded.skips is not None and self.unet is not None:
            return self.unet.decode(self._tell(rows, pieces, text_time), pieces, encoded.time, encoded.skips).float()
        hidden = self._tell(self.norm(rows), pieces, text_time)
        if self.modulation is not None:
            shift, scale = (spread(part, pieces.patch_piece) for part in self.modulation(encoded.time))
            hidden = hidden * scale + shift
        return self.velocity(hidden).float()

    def _tell(
        self, rows: Float[Tensor, "P D"], pieces: PackedPieces, text_time: Float[Tensor, "S D"] | None
    ) -> Float[Tensor, "P D"]:
        """The rows, modulated by the text time where it is known."""
        if self.text_modulation is None or text_time is None:
            return rows
        parts = (spread(part, pieces.sequence) for part in self.text_modulation(text_time))
        shift, scale = (spread(part, pieces.patch_piece) for part in parts)
        return rows * scale + shift


class GivenAdapter(nn.Module):
    """Of what is only ever given: patches of an encoder's map become rows. No noise, no time, no way back."""

    def __init__(self, width: int, modality: ModalityConfig):
        super().__init__()
        self.modality = modality
        self.embed = TwoLayers(modality.patch_elements, modality.adapter_width, width)
        self.encoder: Understanding | None = None  # frozen, on every rank, in no checkpoint

    def load_encoder(self, device: torch.device) -> None:
        """Read the frozen encoder, if patches are pictures that it has to look at first.

        Raises:
            ValueError: no such encoder, or one whose map is not what the config says.
        """
        if self.modality.understanding != "live":
            return
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        encoder = load_understanding(self.modality.codec, device, dtype)
        there, here = (encoder.channels, *encoder.grid), (self.modality.channels, *self.modality.shape)
        if there != here:
            raise ValueError(
                f"{self.modality.codec}: its map has {there[0]} channels of {there[1]}x{there[2]}, but the modality "
                f"with `understanding` has channels {here[0]} and shape {list(here[1:])}; write the encoder's there"
            )
        self.encoder = encoder

    def encode(self, pieces: PackedPieces) -> Encoded:
        """The row of each patch."""
        patches = pieces.patches
        if self.modality.understanding == "live":
            assert self.encoder is not None, "load_encoder comes before"
            patches = self._look(self.encoder, patches)
        rows = self.embed(patches.to(self.embed.last.weight.dtype))
        return Encoded(rows, rows[:0])

    def decode(
        self,
        rows: Float[Tensor, "P D"],
        pieces: PackedPieces,
        encoded: Encoded,
        text_time: Float[Tensor, "S D"] | None,
    ) -> Float32[Tensor, "P V"]:
        """Nothing: V is 0."""
        return rows[:, :0].float()

    def _look(self, encoder: Understanding, patches: Float[Tensor, "P _"]) -> Float[Tensor, "P E"]:
        """Patches of the encoder's map in place of those of the pictures, which all have one size."""
        _, rows, columns = self.modality.grid
        height, width = encoder.view.height // rows, encoder.view.width // columns
        parts = patches.reshape(-1, rows, columns, height, width, 3).transpose(2, 3)
        maps = encoder.encode(_to_pixels(parts.reshape(len(parts), rows * height, columns * width, 3)))
        inner = maps.reshape(len(maps), encoder.channels, rows, self.modality.patch[0], columns, self.modality.patch[1])
        return inner.permute(0, 2, 4, 3, 5, 1).reshape(-1, self.modality.patch_elements)


class TwoLayers(nn.Module):
    """A linear layer, or two with a hidden width between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.first = Linear(inputs, hidden) if hidden else None
        self.last = Linear(hidden or inputs, outputs)

    def forward(self, x: Float[Tensor, "P _"]) -> Float[Tensor, "P _"]:
        return self.last(x if self.first is None else F.silu(self.first(x)))


def _to_pixels(values: Float[Tensor, "*n"]) -> UInt8[Tensor, "*n"]:
    """Values in [-1, 1] as 0 to 255."""
    return ((values + 1.0) * 127.5).round().to(torch.uint8)
