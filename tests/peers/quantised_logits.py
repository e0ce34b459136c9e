#!/usr/bin/env python3
"""Shows that transformers, with the compressed-tensors package, reads what `mllama quantize` writes as we do.

    pip install torch==2.8.0 transformers==4.56.2 compressed-tensors==0.11.0 bitsandbytes==0.47.0 accelerate
    python quantised_logits.py ../../build/mllama

The model is tests/goldens/models/a_published, widened so that rows of its text layers have several groups of 32, 64
and 128, with random weights; the requests are that directory's case_batch_mixed.jsonl, each run alone. For each way to
quantise: writes the directory, loads it with transformers in float32, looks whether its scales are those of the groups
that were asked for, runs it and `mllama forward --dtype f32` on the same inputs, and compares the logits. Activations
are rounded in neither, so that only the reading of weights is compared.

Where the directory asks for rounded activations (W8A8), both are run once more with them. This engine as it runs
(--dtype auto); transformers in float32, with the inputs of quantised layers rounded by a hook, a scale a token. The
package's own rounding is no measure: version 0.11 takes the largest of each number of (batch, tokens, columns) over
the batch, so that a number of a single sample has a scale of its own and hardly changes. Two roundings never agree to
the bit, for a number near a half goes either way; what counts is that ours costs no more.

Ends with an error if a group is not as asked for, if logits of the same weights differ by more than 2e-4 of the
largest, if ours are moved by rounded activations by half more than theirs are, or if the two are further apart than
two that have nothing in common.
"""
import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file
from transformers import MllamaForConditionalGeneration

HERE = os.path.dirname(os.path.abspath(__file__))
MODELS = os.path.join(HERE, "..", "goldens", "models")
sys.path.insert(0, os.path.join(HERE, "..", "goldens"))
import make_quantised_goldens as goldens  # noqa: E402

TOLERANCE = 2e-4
WIDE_TEXT = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2}
WAYS = [  # options, and columns of a text layer that share a scale; None: the row
    (["--dtype", "int8"], None),
    (["--dtype", "int4"], 128),
    (["--dtype", "int4", "--group-size", "64"], 64),
    (["--dtype", "int4", "--group-size", "32"], 32),
    (["--dtype", "int4", "--group-size", "channel"], None),
    (["--dtype", "int8", "--vision-dtype", "int8", "--lm-head-dtype", "int8"], None),
]


def write_checkpoint(directory):
    source = os.path.join(MODELS, "a_published")
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors", "case*"))
    with open(os.path.join(source, "config.json")) as file:
        config = json.load(file)
    config["text_config"] |= WIDE_TEXT
    config["text_config"].pop("head_dim", None)
    weights = {name: weight.float() for name, weight in goldens.random_weights(2, config).items()}
    save_file(weights, os.path.join(directory, "model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(config, file)


def rounded_rows(module, inputs):
    """A hook: rows of x to int8, a scale a row."""
    scale = inputs[0].abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return ((inputs[0] / scale).round() * scale,)


def logits_of(model, inputs, round_activations):
    hooks = []
    for module in model.modules():
        module.quantization_enabled = False  # of activations; see above
        if round_activations and hasattr(module, "weight_scale"):
            hooks.append(module.register_forward_pre_hook(rounded_rows))
    with torch.no_grad():
        logits = model(**inputs).logits.float()
    for hook in hooks:
        hook.remove()
    return logits


def share(a, b):
    """The largest difference, of the largest logit."""
    return ((a - b).abs().max() / b.abs().max()).item()


def relative(a, b):
    """Root mean square of the difference, of b's."""
    return ((a - b).norm() / b.norm()).item()


def quantised_layers(model):
    return {name: module for name, module in model.named_modules() if hasattr(module, "weight_scale")}


def check_groups(model, way, group):
    """The number of layers and of scales, all of them of the groups asked for."""
    layers, scales = quantised_layers(model), 0
    for name, layer in layers.items():
        width = group if group and "language_model" in name else layer.in_features
        expected = (layer.out_features, layer.in_features // width)
        if layer.in_features % width or tuple(layer.weight_scale.shape) != expected:
            sys.exit(f"{' '.join(way)}: {name} has scales {tuple(layer.weight_scale.shape)}, wanted are {expected}")
        if group and layer.in_features < 2 * group:
            sys.exit(f"{name} has no two groups of {group}: that would be a scale a row")
        scales += layer.weight_scale.numel()
    return len(layers), scales


def forward(binary, directory, request, dtype, work):
    """What `mllama forward` gives for one request: inputs and logits under transformers' names."""
    batch, out = os.path.join(work, "batch.jsonl"), os.path.join(work, "out.safetensors")
    with open(batch, "w") as file:
        file.write(request)
    subprocess.run([binary, "forward", "-m", directory, "--batch", batch, "--dtype", dtype, "--date", "24 Nov 2026",
                    "--out", out], check=True, cwd=MODELS)
    return load_file(out)


def check(binary, checkpoint, requests, way, group):
    """Prints a line; returns whether all is well."""
    with tempfile.TemporaryDirectory() as work:
        directory = os.path.join(work, "model")
        subprocess.run([binary, "quantize", "-m", checkpoint, "--out", directory, *way], check=True,
                       stderr=subprocess.DEVNULL)
        model, info = MllamaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32,
                                                                     output_loading_info=True)
        wrong = {kind: names for kind, names in info.items() if names}
        if wrong or not quantised_layers(model):
            sys.exit(f"{' '.join(way)}: transformers does not load the directory: {wrong or 'nothing quantised'}")
        layers, scales = check_groups(model, way, group)
        model.eval()
        differences = []
        for request in requests:
            ours = forward(binary, directory, request, "f32", work)
            logits = ours.pop("logits")
            theirs = logits_of(model, ours, False)
            differences.append([share(logits, theirs)])
            if "int8" in way:
                ours_rounded = forward(binary, directory, request, "auto", work)["logits"]
                theirs_rounded = logits_of(model, ours, True)
                differences[-1] += [relative(ours_rounded, theirs), relative(theirs_rounded, theirs),
                                    relative(ours_rounded, theirs_rounded)]
        worst = [max(column) for column in zip(*differences, strict=True)]
        cells = [f"{worst[0]:.1e}", *(f"{100 * value:.2f}%" for value in worst[1:]), "", "", ""][:4]
        print(f"| `{' '.join(way)}` | {layers} | {scales} | {' | '.join(cells)} |", flush=True)
        if len(worst) > 1 and (worst[1] > 1.5 * worst[2] or worst[3] > math.hypot(worst[1], worst[2])):
            return False
        return worst[0] <= TOLERANCE


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", help="build/mllama")
    args = parser.parse_args()
    with open(os.path.join(MODELS, "a_published", "case_batch_mixed.jsonl")) as file:
        requests = [line for line in file if line.strip()]
    print("| `mllama quantize` | layers | scales | ours from theirs, of the largest logit "
          "| activations in int8: ours | theirs | ours from theirs |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        checkpoint = os.path.join(work, "wide")
        write_checkpoint(checkpoint)
        well = [check(os.path.abspath(args.binary), checkpoint, requests, *way) for way in WAYS]
    if not all(well):
        sys.exit("logits differ by more than they may")


if __name__ == "__main__":
    main()
