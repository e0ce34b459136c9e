// Fuzzes the chat template: the input is a template, the conversation is fixed. Whatever the
// template, the outcome is a text or an Error.
#include <cstddef>
#include <cstdint>
#include <string>

#include "io/json.h"
#include "kernels/error.h"
#include "tokenizer/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace mllama;
    static const OrderedJson messages = OrderedJson::parse(R"([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Wh\u00e4t <is> 'it'?"}]},
        {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1.5}}}]}
    ])");
    static const OrderedJson tools =
        OrderedJson::parse(R"([{"type": "function", "function": {"name": "f"}}])");
    RenderOptions options;
    options.tools = &tools;
    options.add_generation_prompt = true;
    try {
        ChatTemplate chat_template(std::string(reinterpret_cast<const char*>(data), size), "fuzz");
        chat_template.special_tokens["bos_token"] = "<s>";
        chat_template.render(messages, options);
    } catch (const Error&) {
        // The expected outcome of most inputs.
    }
    return 0;
}
