// tokenizer.json in two parts: the vocabulary and the merges, nine megabytes of a published file,
// go from the JSON parser's events straight into flat arrays; the small rest becomes a JSON value,
// which is then checked key by key.
#include "tokenizer/tokenizer_json.h"

#include <algorithm>
#include <utility>

#include "io/json.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/pretokenize.h"

namespace mllama {
namespace {

/// A merge as the file spells it: `left` and `right` side by side in TokenizerEvents::spellings.
struct SpelledMerge {
    uint32_t offset = 0;
    uint32_t left_length = 0;
    uint32_t right_length = 0;
};

/// A value for a message: JSON in ASCII, cut when long.
std::string shown(const Json& value) {
    constexpr size_t limit = 120;
    std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    if (text.size() > limit) text = text.substr(0, limit) + "...";
    return text;
}

/// Receives the parser's events (nlohmann's SAX interface).
class TokenizerEvents {
  public:
    explicit TokenizerEvents(const std::string& name) : name_(name) {}

    Json rest;                         // all but model.vocab and model.merges
    Vocabulary vocabulary;             // model.vocab
    std::string spellings;             // of model.merges
    std::vector<SpelledMerge> merges;  // model.merges, by rank
    bool has_vocabulary = false, has_merges = false;

    // Scalars.
    bool null() { return value(nullptr); }
    bool boolean(bool flag) { return value(flag); }
    bool number_integer(int64_t number) { return value(number); }
    bool number_float(double number, const std::string& /*text*/) { return value(number); }
    bool binary(Json::binary_t& /*bytes*/) { return false; }  // not in JSON texts

    bool number_unsigned(uint64_t number) {
        if (place_ != Place::Vocabulary) return value(number);
        if (number > static_cast<uint64_t>(Vocabulary::max_id)) {
            fail(name_, ": model.vocab: token ", shown(token_), ": expected an id of at most ",
                 Vocabulary::max_id, ", found ", number);
        }
        if (!vocabulary.add(token_, static_cast<int32_t>(number))) {
            fail(name_, ": model.vocab: token ", shown(token_), " with id ", number,
                 ": the token or the id is there twice");
        }
        return true;
    }

    bool string(std::string& text) {
        if (place_ == Place::Merges) return spaced_merge(text);
        if (place_ == Place::Pair) return pair_half(text);
        return value(std::move(text));
    }

    // Containers.
    bool start_object(size_t /*size*/) {
        if (starts("vocab", has_vocabulary, Place::Vocabulary)) return true;
        return open(Json::object());
    }
    bool key(std::string& text) {
        (place_ == Place::Vocabulary ? token_ : keys_.back()) = std::move(text);
        return true;
    }
    bool end_object() {
        if (std::exchange(place_, Place::Rest) == Place::Rest) close();
        return true;
    }
    bool start_array(size_t /*size*/) {
        if (place_ == Place::Merges) {
            place_ = Place::Pair;
            halves_ = 0;
            merges.push_back({static_cast<uint32_t>(spellings.size()), 0, 0});
            return true;
        }
        if (starts("merges", has_merges, Place::Merges)) return true;
        return open(Json::array());
    }
    bool end_array() {
        if (place_ == Place::Pair) {
            if (halves_ != 2) bad_merge("two strings", halves_ == 0 ? "none" : "one");
            place_ = Place::Merges;
        } else if (std::exchange(place_, Place::Rest) == Place::Rest) {
            close();
        }
        return true;
    }

    bool parse_error(size_t /*offset*/, const std::string& /*token*/,
                     const Json::exception& error) {
        // The library's message quotes what it last read, which may be long: the beginning says
        // where and what.
        fail(name_, ": not valid JSON: ", std::string_view(error.what()).substr(0, 200));
    }

  private:
    enum class Place { Rest, Vocabulary, Merges, Pair };

    /// Enters model.vocab or model.merges if that is what the container that begins here is.
    bool starts(std::string_view key, bool& seen, Place place) {
        if (place_ == Place::Vocabulary || place_ == Place::Pair) unexpected("a container");
        if (place_ == Place::Merges) bad_merge("a string or a list of two", "an object");
        if (open_.size() != 2 || keys_[0] != "model" || keys_[1] != key) return false;
        if (std::exchange(seen, true)) fail(name_, ": model.", key, " is there twice");
        place_ = place;
        return true;
    }

