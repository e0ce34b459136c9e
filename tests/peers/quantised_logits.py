#!/usr/bin/env python3
"""Shows that transformers, with the compressed-tensors package, reads what `mllama quantize` writes as this engine does.

    pip install torch==2.8.0 transformers==4.56.2 compressed-tensors==0.11.0
    python quantised_logits.py ../../build/mllama ../goldens/models/a_published --batch case_image_text.jsonl

For each way to quantise: writes the directory, runs `mllama forward --dtype f32` on it, loads it with transformers in
float32, runs that on the same inputs, and compares the logits. Activations are not rounded in either, so that only the
reading of weights is compared; with W8A8 the difference that transformers' rounding of activations makes is printed
beside it. Ends with an error if any difference is more than 2e-4 of the largest logit.
"""
import argparse
import os
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file
from transformers import MllamaForConditionalGeneration

TOLERANCE = 2e-4
WAYS = [
    ["--dtype", "int8"],
    ["--dtype", "int4"],
    ["--dtype", "int4", "--group-size", "64"],
    ["--dtype", "int4", "--group-size", "32"],
    ["--dtype", "int4", "--group-size", "channel"],
    ["--dtype", "int8", "--vision-dtype", "int8", "--lm-head-dtype", "int8"],
]


def logits_of(model, inputs, round_activations):
    for module in model.modules():
        module.quantization_enabled = round_activations
    with torch.no_grad():
        return model(**inputs).logits.float()


def share(a, b, mask):
    """The largest difference at real tokens, of the largest logit."""
    return ((a - b)[mask].abs().max() / b[mask].abs().max()).item()


def quantised_layers(model):
    return sum(hasattr(module, "weight_scale") for module in model.modules())


def check(binary, checkpoint, batch, way):
    """Returns the difference."""
    with tempfile.TemporaryDirectory() as work:
        directory, out = os.path.join(work, "model"), os.path.join(work, "out.safetensors")
        subprocess.run([binary, "quantize", "-m", checkpoint, "--out", directory, *way], check=True, stderr=subprocess.DEVNULL)
        subprocess.run([binary, "forward", "-m", directory, "--batch", batch, "--dtype", "f32", "--date", "24 Nov 2026",
                        "--out", out], check=True, cwd=os.path.dirname(batch))
        ours = load_file(out)
        logits = ours.pop("logits")
        model, info = MllamaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32,
                                                                     output_loading_info=True)
        wrong = {kind: names for kind, names in info.items() if names}
        if wrong or quantised_layers(model) == 0:
            sys.exit(f"{' '.join(way)}: transformers does not load the directory: {wrong or 'nothing quantised'}")
        mask = ours["attention_mask"].bool()
        theirs = logits_of(model.eval(), ours, False)
        difference = share(logits, theirs, mask)
        rounded = share(logits_of(model, ours, True), theirs, mask)
        print(f"{' '.join(way):70} {quantised_layers(model):4} layers   {difference:.1e}   {rounded:.1e}", flush=True)
        return difference


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", help="build/mllama")
    parser.add_argument("checkpoint", help="a directory with plain weights")
    parser.add_argument("--batch", required=True, help="requests for `mllama forward --batch`")
    args = parser.parse_args()
    binary, checkpoint = os.path.abspath(args.binary), os.path.abspath(args.checkpoint)
    print(f"{'':70}               ours - theirs   their rounding of activations")
    worst = max(check(binary, checkpoint, os.path.abspath(args.batch), way) for way in WAYS)
    if not worst <= TOLERANCE:
        sys.exit(f"the logits differ by {worst:.1e} of the largest")


if __name__ == "__main__":
    main()
