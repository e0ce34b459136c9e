#!/usr/bin/env python3
"""Shows that transformers, with the compressed-tensors package, reads what `mllama quantize` writes as this engine does.

    pip install torch==2.8.0 transformers==4.56.2 compressed-tensors==0.11.0 accelerate
    cd tests/goldens/models     # where the pictures of the requests are found
    python ../../peers/quantised_logits.py ../../../build/mllama a_published --batch a_published/case_batch_mixed.jsonl

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


def share(a, b):
    """The largest difference, of the largest logit."""
    return ((a - b).abs().max() / b.abs().max()).item()


def quantised_layers(model):
    return sum(hasattr(module, "weight_scale") for module in model.modules())


def forward(binary, directory, request, work):
    """What `mllama forward` gives for one request: inputs and logits under transformers' names."""
    batch, out = os.path.join(work, "batch.jsonl"), os.path.join(work, "out.safetensors")
    with open(batch, "w") as file:
        file.write(request)
    subprocess.run([binary, "forward", "-m", directory, "--batch", batch, "--dtype", "f32", "--date", "24 Nov 2026",
                    "--out", out], check=True)
    return load_file(out)


def check(binary, checkpoint, requests, way):
    """Returns the largest difference."""
    with tempfile.TemporaryDirectory() as work:
        directory = os.path.join(work, "model")
        subprocess.run([binary, "quantize", "-m", checkpoint, "--out", directory, *way], check=True, stderr=subprocess.DEVNULL)
        model, info = MllamaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32,
                                                                     output_loading_info=True)
        wrong = {kind: names for kind, names in info.items() if names}
        if wrong or quantised_layers(model) == 0:
            sys.exit(f"{' '.join(way)}: transformers does not load the directory: {wrong or 'nothing quantised'}")
        difference, rounded = 0.0, 0.0
        for request in requests:
            ours = forward(binary, directory, request, work)
            logits = ours.pop("logits")
            theirs = logits_of(model.eval(), ours, False)
            difference = max(difference, share(logits, theirs))
            rounded = max(rounded, share(logits_of(model, ours, True), theirs))
        print(f"{' '.join(way):60} {quantised_layers(model):4} layers   {difference:.1e}   {rounded:.1e}", flush=True)
        return difference


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", help="build/mllama")
    parser.add_argument("checkpoint", help="a directory with plain weights")
    parser.add_argument("--batch", required=True, help="requests as `mllama forward --batch` reads them; each is run alone")
    args = parser.parse_args()
    binary, checkpoint = os.path.abspath(args.binary), os.path.abspath(args.checkpoint)
    with open(args.batch) as file:
        requests = [line for line in file if line.strip()]
    print(f"{'':60}               difference, and what their rounding of activations adds")
    worst = max(check(binary, checkpoint, requests, way) for way in WAYS)
    if not worst <= TOLERANCE:
        sys.exit(f"the logits differ by {worst:.1e} of the largest")


if __name__ == "__main__":
    main()
