// The drawn pictures with known answers: docs/porting.md, section 8. Whole numbers only; >> of a negative number rounds down.
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "model.hpp"

namespace {

struct Look {
    int blue_green_red[3];
    int dc, dr, spots;
};

const Look LOOKS[4] = {
    {{40, 90, 190}, 420, -40, 0},
    {{20, 45, 120}, -420, 30, 0},
    {{100, 150, 225}, 380, 60, 3},
    {{10, 60, 160}, 0, 0, 14},
};

int64_t floor_divide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

uint8_t level(const Look& look, int64_t u, int64_t v, int k) {
    const int64_t q = u * u + v * v;
    if (q >= 1000000) return 0;
    const int64_t across = u - look.dc, down = v - look.dr, macula = u + look.dc / 4;
    int64_t p = (look.blue_green_red[k] * (256 - (q >> 14))) >> 8;
    if (macula * macula + v * v < 12000) p = (p * 5) >> 3;
    const int64_t arch = std::llabs(down) - 40 - ((across * across) >> 11);
    if (std::llabs(arch) < 22 || std::llabs(3 * std::llabs(down) - std::llabs(across)) < 14) p = (p * (4 + k)) >> 3;
    if (across * across + down * down < 22000) p = std::min<int64_t>(p + 90 - 20 * k, 255);
    if ((((u >> 5) * 37 + (v >> 5) * 91) & 255) < look.spots && q < 810000) {
        const int few[3] = {60, 70, 120}, many[3] = {110, 200, 230};
        p = look.spots < 10 ? few[k] : many[k];
    }
    return static_cast<uint8_t>(p);
}

}  // namespace

void draw(int which, int64_t height, int64_t width, Pixels& out) {
    const Look& look = LOOKS[which & 3];
    for (int64_t row = 0; row < height; row++) {
        const int64_t v = floor_divide((2 * row + 1 - height) * 1024, height);
        for (int64_t column = 0; column < width; column++) {
            const int64_t u = floor_divide((2 * column + 1 - width) * 1024, width);
            for (int k = 0; k < 3; k++) out.push_back(level(look, u, v, k));
        }
    }
}

bool answers_hold(const Rows& known, const Rows& answered) {
    if (known.size() != 2 || answered.size() != 2) return false;
    double apart = 0, largest = 0, off = 0;
    for (size_t k = 0; k < known[0].size(); k++) {
        apart = std::max(apart, std::fabs(double(known[0][k]) - known[1][k]));
        for (size_t n = 0; n < 2; n++) {
            if (answered[n].size() != known[n].size()) return false;
            largest = std::max(largest, std::fabs(double(known[n][k])));
            off = std::max(off, std::fabs(double(answered[n][k]) - known[n][k]));
        }
    }
    return off <= std::max(0.1 * apart, 0.002 * largest);
}
