// Writing to people: progress on standard error, pictures in half-block characters.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "apps/pace.h"
#include "io/image_file.h"
#include "mllama/mllama.h"
#include "mllama/stopwatch.h"

namespace mllama {

/// Standard error is a terminal: progress lines may overwrite themselves.
[[nodiscard]] bool stderr_is_terminal();

/// "mllama: error: what" on standard error: one line, whatever is in `what`.
void report_error(std::string_view what);

/// One line on standard error that tells how far a piece of work is. On a terminal it is redrawn;
/// elsewhere (a log) it is written now and then, each time as a line of its own.
class ProgressLine {
  public:
    ProgressLine() = default;
    ProgressLine(const ProgressLine&) = delete;
    ProgressLine& operator=(const ProgressLine&) = delete;
    ~ProgressLine() { finish(""); }

    /// Shows "label 12/40", or "label 12" if `all` is 0; cheap to call often.
    void update(const std::string& label, int64_t done, int64_t all);
    /// Replaces the line by a last word, or removes it if `text` is empty.
    void finish(const std::string& text);

  private:
    bool shown_ = false;
    Stopwatch watch_;
    Pace pace_;
};

/// The options with progress of what takes its time while a model is loaded.
[[nodiscard]] ModelOptions with_progress(ModelOptions options, ProgressLine* progress);

/// What a command that answers lets people see of it: progress with pictures and prompt in
/// `progress` (null: none), then the answer on standard output as it comes if `stream`, or else how
/// many tokens it has. Ctrl-C ends it.
GenerationObserver observe(size_t requests, bool stream, ProgressLine* progress);

/// A picture as lines of half-block characters with 24-bit colours, at most `columns` wide and
/// `rows` high; two pixels a character.
[[nodiscard]] std::string picture_in_blocks(const Image& image, int64_t columns, int64_t rows);

/// "1.23 s" or "45 ms".
[[nodiscard]] std::string duration_text(double seconds);
/// "2 images, 34 tokens in 1.2 s (28 tokens/s)": what the timings of a generation say, in a line.
[[nodiscard]] std::string timings_text(const Timings& timings);

}  // namespace mllama
