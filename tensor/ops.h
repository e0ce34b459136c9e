// The public list of operations on tensors: each checks its shapes and chooses the device.
//
// All tensors of one call are on the same device, and that is where it is computed.
//
// Conventions. Activations are float32, or bfloat16 where activation_dtype says so; weights are f32,
// bf16 or f16 as the checkpoint stores them; sums are float32. "rows" is all leading dimensions flattened: an operation on (rows, width) takes
// any tensor whose last dimension is width. Outputs are given by the caller and must have their
// final shape. A wrong shape here is a mistake of the program: assert.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "kernels/cpu_ops.h"
#include "kernels/ranking.h"
#include "tensor/arena.h"
#include "tensor/parcel.h"
#include "tensor/tensor.h"
#include "tensor/weight.h"

namespace mllama {

/// Which keys each query may see, as a rule: a (queries, keys) array is never made. {}: every query
/// sees every key.

/// Query i sees the keys [0, first + i]: the queries of a text of which `first` tokens are already
/// there.
inline Visibility causal(int64_t first) {
    return {nullptr, nullptr, first};
}

/// The ranges of keys that queries see, query by query.
class KeyVisibility {
  public:
    /// The next query sees these ranges: sorted, disjoint, none empty.
    void add_query(std::span<const KeyRange> ranges);
    /// As above, one range.
    void add_query(KeyRange range) { add_query(std::span<const KeyRange>(&range, 1)); }
    /// As above, range by range: the query that is being described sees this one too, and ends.
    void add_range(KeyRange range);
    void end_query() { first_.push_back(static_cast<int64_t>(ranges_.size())); }
    /// Forgets all queries, keeps the memory.
    void clear();

    [[nodiscard]] int64_t queries() const { return static_cast<int64_t>(first_.size()) - 1; }
    /// The rule of the queries [begin, end), valid as long as this is not changed.
    [[nodiscard]] Visibility of_queries(int64_t begin, int64_t end) const;
    [[nodiscard]] Visibility of_all() const { return of_queries(0, queries()); }
    /// The rule of all queries where the arena's device can read it; on the CPU nothing is copied.
    [[nodiscard]] Visibility on(Arena& arena) const;
    /// As above, there when the parcel is sent.
    [[nodiscard]] Visibility on(Parcel& parcel) const;

  private:
    template <class Place>
    [[nodiscard]] Visibility copied_to(Place& place) const;

    std::vector<int64_t> first_{0};
    std::vector<KeyRange> ranges_;
};

/// Keys and values of attention, of which the first `keys` are there, as kernels/kv_layout.h says: k
/// (blocks, kv_heads, key_rows, block, unit), v
/// (blocks, kv_heads, value_parts, value_rows, part_width, unit).
struct KeysValues {
    Tensor k, v;
    int64_t keys = 0;
    Tensor k_scales = {}, v_scales = {};  ///< (blocks, kv_heads, block) f32 of int8; else undefined
    /// Of a step that is recorded (recording.h), else undefined: i64 (1), how many keys there are
    /// before those of the queries. `keys` is then how many there is room for.
    Tensor past = {};

