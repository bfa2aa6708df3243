"""A OneFlow model as a pipeline of diffusers: pictures from text.

    from diffusers import DiffusionPipeline
    pipeline = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
    pipeline("a red apple").images[0].save("apple.png")

Written from oneflow_dist. Licence: Apache-2.0.
"""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image


class OneFlowPipeline(DiffusionPipeline):
    """The network, its tokenizer and, of latents, the autoencoder."""

    _optional_components: ClassVar = ["vae"]
    transformer: Any
    tokenizer: Any
    vae: Any
    register_modules: Any

    def __init__(self, transformer: Any, tokenizer: Any, vae: Any = None):
        super().__init__()
        self.register_modules(transformer=transformer, tokenizer=tokenizer, vae=vae)

    def __call__(
        self,
        prompt: str | list[str],
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
    ) -> Any:
        """Pictures of each prompt; those of one prompt differ by their `index` under the seed.

        Args:
            num_inference_steps: in place of the model's own.
            guidance_scale: likewise.
        """
        kind = next(name for name, one in self.transformer.config.modalities.items() if len(one["shape"]) == 2)
        settings: dict[str, Any] = {} if num_inference_steps is None else {"steps": num_inference_steps}
        if guidance_scale is not None:
            settings["guidance"] = {kind: guidance_scale}
        if self.vae is not None:
            self.transformer.autoencoders[kind] = self.vae
        mark = self.transformer.config.modalities[kind]["token"]
        pictures = []
        for text in [prompt] if isinstance(prompt, str) else prompt:
            for index in range(num_images_per_prompt):
                document = self.transformer.write(self.tokenizer, text + mark, seed=seed, index=index, **settings)
                pictures += [Image.fromarray(pixels) for pixels in self.transformer.pixels(document, kind)]
        return ImagePipelineOutput(images=pictures)
