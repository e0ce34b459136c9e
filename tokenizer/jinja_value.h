// The values of a Jinja template: Python's None, bool, int, float, str, list, tuple and dict,
// Jinja's Undefined, and objects (namespaces, macros, functions, loops, iterators).
//
// Containers never change once made (the sandbox that transformers uses forbids it), so values are
// shared freely and cannot form cycles; only namespaces and scopes can (jinja_runtime.h breaks
// those). A container knows its weight (the characters and elements in it, counted as often as they
// appear, roughly in bytes) and its depth; both are bounded when it is made, and with them the cost
// of printing, comparing and destroying it: [x, x] nested 60 times is an error and not an endless
// string.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace mllama {

/// What goes wrong inside a template, without its place; the runtime adds that and throws Error.
class JinjaFault : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// What a template may take. Far above what chat templates need, and low enough that a hostile one
/// ends within seconds.
struct JinjaLimits {
    static constexpr int64_t output_bytes = int64_t{64} << 20;  ///< of the rendered text
    static constexpr int64_t weight = int64_t{64} << 20;        ///< of one string or container
    static constexpr int64_t created_bytes = int64_t{1}
                                             << 30;  ///< of all values that a render makes
    static constexpr int64_t steps = 50'000'000;     ///< nodes evaluated, elements looked at
    static constexpr int64_t iterated_characters = int64_t{1} << 20;  ///< of a string's |list
    static constexpr int64_t range_length = 100'000;                  ///< as in jinja2's sandbox
    static constexpr int container_depth = 250;
    static constexpr int parse_depth = 400;  ///< nesting of one template's text
    static constexpr int tree_depth = 1000;  ///< of an expression: a + b + c + ...
    static constexpr int call_depth = 1500;  ///< nested evaluations of a render
};

/// Errors: JinjaFault for a weight or depth that JinjaLimits does not allow.
void check_jinja_weight(int64_t weight);
void check_jinja_depth(int depth);

class JinjaRuntime;
class JinjaValue;

struct JinjaArguments {
    std::vector<JinjaValue> positional;
    std::vector<std::pair<std::string, JinjaValue>> named;
};

/// Anything that is not plain data.
class JinjaObject {
  public:
    JinjaObject() = default;
    JinjaObject(const JinjaObject&) = delete;
    JinjaObject& operator=(const JinjaObject&) = delete;
    virtual ~JinjaObject() = default;

    virtual std::string type_name() const = 0;
    /// Appends repr(object); `depth` is that of the containers around it.
    virtual void append_repr(std::string& out, int depth) const = 0;
    virtual bool is_callable() const { return false; }
    virtual JinjaValue call(JinjaRuntime& runtime, JinjaArguments arguments);
    /// value.name; nothing if there is no such attribute.
    virtual std::optional<JinjaValue> attribute(JinjaRuntime& runtime, const std::string& name);
    /// What iterating over the object yields; nothing if it cannot be iterated. An iterator is used
    /// up.
    virtual std::optional<std::vector<JinjaValue>> iterate();
    virtual std::optional<int64_t> length() const;
    virtual int64_t bytes() const { return 64; }  ///< memory, roughly
};

class JinjaValue {
  public:
    struct Undefined {
        std::string message;  ///< of the error that using it raises
    };
    struct String {
        std::string text;     ///< valid UTF-8
        bool markup = false;  ///< made by |safe or |escape: escaped text, as markupsafe.Markup
    };
    struct Sequence {
        std::vector<JinjaValue> items;
        int64_t weight = 0;
        int depth = 0;
    };
    struct Dict;
    struct Range {
        int64_t start = 0, stop = 0, step = 1, length = 0;
    };

    enum class Kind {
        undefined,
        none,
        boolean,
        integer,
        real,
        string,
        list,
        tuple,
        dict,
        range,
        object
    };

    JinjaValue() : kind_(Kind::none) {}
    JinjaValue(bool value) : kind_(Kind::boolean), data_(value) {}
    JinjaValue(int64_t value) : kind_(Kind::integer), data_(value) {}
    JinjaValue(double value) : kind_(Kind::real), data_(value) {}
    JinjaValue(std::string text, bool markup = false);
    JinjaValue(const char* text) : JinjaValue(std::string(text)) {}
    JinjaValue(std::shared_ptr<JinjaObject> object);
    static JinjaValue undefined(std::string message);
    /// Errors: too heavy or too deep.
    static JinjaValue list(std::vector<JinjaValue> items);
    static JinjaValue tuple(std::vector<JinjaValue> items);
    /// A later value of an equal key replaces the earlier. Errors: a key of a type that cannot be
    /// one.
    static JinjaValue dict(std::vector<std::pair<JinjaValue, JinjaValue>> items);
    static JinjaValue range(int64_t start, int64_t stop, int64_t step);

