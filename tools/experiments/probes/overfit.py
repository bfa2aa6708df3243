"""A model that has seen one document alone: does it write that document?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from oneflow_dist.data.codec import to_latents
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.progress import checkpoint_folder
from oneflow_dist.trained import load_model
from oneflow_dist.validation import draw_documents
from tools.digits.judging import Writer
from tools.experiments.reading import Probe
from tools.experiments.rows import Row, Subject

SEED = 31


def measure(subject: Subject, probe: Probe) -> Iterator[Row]:
    """How exact what is written is after each number of steps in `probe.values`.

    exact is the share of writings with the very tokens of the document, image_error the mean square of the images of
    these beside its own, whose pixels go from -1 to 1.
    """
    for step in probe.values:
        model, config = load_model(checkpoint_folder(str(subject.folder), int(step)))
        (sample,) = draw_documents(config, load_mixture(config.data.mixture)[0])
        writer = Writer(model, config, load_tokenizer(config.data.tokenizer, config.modality))
        canvases = writer.write(f"step {step:g}", [[]] * probe.documents, SEED + subject.seed)
        exact = [canvas for canvas in canvases if canvas.tokens.tolist() == sample.tokens.tolist()]
        yield Row("", step, "exact", len(exact) / len(canvases))
        (image,) = to_latents(sample.pieces[0], config.modality["image"])
        errors = [np.square(canvas.latents("image")[0] - image).mean() for canvas in exact]
        if errors:
            yield Row("", step, "image_error", float(np.mean(errors)))
