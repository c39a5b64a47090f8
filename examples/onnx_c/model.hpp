// A model file of fundus-rt on ONNX Runtime: the card in its metadata, its input checked, every answer's receipt checked.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

using Json = nlohmann::json;
using Pixels = std::vector<uint8_t>;                                // [N, height, width, 3], BGR
using Rows = std::vector<std::vector<float>>;                       // [N][columns]
using Answers = std::map<std::string, Rows>;                        // by name of the output, as the network gives them

// What computes cannot be trusted: nothing more may be answered until the model is opened again.
struct Stopped : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Model {
  public:
    // Opens the file; throws std::runtime_error where it is no model of fundus-rt or takes something else than uint8 frames.
    explicit Model(const std::string& path, int threads = 1);

    // Answers `count` pictures that lie one behind the other; throws Stopped where the receipt is that of other pictures.
    Answers run(const Pixels& frames, int64_t count);

    // Asks for the two drawn pictures of the card, in both orders; throws Stopped where the answers are not the known ones.
    // False where the card has no such pictures that this program can draw.
    bool check_canary();

    const Json& card() const { return card_; }
    int64_t height() const { return height_; }
    int64_t width() const { return width_; }
    size_t frame_size() const { return static_cast<size_t>(height_ * width_ * 3); }

  private:
    void read_card();
    void require_contract();
    void require_receipt(const Pixels& frames, const Rows& receipt) const;

    Ort::Env env_{ORT_LOGGING_LEVEL_WARNING, "fundus"};
    Ort::Session session_{nullptr};
    Json card_;
    int64_t height_ = 0, width_ = 0;
    std::vector<std::string> names_;                                // of the outputs that are asked for; the receipt is the last
};

// One of four drawn pictures, written behind the pixels that are there (canary.cpp).
void draw(int which, int64_t height, int64_t width, Pixels& out);

// Whether an output's answers to the two pictures are the known ones (canary.cpp).
bool answers_hold(const Rows& known, const Rows& answered);

// What one output's numbers say: value, decision, probabilities by label (meaning.cpp).
Json meaning(const Json& output, const std::vector<float>& numbers);