    bool value(Json item) {
        if (place_ != Place::Rest) unexpected(shown(item));
        if (open_.empty()) {
            rest = std::move(item);
        } else if (open_.back().is_array()) {
            open_.back().push_back(std::move(item));
        } else {
            open_.back()[keys_.back()] = std::move(item);
        }
        return true;
    }

    bool open(Json container) {
        constexpr size_t max_depth = 64;  // the format has nine levels
        if (open_.size() == max_depth)
            fail(name_, ": expected at most ", max_depth, " nested lists and objects");
        open_.push_back(std::move(container));
        keys_.emplace_back();
        return true;
    }
    void close() {
        Json container = std::move(open_.back());
        open_.pop_back();
        keys_.pop_back();
        value(std::move(container));
    }

    /// "left right"
    bool spaced_merge(std::string_view text) {
        const size_t space = text.find(' ');
        if (space == std::string_view::npos ||
            text.find(' ', space + 1) != std::string_view::npos) {
            bad_merge("two tokens with a space between", shown(std::string(text)));
        }
        merges.push_back({static_cast<uint32_t>(spellings.size()), static_cast<uint32_t>(space),
                          static_cast<uint32_t>(text.size() - space - 1)});
        spellings.append(text.substr(0, space)).append(text.substr(space + 1));
        return true;
    }
    /// One of ["left", "right"].
    bool pair_half(std::string_view text) {
        if (halves_ == 2) bad_merge("two strings", "more");
        (halves_++ == 0 ? merges.back().left_length : merges.back().right_length) =
            static_cast<uint32_t>(text.size());
        spellings += text;
        return true;
    }

    [[noreturn]] void bad_merge(std::string_view expected, const std::string& found) const {
        const size_t number = merges.size() + (place_ == Place::Pair ? 0 : 1);
        fail(name_, ": model.merges: merge ", number, ": expected ", expected, ", found ", found);
    }
    [[noreturn]] void unexpected(const std::string& found) const {
        if (place_ == Place::Vocabulary) {
            fail(name_, ": model.vocab: token ", shown(token_), ": expected an id, found ", found);
        }
        bad_merge("a string or a list of two", found);
    }

    const std::string& name_;
    Place place_ = Place::Rest;
    std::vector<Json> open_;         // the containers around the current value
    std::vector<std::string> keys_;  // of each, the key last read
    std::string token_;              // key within model.vocab
    int halves_ = 0;                 // strings read of the current pair
};

/// Checks of the small part. Every message names the file and the path of the key.
class Checker {
  public:
    explicit Checker(const std::string& name) : name_(name) {}

    [[noreturn]] void reject(const std::string& path, const std::string& expected,
                             const Json& found) const {
        fail(name_, ": ", path, ": expected ", expected, ", found ", shown(found));
    }

    /// A key of an object; null if it is absent.
    static const Json& at(const Json& object, const char* key) {
        static const Json absent;
        const auto found = object.find(key);
        return found == object.end() ? absent : *found;
    }

    const Json& object(const Json& value, const std::string& path) const {
        if (!value.is_object()) reject(path, "an object", value);
        return value;
    }
    const Json& list(const Json& value, const std::string& path) const {
        if (!value.is_array()) reject(path, "a list", value);
        return value;
    }
    std::string text(const Json& object, const char* key, const std::string& path) const {
        const Json& value = at(object, key);
        if (!value.is_string()) reject(path + "." + key, "a string", value);
        return value.get<std::string>();
    }
    bool flag(const Json& object, const char* key, const std::string& path) const {
        const Json& value = at(object, key);
        if (!value.is_boolean()) reject(path + "." + key, "true or false", value);
        return value.get<bool>();
    }
    int32_t id(const Json& value, const std::string& path) const {
        if (!value.is_number_unsigned() ||
            value.get<uint64_t>() > static_cast<uint64_t>(Vocabulary::max_id)) {
            reject(path, "an id of at most " + std::to_string(Vocabulary::max_id), value);
        }
        return value.get<int32_t>();
    }
    /// An option whose value must be one of those under which it does nothing.
    void only(const Json& object, const char* key, const std::string& path,
              const Json& allowed) const {
        const Json& value = at(object, key);
        if (std::find(allowed.begin(), allowed.end(), value) != allowed.end()) return;
        reject(path.empty() ? key : path + "." + key,
               shown(allowed.back()) + " (nothing else is implemented)", value);
    }
    /// The "type" of a part of the pipeline.
    std::string type(const Json& part, const std::string& path) const {
        return text(object(part, path), "type", path);
    }
    void type_is(const Json& part, const std::string& path, const std::string& expected) const {
        if (type(part, path) != expected)
            reject(path + ".type", '"' + expected + '"', part["type"]);
    }

