#include "model.hpp"

#include <cmath>

namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text = "[";
    for (int64_t side : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(side);
    return text + "]";
}

}  // namespace

Model::Model(const std::string& path, int threads) {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(threads);
    options.AddConfigEntry("session.x64quantprecision", "1");  // int8: exact sums without VNNI, which costs speed with it
    session_ = Ort::Session(env_, path.c_str(), options);
    read_card();
    require_contract();
}

void Model::read_card() {
    Ort::AllocatorWithDefaultOptions allocator;
    auto text = session_.GetModelMetadata().LookupCustomMetadataMapAllocated("fundus_rt.card", allocator);
    if (!text) throw std::runtime_error("the file carries no model card (fundus_rt.card): it was not written by fundus-rt");
    card_ = Json::parse(text.get());
    height_ = card_.at("preprocessing").at("input_size").at(0);
    width_ = card_.at("preprocessing").at("input_size").at(1);
    for (const Json& output : card_.at("outputs")) names_.push_back(output.at("name"));
    names_.push_back("receipt");
}

void Model::require_contract() {
    Ort::AllocatorWithDefaultOptions allocator;
    if (session_.GetInputCount() != 1 || std::string(session_.GetInputNameAllocated(0, allocator).get()) != "frames")
        throw std::runtime_error("expected one input, named frames");
    auto type = session_.GetInputTypeInfo(0);
    auto info = type.GetTensorTypeAndShapeInfo();
    if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8)
        throw std::runtime_error("the input is not uint8: this program is for models whose resize filter gives grey levels");
    const std::vector<int64_t> shape = info.GetShape();
    if (shape != std::vector<int64_t>{-1, height_, width_, 3})
        throw std::runtime_error("the input is " + shape_text(shape) + ", its card says [-1, " + std::to_string(height_) + ", " +
                                 std::to_string(width_) + ", 3]");
    for (const std::string& wanted : names_) {
        bool found = false;
        for (size_t i = 0; i < session_.GetOutputCount(); i++)
            found = found || wanted == session_.GetOutputNameAllocated(i, allocator).get();
        if (!found) throw std::runtime_error("the output " + wanted + " is missing");
    }
}

Answers Model::run(const Pixels& frames, int64_t count) {
    if (frames.size() != static_cast<size_t>(count) * frame_size())
        throw std::invalid_argument("got " + std::to_string(frames.size()) + " bytes, expected " +
                                    std::to_string(static_cast<size_t>(count) * frame_size()) + ": BGR, rows without padding");
    const std::vector<int64_t> shape{count, height_, width_, 3};
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    // ONNX Runtime reads the buffer in place and does not write to it; nobody else may write to it before run() returns.
    auto input = Ort::Value::CreateTensor<uint8_t>(memory, const_cast<uint8_t*>(frames.data()), frames.size(), shape.data(), 4);
    const char* input_name = "frames";
    std::vector<const char*> wanted;
    for (const std::string& name : names_) wanted.push_back(name.c_str());
    auto values = session_.Run(Ort::RunOptions{nullptr}, &input_name, &input, 1, wanted.data(), wanted.size());

    Answers answers;
    for (size_t i = 0; i < values.size(); i++) {
        const size_t total = values[i].GetTensorTypeAndShapeInfo().GetElementCount();
        const size_t columns = total / static_cast<size_t>(count);
        const float* numbers = values[i].GetTensorData<float>();
        for (size_t k = 0; k < total; k++)
            if (!std::isfinite(numbers[k])) throw Stopped("the output " + names_[i] + " holds a number that is not finite");
        for (int64_t n = 0; n < count; n++) answers[names_[i]].emplace_back(numbers + n * columns, numbers + (n + 1) * columns);
    }
    require_receipt(frames, answers.at("receipt"));
    answers.erase("receipt");
    return answers;
}

void Model::require_receipt(const Pixels& frames, const Rows& receipt) const {
    const uint8_t* pixel = frames.data();
    for (const std::vector<float>& of_picture : receipt) {
        if (of_picture.size() != static_cast<size_t>(height_)) throw Stopped("the receipt has another size than the picture");
        for (float told : of_picture) {
            int64_t sum = 0;
            for (int64_t k = 0; k < width_ * 3; k++) sum += *pixel++;
            if (static_cast<float>(sum) != told) throw Stopped("the receipt is that of another picture: nothing of the answer was used");
        }
    }
}

bool Model::check_canary() {
    const Json& canary = card_.at("canary");
    if (canary.value("drawing", 0) != 1) return false;
    for (bool exchanged : {false, true}) {
        Pixels both;
        for (int place : {0, 1}) draw(canary.at("pictures").at(exchanged ? 1 - place : place), height_, width_, both);
        Answers answered = run(both, 2);
        for (const auto& [name, known] : canary.at("answers").items()) {
            Rows& rows = answered.at(name);
            if (exchanged) std::swap(rows[0], rows[1]);
            if (!answers_hold(known.get<Rows>(), rows)) throw Stopped(name + " does not give the known answers to the drawn pictures");
        }
    }
    return true;
}
