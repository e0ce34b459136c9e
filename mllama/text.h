// The text tower: a Llama 3.1 decoder in which some layers look at pictures instead of at text.
//
//   ids ─ embed_tokens ─► h (rows, hidden_size)
//     each layer, in order:
//       self-attention   h += o_proj(attention(rope(q), rope(k), v));   h += mlp(norm(h))
//       cross-attention  h += tanh(gate) o_proj(attention(norm(q), norm(k), v));   k, v of pictures
//                        h += tanh(gate) mlp(norm(h));   skipped whole by texts without a picture
//     ─ norm ─ lm_head ─► logits (kept rows, vocab_size)
//
// One forward serves prefill and decode: every sequence brings some new rows, the rows of all stand
// one after the other, linear layers see them all at once and attention is a call for each sequence,
// all calls of a layer made together.
// Source: MllamaTextModel and MllamaForConditionalGeneration, modeling_mllama.py of
// transformers 4.56.2.
#pragma once

#include <functional>
#include <span>
#include <variant>
#include <vector>

#include "mllama/config.h"
#include "mllama/sequence.h"
#include "mllama/weights.h"
#include "nn/rope.h"
#include "tensor/arena.h"
#include "tensor/host_copy.h"
#include "tensor/recording.h"

namespace mllama {

/// The part of a batch that belongs to one sequence.
struct SequenceInput {
    Sequence* sequence = nullptr;
    std::span<const int64_t> ids;  ///< new tokens, at least one
    int64_t logits_to_keep = 1;    ///< logits of this many last rows are wanted
};

/// For those who want to look inside a forward. `sequence` is the place in the batch.
struct ForwardTrace {
    /// Called for every layer that runs for any sequence with the state that enters it, and at the
    /// end with the normed output as layer num_hidden_layers: what transformers returns as
    /// hidden_states. rows (new tokens, hidden_size)
    std::function<void(size_t sequence, int64_t layer, const Tensor& rows)> hidden_state;
    /// Called with the probabilities of each layer that ran: weights (num_attention_heads, new
    /// tokens, keys). Keys of cross-attention are those of computed tiles, see TileLayout.
    std::function<void(size_t sequence, int64_t layer, const Tensor& weights)> attention;
};

/// MllamaSelfAttentionDecoderLayer
struct SelfAttentionLayer {
    RmsNorm input_layernorm;
    Linear q_proj;  ///< (num_attention_heads * head_dim, hidden_size)
    Linear k_proj;  ///< (num_key_value_heads * head_dim, hidden_size)
    Linear v_proj;  ///< (num_key_value_heads * head_dim, hidden_size)
    Linear o_proj;  ///< (hidden_size, num_attention_heads * head_dim)
    RmsNorm post_attention_layernorm;
    GatedMlp mlp;

    template <class Visit>
    void for_each_tensor(const Visit& visit) {
        input_layernorm.for_each_tensor(visit);
        for (Linear* linear : {&q_proj, &k_proj, &v_proj, &o_proj}) linear->for_each_tensor(visit);
        post_attention_layernorm.for_each_tensor(visit);
        mlp.for_each_tensor(visit);
    }
};

/// MllamaCrossAttentionDecoderLayer
struct CrossAttentionLayer {
    RmsNorm input_layernorm;
    Linear q_proj;        ///< (num_attention_heads * head_dim, hidden_size)
    Linear k_proj;        ///< (num_key_value_heads * head_dim, hidden_size), of vision rows
    Linear v_proj;        ///< (num_key_value_heads * head_dim, hidden_size), of vision rows
    Linear o_proj;        ///< (hidden_size, num_attention_heads * head_dim)
    RmsNorm q_norm;       ///< (head_dim), each head
    RmsNorm k_norm;       ///< (head_dim), each head
    float attn_gate = 0;  ///< tanh of cross_attn_attn_gate
    RmsNorm post_attention_layernorm;
    GatedMlp mlp;
    float mlp_gate = 0;  ///< tanh of cross_attn_mlp_gate