    [[nodiscard]] const std::string& name() const { return name_; }

  private:
    const std::string& name_;
};

/// Split by the Llama 3 pattern, then ByteLevel without a pattern of its own.
void check_pre_tokenizer(const Checker& check, const Json& part) {
    const std::string path = "pre_tokenizer";
    check.type_is(part, path, "Sequence");
    const Json& steps = check.list(Checker::at(part, "pretokenizers"), path + ".pretokenizers");
    if (steps.size() != 2) check.reject(path + ".pretokenizers", "Split and ByteLevel", steps);

    const std::string split = path + ".pretokenizers[0]";
    check.type_is(steps[0], split, "Split");
    const Json pattern = {{"Regex", std::string(llama3_pattern)}};
    if (Checker::at(steps[0], "pattern") != pattern) {
        check.reject(split + ".pattern", "the Llama 3 pattern", Checker::at(steps[0], "pattern"));
    }
    check.only(steps[0], "behavior", split, {"Isolated"});
    check.only(steps[0], "invert", split, {false});

    const std::string bytes = path + ".pretokenizers[1]";
    check.type_is(steps[1], bytes, "ByteLevel");
    check.only(steps[1], "add_prefix_space", bytes, {false});
    check.only(steps[1], "use_regex", bytes, {false});
}

/// The ids of one special token of a template.
void append_template_ids(const Checker& check, const Json& piece, const Json& known,
                         const std::string& path, std::vector<int32_t>& out) {
    const std::string token = check.text(check.object(piece, path), "id", path);
    const Json& entry = Checker::at(known, token.c_str());
    const Json& ids = check.list(
        Checker::at(check.object(entry, path + ": special token " + shown(token)), "ids"),
        path + ": ids of " + shown(token));
    for (const Json& id : ids) out.push_back(check.id(id, path + ": ids of " + shown(token)));
}

/// TemplateProcessing: special tokens around the one sequence A.
void read_template(const Checker& check, const Json& part, const std::string& path,
                   TokenizerDescription& out) {
    const Json& known = check.object(Checker::at(part, "special_tokens"), path + ".special_tokens");
    const std::string single = path + ".single";
    bool sequence_seen = false;
    for (const Json& piece : check.list(Checker::at(part, "single"), single)) {
        if (check.object(piece, single).contains("SpecialToken")) {
            append_template_ids(check, piece["SpecialToken"], known, single,
                                sequence_seen ? out.suffix : out.prefix);
            continue;
        }
        const Json& sequence = check.object(Checker::at(piece, "Sequence"), single);
        if (check.text(sequence, "id", single) != "A" || std::exchange(sequence_seen, true)) {
            check.reject(single, "the sequence A once", piece);
        }
    }
    if (!sequence_seen) check.reject(single, "the sequence A once", Checker::at(part, "single"));
}

void read_post_processor(const Checker& check, const Json& part, TokenizerDescription& out) {
    if (part.is_null()) return;
    const std::string path = "post_processor";
    const bool sequence = check.type(part, path) == "Sequence";
    const Json steps = sequence ? Checker::at(part, "processors") : Json::array({part});
    bool template_seen = false;
    for (const Json& step : check.list(steps, path + ".processors")) {
        const std::string type = check.type(step, path);
        if (type == "ByteLevel") continue;  // moves offsets, which are not computed here
        if (type != "TemplateProcessing" || std::exchange(template_seen, true)) {
            check.reject(path, "ByteLevel and at most one TemplateProcessing", step);
        }
        read_template(check, step, path, out);
    }
}

void check_model(const Checker& check, const Json& model, TokenizerDescription& out) {
    const std::string path = "model";
    if (check.object(model, path).contains("type")) check.type_is(model, path, "BPE");
    check.only(model, "dropout", path, {0.0, nullptr});
    check.only(model, "continuing_subword_prefix", path, {"", nullptr});
    check.only(model, "end_of_word_suffix", path, {"", nullptr});
    if (!Checker::at(model, "ignore_merges").is_null())
        out.ignore_merges = check.flag(model, "ignore_merges", path);

    // With a token for every byte nothing is ever unknown, whatever these say; without, bytes that
    // have none are left out, as in the reference.
    bool complete = true;
    for (int byte = 0; byte < 256; ++byte) {
        complete =
            complete && out.vocabulary.find(byte_level_char(static_cast<unsigned char>(byte)));
    }
    if (complete) return;
    check.only(model, "unk_token", path, {nullptr});
    check.only(model, "byte_fallback", path, {nullptr, false});
}

/// Looks the spelled merges up: both halves and what they make must be tokens.
void resolve_merges(const Checker& check, const TokenizerEvents& events,
                    TokenizerDescription& out) {
    const std::string_view spellings = events.spellings;
    out.merges.reserve(events.merges.size());
    for (const SpelledMerge& merge : events.merges) {
        const auto id_of = [&](std::string_view spelling) {
            const auto id = out.vocabulary.find(spelling);
            if (!id) {
                fail(check.name(), ": model.merges: merge ", out.merges.size() + 1,
                     ": expected tokens of model.vocab, found ", shown(std::string(spelling)));
            }
            return *id;
        };
        const std::string_view whole =
            spellings.substr(merge.offset, merge.left_length + merge.right_length);
        out.merges.add({id_of(whole.substr(0, merge.left_length)),
                        id_of(whole.substr(merge.left_length)), id_of(whole)});
    }
}

/// The added tokens. The library ignores the ids written in the file: a token that is in the
/// vocabulary has its id there, any other the next free number in order. A file that says otherwise
/// would mean one thing to it and another to its reader, so the two must agree.
void read_added_tokens(const Checker& check, const Json& list, TokenizerDescription& out) {
    std::vector<AddedToken> tokens;
    auto next_id = static_cast<int32_t>(out.vocabulary.count());
    for (const Json& entry : list.is_null() ? list : check.list(list, "added_tokens")) {
        const std::string path = "added_tokens[" + std::to_string(&entry - &list[0]) + "]";
        AddedToken token;
        token.content = check.text(check.object(entry, path), "content", path);
        token.id = check.id(Checker::at(entry, "id"), path + ".id");
        token.special = check.flag(entry, "special", path);
        token.lstrip = check.flag(entry, "lstrip", path);
        token.rstrip = check.flag(entry, "rstrip", path);
        token.single_word = check.flag(entry, "single_word", path);
        token.normalized = check.flag(entry, "normalized", path);
        if (token.content.empty()) continue;  // the library passes over these
        if (token.content.size() > AddedTokens::max_content) {
            fail(check.name(), ": ", path, ": expected a content of at most ",
                 AddedTokens::max_content, " bytes, found ", token.content.size());
        }
        const auto known = out.vocabulary.find(token.content);
        const int32_t id = known ? *known : next_id++;
        if (id != token.id || (!known && out.vocabulary.spelling(id))) {
            fail(check.name(), ": ", path, ": token ", shown(token.content), ": expected id ", id,
                 ", found ", token.id);
        }
        tokens.push_back(std::move(token));
    }
    std::vector<std::string_view> contents;
    contents.reserve(tokens.size());
    for (const AddedToken& token : tokens) contents.emplace_back(token.content);
    std::sort(contents.begin(), contents.end());
    const auto twice = std::adjacent_find(contents.begin(), contents.end());
    if (twice != contents.end()) {
        fail(check.name(), ": added_tokens: token ", shown(std::string(*twice)), " is there twice");
    }
    out.added = AddedTokens(std::move(tokens));
}

}  // namespace

TokenizerDescription parse_tokenizer_json(std::string_view text, const std::string& name) {
    TokenizerEvents events(name);
    Json::sax_parse(text.begin(), text.end(), &events);
    const Checker check(name);
    const Json& root = check.object(events.rest, "the file");
    const Json& model = check.object(Checker::at(root, "model"), "model");
    if (!events.has_vocabulary)
        check.reject("model.vocab", "an object", Checker::at(model, "vocab"));
    if (!events.has_merges) check.reject("model.merges", "a list", Checker::at(model, "merges"));
    check.only(root, "version", "", {nullptr, "1.0"});
    check.only(root, "normalizer", "", {nullptr});
    check_pre_tokenizer(check, Checker::at(root, "pre_tokenizer"));
    check.type_is(Checker::at(root, "decoder"), "decoder", "ByteLevel");

    TokenizerDescription out;
    out.vocabulary = std::move(events.vocabulary);
    check_model(check, model, out);
    resolve_merges(check, events, out);
    read_added_tokens(check, Checker::at(root, "added_tokens"), out);
    read_post_processor(check, Checker::at(root, "post_processor"), out);
    return out;
}

}  // namespace mllama
