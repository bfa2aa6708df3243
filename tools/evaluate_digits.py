"""Measure what a model of digits writes: sentences, images, and whether they agree; report and gallery."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import CAPTIONS, COUNT_PROMPT, WORDS, load_split, read_caption, read_count, read_images

from oneflow_dist.canvas import Canvas, blank_canvas
from oneflow_dist.checkpoint import find_latest, load_weights
from oneflow_dist.config import Config, load_config
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.runtime import run_program
from oneflow_dist.sampler import SamplerSettings, generate


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="run folder")
    parser.add_argument("--samples", type=int, default=256, help="documents of each kind")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--temperature", type=float)
    args = parser.parse_args()
    checkpoint = find_latest(args.folder)
    config = load_config(checkpoint / "config.toml")
    model = OneFlow(config)
    load_weights(checkpoint, model)
    s = config.sampling
    settings = SamplerSettings(
        steps=args.steps or s.steps,
        guidance=args.guidance or s.guidance,
        temperature=args.temperature or s.temperature,
        top_p=s.top_p,
        max_rows=s.max_rows,
    )
    tokenizer = load_tokenizer(config.data.tokenizer)
    start = time.time()
    report: dict[str, Any] = {}
    def gen(prompts, seed):
        t=time.time()
        cs = [blank_canvas(p, tokenizer, config.image, seed, i) for i, p in enumerate(prompts)]
        generate(model, cs, settings, config, tokenizer)
        print('gen',len(cs),time.time()-t)
        return cs
    n = args.samples
    single = gen([[]] * n, 1)
    parts = [c.parts(tokenizer) for c in single]
    digit = [read_caption(p[0]) if len(p) == 2 and isinstance(p[0], str) and p[1] == 0 else None for p in parts]
    texts = [" ".join(x for x in p if isinstance(x, str)) for p in parts]
    valid = [read_caption(t) is not None for t in texts]
    has = [len(c.latents) == 1 for c in single]
    agree = [d is not None and read_images(c.latents)[0] == d for d, c in zip(digit, single)]
    print('single', dict(valid_text=np.mean(valid), has_image=np.mean(has), agreement=np.mean(agree), agr_valid=np.mean([a for a,d in zip(agree,digit) if d is not None])))
    from collections import Counter
    print(Counter(digit), [(t, len(c.latents)) for t, v, c in zip(texts, valid, single) if not v or len(c.latents)!=1][:10])
    prompt = tokenizer.encode(COUNT_PROMPT)
    inter = gen([prompt] * n, 2)
    whole, per, tot, vt = 0, 0, 0, 0
    lens = []
    for c in inter:
        p = c.parts(tokenizer)
        words = [x for x in p[1:] if isinstance(x, str)] if p and p[0]==COUNT_PROMPT else [x for x in p if isinstance(x, str)]
        if words and words[0].startswith(COUNT_PROMPT): words[0]=words[0][len(COUNT_PROMPT):].strip()
        kinds = [isinstance(x, str) for x in p]
        if kinds and p[0]==COUNT_PROMPT: kinds=kinds[1:]
        digits = read_count(words)
        shape_ok = kinds == [True, False] * (len(kinds)//2)
        vt += digits is not None
        seen = read_images(c.latents)
        named = [WORDS.index(w) if w in WORDS else -1 for w in words]
        k = sum(a == b for a, b in zip(seen, named)) if shape_ok else 0
        per += k; tot += max(1, len(seen)); lens.append(len(seen))
        whole += digits is not None and shape_ok and k == len(seen) == len(words)
        if digits is None and np.random.rand()<.1: print(words)
    print('inter', dict(valid=vt/n, per=per/tot, whole=whole/n), Counter(lens))
    rng = np.random.default_rng(3)
    digs = [i % 10 for i in range(n)]
    caps = [CAPTIONS[rng.integers(len(CAPTIONS))].format(WORDS[d]) for d in digs]
    t2i = gen([tokenizer.encode(c) + [None] for c in caps], 3)
    print('t2i', np.mean(read_images(np.concatenate([c.latents for c in t2i])) == digs))
    images, labels = load_split("heldout")
    lat = [(im.astype(np.float32)[None] / 127.5 - 1) for im in images[:n]]
    i2t = gen([[l] for l in lat], 4)
    seen = read_images(np.stack(lat))
    got = [read_caption(" ".join(x for x in c.parts(tokenizer) if isinstance(x, str))) for c in i2t]
    print('i2t', np.mean([a == b for a, b in zip(seen, got)]), sum(g is None for g in got))
    print('time', time.time() - start)


if __name__ == "__main__":
    run_program(main)
