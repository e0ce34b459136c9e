// mllama tokenize: texts to ids and back, a line each.
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

/// Begin-of-text as add_begin_of_text puts it, in ids: behind leading image tokens, and only if
/// there is none.
void put_begin_of_text(std::vector<int32_t>& ids, int32_t bos, std::optional<int32_t> image) {
    if (std::find(ids.begin(), ids.end(), bos) != ids.end()) return;
    const auto place =
        std::find_if(ids.begin(), ids.end(), [&](int32_t id) { return !image || id != *image; });
    ids.insert(place, bos);
}

std::string encode_line(const Tokenizer& tokenizer, const Json& line, const Arguments& arguments,
                        const std::string& where) {
    if (!line.is_string()) fail(where, ": expected a JSON string");
    std::vector<int32_t> ids =
        tokenizer.encode(line.get<std::string>(), {.parse_special = !arguments.no_special});
    const auto bos = tokenizer.bos_id() ? tokenizer.bos_id() : tokenizer.id_of("<|begin_of_text|>");
    if (!arguments.no_bos && bos) put_begin_of_text(ids, *bos, tokenizer.id_of("<|image|>"));
    return Json(ids).dump();
}

std::string decode_line(const Tokenizer& tokenizer, const Json& line, const Arguments& arguments,
                        const std::string& where) {
    if (!line.is_array()) fail(where, ": expected a JSON list of ids");
    std::vector<int32_t> ids;
    for (const Json& id : line) {
        const bool fits =
            id.is_number_integer() && id.get<int64_t>() >= 0 && id.get<int64_t>() < INT32_MAX;
        if (!fits) fail(where, ": expected ids, found ", id.dump());
        ids.push_back(id.get<int32_t>());
    }
    return Json(tokenizer.decode(ids, arguments.skip_special))
        .dump(-1, ' ', false, Json::error_handler_t::replace);
}

void run(const Arguments& arguments) {
    const Tokenizer tokenizer = Tokenizer::load(arguments.model + "/tokenizer.json");
    std::ifstream file(arguments.jsonl);
    if (!file) fail(arguments.jsonl, ": cannot be read");
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
