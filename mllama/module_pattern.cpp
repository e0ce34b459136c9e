// Regular expressions of module names: a parser that compiles as it goes, and the run of a program.
#include "mllama/module_pattern.h"

#include <algorithm>
#include <utility>

#include "io/printable.h"
#include "kernels/error.h"

namespace mllama {
namespace {

using Step = ModulePattern::Step;
using Program = ModulePattern::Program;
using Bytes = std::bitset<256>;

constexpr size_t most_bytes = 1000;  // of a pattern's text
constexpr int deepest = 50;          // groups in groups
constexpr size_t most_steps = 4000;
constexpr int64_t most_repeats = 1000;

uint8_t byte_of(char c) {
    return static_cast<uint8_t>(c);
}

Bytes one(char c) {
    return Bytes().set(byte_of(c));
}

Bytes range(char from, char to) {
    Bytes bytes;
    for (int c = byte_of(from); c <= byte_of(to); ++c) bytes.set(static_cast<size_t>(c));
    return bytes;
}

Step split(int64_t next, int64_t other) {
    return {Step::Kind::split, next, other, {}};
}

int64_t length(const Program& program) {
    return static_cast<int64_t>(program.size());
}

/// Recursive descent over the text; every function returns the program of what it read.
class Parser {
  public:
    Parser(std::string_view pattern, const std::string& where) : text_(pattern), where_(where) {
        if (text_.size() > most_bytes)
            fail(where, ": expected a pattern of at most ", most_bytes, " bytes, found ",
                 text_.size());
    }

    Program parse() {
        Program program = alternatives();
        if (!at_end()) reject("an unmatched )");
        program.push_back({});
        return program;
    }

  private:
    [[nodiscard]] bool at_end() const { return at_ == text_.size(); }
    [[nodiscard]] bool next_is(char c) const { return !at_end() && text_[at_] == c; }
    bool take(char c) {
        if (!next_is(c)) return false;
        ++at_;
        return true;
    }
    char take_any(const char* expected) {
        if (at_end()) reject(std::string("an end where ") + expected + " should come");
        return text_[at_++];
    }
    [[noreturn]] void reject(const std::string& found) const {
        fail(where_, ": pattern ", printable(text_), ": found ", printable(found),
             ", which is not understood");
    }
    void append(Program& to, const Program& from) const {
        if (to.size() + from.size() > most_steps) reject("too many repetitions");
        to.insert(to.end(), from.begin(), from.end());
    }

    /// a|b|c
    Program alternatives() {
        Program program = sequence();
        while (take('|')) {
            const Program other = sequence();
            Program both = {split(1, length(program) + 2)};
            append(both, program);
            both.push_back(split(length(other) + 1, length(other) + 1));  // over the other one
            append(both, other);
            program = std::move(both);
        }
        return program;
    }

    Program sequence() {
        Program program;
        while (!at_end() && !next_is('|') && !next_is(')')) append(program, repeated());
        return program;
    }

    /// An atom and what may stand behind it.
    Program repeated() {
        Program atom = this->atom();
        int64_t least = 1, most = 1;
        if (take('*')) {
            least = 0, most = -1;
        } else if (take('+')) {
            most = -1;
        } else if (take('?')) {
            least = 0;
        } else if (!counts(least, most)) {
            return atom;
        }
        take('?');  // lazy: what matches is the same
        if (next_is('*') || next_is('+') || next_is('?')) reject("a repetition of a repetition");
        return repeat(atom, least, most);
    }

    /// {m}, {m,}, {,n} or {m,n}; anything else is no repetition and left as it is. most -1: no end.
    bool counts(int64_t& least, int64_t& most) {
        const size_t start = at_;
        if (!take('{')) return false;
        const bool has_least = number(least);
        const bool range = take(',');
        if (!has_least) least = 0;
        const bool has_most = range && number(most);
        if (!range) most = least;
        if (range && !has_most) most = -1;
        if (!take('}') || (!has_least && !has_most)) {
            at_ = start;
            least = most = 1;
            return false;
        }
        if (most != -1 && most < least) reject("a repetition that ends before it begins");
        return true;
    }
    bool number(int64_t& value) {
        const size_t start = at_;
        int64_t read = 0;
        while (!at_end() && text_[at_] >= '0' && text_[at_] <= '9') {
            read = 10 * read + (text_[at_++] - '0');
            if (read > most_repeats)
                reject("a repetition of more than " + std::to_string(most_repeats));
        }
        if (at_ > start) value = read;
        return at_ > start;
    }

    Program repeat(const Program& atom, int64_t least, int64_t most) const {
        Program program;
        for (int64_t i = 0; i < least; ++i) append(program, atom);
        if (most == -1) {  // again or on; then back
            append(program, {split(1, length(atom) + 2)});
            append(program, atom);
            append(program, {split(-length(atom) - 1, -length(atom) - 1)});
        }
        for (int64_t i = least; i < most; ++i) {
            append(program, {split(1, length(atom) + 1)});
            append(program, atom);
        }
        return program;
    }

