// How often a log is told how far a piece of work is.
#pragma once

namespace mllama {

/// A line after two seconds, so that short work says nothing, then at most one every ten.
class Pace {
  public:
    /// Whether a line is due, `seconds` after the work began; if so, it counts as written.
    bool due(double seconds) {
        if (seconds < next_) return false;
        next_ = seconds + 10;
        return true;
    }

  private:
    double next_ = 2;
};

}  // namespace mllama
