#!/usr/bin/env python3
"""How much int8 and int4 lose, beside llama.cpp's Q8_0 and Q4_0 rounding of the same weights. Prints two tables.

    pip install torch==2.8.0 transformers==4.56.2 gguf
    python quantised_quality.py ../../build/mllama ../../apps/demo/model

1. Random layers of the 11B's shapes (normal numbers, and numbers of which a few are large): the root of the mean squared
   error of a weight, relative to the weights'.
2. The checkpoint: relative error of the logits (root of the sum of squares), the Kullback-Leibler divergence of the next
   token, and how often the most likely token is the same, against the unrounded weights, over the questions of
   apps/demo/questions.json. Weights only: everything runs in float32.

Every format rounds the same layers: those of the text tower, lm_head apart. This engine rounds with `mllama quantize`;
Q8_0 and Q4_0 are the gguf package's, whose results equal llama.cpp's.
"""
import argparse
import glob
import json
import os
import shutil
import subprocess
import tempfile

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
DEMO = os.path.join(HERE, "..", "..", "apps", "demo")
FORMATS = [  # name, bits a weight without and with a scale of 16 bits a group, options of `mllama quantize`
    ("int8, a row", lambda cols: 8 + 16 / cols, ["--dtype", "int8"]),
    ("Q8_0", lambda cols: 8.5, GGMLQuantizationType.Q8_0),
    ("int4, groups of 32", lambda cols: 4.5, ["--dtype", "int4", "--group-size", "32"]),
    ("Q4_0", lambda cols: 4.5, GGMLQuantizationType.Q4_0),
    ("int4, groups of 64", lambda cols: 4.25, ["--dtype", "int4", "--group-size", "64"]),
    ("int4, groups of 128", lambda cols: 4.125, ["--dtype", "int4", "--group-size", "128"]),
    ("int4, a row", lambda cols: 4 + 16 / cols, ["--dtype", "int4", "--group-size", "channel"]),
]


def read_directory(directory):
    tensors = {}
    for path in sorted(glob.glob(os.path.join(directory, "*.safetensors"))):
        tensors.update(load_file(path))
    return tensors


