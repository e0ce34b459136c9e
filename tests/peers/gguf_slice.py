"""The text-only part of the slice as GGUF files, for llama.cpp, which has no Mllama: the
self-attention layers, renumbered, are a Llama of the 8B shapes. A request without a picture runs
exactly these layers in the other two.

BF16 holds the same values bit for bit; Q8_0 and Q4_0 are made of it by llama.cpp's own quantiser
(which keeps the output matrix of Q4_0 in Q6_K). Layout: llama.cpp's convert_hf_to_gguf.py,
LlamaModel.
"""
import math
import os

from slice_checkpoint import TEXT

# Name: code of llama.h's enum llama_ftype
QUANTISED = {"Q8_0": 7, "Q4_0": 2}
HEAD_DIM = TEXT["hidden_size"] // TEXT["num_attention_heads"]


def interleave_rotary(weight, heads):
    """(heads * head_dim, in): in each head, the rows that are rotated together: half a head apart
    in the checkpoint, neighbours in GGUF."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width)


def rope_factors():
    """(head_dim / 2): by how much each frequency is divided; rope_scaling "llama3" of
    modeling_rope_utils.py."""
    import numpy as np
    rope = TEXT["rope_scaling"]
    original = rope["original_max_position_embeddings"]
    longest = original / rope["low_freq_factor"]
    shortest = original / rope["high_freq_factor"]
    factors = []
    for i in range(0, HEAD_DIM, 2):
        wavelength = 2 * math.pi * TEXT["rope_theta"]**(i / HEAD_DIM)
        if wavelength < shortest:
            factors.append(1.0)
        elif wavelength > longest:
            factors.append(rope["factor"])
        else:
            smooth = ((original / wavelength - rope["low_freq_factor"]) /
                      (rope["high_freq_factor"] - rope["low_freq_factor"]))
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def tensors(checkpoint):
    """(GGUF name, tensor) of everything but rope_freqs, one at a time."""
    from safetensors import safe_open
    source = {}
    for name in sorted(os.listdir(checkpoint)):
        if name.endswith(".safetensors"):
            file = safe_open(f"{checkpoint}/{name}", framework="pt")
            source.update({key: file for key in file.keys()})

    def get(name):
        return source["language_model." + name].get_tensor("language_model." + name)

    yield "token_embd.weight", get("model.embed_tokens.weight")[:TEXT["vocab_size"]]
    names = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"
    }
    heads = {"attn_q": TEXT["num_attention_heads"], "attn_k": TEXT["num_key_value_heads"]}
    for block, layer in enumerate(self_attention_layers()):
        for theirs, ours in names.items():
            tensor = get(f"model.layers.{layer}.{theirs}.weight")
            if ours in heads:
                tensor = interleave_rotary(tensor, heads[ours])
            yield f"blk.{block}.{ours}.weight", tensor
    yield "output_norm.weight", get("model.norm.weight")
    yield "output.weight", get("lm_head.weight")


def self_attention_layers():
    return [i for i in range(TEXT["num_hidden_layers"]) if i not in TEXT["cross_attention_layers"]]


def write_bf16(checkpoint, path):
    import gguf
    import torch
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=False)
    writer.add_block_count(len(self_attention_layers()))
    writer.add_context_length(TEXT["max_position_embeddings"])
    writer.add_embedding_length(TEXT["hidden_size"])
    writer.add_feed_forward_length(TEXT["intermediate_size"])
    writer.add_head_count(TEXT["num_attention_heads"])
    writer.add_head_count_kv(TEXT["num_key_value_heads"])
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(TEXT["rope_theta"])
    writer.add_layer_norm_rms_eps(TEXT["rms_norm_eps"])
    writer.add_vocab_size(TEXT["vocab_size"])
    writer.add_tokenizer_model("none")  # ids in, logits out
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tensor("rope_freqs.weight", rope_factors())
    for name, tensor in tensors(checkpoint):
        if tensor.dim() == 1:
            writer.add_tensor(name, tensor.float().numpy())
        else:
            data = tensor.contiguous().view(torch.uint8).numpy()
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantise(bf16_path, path, file_type):
    import llama_cpp
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type
    code = llama_cpp.llama_model_quantize(bf16_path.encode(), path.encode(), parameters)
    if code != 0:
        raise RuntimeError(f"llama_model_quantize of {bf16_path} returned {code}")


def write_gguf(checkpoint, path, name):
    """Writes the file of BF16, or of a name in QUANTISED from the BF16 file beside it."""
    partial = path + ".partial"
    if name == "BF16":
        write_bf16(checkpoint, partial)
    else:
        quantise(path.replace(name, "BF16"), partial, QUANTISED[name])
    os.rename(partial, path)


if __name__ == "__main__":
    import sys
    write_gguf(*sys.argv[1:])
