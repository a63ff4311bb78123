// A picture, prepared as the contract in an artifact's graph file says, and its answer in words. C++17, nothing else.
//
// The contract is the JSON text "vitedge.preprocessing" inside the graph file. What this header can't do (interpolation
// "nearest", no antialiasing) is refused, never replaced. Decoding is left to others: pictures are binary PPM files, which
// every tool writes (ffmpeg -i cat.jpg cat.ppm), of 8 bits, RGB.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

struct Picture {
    int width, height;
    std::vector<uint8_t> pixels;  // [height, width, 3], RGB

    Picture(int width, int height) : width(width), height(height), pixels(size_t(width) * height * 3) {}
    uint8_t* at(int x, int y) { return &pixels[(size_t(y) * width + x) * 3]; }
    const uint8_t* at(int x, int y) const { return &pixels[(size_t(y) * width + x) * 3]; }
};

inline Picture read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    int width = 0, height = 0, most = 0;
    file >> kind >> width >> height >> most;
    if (!file || kind != "P6" || width < 1 || height < 1 || most != 255)
        throw std::runtime_error(path + " isn't a binary PPM picture of 8 bits");
    file.get();  // the one white space before the pixels
    Picture picture(width, height);
    if (!file.read(reinterpret_cast<char*>(picture.pixels.data()), std::streamsize(picture.pixels.size())))
        throw std::runtime_error(path + " is cut off");
    return picture;
}

// The flat JSON object that the contract is.
class Contract {
public:
    explicit Contract(std::string json) : json_(std::move(json)) {}

    std::string text(const std::string& key) const {
        size_t start = value(key) + 1;  // behind the quotation mark
        return json_.substr(start, json_.find('"', start) - start);
    }
    double number(const std::string& key, int index = 0) const {  // index: in a list
        size_t place = value(key);
        place += json_[place] == '[';
        for (; index > 0; --index) place = json_.find(',', place) + 1;
        return std::strtod(json_.c_str() + place, nullptr);
    }
    bool flag(const std::string& key) const { return json_.compare(value(key), 4, "true") == 0; }

private:
    size_t value(const std::string& key) const {
        size_t place = json_.find('"' + key + "\":");
        if (place == std::string::npos) throw std::runtime_error("the contract doesn't say: " + key);
        return place + key.size() + 3;
    }
    std::string json_;
};

// The names in a JSON list of texts.
inline std::vector<std::string> names_in(const std::string& json) {
    std::vector<std::string> names;
    for (size_t i = 0; (i = json.find('"', i)) != std::string::npos; ++i) {
        std::string name;
        for (++i; json.at(i) != '"'; ++i) name += json[i] == '\\' ? json.at(++i) : json[i];
        names.push_back(name);
    }
    return names;
}

const double PI = 3.14159265358979323846;

struct Filter {
    double radius;
    std::function<double(double)> weight;
};

inline Filter filter_of(const std::string& interpolation) {
    auto sinc = [](double x) { return x == 0 ? 1.0 : std::sin(PI * x) / (PI * x); };
    if (interpolation == "box") return {0.5, [](double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }};
    if (interpolation == "bilinear") return {1, [](double x) { return std::max(0.0, 1 - std::abs(x)); }};
    if (interpolation == "hamming")
        return {1, [=](double x) { return std::abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * std::cos(PI * x)) : 0.0; }};
    if (interpolation == "bicubic")  // Keys, 1981, with a = -1/2
        return {2, [](double x) {
                    x = std::abs(x);
                    return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((2.5 - 0.5 * x) * x - 4) * x + 2 : 0.0;
                }};
    if (interpolation == "lanczos")
        return {3, [=](double x) { return std::abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0.0; }};
    throw std::runtime_error("this program has no interpolation \"" + interpolation + '"');
}

