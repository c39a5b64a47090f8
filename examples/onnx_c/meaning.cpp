// From an output's numbers to an answer: docs/porting.md, section 7.
#include <algorithm>
#include <cmath>

#include "model.hpp"

namespace {

std::vector<double> activated(const std::string& activation, const std::vector<float>& numbers) {
    std::vector<double> shares(numbers.begin(), numbers.end());
    if (activation == "sigmoid") {
        for (double& x : shares) x = x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
    } else if (activation == "softmax") {
        const double most = *std::max_element(shares.begin(), shares.end());
        double sum = 0;
        for (double& x : shares) sum += x = std::exp(x - most);
        for (double& x : shares) x /= sum;
    } else if (activation != "none") {
        throw std::runtime_error("the card names the activation " + activation + ", which this program does not know");
    }
    return shares;
}

}  // namespace

Json meaning(const Json& output, const std::vector<float>& numbers) {
    const std::string task = output.at("task");
    if (task == "regression")
        return {{"value", numbers.at(0) * output.at("scale").get<double>() + output.at("offset").get<double>()},
                {"unit", output.at("unit")}};
    std::vector<double> shares = activated(output.at("activation"), numbers);
    if (task == "binary" && shares.size() == 1) shares.insert(shares.begin(), 1 - shares[0]);
    const std::vector<std::string> labels = output.at("labels");
    if (labels.size() != shares.size()) throw std::runtime_error("the card has another number of labels than the output columns");
    const bool given = !output.at("threshold").is_null();
    const double threshold = given ? output.at("threshold").get<double>() : 0.5;
    const size_t best = std::max_element(shares.begin(), shares.end()) - shares.begin();
    std::string decision;
    if (task == "binary") {
        decision = labels[shares[1] >= threshold];
    } else if (task == "multiclass") {
        decision = given && shares[best] < threshold ? "unknown" : labels[best];
    } else if (task == "multilabel") {
        for (size_t k = 0; k < labels.size(); k++)
            if (shares[k] >= threshold) decision += (decision.empty() ? "" : ", ") + labels[k];
        if (decision.empty()) decision = "none";
    } else {
        throw std::runtime_error("the card names the task " + task + ", which this program does not know");
    }
    Json found{{"decision", decision}, {"unit", output.at("unit")}};
    for (size_t k = 0; k < labels.size(); k++) found["probabilities"][labels[k]] = shares[k];
    return found;
}