    Program atom() {
        const char c = take_any("a character");
        switch (c) {
            case '(':
                return group();
            case '[':
                return of(bracket());
            case '.':
                return of(~one('\n'));
            case '^':
                return {{Step::Kind::begin, 1, 0, {}}};
            case '$':
                return {{Step::Kind::end, 1, 0, {}}};
            case '\\':
                return of(escape());
            case '*':
            case '+':
            case '?':
                reject("a repetition of nothing");
            default:
                return of(one(c));
        }
    }
    static Program of(const Bytes& bytes) { return {{Step::Kind::byte, 1, 0, bytes}}; }

    Program group() {
        if (take('?') && !take(':')) reject("(? with something else than :");
        if (++depth_ > deepest) reject("too many groups in groups");
        Program inner = alternatives();
        if (!take(')')) reject("an end where ) should come");
        --depth_;
        return inner;
    }

    Bytes escape() {
        const char c = take_any("an escaped character");
        const Bytes digits = range('0', '9');
        const Bytes words = digits | range('a', 'z') | range('A', 'Z') | one('_');
        const Bytes spaces = range('\t', '\r') | one(' ');
        switch (c) {
            case 'd':
                return digits;
            case 'D':
                return ~digits;
            case 'w':
                return words;
            case 'W':
                return ~words;
            case 's':
                return spaces;
            case 'S':
                return ~spaces;
            default:
                if (words[byte_of(c)]) reject(std::string("\\") + c);
                return one(c);
        }
    }

    /// The inside of [...].
    Bytes bracket() {
        const bool complement = take('^');
        Bytes bytes;
        for (bool first = true; first || !next_is(']'); first = false) {
            const char c = take_any("]");
            const Bytes from = c == '\\' ? escape() : one(c);
            const bool range_follows =
                next_is('-') && at_ + 1 < text_.size() && text_[at_ + 1] != ']';
            if (!range_follows) {
                bytes |= from;
                continue;
            }
            ++at_;
            const char to = take_any("]");
            if (c == '\\' || to == '\\' || byte_of(to) < byte_of(c)) reject("such a range in [ ]");
            bytes |= range(c, to);
        }
        ++at_;
        return complement ? ~bytes : bytes;
    }

    std::string_view text_;
    const std::string& where_;
    size_t at_ = 0;
    int depth_ = 0;
};

/// The places of a program that a text so far leads to.
class Places {
  public:
    explicit Places(const Program& program) : program_(&program), seen_(program.size()) {}

    /// Adds a place and all that can be reached from it without a byte, at position `at` of a name
    /// of `size` bytes.
    void add(int64_t place, size_t at, size_t size) {
        waiting_.push_back(place);
        while (!waiting_.empty()) {
            const int64_t i = waiting_.back();
            waiting_.pop_back();
            if (seen_[static_cast<size_t>(i)]) continue;
            seen_[static_cast<size_t>(i)] = true;
            const Step& step = (*program_)[static_cast<size_t>(i)];
            switch (step.kind) {
                case Step::Kind::byte:
                    bytes_.push_back(i);
                    break;
                case Step::Kind::split:
                    waiting_.push_back(i + step.next);
                    waiting_.push_back(i + step.other);
                    break;
                case Step::Kind::begin:
                    if (at == 0) waiting_.push_back(i + step.next);
                    break;
                case Step::Kind::end:
                    if (at == size) waiting_.push_back(i + step.next);
                    break;
                case Step::Kind::match:
                    matched_ = true;
                    break;
            }
        }
    }
    void clear() {
        seen_.assign(seen_.size(), false);
        bytes_.clear();
        matched_ = false;
    }
    [[nodiscard]] bool matched() const { return matched_; }
    [[nodiscard]] const std::vector<int64_t>& bytes() const { return bytes_; }

  private:
    const Program* program_;
    std::vector<bool> seen_;
    std::vector<int64_t> waiting_;
    std::vector<int64_t> bytes_;  // places that wait for a byte
    bool matched_ = false;
};

}  // namespace

ModulePattern::ModulePattern(const std::string& text, const std::string& where) : text_(text) {
    constexpr std::string_view mark = "re:";
    if (!text.starts_with(mark)) return;
    program_ = Parser(std::string_view(text).substr(mark.size()), where).parse();
}

bool ModulePattern::matches(std::string_view name) const {
    if (!is_expression()) return name == text_;
    Places places(program_), after(program_);
    places.add(0, 0, name.size());
    for (size_t at = 0; at < name.size() && !places.matched(); ++at) {
        after.clear();
        for (const int64_t place : places.bytes()) {
            const Step& step = program_[static_cast<size_t>(place)];
            if (step.bytes[byte_of(name[at])]) after.add(place + step.next, at + 1, name.size());
        }
        std::swap(places, after);
    }
    return places.matched();
}

}  // namespace mllama
