// Classifies a picture with ONNX Runtime: classify_onnxruntime ARTIFACT/model.onnx PICTURE.ppm [OPTION=VALUE...]
#include <onnxruntime_cxx_api.h>

#include <iostream>

#include "contract.hpp"

int main(int count, char** words) try {
    if (count < 3) throw std::runtime_error("usage: classify_onnxruntime model.onnx picture.ppm [OPTION=VALUE...]");
    Ort::SessionOptions options;
    options.SetGraphOptimizationLevel(ORT_ENABLE_ALL);
    for (int i = 3; i < count; ++i) {  // those of manifest.json's "runtime_options" that have a dot, as 1 or 0
        const std::string word = words[i];
        options.AddConfigEntry(word.substr(0, word.find('=')).c_str(), word.substr(word.find('=') + 1).c_str());
    }
    Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "vitedge");
    Ort::Session session(env, words[1], options);
    Ort::AllocatorWithDefaultOptions allocator;
    auto metadata = session.GetModelMetadata();
    auto entry = [&](const char* key) {
        auto value = metadata.LookupCustomMetadataMapAllocated(key, allocator);
        if (!value) throw std::runtime_error("the graph file has no contract");
        return std::string(value.get());
    };
    const Contract contract(entry("vitedge.preprocessing"));
    const auto names = names_in(entry("vitedge.classes"));
    Picture input = preprocess(read_ppm(words[2]), contract);
    auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();  // [1, height, width, 3]
    if (shape[0] != 1) throw std::runtime_error("the artifact isn't for batch 1");
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    auto image = Ort::Value::CreateTensor<uint8_t>(
        memory, input.pixels.data(), input.pixels.size(), shape.data(), shape.size());
    const char *source = "image", *target = "logits";
    auto answers = session.Run(Ort::RunOptions(), &source, &image, 1, &target, 1);
    print_best(answers[0].GetTensorData<float>(), names, contract);
} catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
}
