#!/usr/bin/env python3
"""How much int8 and int4 lose, beside llama.cpp's Q8_0 and Q4_0 rounding of the same weights. Prints three tables.

    pip install torch==2.8.0 transformers==4.56.2 compressed-tensors==0.11.0 bitsandbytes==0.47.0 gguf
    python quantised_quality.py ../../build/mllama ../../apps/demo/model

1. The checkpoint, in these and more formats.
2. The checkpoint, quantised while it is loaded, by the options of `mllama generate` and `mllama chat`.
3. A random model: one text layer (self-attention) of the 11B's widths, vocabulary and all else of the demo model. The
   layer's weights are normal numbers, and then normal numbers of which a few are large. Each cell has both.

What is measured, against unrounded weights in float32, over the questions and answers of apps/demo/questions.json:
the root mean square of the weights' errors, of the weights'; the same of the logits; the Kullback-Leibler divergence
of the next token, in nats; how often the most likely token is the same.

"Weights only" runs everything in float32 (--dtype f32). "As it runs" is --dtype auto, where the engine rounds what it
multiplies as well: to int8 beside int8 and int4 weights, to bfloat16 beside others.

Every format rounds the same layers: those of the text tower, lm_head apart (which the options of table 2 round to
int8). This engine rounds with `mllama quantize`; Q8_0 and Q4_0 are the gguf package's, whose results equal llama.cpp's;
fp8 and NF4 are by the formats' own packages, and GPTQ's layout is filled without its search, as in tests/goldens.
"""
import argparse
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
DEMO = os.path.join(HERE, "..", "..", "apps", "demo")
sys.path.insert(0, os.path.join(HERE, "..", "goldens"))
import make_quantised_goldens as goldens  # noqa: E402

# The 11B's widths in text layers, and as few rows elsewhere as will do.
WIDE_TEXT = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_hidden_layers": 1, "cross_attention_layers": []
}
OUTLIERS, OUTLIER_SIZE = 0.002, 6
OURS = [  # options of `mllama quantize`
    ["--dtype", "int8"],
    GGMLQuantizationType.Q8_0,
    ["--dtype", "int4", "--group-size", "32"],
    GGMLQuantizationType.Q4_0,
    ["--dtype", "int4", "--group-size", "64"],
    ["--dtype", "int4", "--group-size", "128"],
    ["--dtype", "int4", "--group-size", "channel"],
]
GGML_BITS = {GGMLQuantizationType.Q8_0: 8.5, GGMLQuantizationType.Q4_0: 4.5}
LOADED = [  # options of `mllama forward`, the type of the weights apart
    ("auto", []),
    ("auto", ["--kv-dtype", "int8"]),
    ("auto", ["--vision-dtype", "int8"]),
    ("int8", []),
    ("int8", ["--vision-dtype", "int8"]),
    ("int8", ["--vision-dtype", "int8", "--kv-dtype", "int8"]),
    ("int4", []),
    ("int4", ["--vision-dtype", "int8"]),
    ("int4", ["--vision-dtype", "int8", "--kv-dtype", "int8"]),
]


def published_formats():
    """{name: (bits a weight, scales of rows apart; how to write it)} of formats of others."""
    args = goldens.QuantizationArgs
    recipe = ["re:.*lm_head", "re:multi_modal_projector.*", "re:vision_model.*"]
    fp8 = args(num_bits=8, type="float", symmetric=True, strategy="channel")
    fp8_token = args(num_bits=8, type="float", symmetric=True, strategy="token", dynamic=True)
    return {
        "fp8, a scale a row": (8, goldens.CompressedTensors("float-quantized", {"Linear": fp8}, activations=fp8_token,
                                                              ignore=recipe)),
        "int4 with zeros, groups of 32": (4.625, goldens.CompressedTensors(
            "pack-quantized", {"Linear": goldens.int4(symmetric=False, strategy="group", group_size=32)},
            ignore=recipe)),
        "GPTQ's layout, groups of 32": (4.625, goldens.Gptq(1, 32, False)),
        "NF4, blocks of 64": (4.5, goldens.BitsAndBytes(False)),
        "NF4, double quantisation": (4.127, goldens.BitsAndBytes(True)),
    }


def read_directory(directory):
    tensors = {}
    for path in sorted(glob.glob(os.path.join(directory, "*.safetensors"))):
        tensors.update(load_file(path))
    return tensors


