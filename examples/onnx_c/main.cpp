// Answers raw network inputs (uint8, BGR, height x width x 3, rows without padding) with a model file of fundus-rt.
//
//     fundus_onnx MODEL.onnx [FRAMES.bgr ...]
//
// One JSON object a line: first what the model is, then each file's answer. Exit status 0: all answered; 1: not; 2: a wrong call.
#include <fstream>
#include <iostream>
#include <iterator>

#include "model.hpp"

namespace {

Pixels read(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    if (!stream) throw std::invalid_argument(path + " cannot be read");
    return Pixels(std::istreambuf_iterator<char>(stream), {});
}

Json about(const Model& model, bool canary) {
    const Json& card = model.card();
    return {{"model", card.at("name")},
            {"input", {{"height", model.height()}, {"width", model.width()}, {"order", "BGR"}, {"type", "uint8"}}},
            {"crop_mode", card.at("preprocessing").at("crop_mode")},
            {"interpolation", card.at("preprocessing").at("interpolation")},
            {"assumed", card.at("preprocessing").at("assumed")},
            {"laterality", card.at("laterality")},
            {"canary", canary ? "known answers given" : "none in the file"},
            {"intended_use", card.at("intended_use")}};
}

}  // namespace

int main(int count, char** words) {
    if (count < 2) {
        std::cerr << "usage: fundus_onnx MODEL.onnx [FRAMES.bgr ...]\n";
        return 2;
    }
    try {
        Model model(words[1]);
        std::cout << about(model, model.check_canary()).dump() << "\n";
        for (int i = 2; i < count; i++) {
            Answers answers = model.run(read(words[i]), 1);
            Json said{{"file", words[i]}};
            for (const Json& output : model.card().at("outputs")) {
                const std::string name = output.at("name");
                said["outputs"][name] = meaning(output, answers.at(name).at(0));
                said["outputs"][name]["numbers"] = answers.at(name).at(0);
            }
            std::cout << said.dump() << "\n";
        }
    } catch (const std::invalid_argument& error) {
        std::cerr << error.what() << "\n";
        return 2;
    } catch (const std::exception& error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
    return 0;
}
