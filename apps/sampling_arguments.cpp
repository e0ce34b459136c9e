#include "apps/sampling_arguments.h"

#include <random>

#include "apps/number_check.h"

namespace mllama {

void SamplingArguments::add_to(CLI::App& command) {
    auto* group = command.add_option_group(
        "Answer",
        "How it is drawn and where it ends; defaults from generation_config.json. Giving "
        "--temperature, --top-k, --top-p, --min-p or --seed asks for drawing, also where the "
        "default is --greedy");
    group
        ->add_option("-n,--max-new-tokens", max_new_tokens,
                     "At most so many tokens (512 if the checkpoint does not say)")
        ->check(CLI::Range(int64_t{0}, int64_t{1} << 31))
        ->type_name("N");
    group->add_flag("--greedy", greedy, "Always the most probable token");
    group->add_option("--temperature", temperature, "Divides the logits; 0 is --greedy")
        ->check(at_least_0())
        ->type_name("X");
    group->add_option("--top-k", top_k, "Only the K most probable tokens; 0: all")
        ->check(whole_at_least_0())
        ->type_name("K");
    group
        ->add_option("--top-p", top_p,
                     "Only the most probable tokens that together have probability P")
        ->check(above_0_to_1())
        ->type_name("P");
    group
        ->add_option("--min-p", min_p,
                     "Only tokens of at least P times the probability of the best")
        ->check(from_0_to_1())
        ->type_name("P");
    group
        ->add_option("--repetition-penalty", repetition_penalty,
                     "Above 1: tokens of the text so far become less probable")
        ->check(above_0())
        ->type_name("X");
    group
        ->add_option("--seed", seed,
                     "The same seed draws the same answer; default: a new one each time")
        ->check([](const std::string& text) {
            const bool fits =
                text.size() <= 19 && text.find_first_not_of("0123456789") == std::string::npos;
            return fits ? "" : "expected a whole number of at most 19 digits, found " + text;
        })
        ->type_name("N");
    group
        ->add_option("--stop", stop,
                     "A text that ends the answer, instead of the checkpoint's stop_strings; may "
                     "be given several times")
        ->type_name("TEXT")
        ->allow_extra_args(false);
}

GenerationOptions SamplingArguments::over(GenerationOptions options) const {
    SamplingParams& sampling = options.sampling;
    if (max_new_tokens) {
        options.max_new_tokens = *max_new_tokens;
        options.max_length = 0;
    }
    // Asking for a way to draw is asking to draw.
    if (temperature || top_k || top_p || min_p || seed) sampling.greedy = false;
    if (temperature) sampling.temperature = *temperature;
    if (top_k) sampling.top_k = *top_k;
    if (top_p) sampling.top_p = *top_p;
    if (min_p) sampling.min_p = *min_p;
    if (repetition_penalty) sampling.repetition_penalty = *repetition_penalty;
    if (greedy || (temperature && *temperature == 0)) {
        sampling.greedy = true;
        sampling.temperature = 1;
    }
    sampling.seed = seed ? *seed : std::random_device{}();
    if (!stop.empty()) options.stop = stop;
    sampling.check();
    return options;
}

}  // namespace mllama