def decoded(tensors, name):
    """Layer `name` of a directory of `mllama quantize` as float32, by the format's description; and a group's width."""
    scale = tensors[name + ".weight_scale"].float()
    if name + ".weight_packed" in tensors:
        cols = int(tensors[name + ".weight_shape"][1])
        nibbles = torch.stack([(tensors[name + ".weight_packed"] >> (4 * i)) & 15 for i in range(8)], -1).flatten(1)
        number = nibbles[:, :cols].float() - 8
    else:
        number = tensors[name + ".weight"].float()
    group = number.shape[1] // scale.shape[1]
    return number.unflatten(1, (-1, group)).mul_(scale.unsqueeze(-1)).flatten(1), group


def rounded_by_gguf(weight, kind):
    return torch.from_numpy(quants.dequantize(quants.quantize(weight.float().numpy(), kind), kind))


def text_layers(tensors):
    return [name.removesuffix(".weight") for name in tensors
            if name.startswith("language_model.") and ".layers." in name and name.endswith("_proj.weight")]


def name_of(how, groups, weights):
    """What a row of a table is called: by the groups that are there, not those that were asked for."""
    if isinstance(how, GGMLQuantizationType):
        return how.name
    if "int8" in how:
        return "int8, a scale a row"
    if how[-1] == "channel":
        return "int4, a scale a row"
    ordered = sorted(groups, key=lambda group: -groups[group])
    if len(ordered) == 1:
        return f"int4, groups of {ordered[0]}"
    return "int4, " + ", ".join(f"groups of {group} ({100 * groups[group] / weights:.0f}% of the weights)"
                                for group in ordered)


