// Classifies a picture with OpenVINO: classify_openvino ARTIFACT/model.xml PICTURE.ppm [OPTION=VALUE...]
#include <openvino/openvino.hpp>

#include <iostream>

#include "contract.hpp"

int main(int count, char** words) try {
    if (count < 3) throw std::runtime_error("usage: classify_openvino model.xml picture.ppm [OPTION=VALUE...]");
    ov::AnyMap options;  // manifest.json has them under "runtime_options"
    for (int i = 3; i < count; ++i) {
        const std::string word = words[i];
        options[word.substr(0, word.find('='))] = word.substr(word.find('=') + 1);
    }
    ov::Core core;
    auto model = core.read_model(words[1]);
    const Contract contract(model->get_rt_info<std::string>("vitedge", "preprocessing"));
    const auto names = names_in(model->get_rt_info<std::string>("vitedge", "classes"));
    const Picture input = preprocess(read_ppm(words[2]), contract);
    auto request = core.compile_model(model, "CPU", options).create_infer_request();
    ov::Tensor image = request.get_input_tensor();  // uint8 [1, height, width, 3]
    if (image.get_byte_size() != input.pixels.size()) throw std::runtime_error("the artifact isn't for batch 1");
    std::copy(input.pixels.begin(), input.pixels.end(), image.data<uint8_t>());
    request.infer();
    print_best(request.get_output_tensor().data<float>(), names, contract);
} catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
}
