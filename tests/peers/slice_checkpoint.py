"""The slice of Llama 3.2 Vision 11B that is timed: every shape as published, but fewer layers, and
random weights.

transformers itself writes it, as a checkpoint directory of the published kind: the file that this
engine and transformers both read, and that the GGUF files for llama.cpp are made of
(gguf_slice.py). 4.7 GB of bfloat16.

Tokenizer and image processor settings are the demo model's, for the few words with which the peers
are compared before they are timed: its ids are within the slice's vocabulary.
"""
import json
import math
import os
import shutil

DEMO_MODEL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../apps/demo/model")

# As in the published model: one cross-attention layer among four of self-attention.
TEXT = {
    "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 5, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "cross_attention_layers": [3],
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 500000.0,
    "max_position_embeddings": 131072, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    }
}
# Five intermediate states, as published (the last layer twice): the projector keeps 7680 inputs.
VISION = {
    "hidden_size": 1280, "num_hidden_layers": 4, "num_global_layers": 1, "attention_heads": 16,
    "num_channels": 3, "intermediate_size": 5120, "image_size": 560, "patch_size": 14,
    "max_num_tiles": 4, "norm_eps": 1e-5, "hidden_act": "gelu",
    "intermediate_layers_indices": [0, 1, 2, 3, 3], "vision_output_dim": 7680,
    "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
}
IMAGE_TOKEN = "<|image|>"


def slice_config():
    from transformers import MllamaConfig
    with open(f"{DEMO_MODEL}/config.json") as file:
        demo = json.load(file)["text_config"]
    ids = {key: demo[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return MllamaConfig(text_config=TEXT | ids, vision_config=VISION,
                        image_token_index=TEXT["vocab_size"])


def fill(name, parameter, generator):
    """Values of the size that trained ones have: nothing overflows or dies out on the way."""
    import torch
    if "gate" in name and parameter.numel() == 1:
        parameter.fill_(0.5)
        return
    if "norm" in name and name.endswith("weight"):
        mean, spread = 1.0, 0.1
    elif parameter.dim() < 2:
        mean, spread = 0.0, 0.02
    elif "embed" in name:
        mean, spread = 0.0, 0.5 if "embed_tokens" in name else 0.02
    else:
        mean, spread = 0.0, 1 / math.sqrt(parameter[0].numel())
    flat = parameter.view(-1)
    for start in range(0, flat.numel(), 1 << 24):  # float32 is drawn faster, and in little memory
        part = flat[start:start + (1 << 24)]
        part.copy_(torch.randn(part.numel(), generator=generator).mul_(spread).add_(mean))


def clear_unused_tiles(vision):
    """Zeros for tiles that an arrangement lacks, as published: so they start equal."""
    for table in (vision.pre_tile_positional_embedding.embedding,
                  vision.post_tile_positional_embedding.embedding,
                  vision.gated_positional_embedding.tile_embedding):
        rows = table.weight.view(table.num_embeddings, VISION["max_num_tiles"], -1)
        rows[0] = 0  # no picture
        for row, (high, wide) in enumerate(VISION["supported_aspect_ratios"], start=1):
            rows[row, high * wide:] = 0


def write_weights(directory):
    import torch
    from transformers import MllamaForConditionalGeneration
    from transformers.modeling_utils import no_init_weights
    torch.set_default_dtype(torch.bfloat16)
    with no_init_weights():
        model = MllamaForConditionalGeneration(slice_config())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fill(name, parameter, generator)
        clear_unused_tiles(model.model.vision_model)
    model.save_pretrained(directory)


def write_tokenizer(directory):
    """The demo's, filled up with special tokens up to where the slice's config has <|image|>."""
    for name in ("chat_template.json", "generation_config.json", "special_tokens_map.json"):
        shutil.copy(f"{DEMO_MODEL}/{name}", directory)
    with open(f"{DEMO_MODEL}/tokenizer.json") as file:
        tokenizer = json.load(file)
    tokens = tokenizer["added_tokens"]
    image = next(token for token in tokens if token["content"] == IMAGE_TOKEN)
    tokens.remove(image)
    for number in range(image["id"], TEXT["vocab_size"]):
        tokens.append(image | {"id": number, "content": f"<|filler_{number}|>"})
    tokens.append(image | {"id": TEXT["vocab_size"]})
    with open(f"{directory}/tokenizer.json", "w") as file:
        json.dump(tokenizer, file)
    with open(f"{DEMO_MODEL}/preprocessor_config.json") as file:
        preprocessor = json.load(file)
    side = VISION["image_size"]
    preprocessor["size"] = {"height": side, "width": side}
    preprocessor["max_image_tiles"] = VISION["max_num_tiles"]
    with open(f"{directory}/preprocessor_config.json", "w") as file:
        json.dump(preprocessor, file)


def write_slice(directory):
    """Under another name first: a directory of the right name is complete."""
    partial = directory + ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    write_weights(partial)
    write_tokenizer(partial)
    os.rename(partial, directory)


if __name__ == "__main__":
    import sys
    write_slice(sys.argv[1])