    template <class Visit>
    void for_each_tensor(const Visit& visit) {
        input_layernorm.for_each_tensor(visit);
        for (Linear* linear : {&q_proj, &k_proj, &v_proj, &o_proj}) linear->for_each_tensor(visit);
        q_norm.for_each_tensor(visit);
        k_norm.for_each_tensor(visit);
        post_attention_layernorm.for_each_tensor(visit);
        mlp.for_each_tensor(visit);
    }
};

/// The largest logits of each kept row, in order, the smaller id first of equal ones; and all of them, for
/// who needs more.
struct TopLogits {
    Tensor logits;  ///< (kept rows, k) f32, on the CPU
    Tensor ids;     ///< (kept rows, k) i64, on the CPU
    Tensor all;     ///< (kept rows, vocab_size) f32, where lm_head is: see on_host
};

class TextModel {
  public:
    TextModel(const ModelConfig& config, const WeightLoader& weights, Reference reference);

    /// Runs new rows through the tower and extends the caches. Returns the logits of the kept rows,
    /// (kept rows of all sequences in the order of the batch, vocab_size) f32, in `workspace`. Ids
    /// must be below embedding_rows, and a sequence needs its pictures before the tokens that stand
    /// for them. After an exception (out of memory) the sequences of the batch are spoiled.
    /// `workspace` serves one forward at a time; the second one of the same size allocates nothing.
    struct Workspace;
    Tensor forward(std::span<const SequenceInput> batch, Workspace& workspace,
                   const ForwardTrace* trace = nullptr) const;

    /// The same forward; of each kept row only the most probable token, the first of equal ones, or -1
    /// if its logits hold a NaN or nothing finite: on a GPU the logits stay there. Valid until the
    /// next call.
    std::span<const int64_t> most_probable(std::span<const SequenceInput> batch,
                                           Workspace& workspace) const;

    /// The same forward; of each kept row the k largest logits (at most vocab_size and most_top_k). Valid
    /// until the next call.
    TopLogits top_logits(std::span<const SequenceInput> batch, int64_t k,
                         Workspace& workspace) const;

    /// Rows of TopLogits::all where the host can read them, until the next call.
    Tensor on_host(const Tensor& logits, Workspace& workspace) const;

    /// Room for what so many kept rows give, most_probable, top_logits or forward: a caller that knows
    /// how many there will be takes it before its loop over tokens.
    void reserve_tokens(int64_t rows, Workspace& workspace) const;
    void reserve_top_logits(int64_t rows, int64_t k, Workspace& workspace) const;
    void reserve_logits(int64_t rows, Workspace& workspace) const;

    /// Computes keys and values of a picture in every cross-attention layer and appends them to the
    /// sequence.
    void add_image(Sequence& sequence, const VisionRows& image, Workspace& workspace) const;

    /// Where each layer is computed. Layers move by their tensors (for_each_tensor), whole.
    [[nodiscard]] std::vector<Device> layer_devices() const;
    /// Calls visit(Tensor&) for all weights of a layer; of the embedding that stands before the
    /// first layer; of norm and lm_head, which stand behind the last.
    void for_each_tensor_of_layer(int64_t layer, const std::function<void(Tensor&)>& visit);
    void for_each_tensor_before(const std::function<void(Tensor&)>& visit);
    void for_each_tensor_behind(const std::function<void(Tensor&)>& visit);
    /// To be called when weights have been moved to a device.
    void add_device(Device device) { rotary_embedding_.add_device(device); }

    [[nodiscard]] const TextConfig& config() const { return config_; }
    /// Calls visit for the linear layers that a token goes through, with or without a picture;
    /// lm_head apart. (Cross-attention has its keys and values already.)
    void for_each_linear(bool with_image, const std::function<void(const Linear&)>& visit) const;
    [[nodiscard]] const Linear& lm_head() const { return lm_head_; }
    /// Bytes of weights that one token of decoding reads, with or without a picture.
    [[nodiscard]] int64_t bytes_per_token(bool with_image) const;
    /// Multiply-adds of the linear layers of one row, with or without a picture; lm_head apart.
    [[nodiscard]] double multiply_adds_per_row(bool with_image) const;
    /// What the products of the layers are computed in, and how their weights are held.
    [[nodiscard]] Compute compute() const;
    [[nodiscard]] std::string_view weight_type_name() const;
    /// What is never quantised is of this type.
    [[nodiscard]] DType embedding_dtype() const { return embed_tokens_.dtype(); }

