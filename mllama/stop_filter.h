// Ends a streamed text at the first of some stop texts, without ever showing a part of one.
#pragma once

#include <string>
#include <vector>

namespace mllama {

class StopFilter {
  public:
    /// Empty stop texts are passed over.
    explicit StopFilter(const std::vector<std::string>& stops);

    /// Takes the next piece and returns what can be shown: everything that cannot be the beginning
    /// of a stop text. When a stop text is whole, what stands before it is returned, stopped() is
    /// true, and nothing more comes.
    std::string push(const std::string& piece);

    /// The text is over: what was held back.
    std::string finish();

    [[nodiscard]] bool stopped() const { return stopped_; }

  private:
    std::vector<std::string> stops_;
    std::string held_;
    bool stopped_ = false;
};

}  // namespace mllama
