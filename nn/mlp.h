// The two feed-forward networks of the towers.
#pragma once

#include "nn/linear.h"
#include "tensor/arena.h"

namespace mllama {

/// fc2(activation(fc1(x))): the vision tower's.
struct Mlp {
    Linear fc1;  ///< (intermediate_size, hidden_size) with bias
    Linear fc2;  ///< (hidden_size, intermediate_size) with bias
    Activation activation = Activation::gelu;

    template <class Visit>
    void for_each_tensor(const Visit& visit) {
        fc1.for_each_tensor(visit);
        fc2.for_each_tensor(visit);
    }

    /// h += scale * mlp(x).  h, x (rows, hidden_size)
    void add_to(Tensor& h, const Tensor& x, float scale, Arena& scratch) const;
};

/// down(activation(gate(x)) * up(x)) (Shazeer 2020, "GLU variants"): the text tower's.
struct GatedMlp {
    Linear gate;  ///< (intermediate_size, hidden_size)
    Linear up;    ///< (intermediate_size, hidden_size)
    Linear down;  ///< (hidden_size, intermediate_size)
    Activation activation = Activation::silu;

    template <class Visit>
    void for_each_tensor(const Visit& visit) {
        gate.for_each_tensor(visit);
        up.for_each_tensor(visit);
        down.for_each_tensor(visit);
    }

    /// h += scale * mlp(x).  h, x (rows, hidden_size)
    void add_to(Tensor& h, const Tensor& x, float scale, Arena& scratch) const;
};

}  // namespace mllama
