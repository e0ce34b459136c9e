// How much work a piece of the model is, counted from its shapes. Only what is asked for and really
// done counts: of a causal mask the half that is seen, of padding tiles those that are computed.
#pragma once

#include "mllama/model.h"

namespace mllama {

/// Multiply-adds of a picture of `real_tiles` tiles: vision tower, and projector of `vision_rows`
/// rows.
[[nodiscard]] double picture_multiply_adds(const Model& model, int64_t real_tiles,
                                           int64_t vision_rows);

/// The pictures in front of a text, all alike.
struct PicturesSeen {
    int64_t images = 0;
    int64_t rows = 0;       ///< vision rows of each: become keys and values
    int64_t real_rows = 0;  ///< those of its real tiles: are seen
};

/// Multiply-adds of a prompt of `tokens` tokens, which begins with the image tokens of its pictures:
/// linear layers, causal self-attention, attention to pictures, their keys and values, and the logits
/// of one row.
[[nodiscard]] double prefill_multiply_adds(const Model& model, int64_t tokens,
                                           const PicturesSeen& pictures);

/// Bytes of keys and values that a token of decoding behind this text reads: all of the text, and
/// those of the real tiles of the pictures that it sees.
[[nodiscard]] int64_t cache_bytes_read(const Sequence& sequence);

}  // namespace mllama