  private:
    /// The part of a forward's rows that belongs to one sequence.
    struct Part {
        const SequenceInput* input;
        size_t place;      // in the caller's batch
        int64_t index;     // among the parts
        int64_t begin;     // first row
        int64_t end;       // behind the last row
        int64_t position;  // of the first row in its text
        int64_t logits;    // row of the result that the first kept row gives
    };

    /// The rows of one forward and where they belong. Sequences with pictures stand first, so that
    /// the rows of cross-attention are contiguous; a sequence's results do not depend on where it
    /// stands.
    struct Batch {
        std::vector<Part> parts;
        int64_t rows = 0;
        int64_t image_rows = 0;          // rows of sequences with pictures, in front
        int64_t kept = 0;                // rows of logits
        std::vector<int64_t> ids;        // (rows)
        std::vector<int64_t> positions;  // (rows)
        std::vector<int64_t> pasts;      // (parts) positions of the first rows
        KeyVisibility images;            // (image_rows) keys of pictures that a row sees
        std::vector<float> sees_image;   // (image_rows) 1, or 0 for a row that sees no picture
        bool blind = false;              // some row sees no picture
        bool recorded = false;           // may run as a recording
        const ForwardTrace* trace = nullptr;
        std::vector<std::byte> packed;  // of these, what is on its way to a device

        /// The same where a device can read it.
        struct Tensors {
            Tensor ids, positions;  // (rows) i64
            Tensor pasts;           // (parts) i64
            Visibility images;      // (image_rows)
            Tensor row_factor;      // (image_rows) f32: sees_image, if there are blind rows
            Tensor cos, sin;        // (rows, head_dim / 2)
        };
        PerDevice<Tensors> on;

        void clear();
    };

    void lay_out(std::span<const SequenceInput> inputs, Batch& batch) const;
    void bring(Batch& batch, Arena& arena) const;
    Tensor run(std::span<const SequenceInput> inputs, Workspace& workspace,
               const ForwardTrace* trace) const;
    Tensor run_layers(Workspace& workspace) const;
    void self_attention(const SelfAttentionLayer& layer, size_t index, Workspace& workspace,
                        Tensor& h) const;
    void cross_attention(const CrossAttentionLayer& layer, size_t index, Workspace& workspace,
                         Tensor& h) const;
    void attend(size_t layer, Compute compute, Workspace& workspace) const;
    void report_attention(const Batch& batch, const Part& part, size_t layer,
                          const ops::AttentionCall& call) const;
    void reserve_results(int64_t bytes, Workspace& workspace) const;
    Tensor kept_logits(const Batch& batch, const Tensor& h, Arena& scratch) const;
    [[nodiscard]] bool all_on(Device device) const;
    [[nodiscard]] Device layer_device(size_t layer) const;
    void describe(const Workspace& workspace, std::vector<int64_t>& key) const;

    TextConfig config_;
    int64_t image_token_id_;
    Reference reference_;
    float attention_scale_;
    RotaryEmbedding rotary_embedding_;
    Tensor embed_tokens_;  // (vocab_size + 8, hidden_size)
    std::vector<std::variant<SelfAttentionLayer, CrossAttentionLayer>> layers_;
    RmsNorm norm_;
    Linear lm_head_;  // (vocab_size, hidden_size)
};

/// What a forward works in.
struct TextModel::Workspace {
    PerDevice<Arena> arenas{{Arena(Device::cpu), Arena(Device::cuda)}};
    Batch batch;
    std::vector<ops::StoreCall> stores;          // of the layer that runs, one a part
    std::vector<ops::AttentionCall> attentions;  // the same
    Tensor recorded_logits;                      // of the recorded step, where lm_head is
    HostCopy host_logits;                        // (kept rows, vocab_size), of the last forward
    Tensor results;         // bytes of most_probable or top_logits, where lm_head is, and
    HostCopy host_results;  // the same on the host, in one copy
    Recording recording;
    std::vector<int64_t> key;  // of the recording

    Arena& on(Device device) { return arenas[device]; }
};

}  // namespace mllama
