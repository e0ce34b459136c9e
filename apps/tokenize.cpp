// mllama tokenize: texts to ids and back, a line each.
#include <filesystem>
#include <fstream>
#include <iostream>

#include "apps/cli.h"
#include "io/json.h"

namespace mllama {
namespace {

struct Arguments {
    std::string model;
    std::string jsonl;
    bool no_bos = false;
    bool no_special = false;
    bool decode = false;
    bool skip_special = false;
};

/// The ids of a text, begin-of-text among them: put where prompts have it, or simply in front where
/// special tokens are text.
std::vector<int32_t> encode(const Tokenizer& tokenizer, const std::string& text,
                            const Arguments& arguments) {
    const auto bos = tokenizer.bos_id() ? tokenizer.bos_id() : tokenizer.id_of("<|begin_of_text|>");
    if (arguments.no_special) {
        std::vector<int32_t> ids = tokenizer.encode(text, {.parse_special = false});
        if (!arguments.no_bos && bos) ids.insert(ids.begin(), *bos);
        return ids;
    }
    if (arguments.no_bos || !bos) return tokenizer.encode(text);
    return tokenizer.encode(
        add_begin_of_text(text, std::string(tokenizer.token(*bos)), "<|image|>"));
}

std::string encode_line(const Tokenizer& tokenizer, const Json& line, const Arguments& arguments,
                        const std::string& where) {
    if (!line.is_string()) fail(where, ": expected a JSON string");
    try {
        return Json(encode(tokenizer, line.get<std::string>(), arguments)).dump();
    } catch (const Error& error) {  // a text that cannot be encoded
        fail(where, ": ", error.what());
    }
}

std::string decode_line(const Tokenizer& tokenizer, const Json& line, const Arguments& arguments,
                        const std::string& where) {
    if (!line.is_array()) fail(where, ": expected a JSON list of ids");
    std::vector<int32_t> ids;
    for (const Json& id : line) {
        const bool fits = id.is_number_unsigned() && id.get<uint64_t>() < uint64_t{INT32_MAX};
        if (!fits) fail(where, ": expected ids, found ", id.dump());
        ids.push_back(id.get<int32_t>());
    }
    try {
        return Json(tokenizer.decode(ids, arguments.skip_special))
            .dump(-1, ' ', false, Json::error_handler_t::replace);
    } catch (const Error& error) {  // an id without a token
        fail(where, ": ", error.what());
    }
}

void run(const Arguments& arguments) {
    const Tokenizer tokenizer = Tokenizer::load(arguments.model + "/tokenizer.json");
    std::ifstream file(arguments.jsonl);
    if (!file || std::filesystem::is_directory(arguments.jsonl))
        fail(arguments.jsonl, ": cannot be read");
    std::string line;
    for (int number = 1; std::getline(file, line); ++number) {
        if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
        const std::string where = arguments.jsonl + " line " + std::to_string(number);
        const Json json = parse_json(line, where);
        std::cout << (arguments.decode ? decode_line(tokenizer, json, arguments, where)
                                       : encode_line(tokenizer, json, arguments, where))
                  << "\n";
    }
    if (file.bad()) fail(arguments.jsonl, ": cannot be read");
}

}  // namespace

void add_tokenize(CLI::App& app) {
    auto* command = app.add_subcommand("tokenize", "Texts to token ids and back");
    auto arguments = std::make_shared<Arguments>();
    command
        ->add_option("-m,--model", arguments->model,
                     "Checkpoint directory (only its tokenizer.json is read)")
        ->required()
        ->type_name("DIR");
    command
        ->add_option("--jsonl", arguments->jsonl,
                     "A JSON string a line; with --decode, a JSON list of ids a line")
        ->required()
        ->type_name("FILE");
    auto* no_bos =
        command->add_flag("--no-bos", arguments->no_bos, "Do not put <|begin_of_text|> in front");
    auto* no_special = command->add_flag("--no-special", arguments->no_special,
                                         "Treat special tokens in the text as text");
    auto* decode = command->add_flag("--decode", arguments->decode, "Ids to text");
    command
        ->add_flag("--skip-special", arguments->skip_special,
                   "Leave special tokens out of the text")
        ->needs(decode);
    decode->excludes(no_bos)->excludes(no_special);
    command->callback([arguments] { run(*arguments); });
}

}  // namespace mllama