class Checkpoint:
    """A directory with plain weights, and what it answers."""

    def __init__(self, binary, directory, work):
        self.binary, self.directory, self.work = binary, directory, work
        self.tensors = read_directory(directory)
        self.layers = text_layers(self.tensors)
        self.weights = sum(self.tensors[layer + ".weight"].numel() for layer in self.layers)
        self.size = sum(self.square(layer, None) for layer in self.layers)
        self.batch = os.path.join(work, "batch.jsonl")
        with open(os.path.join(DEMO, "questions.json")) as file, open(self.batch, "w") as batch:
            for question in json.load(file):
                answer = {"role": "assistant", "content": question["answer"]}
                batch.write(json.dumps({"messages": [*question["messages"], answer]}) + "\n")
        self.truth = self.forward(directory, "f32")
        self.likely = self.truth.log_softmax(-1)

    def square(self, layer, other):
        """Sum of squares of a layer's weights, or of their difference from others."""
        weight = self.tensors[layer + ".weight"].float()
        return (weight if other is None else weight - other).double().square().sum().item()

    def forward(self, directory, dtype, *options):
        out = os.path.join(self.work, "out.safetensors")
        subprocess.run([self.binary, "forward", "-m", directory, "--batch", self.batch, "--dtype", dtype,
                        "--date", "24 Nov 2026", "--out", out, *options], check=True, cwd=DEMO)
        result = load_file(out)
        return result["logits"][result["attention_mask"].bool()].double()

    def compared(self, logits):
        """Three cells: error of the logits, divergence, same first choice."""
        error = ((logits - self.truth).norm() / self.truth.norm()).item()
        divergence = (self.likely.exp() * (self.likely - logits.log_softmax(-1))).sum(-1).mean().item()
        same = (logits.argmax(-1) == self.truth.argmax(-1)).double().mean().item()
        return f"{100 * error:.2f}%", f"{divergence:.5f}", f"{100 * same:.1f}%"

    def copy_with(self, tensors, config=None):
        directory = os.path.join(self.work, "written")
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(self.directory, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
        save_file(tensors, os.path.join(directory, "model.safetensors"), metadata={"format": "pt"})
        if config:
            path = os.path.join(directory, "config.json")
            with open(path) as file:
                whole = json.load(file)
            with open(path, "w") as file:
                json.dump(whole | {"quantization_config": config}, file)
        return directory

    def by_gguf(self, kind):
        tensors, error = dict(self.tensors), 0.0
        for layer in self.layers:
            tensors[layer + ".weight"] = rounded_by_gguf(self.tensors[layer + ".weight"], kind)
            error += self.square(layer, tensors[layer + ".weight"])
        return self.row(kind.name, GGML_BITS[kind], error, self.copy_with(tensors), False)

    def by_engine(self, options):
        directory = os.path.join(self.work, "quantised")
        shutil.rmtree(directory, ignore_errors=True)
        subprocess.run([self.binary, "quantize", "-m", self.directory, "--out", directory, *options], check=True,
                       stderr=subprocess.DEVNULL)
        tensors, error, scales, groups = read_directory(directory), 0.0, 0, {}
        for layer in self.layers:
            plain, group = decoded(tensors, layer)
            error += self.square(layer, plain)
            groups[group] = groups.get(group, 0) + plain.numel()
            scales += plain.numel() // group
        bits = int(options[1][-1]) + 16 * scales / self.weights
        return self.row(name_of(options, groups, self.weights), bits, error, directory, True)

    def by_package(self, name, bits, how):
        stored, plain = goldens.quantised(self.tensors, how, self.layers)
        if bits == 8:
            bits += 16 * sum(len(plain[layer + ".weight"]) for layer in self.layers) / self.weights
        error = sum(self.square(layer, plain[layer + ".weight"]) for layer in self.layers)
        return self.row(name, bits, error, self.copy_with(stored, how.config()), True)

    def row(self, name, bits, error, directory, runs):
        """Name, bits, error of weights, three cells for weights only and three for what runs."""
        cells = self.compared(self.forward(directory, "f32"))
        cells += self.compared(self.forward(directory, "auto")) if runs else ("",) * 3
        row = name, f"{bits:.2f}", f"{100 * (error / self.size)**0.5:.2f}%", *cells
        print(" ", *row, file=sys.stderr, flush=True)
        return row

    def unrounded(self):
        return "bfloat16", "16.00", "0", "", "", "", *self.compared(self.forward(self.directory, "auto"))

    def rows(self, ways):
        """A row a way; ways that gave the same weights only once."""
        seen = {}
        for how in ways:
            row = self.by_gguf(how) if isinstance(how, GGMLQuantizationType) else self.by_engine(how)
            seen.setdefault(row[0], row)
        return list(seen.values())


def random_checkpoint(directory, outliers):
    """Writes what `mllama quantize` takes: a whole model, the demo's but for the widths and numbers of text layers."""
    model = os.path.join(DEMO, "model")
    shutil.copytree(model, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    with open(os.path.join(model, "config.json")) as file:
        config = json.load(file)
    config["text_config"] |= WIDE_TEXT
    tensors = goldens.random_weights(1, config)
    generator = torch.Generator().manual_seed(2)
    for layer in text_layers(tensors) if outliers else []:
        weight = tensors[layer + ".weight"]
        weight[torch.rand(weight.shape, generator=generator) < OUTLIERS] *= OUTLIER_SIZE
    save_file(tensors, os.path.join(directory, "model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(config, file)


def print_table(heads, rows):
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def random_table(binary, work):
    both = []
    for kind in ("normal", "outliers"):
        print(f"random weights, {kind}", file=sys.stderr)
        directory = os.path.join(work, kind)
        random_checkpoint(directory, kind == "outliers")
        checkpoint = Checkpoint(binary, directory, work)
        both.append([checkpoint.unrounded(), *checkpoint.rows(OURS)])
        tokens = len(checkpoint.truth)
        shutil.rmtree(directory)
    # Who says most is of no interest where weights are random: logits are all that is left of it.
    kept = [2, 3, 4, 6, 7]
    rows = [[a[0], a[1], *(f"{a[i]}, {b[i]}" if a[i] else "" for i in kept)] for a, b in zip(*both, strict=True)]
    print_table([f"random model of 11B widths, {tokens} tokens: normal, with outliers", "bits a weight",
                 "error of weights", "weights only: error of logits", "KL divergence", "as it runs: error of logits",
                 "KL divergence"], rows)


def model_tables(binary, directory, work):
    print("the checkpoint", file=sys.stderr)
    checkpoint = Checkpoint(binary, directory, work)
    rows = [checkpoint.unrounded(), *checkpoint.rows(OURS)]
    rows += [checkpoint.by_package(name, bits, how) for name, (bits, how) in published_formats().items()]
    print_table([f"demo model, {len(checkpoint.truth)} tokens", "bits a weight", "error of weights",
                 "weights only: error of logits", "KL divergence", "same first choice", "as it runs: error of logits",
                 "KL divergence", "same first choice"], rows)
    loaded = []
    for dtype, options in LOADED:
        cells = checkpoint.compared(checkpoint.forward(directory, dtype, *options))
        loaded.append([f"`{' '.join(['--dtype', dtype, *options])}`", *cells])
    print_table(["rounded while it is loaded", "error of logits", "KL divergence", "same first choice"], loaded)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", help="build/mllama")
    parser.add_argument("checkpoint", help="a directory with plain weights whose rows are multiples of 32")
    args = parser.parse_args()
    binary, checkpoint = os.path.abspath(args.binary), os.path.abspath(args.checkpoint)
    with tempfile.TemporaryDirectory() as work:
        model_tables(binary, checkpoint, work)
        random_table(binary, work)


if __name__ == "__main__":
    main()