    Kind kind() const { return kind_; }
    bool is(Kind kind) const { return kind_ == kind; }
    bool is_undefined() const { return kind_ == Kind::undefined; }
    bool is_string() const { return kind_ == Kind::string; }
    bool is_sequence() const { return kind_ == Kind::list || kind_ == Kind::tuple; }
    /// int or bool, which Python's bool also is.
    bool is_integral() const { return kind_ == Kind::integer || kind_ == Kind::boolean; }
    bool is_number() const { return is_integral() || kind_ == Kind::real; }

    // The content; the kind must fit.
    bool boolean() const { return std::get<bool>(data_); }
    int64_t integer() const;  ///< of an int or a bool
    double real() const;      ///< of any number
    const std::string& text() const;
    bool is_markup() const;
    const std::vector<JinjaValue>& items() const;  ///< of a list or tuple
    const Dict& dict() const;
    const Range& range() const { return *std::get<std::shared_ptr<const Range>>(data_); }
    const std::shared_ptr<JinjaObject>& object() const;
    const std::string& undefined_message() const;
    const void* identity()
        const;  ///< equal for values that share their content; null for plain ones

    /// The object as a T, or null.
    template <class T>
    std::shared_ptr<T> as() const {
        return kind_ == Kind::object ? std::dynamic_pointer_cast<T>(object()) : nullptr;
    }

    bool truthy() const;
    std::string type_name() const;  ///< type(value).__name__
    std::string str() const;        ///< str(value)
    std::string repr() const;
    /// Errors: nested too deeply, too long.
    void append_repr(std::string& out, int depth = 0) const;
    bool equals(const JinjaValue& other) const;
    /// value < other. Errors: the types have no order.
    bool less(const JinjaValue& other) const;
    /// hash(value), equal for equal keys. Errors: unhashable.
    size_t hash() const;
    bool hashable() const;

    /// len(value); nothing if it has none.
    std::optional<int64_t> length() const;
    /// list(value); nothing if it cannot be iterated. Strings yield characters, dicts keys.
    std::optional<std::vector<JinjaValue>> iterate() const;

    int64_t weight() const;         ///< bytes of all levels, roughly
    int64_t shallow_bytes() const;  ///< memory of this level, roughly
    int depth() const;

  private:
    static JinjaValue sequence(Kind kind, std::vector<JinjaValue> items);

    Kind kind_;
    std::variant<std::monostate, bool, int64_t, double, std::shared_ptr<const Undefined>,
                 std::shared_ptr<const String>, std::shared_ptr<const Sequence>,
                 std::shared_ptr<const Dict>, std::shared_ptr<const Range>,
                 std::shared_ptr<JinjaObject>>
        data_;
};

/// A dict in insertion order with an index by key.
struct JinjaValue::Dict {
    struct Hash {
        size_t operator()(const JinjaValue& value) const { return value.hash(); }
    };
    struct Equal {
        bool operator()(const JinjaValue& a, const JinjaValue& b) const { return a.equals(b); }
    };

    std::vector<std::pair<JinjaValue, JinjaValue>> items;
    std::unordered_map<JinjaValue, size_t, Hash, Equal> index;
    int64_t weight = 0;
    int depth = 0;

    const JinjaValue* find(
        const JinjaValue& key) const;  ///< null if absent; `key` must be hashable
};

/// What map, select and the like return: it can be iterated once.
class JinjaIterator : public JinjaObject {
  public:
    JinjaIterator(std::string type, std::vector<JinjaValue> items)
        : type_(std::move(type)), items_(std::move(items)) {}
    std::string type_name() const override { return type_; }
    void append_repr(std::string& out, int) const override { out += "<" + type_ + " object>"; }
    std::optional<std::vector<JinjaValue>> iterate() override;
    int64_t bytes() const override;
    /// next(iterator); nothing at the end.
    std::optional<JinjaValue> next();

  private:
    std::string type_;
    std::vector<JinjaValue> items_;
    size_t position_ = 0;
};

/// dict.keys(), .values() or .items().
class JinjaDictView : public JinjaObject {
  public:
    JinjaDictView(std::string type, JinjaValue list)
        : type_(std::move(type)), list_(std::move(list)) {}
    std::string type_name() const override { return type_; }
    void append_repr(std::string& out, int depth) const override;
    std::optional<std::vector<JinjaValue>> iterate() override { return list_.items(); }
    std::optional<int64_t> length() const override { return list_.length(); }
    int64_t bytes() const override { return list_.shallow_bytes(); }

  private:
    std::string type_;
    JinjaValue list_;
};

}  // namespace mllama