// One axis of a resize: every output pixel is a weighted mean of the input pixels under the filter, which is as wide as
// the picture shrinks. Weights are fixed-point numbers with 22 bits behind the point, as Pillow's are.
inline Picture resize_axis(const Picture& from, int length, bool across, const Filter& filter) {
    const int old = across ? from.width : from.height, lines = across ? from.height : from.width;
    Picture to = across ? Picture(length, from.height) : Picture(from.width, length);
    if (length == old) return from;
    const double scale = double(old) / length, wide = std::max(scale, 1.0), radius = filter.radius * wide;
    for (int i = 0; i < length; ++i) {
        const double centre = (i + 0.5) * scale;
        const int first = std::max(0, int(centre - radius + 0.5)), last = std::min(old, int(centre + radius + 0.5));
        std::vector<double> weights;
        for (int k = first; k < last; ++k) weights.push_back(filter.weight((k - centre + 0.5) / wide));
        const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
        std::vector<int> fixed;
        for (double weight : weights) fixed.push_back(int(std::round(weight / sum * (1 << 22))));
        for (int line = 0; line < lines; ++line)
            for (int channel = 0; channel < 3; ++channel) {
                int total = 1 << 21;  // a half, to round
                for (int k = first; k < last; ++k)
                    total += fixed[k - first] * (across ? from.at(k, line) : from.at(line, k))[channel];
                (across ? to.at(i, line) : to.at(line, i))[channel] = uint8_t(std::clamp(total >> 22, 0, 255));
            }
    }
    return to;
}

inline Picture resize(const Picture& from, int width, int height, const Filter& filter) {
    return resize_axis(resize_axis(from, width, true, filter), height, false, filter);
}

// A window of a picture, and ``fill`` where it reaches beyond.
inline Picture window(const Picture& from, int left, int top, int width, int height, const uint8_t fill[3]) {
    Picture to(width, height);
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x) {
            const int u = x + left, v = y + top;
            const bool inside = u >= 0 && v >= 0 && u < from.width && v < from.height;
            std::copy_n(inside ? from.at(u, v) : fill, 3, to.at(x, y));
        }
    return to;
}

// The model's input [height, width, 3]. std::nearbyint rounds halves to even, as the contract's arithmetic does.
inline Picture preprocess(const Picture& picture, const Contract& contract) {
    const std::string mode = contract.text("resize"), crop = contract.text("crop_rounding");
    if (!contract.flag("antialias")) throw std::runtime_error("this program has no resize without antialiasing");
    const Filter filter = filter_of(contract.text("interpolation"));
    const int height = int(contract.number("size", 0)), width = int(contract.number("size", 1));
    auto before_crop = [&](int pixels) {
        const double exact = pixels / contract.number("crop_fraction");
        return int(crop == "floor" ? std::floor(exact) : crop == "ceil" ? std::ceil(exact) : std::nearbyint(exact));
    };
    const int across = before_crop(width), down = before_crop(height);
    const double by_width = double(across) / picture.width, by_height = double(down) / picture.height;
    uint8_t fill[3];
    for (int i = 0; i < 3; ++i) fill[i] = uint8_t(contract.number("fill", i));
    int new_width = across, new_height = down;  // "squash"
    if (mode == "pad" || (mode == "shortest" && across != down)) {
        const double ratio = mode == "pad" ? std::min(by_width, by_height) : std::max(by_width, by_height);
        new_width = std::max(mode == "pad" ? 1 : across, int(std::nearbyint(picture.width * ratio)));
        new_height = std::max(mode == "pad" ? 1 : down, int(std::nearbyint(picture.height * ratio)));
    } else if (mode == "shortest" && picture.width <= picture.height) {
        new_height = std::max(across, int(double(across) * picture.height / picture.width));
    } else if (mode == "shortest") {
        new_width = std::max(down, int(double(down) * picture.width / picture.height));
    }
    Picture resized = resize(picture, new_width, new_height, filter);
    if (mode == "pad")
        resized = window(resized, -((across - new_width) / 2), -((down - new_height) / 2), across, down, fill);
    auto offset = [&](int cut) {
        return int(contract.text("crop_offset") == "round" ? std::nearbyint(cut / 2.0) : std::floor(cut / 2.0));
    };
    const uint8_t black[3] = {0, 0, 0};
    return window(resized, offset(resized.width - width), offset(resized.height - height), width, height, black);
}

// The five best classes, one a line: probability and name.
inline void print_best(const float* logits, const std::vector<std::string>& names, const Contract& contract) {
    std::vector<double> values(logits, logits + names.size());
    const std::string activation = contract.text("activation");
    if (activation == "softmax") {
        const double most = *std::max_element(values.begin(), values.end());
        for (double& value : values) value = std::exp(value - most);
        const double sum = std::accumulate(values.begin(), values.end(), 0.0);
        for (double& value : values) value /= sum;
    } else if (activation == "sigmoid") {
        for (double& value : values) value = 1 / (1 + std::exp(-value));
    }
    std::vector<size_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] > values[b]; });
    order.resize(std::min<size_t>(5, order.size()));
    for (size_t i : order) std::printf("%.6f %s\n", values[i], names[i].c_str());
}
