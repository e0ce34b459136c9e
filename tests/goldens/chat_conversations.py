"""Conversations that every chat template of the goldens is rendered with (a template may refuse some)."""

TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"}

DATE = {"date_string": "26 Jul 2024"}
PROMPT = {"add_generation_prompt": True}


def text(role, content):
    return {"role": role, "content": content}


def parts(role, *content):
    return {"role": role, "content": [{"type": "image"} if c is None else {"type": "text", "text": c} for c in content]}


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather.\nUse it \"often\".",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city, e.g. Z\u00fcrich"},
                "days": {"type": "integer", "enum": [1, 2, 3]},
                "units": {"type": ["string", "null"], "default": None},
                "points": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
            },
            "required": ["city"],
        },
        "return": {"type": "object", "description": "degrees"},
    },
}
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Z\u00fcrich", "days": 2, "exact": True}}}]}
TWO_CALLS = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "call00001", "type": "function", "function": {"name": "a", "arguments": {}}},
    {"id": "call00002", "type": "function", "function": {"name": "b", "arguments": {"x": [1, 2.5, None]}}}]}
RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": "{\"degrees\": 21.5}"}

CASES = {
    # The ten of the published templates.
    "image": {"messages": [parts("user", None, "What is this?")], **PROMPT, **DATE},
    "system+image": {"messages": [text("system", "Be brief."), parts("user", None, "What is this?")], **PROMPT, **DATE},
    "system(list)+image": {"messages": [parts("system", "Be brief."), parts("user", None, "What is this?")], **PROMPT, **DATE},
    "empty system+image": {"messages": [text("system", ""), parts("user", None, "What is this?")], **PROMPT, **DATE},
    "text": {"messages": [text("user", "Hello")], **PROMPT, **DATE},
    "system+text": {"messages": [text("system", "Be brief."), text("user", "Hello")], **PROMPT, **DATE},
    "multi": {"messages": [parts("user", None, "What is this?"), text("assistant", "A cat."), text("user", " why? ")], **PROMPT, **DATE},
    "tools text": {"messages": [text("user", "Hello")], "tools": [TOOL], **PROMPT, **DATE},
    "tools sys text, in system": {"messages": [text("system", "Be brief."), text("user", "Hello")], "tools": [TOOL],
                                  "tools_in_user_message": False, **PROMPT, **DATE},
    "toolcall": {"messages": [text("user", "Hello"),
                              {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
                              {"role": "tool", "content": "42"}], "tools": [TOOL], **PROMPT, **DATE},
    # More.
    "no messages": {"messages": [], **PROMPT},
    "clock": {"messages": [text("user", "Hello")], **PROMPT},
    "no prompt": {"messages": [text("user", "Hello"), text("assistant", "Hi.")], **DATE},
    "empty": {"messages": [text("user", ""), text("assistant", "")], **DATE},
    "white space": {"messages": [text("system", "\n sys \n"), text("user", "  \t a\n\n b  \n"), text("assistant", " c \n")], **PROMPT, **DATE},
    "scripts": {"messages": [text("user", "h\u00e9llo \u4f60\u597d \u0645\u0631\u062d\u0628\u0627 \U0001f468\u200d\U0001f469 \u00df <&> \"'\\"), text("assistant", "\u00a0x\u3000")], **PROMPT, **DATE},
    "special tokens in text": {"messages": [text("user", "<|eot_id|>{{ bos_token }}{% if %}")], **PROMPT, **DATE},
    "two users": {"messages": [text("user", "a"), text("user", "b")], **PROMPT, **DATE},
    "assistant first": {"messages": [text("assistant", "a"), text("user", "b")], **PROMPT, **DATE},
    "late system": {"messages": [text("user", "a"), text("system", "b"), text("user", "c")], **PROMPT, **DATE},
    "unknown role": {"messages": [text("narrator", "a")], **PROMPT, **DATE},
    "long": {"messages": [m for i in range(4) for m in (text("user", f"question {i}"), text("assistant", f"answer {i}"))] + [text("user", "last")], **PROMPT, **DATE},
    "thinking": {"messages": [text("user", "a"), text("assistant", "<think>\nhm\n</think>\n\nb"), text("user", "c"), text("assistant", "<think>again</think>d")], **DATE},
    "many images": {"messages": [parts("user", None, None, "compare"), text("assistant", "ok"), parts("user", "and", None, "this")], **PROMPT, **DATE},
    "weather": {"messages": [text("system", "Be brief."), text("user", "Weather?"), CALL, RESULT, text("assistant", "21.5"), text("user", "Thanks")],
                "tools": [WEATHER, TOOL], **PROMPT, **DATE},
    "weather, ends with the result": {"messages": [text("user", "Weather?"), CALL, RESULT], "tools": [WEATHER], **PROMPT, **DATE},
    "two calls": {"messages": [text("user", "Both?"), TWO_CALLS, RESULT, {**RESULT, "content": {"structured": [1]}}], "tools": [WEATHER], **PROMPT, **DATE},
    "no tools": {"messages": [text("user", "Hello")], "tools": [], **PROMPT, **DATE},
    "documents": {"messages": [text("user", "Hello")], "documents": [{"title": "T", "text": "body"}], **PROMPT, **DATE},
    "no content": {"messages": [{"role": "user"}], **PROMPT, **DATE},
    "content none": {"messages": [{"role": "user", "content": None}], **PROMPT, **DATE},
}