    /// The shapes of k and v for so many keys.
    static Shape key_shape(const KvLayout& layout, int64_t keys);
    static Shape value_shape(const KvLayout& layout, int64_t keys);
    static Shape scale_shape(const KvLayout& layout, int64_t keys);
};

namespace ops {

/// What a linear layer does to its product: residual + scale * activation(x w^T + bias).
struct LinearOptions {
    Tensor bias;  ///< (out_features) f32, or undefined
    Activation activation = Activation::none;
    float scale = 1.0f;
    Tensor residual;  ///< (rows, out_features) f32, may be the output itself; or undefined
};

/// The type in which activations of so many rows are best held that linear layers of this `compute`
/// alone read: bf16 on a GPU that rounds them to it for the products, else f32. What is called
/// activations below may be of either type, with the same results.
DType activation_dtype(Device device, Compute compute, int64_t rows);

/// A linear layer of some x (rows, in_features).
struct LinearCall {
    const Weight* w = nullptr;  ///< (out_features, in_features)
    LinearOptions options;
    Compute compute = Compute::f32;
    Tensor* out =
        nullptr;  ///< (rows, out_features) activations, f32 where integers are multiplied;
                  ///< overlaps neither x nor another call's out
};

/// Linear layers of the same activations x (rows, in_features), at most most_projections, together:
/// where their weights lie alike, x is rounded once and a GPU starts them as one.
void linear(const Tensor& x, std::span<const LinearCall> calls);

/// As above, one.
void linear(const Tensor& x, const Weight& w, const LinearOptions& options, Compute compute,
            Tensor& out);

/// x (rows, width) f32, out (rows, width) activations; in f32 they may be the same; weight (width).
void rms_norm(const Tensor& x, const Tensor& weight, float eps, Tensor& out);

/// As rms_norm, with mean removed and a bias (width).
void layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps, Tensor& out);

/// In place: x (rows, heads * head_dim) f32; cos, sin (rows, head_dim / 2) f32.
void rope(Tensor& x, int64_t head_dim, const Tensor& cos, const Tensor& sin);

/// q (queries, heads * head_dim) f32 -> out (queries, heads * head_dim) activations. key_bias (keys)
/// f32 is added to the logits, or undefined.
struct AttentionShape {
    int64_t head_dim = 0;
    float scale = 1.0f;
};
void attention(const Tensor& q, const KeysValues& kv, const AttentionShape& shape,
               const Tensor& key_bias, Visibility visible, Compute compute, Tensor& out);

/// The same of several sequences, on one device: on a GPU they share launches. No call reads what
/// another writes.
struct AttentionCall {
    Tensor q;
    KeysValues kv;
    Tensor key_bias;
    Visibility visible;
    Tensor out;
};
void attention(std::span<AttentionCall> calls, const AttentionShape& shape, Compute compute);

/// The probabilities of the same attention: weights (heads, queries, keys) f32.
void attention_weights(const Tensor& q, const KeysValues& kv, const AttentionShape& shape,
                       const Tensor& key_bias, Visibility visible, Tensor& weights);

/// New keys and values of a sequence: k, v (rows, kv_heads * head_dim) f32 become the keys and values
/// begin, begin + 1, ... of `to`, rounded to its type. If to.past is given, it is added to begin when
/// the step runs; to.keys is not used.
struct StoreCall {
    Tensor k, v;
    int64_t begin = 0;
    KeysValues to;
};
/// Those of several sequences, on one device.
void store_keys_values(std::span<StoreCall> calls);

/// out = activation(gate) * up: gate, up (rows, width) f32, out (rows, width) activations, in f32 maybe
/// gate itself.
void gated(const Tensor& gate, const Tensor& up, Activation activation, Tensor& out);

/// y += scale * x; same number of elements; y f32, x any float type.
void add_scaled(Tensor& y, const Tensor& x, float scale);

/// x[r] *= factor[r]: x (rows, width) f32, factor (rows) f32. A factor of 0 gives 0 even where x is
/// not finite.
void scale_rows(Tensor& x, const Tensor& factor);

/// y[r] += scale * x for every row r: y (rows, width) f32, x (width) any float type.
void add_to_rows(Tensor& y, const Tensor& x, float scale);

/// out[i] = table[ids[i]]: ids (n) i64, table (entries, width) any float type, out (n, width) f32.
/// Ids must be in range.
void embedding(const Tensor& ids, const Tensor& table, Tensor& out);

/// The first index of the largest of each row: x (rows, width) f32, index (rows) i64; -1 if a row
/// holds a NaN, or nothing finite.
void argmax(const Tensor& x, Tensor& index);

/// The k largest numbers of each row, in order: x (rows, width) f32 -> values (rows, k) f32, index
/// (rows, k) i64; the first index first of equal ones; a NaN counts as larger than all else. k at most
/// width and most_top_k.
void top_k(const Tensor& x, Tensor& values, Tensor& index);

/// cos, sin (rows, pairs) f32 of inverse_frequencies[i] * positions[row] rounded to float32:
/// positions (rows) i64, inverse_frequencies (pairs) f32.
void rope_angles(const Tensor& positions, const Tensor& inverse_frequencies, Tensor& cos,
                 Tensor& sin);

/// The pixels of each patch, one patch a row, as a convolution with stride = kernel sees them:
/// pixels (channels, side, side) f32 -> out ((side / patch)^2, channels * patch * patch) f32. What
/// does not fill a patch is left out.
void unfold_patches(const Tensor& pixels, int64_t patch, Tensor& out);

/// Element i of state k becomes element i * states + k: states (rows, width) f32 each, at most 16,
/// -> out (rows, width * states) f32.
void interleave(std::span<const Tensor> states, Tensor& out);

/// Copies with conversion between f32, bf16 and f16; shapes equal. Rows of either may be strided if
/// the types are equal.
void convert(const Tensor& from, Tensor& to);

/// A new tensor of the same shape; the tensor itself if it is of that type already.
Tensor to_dtype(const Tensor& x, DType dtype);

/// Rows that are worth going through wide intermediates together: enough for products at full
/// speed, few enough that the intermediates stay small however many rows there are.
constexpr int64_t rows_at_a_time(Device device) {
    return device == Device::cuda ? 8192 : 1024;
}

/// Threads used by all operations from now on (at least 1), and how many that is. Not set while an
/// operation runs.
void set_threads(int threads);
int threads();

/// The name of the instruction-set table in use: "portable", "avx2", "avx512+bf16", ...
std::string_view isa_name();

/// Runs body(i) for i in [0, n) on all threads, in no order. Calls may not nest.
void parallel_for(int64_t n, const std::function<void(int64_t)>& body);

}  // namespace ops
}  // namespace mllama
