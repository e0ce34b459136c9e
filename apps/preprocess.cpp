// mllama preprocess: pictures to the tensors that the image processor of transformers makes of
// them.
#include "apps/cli.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "mllama/image_processor.h"

namespace mllama {
namespace {

struct Arguments {
    std::string model;
    std::vector<std::string> images;
    std::string out;
};

void run(const Arguments& arguments) {
    const std::string path = arguments.model + "/preprocessor_config.json";
    const ImageProcessorConfig config = ImageProcessorConfig::from_json(read_json_file(path), path);
    std::vector<ProcessedImage> images;
    for (const std::string& image : arguments.images)
        images.push_back(process(load_image(image), config));
    const PackedImages packed = pack_images({images}, config.max_image_tiles);
    const int64_t size = packed.tile_size;
    write_safetensors(
        arguments.out,
        {{"pixel_values", Tensor::from(packed.pixel_values,
                                       {1, packed.max_images, packed.max_tiles, 3, size, size})},
         {"aspect_ratio_ids", Tensor::from(packed.aspect_ratio_ids, {1, packed.max_images})},
         {"aspect_ratio_mask",
          Tensor::from(packed.aspect_ratio_mask, {1, packed.max_images, packed.max_tiles})}});
}

}  // namespace

void add_preprocess(CLI::App& app) {
    auto* command = app.add_subcommand(
        "preprocess",
        "Pictures to pixel_values, aspect_ratio_ids and aspect_ratio_mask in a safetensors file");
    auto arguments = std::make_shared<Arguments>();
    command
        ->add_option("-m,--model", arguments->model,
                     "Checkpoint directory (only its preprocessor_config.json is read)")
        ->required()
        ->type_name("DIR");
    command
        ->add_option("--image", arguments->images,
                     "Pictures: PNG, JPEG, BMP or GIF; one sample with all of them")
        ->required()
        ->type_name("FILE");
    command->add_option("--out", arguments->out, "The file to write")
        ->required()
        ->type_name("FILE.safetensors");
    command->callback([arguments] { run(*arguments); });
}

}  // namespace mllama
