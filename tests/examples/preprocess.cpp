// What the tests hold against vitedge's own: preprocess CONTRACT.json PICTURE.ppm OUT.rgb
#include "contract.hpp"

#include <iterator>

int main(int, char** words) {
    std::ifstream file(words[1]);
    const Contract contract(std::string(std::istreambuf_iterator<char>(file), {}));
    const Picture input = preprocess(read_ppm(words[2]), contract);
    std::ofstream(words[3], std::ios::binary)
        .write(reinterpret_cast<const char*>(input.pixels.data()), std::streamsize(input.pixels.size()));
}
