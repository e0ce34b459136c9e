// Reading tokenizer.json: everything that this project implements of the format, and an error for
// the rest. The format is what the tokenizers library (0.22.2) reads and writes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/merges.h"
#include "tokenizer/vocabulary.h"

namespace mllama {

/// A byte-level BPE tokenizer as a file describes it.
struct TokenizerDescription {
    Vocabulary vocabulary;  ///< of the BPE model; added tokens need not be in it
    MergeTable merges;
    bool ignore_merges = false;  ///< a piece that is a token as it stands is taken whole
    AddedTokens added;
    /// Ids that the post-processor's template puts before and after a sequence.
    std::vector<int32_t> prefix, suffix;
};

/// Reads the text of a tokenizer.json. `name` is the file, for messages.
///
/// Implemented: version 1.0; no normaliser; pre-tokeniser Split by the Llama 3 pattern (isolated),
/// then ByteLevel; model BPE with merges as "a b" or ["a", "b"]; decoder ByteLevel; post-processors
/// ByteLevel (which moves offsets only) and TemplateProcessing. `truncation` and `padding` are
/// settings of a call that transformers resets before each, and are not read. Anything else is an
/// Error "`name`: <key>: expected ..., found ...".
TokenizerDescription parse_tokenizer_json(std::string_view text, const std::string& name);

}  // namespace mllama
