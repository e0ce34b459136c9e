#include "apps/terminal.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>

#include "apps/cli.h"
#include "io/printable.h"
#include "mllama/resample.h"

namespace mllama {

bool stderr_is_terminal() {
    static const bool terminal = isatty(STDERR_FILENO) == 1;
    return terminal;
}

void report_error(std::string_view what) {
    constexpr size_t longest = 4000;  // a template may put anything into its errors
    std::cerr << "mllama: error: " << printable(what, longest) << std::endl;
}

void ProgressLine::update(const std::string& label, int64_t done, int64_t all) {
    if (!stderr_is_terminal() && !pace_.due(watch_.seconds())) return;
    std::string line = label + " " + std::to_string(done);
    if (all > 0) line += "/" + std::to_string(all);
    if (stderr_is_terminal()) {
        std::fprintf(stderr, "\r\x1b[K%s", line.c_str());
        shown_ = true;
    } else {
        std::fprintf(stderr, "%s\n", line.c_str());
    }
    std::fflush(stderr);
}

void ProgressLine::finish(const std::string& text) {
    if (shown_) std::fputs("\r\x1b[K", stderr);
    shown_ = false;
    if (!text.empty()) std::fprintf(stderr, "%s\n", text.c_str());
    std::fflush(stderr);
}

ModelOptions with_progress(ModelOptions options, ProgressLine* progress) {
    options.quantising = [progress](int64_t done, int64_t all) {
        if (done < all) {
            progress->update("quantising weights, layer", done, all);
        } else {
            progress->finish("");
        }
    };
    options.planned = [progress](const DevicePlan& plan) {
        progress->finish(plan.device + ": " + plan.to_string());
    };
    options.stays_on_cpu = [progress](const std::string& why) {
        progress->finish("computing on the CPU: " + why);
    };
    options.uploading = [progress](int64_t bytes, int64_t all) {
        constexpr int64_t megabyte = 1000000;
        if (bytes < all) {
            progress->update("to the GPU, MB", bytes / megabyte, all / megabyte);
        } else {
            progress->finish("");
        }
    };
    return options;
}

GenerationObserver observe(size_t requests, bool stream, ProgressLine* progress) {
    GenerationObserver observer;
    observer.cancelled = interrupted;
    if (stream) {
        // The first piece comes before the last word about the prompt: the line must be gone by then.
        observer.text = [progress](size_t, const std::string& piece) {
            if (progress) progress->finish("");
            std::cout << piece << std::flush;
        };
    }
    if (!progress) return observer;
    observer.vision = [progress, requests](size_t request, size_t image, int64_t done,
                                           int64_t all) {
        std::string label = "encoding image " + std::to_string(image + 1);
        if (requests > 1) label += " of request " + std::to_string(request + 1);
        progress->update(label + ", layer", done, all);
    };
    observer.prefill = [progress](int64_t done, int64_t all) {
        if (done < all) {
            progress->update("reading the prompt, token", done, all);
        } else {
            progress->finish("");
        }
    };
    if (!stream) {
        observer.decode = [progress](int64_t done) {
            progress->update("answering, token", done, 0);
        };
    }
    return observer;
}

std::string picture_in_blocks(const Image& image, int64_t columns, int64_t rows) {
    // A character is one pixel wide and two high; those pixels are as good as square.
    const double scale =
        std::min(static_cast<double>(columns) / static_cast<double>(image.width),
                 2.0 * static_cast<double>(rows) / static_cast<double>(image.height));
    const auto side = [scale](int64_t pixels) {
        return std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(pixels) * scale));
    };
    const int64_t width = side(image.width);
    const int64_t height = (side(image.height) + 1) / 2 * 2;
    const Image small = resize(image, width, height, ResampleFilter::box);
    std::string text;
    char code[64];
    for (int64_t y = 0; y < height; y += 2) {
        for (int64_t x = 0; x < width; ++x) {
            const uint8_t* upper = &small.rgb[static_cast<size_t>((y * width + x) * 3)];
            const uint8_t* lower = upper + width * 3;
            std::snprintf(code, sizeof code, "\x1b[38;2;%d;%d;%dm\x1b[48;2;%d;%d;%dm\xe2\x96\x80",
                          upper[0], upper[1], upper[2], lower[0], lower[1], lower[2]);
            text += code;
        }
        text += "\x1b[0m\n";
    }
    return text;
}

std::string duration_text(double seconds) {
    char text[32];
    if (seconds < 1) {
        std::snprintf(text, sizeof text, "%.0f ms", seconds * 1000);
    } else {
        std::snprintf(text, sizeof text, "%.2f s", seconds);
    }
    return text;
}

std::string timings_text(const Timings& timings) {
    std::string text;
    if (timings.vision_s > 0.0005) text += "images " + duration_text(timings.vision_s) + ", ";
    text += "prompt " + std::to_string(timings.prefill_tokens) + " tokens in " +
            duration_text(timings.prefill_s);
    if (timings.decode_tokens > 0) {
        char rate[64];
        std::snprintf(rate, sizeof rate, ", then %.1f tokens/s",
                      static_cast<double>(timings.decode_tokens) / timings.decode_s);
        text += rate;
    }
    return text;
}

}  // namespace mllama