def decoded(tensors):
    """The directory of `mllama quantize` as plain float32 weights, by the format's description."""
    plain = {}
    for name, tensor in tensors.items():
        if name.endswith("_packed"):
            cols = int(tensors[name.replace("_packed", "_shape")][1])
            nibbles = torch.stack([(tensor >> (4 * i)) & 15 for i in range(8)], -1).flatten(1)
            number, name = nibbles[:, :cols].float() - 8, name[:-len("_packed")]
        elif tensor.dtype == torch.int8:
            number = tensor.float()
        else:
            if not name.endswith(("_scale", "_shape")):
                plain[name] = tensor
            continue
        scale = tensors[name + "_scale"].float()
        plain[name] = number * scale.repeat_interleave(number.shape[1] // scale.shape[1], 1)
    return plain


def rounded_by_gguf(tensors, names, kind):
    result = dict(tensors)
    for name in names:
        result[name] = torch.from_numpy(quants.dequantize(quants.quantize(tensors[name].float().numpy(), kind), kind))
    return result


def rounded(binary, checkpoint, tensors, names, how, work):
    """All tensors, those of `names` rounded and in float32."""
    if isinstance(how, GGMLQuantizationType):
        return rounded_by_gguf(tensors, names, how)
    directory = os.path.join(work, "quantised")
    subprocess.run([binary, "quantize", "-m", checkpoint, "--out", directory, *how], check=True, stderr=subprocess.DEVNULL)
    result = decoded(read_directory(directory))
    shutil.rmtree(directory)
    return result


def text_layers(tensors):
    return [name for name in tensors if ".layers." in name and "language_model" in name and name.endswith("_proj.weight")]


def shaped_checkpoint(directory, kind, rng):
    """A directory that `mllama quantize` takes, whose text layers have rows of the 11B's widths."""
    with open(os.path.join(DEMO, "model", "config.json")) as file:
        config = json.load(file)
    rows, tensors = 256, {}
    for layer, (name, cols) in enumerate([("mlp.gate_proj", 4096), ("mlp.down_proj", 14336)]):
        weight = rng.standard_normal((rows, cols)).astype(np.float32) / np.sqrt(cols)
        if kind == "with outliers":
            weight *= np.where(rng.random((rows, cols)) < 0.002, 6, 1)
        tensors[f"language_model.model.layers.{layer}.{name}.weight"] = torch.from_numpy(weight).bfloat16()
    os.makedirs(directory)
    save_file(tensors, os.path.join(directory, "model.safetensors"))
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(config, file)


def layer_table(binary, work):
    print("| weights of 11B shapes, relative RMS error | bits a weight | normal | with outliers |\n|---|---|---|---|")
    columns = {}
    for kind in ("normal", "with outliers"):
        checkpoint = os.path.join(work, kind.replace(" ", "_"))
        shaped_checkpoint(checkpoint, kind, np.random.default_rng(1))
        tensors = read_directory(checkpoint)
        names = text_layers(tensors)
        size = sum(tensors[name].float().square().sum() for name in names)
        for format_name, _, how in FORMATS:
            result = rounded(binary, checkpoint, tensors, names, how, work)
            error = sum((result[name].float() - tensors[name].float()).square().sum() for name in names)
            columns.setdefault(format_name, []).append((error / size).sqrt().item())
    for format_name, bits, _ in FORMATS:
        errors = " | ".join(f"{100 * error:.3f} %" for error in columns[format_name])
        print(f"| {format_name} | {bits(4096):.3f} | {errors} |")


def run_forward(binary, directory, batch, work):
    out = os.path.join(work, "out.safetensors")
    subprocess.run([binary, "forward", "-m", directory, "--batch", batch, "--dtype", "f32", "--date", "24 Nov 2026",
                    "--out", out], check=True, cwd=DEMO)
    result = load_file(out)
    return result["logits"][result["attention_mask"].bool()].double()


def model_table(binary, checkpoint, work):
    with open(os.path.join(DEMO, "questions.json")) as file:
        questions = json.load(file)
    batch = os.path.join(work, "batch.jsonl")
    with open(batch, "w") as file:
        for question in questions:
            answer = {"role": "assistant", "content": question["answer"]}
            file.write(json.dumps({"messages": [*question["messages"], answer]}) + "\n")
    tensors = read_directory(checkpoint)
    names = text_layers(tensors)
    truth = run_forward(binary, checkpoint, batch, work)
    likely = truth.log_softmax(-1)
    print(f"\n| {os.path.basename(os.path.abspath(checkpoint))}, {len(truth)} tokens | relative error of logits "
          "| KL divergence, nats | same first choice |\n|---|---|---|---|")
    directory = os.path.join(work, "rounded")
    shutil.copytree(checkpoint, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    for format_name, _, how in FORMATS:
        result = rounded(binary, checkpoint, tensors, names, how, work)
        save_file({name: tensor.contiguous() for name, tensor in result.items()}, os.path.join(directory, "model.safetensors"))
        logits = run_forward(binary, directory, batch, work)
        error = ((logits - truth).norm() / truth.norm()).item()
        divergence = (likely.exp() * (likely - logits.log_softmax(-1))).sum(-1).mean().item()
        same = (logits.argmax(-1) == truth.argmax(-1)).double().mean().item()
        print(f"| {format_name} | {100 * error:.2f} % | {divergence:.5f} | {100 * same:.2f} % |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", help="build/mllama")
    parser.add_argument("checkpoint", help="a directory with plain weights whose rows are multiples of 32")
    args = parser.parse_args()
    binary, checkpoint = os.path.abspath(args.binary), os.path.abspath(args.checkpoint)
    with tempfile.TemporaryDirectory() as work:
        layer_table(binary, work)
        model_table(binary, checkpoint, work)


if __name__ == "__main__":
    main()
