// What the subcommands share: their registration, common options, interruption.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "mllama/mllama.h"

namespace mllama {

/// Adds --gpu-layers.
void add_gpu_layers(CLI::App& command, std::optional<int64_t>& gpu_layers);

/// --kv-dtype: what keys and values are kept as.
void add_kv_dtype(CLI::App& command, std::string& kv_dtype);
/// None: "auto".
[[nodiscard]] std::optional<DType> kv_dtype_of(const std::string& name);

/// Options of every command that loads a model.
struct ModelArguments {
    std::string model;
    std::string device = "auto";
    std::string dtype = "auto";
    std::string vision_dtype = "auto";
    std::string kv_dtype = "auto";
    std::string reference = "transformers";
    std::optional<int64_t> gpu_layers;  ///< none: all
    int threads = 0;                    ///< 0: the cores that this process may use

    void add_to(CLI::App& command);
    /// Sets the threads and says where and how weights are to be held. Errors: a device or type
    /// that is not there.
    [[nodiscard]] ModelOptions apply() const;
};

/// Options that state one request, or a batch.
struct RequestArguments {
    std::string prompt;
    std::string messages;
    std::string batch;
    std::vector<std::string> images;
    std::string date;
    const CLI::Option* messages_option = nullptr;
    CLI::Option* batch_option = nullptr;

    void add_to(CLI::App& command);
    /// Reads the requests. Error if none is stated or more than one way is used.
    [[nodiscard]] std::vector<Request> read() const;
    [[nodiscard]] PrepareOptions prepare_options() const { return {date, true}; }
};

// Each subcommand adds itself; its work runs when the command line has been parsed.
void add_generate(CLI::App& app);
void add_chat(CLI::App& app);
void add_forward(CLI::App& app);
void add_preprocess(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_inspect(CLI::App& app);
void add_quantize(CLI::App& app);
void add_bench(CLI::App& app);
void add_demo(CLI::App& app);

/// Ctrl-C ends the program at once, as an error does: one line, exit code 1. Nothing half-written
/// stays (AtomicFile). Not if whoever started the program has it ignore Ctrl-C.
void end_on_interrupts();
/// Ctrl-C from now on only sets a flag, so that work ends cleanly between two steps; a second one
/// ends the program.
void catch_interrupts();
/// From now on SIGTERM and SIGHUP are as Ctrl-C: for work that would leave a temporary directory behind.
/// Not those that whoever started the program has it ignore.
void catch_terminations();
[[nodiscard]] bool interrupted();
/// Forgets an interruption (chat goes on after it).
void clear_interrupt();

}  // namespace mllama
