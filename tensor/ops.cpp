#include "tensor/ops.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <utility>

#include "kernels/cuda.h"

namespace mllama {

void KeyVisibility::add_range(KeyRange range) {
    assert(range.begin < range.end);
    ranges_.push_back(range);
}

void KeyVisibility::add_query(std::span<const KeyRange> ranges) {
    for (const KeyRange& range : ranges) add_range(range);
    end_query();
}

void KeyVisibility::clear() {
    first_.resize(1);
    ranges_.clear();
}

Visibility KeyVisibility::of_queries(int64_t begin, int64_t end) const {
    assert(0 <= begin && begin <= end && end <= queries());
    return {first_.data() + begin, ranges_.data(), -1};
}

template <class Place>
Visibility KeyVisibility::copied_to(Place& place) const {
    if (place.device() == Device::cpu) return of_all();
    static_assert(sizeof(KeyRange) == 2 * sizeof(int64_t));
    const Tensor first = place.take_copy(std::span<const int64_t>(first_));
    const Tensor ranges = place.take_copy(std::span<const int64_t>(
        reinterpret_cast<const int64_t*>(ranges_.data()), 2 * ranges_.size()));
    return {first.data<int64_t>(), reinterpret_cast<const KeyRange*>(ranges.data()), -1};
}

Visibility KeyVisibility::on(Arena& arena) const {
    return copied_to(arena);
}

Visibility KeyVisibility::on(Parcel& parcel) const {
    return copied_to(parcel);
}

Shape KeysValues::key_shape(const KvLayout& layout, int64_t keys) {
    return {KvLayout::blocks(keys), layout.kv_heads, layout.key_rows(), KvLayout::block,
            layout.unit()};
}

Shape KeysValues::value_shape(const KvLayout& layout, int64_t keys) {
    return {KvLayout::blocks(keys), layout.kv_heads,     layout.value_parts(),
            layout.value_rows(),    layout.part_width(), layout.unit()};
}

Shape KeysValues::scale_shape(const KvLayout& layout, int64_t keys) {
    return {KvLayout::blocks(keys), layout.kv_heads, KvLayout::block};
}

namespace ops {
namespace {

/// Calls the function of the device that x is on.
template <class... Parameters, class... Arguments>
void where_it_is(const Tensor& x, void (*on_cpu)(Parameters...), void (*on_cuda)(Parameters...),
                 Arguments... arguments) {
    (x.device() == Device::cuda ? on_cuda : on_cpu)(arguments...);
}

bool is_kv_type(DType dtype) {
    return is_float(dtype) || dtype == DType::i8;
}

bool is_f32(const Tensor& x) {
    return x.defined() && x.dtype() == DType::f32;
}

/// What linear layers read: only a GPU's may be bf16.
bool is_activations(const Tensor& x) {
    return is_f32(x) || (x.defined() && x.dtype() == DType::bf16 && x.device() == Device::cuda);
}

Floats floats_of(Tensor& out) {
    assert(is_activations(out));
    return {out.data(), out.dtype()};
}

/// Undefined, or a contiguous vector of `n` floats.
bool is_vector_or_none(const Tensor& x, int64_t n) {
    return !x.defined() || (x.dtype() == DType::f32 && x.contiguous() && x.numel() == n);
}

const float* data_or_null(const Tensor& x) {
    return x.defined() ? x.data<float>() : nullptr;
}

Projection projection_of([[maybe_unused]] const Tensor& x, const LinearCall& call) {
    const Weight& w = *call.w;
    const LinearOptions& options = call.options;
    Tensor& out = *call.out;
    assert(w.coding != Coding::plain || is_float(w.data.dtype()));
    assert(x.cols() == w.cols && out.cols() == w.rows && x.rows() == out.rows());
    assert(is_vector_or_none(options.bias, w.rows));
    assert(!options.residual.defined() ||
           (options.residual.rows() == out.rows() && options.residual.cols() == out.cols() &&
            options.residual.row_stride() == out.row_stride()));
    Projection projection{w.matrix(), {}, call.compute, floats_of(out), out.row_stride()};
    projection.epilogue.bias = data_or_null(options.bias);
    projection.epilogue.activation = options.activation;
    projection.epilogue.scale = options.scale;
    projection.epilogue.residual = data_or_null(options.residual);
    return projection;
}

/// Whether k and v are memory of keys and values, with the scales that belong to them.
bool is_keys_values(const KeysValues& kv, const KvLayout& layout) {
    const int64_t room = kv.k.dim(0) * KvLayout::block;
    const auto is_scales = [&](const Tensor& scales) {
        if (!layout.scaled()) return !scales.defined();
        return is_f32(scales) && scales.contiguous() &&
               scales.shape() == KeysValues::scale_shape(layout, room);
    };
    return is_kv_type(layout.dtype) && kv.k.contiguous() && kv.v.contiguous() &&
           kv.v.dtype() == layout.dtype && kv.k.shape() == KeysValues::key_shape(layout, room) &&
           kv.v.shape() == KeysValues::value_shape(layout, room) && is_scales(kv.k_scales) &&
           is_scales(kv.v_scales);
}

/// The arguments that attention and attention_weights share.
Attention attention_args(const Tensor& q, const KeysValues& kv, const AttentionShape& shape,
                         const Tensor& key_bias, Visibility visible) {
    const KvLayout layout{kv.k.dim(1), shape.head_dim, kv.k.dtype()};
    assert(is_f32(q) && is_kv_type(layout.dtype) && q.cols() % shape.head_dim == 0);
    assert(kv.k.dim(0) * KvLayout::block >= kv.keys && kv.k.contiguous());
    assert(kv.k.shape() == KeysValues::key_shape(layout, kv.k.dim(0) * KvLayout::block));
    assert(is_vector_or_none(key_bias, kv.keys));
    Attention args;
    args.q = q.data<float>();
    args.k = kv.k.data();
    args.kv_dtype = layout.dtype;
    args.k_scales = data_or_null(kv.k_scales);
    assert(layout.scaled() == kv.k_scales.defined());
    args.queries = q.rows();
    args.keys = kv.keys;
    args.heads = q.cols() / shape.head_dim;
    args.kv_heads = layout.kv_heads;
    args.head_dim = shape.head_dim;
    args.q_stride = q.row_stride();
    args.scale = shape.scale;
    args.key_bias = data_or_null(key_bias);
    args.visible = visible;
    if (kv.past.defined()) args.past = kv.past.data<int64_t>();
    assert(args.heads % args.kv_heads == 0);
    return args;
}

/// All arguments of attention.
Attention attention_args(const Tensor& q, const KeysValues& kv, const AttentionShape& shape,
                         const Tensor& key_bias, Visibility visible, Tensor& out) {
    Attention args = attention_args(q, kv, shape, key_bias, visible);
    assert(out.rows() == q.rows() && out.cols() == q.cols());
    assert(is_keys_values(kv, args.layout()));
    args.v = kv.v.data();
    args.v_scales = data_or_null(kv.v_scales);
    args.out = floats_of(out);
    args.out_stride = out.row_stride();
    return args;
}

NewKeysValues new_keys_values(StoreCall& call) {
    KeysValues& to = call.to;
    assert(to.k.rank() == 5 && is_f32(call.k) && is_f32(call.v));
    assert(to.k.device() == call.k.device() && to.v.device() == call.v.device());
    assert(to.k.device() == Device::cuda || !to.past.defined());
    assert(call.k.rows() == call.v.rows() && call.k.cols() == call.v.cols());
    const KvLayout layout{to.k.dim(1), call.k.cols() / to.k.dim(1), to.k.dtype()};
    assert(is_keys_values(to, layout));
    assert(call.begin >= 0 && call.begin + call.k.rows() <= to.k.dim(0) * KvLayout::block);
    NewKeysValues args;
    args.k = std::as_const(call.k).data<float>();
    args.v = std::as_const(call.v).data<float>();
    args.rows = call.k.rows();
    args.k_stride = call.k.row_stride();
    args.v_stride = call.v.row_stride();
    args.layout = layout;
    args.begin = call.begin;
    if (to.past.defined()) args.past = std::as_const(to.past).data<int64_t>();
    args.keys = to.k.data();
    args.values = to.v.data();
    if (layout.scaled()) {
        args.key_scales = to.k_scales.data<float>();
        args.value_scales = to.v_scales.data<float>();
    }
    return args;
}

}  // namespace

DType activation_dtype(Device device, Compute compute, int64_t rows) {
    const bool rounded = compute == Compute::bf16 && rows > cuda::few_rows;
    return device == Device::cuda && rounded ? DType::bf16 : DType::f32;
}

void linear(const Tensor& x, std::span<const LinearCall> calls) {
    assert(is_activations(x) && calls.size() <= most_projections);
    std::array<Projection, most_projections> projections;
    std::transform(calls.begin(), calls.end(), projections.begin(),
                   [&](const LinearCall& call) { return projection_of(x, call); });
    where_it_is(x, cpu::linear, cuda::linear,
                Matrix{x.data(), x.dtype(), x.rows(), x.cols(), x.row_stride()},
                std::span<const Projection>(projections).first(calls.size()));
}

void linear(const Tensor& x, const Weight& w, const LinearOptions& options, Compute compute,
            Tensor& out) {
    const LinearCall call{&w, options, compute, &out};
    linear(x, {&call, 1});
}

void rms_norm(const Tensor& x, const Tensor& weight, float eps, Tensor& out) {
    assert(is_f32(x) && x.contiguous() && out.contiguous());
    assert(weight.numel() == x.cols() && out.numel() == x.numel() && is_float(weight.dtype()));
    where_it_is(x, cpu::rms_norm, cuda::rms_norm, x.data<float>(), x.rows(), x.cols(),
                weight.data(), weight.dtype(), eps, floats_of(out));
}

void layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps, Tensor& out) {
    assert(is_f32(x) && x.contiguous() && out.contiguous());
    assert(weight.numel() == x.cols() && bias.numel() == x.cols() && out.numel() == x.numel());
    assert(is_float(weight.dtype()) && bias.dtype() == weight.dtype());
    where_it_is(x, cpu::layer_norm, cuda::layer_norm, x.data<float>(), x.rows(), x.cols(),
                weight.data(), bias.data(), weight.dtype(), eps, floats_of(out));
}

void rope(Tensor& x, int64_t head_dim, const Tensor& cos, const Tensor& sin) {
    assert(is_f32(x) && is_f32(cos) && is_f32(sin) && x.cols() % head_dim == 0);
    assert(cos.contiguous() && sin.contiguous() && cos.rows() == x.rows() &&
           sin.rows() == x.rows());
    assert(cos.cols() * 2 == head_dim && sin.cols() * 2 == head_dim);
    where_it_is(x, cpu::rope, cuda::rope, x.data<float>(), x.rows(), x.cols() / head_dim, head_dim,
                x.row_stride(), cos.data<float>(), sin.data<float>());
}

void attention(const Tensor& q, const KeysValues& kv, const AttentionShape& shape,
               const Tensor& key_bias, Visibility visible, Compute compute, Tensor& out) {
    const Attention args = attention_args(q, kv, shape, key_bias, visible, out);
    where_it_is(q, cpu::attention, cuda::attention, std::span<const Attention>(&args, 1), compute);
}

void attention(std::span<AttentionCall> calls, const AttentionShape& shape, Compute compute) {
    std::array<Attention, most_sequences> args;
    while (!calls.empty()) {
        const auto some = calls.first(std::min(calls.size(), args.size()));
        std::transform(some.begin(), some.end(), args.begin(), [&](AttentionCall& call) {
            return attention_args(call.q, call.kv, shape, call.key_bias, call.visible, call.out);
        });
        where_it_is(some[0].q, cpu::attention, cuda::attention,
                    std::span<const Attention>(args).first(some.size()), compute);
        calls = calls.subspan(some.size());
    }
}

void attention_weights(const Tensor& q, const KeysValues& kv, const AttentionShape& shape,
                       const Tensor& key_bias, Visibility visible, Tensor& weights) {
    const Attention args = attention_args(q, kv, shape, key_bias, visible);
    assert(is_f32(weights) && weights.contiguous());
    assert(weights.numel() == args.heads * args.queries * args.keys);
    where_it_is(q, cpu::attention_weights, cuda::attention_weights, args, weights.data<float>());
}

void store_keys_values(std::span<StoreCall> calls) {
    std::array<NewKeysValues, most_sequences> args;
    while (!calls.empty()) {
        const auto some = calls.first(std::min(calls.size(), args.size()));
        std::transform(some.begin(), some.end(), args.begin(), new_keys_values);
        where_it_is(some[0].k, cpu::store_keys_values, cuda::store_keys_values,
                    std::span<const NewKeysValues>(args).first(some.size()));
        calls = calls.subspan(some.size());
    }
}

void gated(const Tensor& gate, const Tensor& up, Activation activation, Tensor& out) {
    assert(is_f32(gate) && is_f32(up) && gate.rows() == up.rows() && gate.cols() == up.cols());
    assert(gate.row_stride() == up.row_stride());
    assert(out.rows() == gate.rows() && out.cols() == gate.cols());
    where_it_is(gate, cpu::gated, cuda::gated, gate.data<float>(), up.data<float>(), gate.rows(),
                gate.cols(), gate.row_stride(), activation, floats_of(out), out.row_stride());
}

void add_scaled(Tensor& y, const Tensor& x, float scale) {
    assert(is_f32(y) && y.contiguous() && x.contiguous() && is_float(x.dtype()));
    assert(y.numel() == x.numel());
    where_it_is(y, cpu::add_scaled, cuda::add_scaled, y.data<float>(), x.data(), x.dtype(), scale,
                y.numel());
}

void scale_rows(Tensor& x, const Tensor& factor) {
    assert(is_f32(x) && x.contiguous() && is_f32(factor) && factor.numel() == x.rows());
    where_it_is(x, cpu::scale_rows, cuda::scale_rows, x.data<float>(), x.rows(), x.cols(),
                factor.data<float>());
}

void embedding(const Tensor& ids, const Tensor& table, Tensor& out) {
    assert(is_float(table.dtype()) && table.rank() == 2 && table.contiguous());
    assert(is_f32(out) && out.contiguous() && out.cols() == table.cols());
    assert(ids.dtype() == DType::i64 && ids.contiguous() && out.rows() == ids.numel());
    where_it_is(out, cpu::embedding, cuda::embedding, ids.data<int64_t>(), ids.numel(),
                table.data(), table.dtype(), table.cols(), out.data<float>());
}

void argmax(const Tensor& x, Tensor& index) {
    assert(is_f32(x) && x.contiguous() && index.dtype() == DType::i64 && index.contiguous());
    assert(index.numel() == x.rows());
    where_it_is(x, cpu::argmax, cuda::argmax, x.data<float>(), x.rows(), x.cols(),
                index.data<int64_t>());
}

void top_k(const Tensor& x, Tensor& values, Tensor& index) {
    assert(is_f32(x) && x.contiguous() && is_f32(values) && values.contiguous());
    assert(index.dtype() == DType::i64 && index.contiguous() && index.shape() == values.shape());
    assert(values.rows() == x.rows() && values.cols() <= x.cols() && values.cols() <= most_top_k);
    where_it_is(x, cpu::top_k, cuda::top_k, x.data<float>(), x.rows(), x.cols(), values.cols(),
                values.data<float>(), index.data<int64_t>());
}

void rope_angles(const Tensor& positions, const Tensor& inverse_frequencies, Tensor& cos,
                 Tensor& sin) {
    assert(positions.dtype() == DType::i64 && positions.contiguous());
    assert(is_f32(inverse_frequencies) && is_f32(cos) && is_f32(sin));
    assert(cos.contiguous() && sin.contiguous() && sin.numel() == cos.numel());
    assert(cos.numel() == positions.numel() * inverse_frequencies.numel());
    where_it_is(cos, cpu::rope_angles, cuda::rope_angles, positions.data<int64_t>(),
                positions.numel(), inverse_frequencies.data<float>(), inverse_frequencies.numel(),
                cos.data<float>(), sin.data<float>());
}

void add_to_rows(Tensor& y, const Tensor& x, float scale) {
    assert(is_f32(y) && y.contiguous() && x.contiguous() && is_float(x.dtype()));
    assert(x.numel() == y.cols());
    where_it_is(y, cpu::add_to_rows, cuda::add_to_rows, y.data<float>(), y.rows(), y.cols(),
                x.data(), x.dtype(), scale);
}

void unfold_patches(const Tensor& pixels, int64_t patch, Tensor& out) {
    assert(is_f32(pixels) && pixels.rank() == 3 && pixels.contiguous());
    assert(pixels.dim(1) == pixels.dim(2) && is_f32(out) && out.contiguous());
    assert(out.cols() == pixels.dim(0) * patch * patch);
    assert(out.rows() == (pixels.dim(1) / patch) * (pixels.dim(1) / patch));
    where_it_is(out, cpu::unfold_patches, cuda::unfold_patches, pixels.data<float>(), pixels.dim(0),
                pixels.dim(1), patch, out.data<float>());
}

void interleave(std::span<const Tensor> states, Tensor& out) {
    constexpr size_t most = 16;
    assert(is_f32(out) && states.size() <= most);
    const float* data[most] = {};
    for (size_t k = 0; k < states.size(); ++k) {
        assert(is_f32(states[k]) && states[k].contiguous() && states[k].rows() == out.rows());
        data[k] = states[k].data<float>();
    }
    const auto count = static_cast<int64_t>(states.size());
    const float* const* pointers = data;
    const int64_t width = count > 0 ? out.cols() / count : 0;
    where_it_is(out, cpu::interleave, cuda::interleave, pointers, count, out.rows(), width,
                out.data<float>(), out.row_stride());
}

void convert(const Tensor& from, Tensor& to) {
    assert(is_float(from.dtype()) && is_float(to.dtype()));
    assert(from.rows() == to.rows() && from.cols() == to.cols());
    if (from.dtype() == to.dtype()) {
        to.copy_from(from);
        return;
    }
    assert(from.contiguous() && to.contiguous());
    where_it_is(to, cpu::convert, cuda::convert, from.data(), from.dtype(), to.data(), to.dtype(),
                from.numel());
}

Tensor to_dtype(const Tensor& x, DType dtype) {
    if (x.dtype() == dtype) return x;
    Tensor result = Tensor::empty(x.shape(), dtype, x.device());
    convert(x, result);
    return result;
}

void set_threads(int threads) {
    cpu::set_threads(threads);
}

int threads() {
    return cpu::threads();
}

std::string_view isa_name() {
    return cpu::isa_name();
}

void parallel_for(int64_t n, const std::function<void(int64_t)>& body) {
    cpu::parallel_for(n, body);
}

}  // namespace ops
}  // namespace mllama
