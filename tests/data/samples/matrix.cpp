#include <algorithm>
#include <stdexcept>
#include <vector>

namespace linear {

template <typename T>
class Matrix {
public:
    Matrix(std::size_t rows, std::size_t columns) : rows_(rows), columns_(columns), cells_(rows * columns) {}

    T &at(std::size_t row, std::size_t column) {
        if (row >= rows_ || column >= columns_) {
            throw std::out_of_range("no such cell");
        }
        return cells_[row * columns_ + column];
    }

    T largest() const { return *std::max_element(cells_.begin(), cells_.end()); }

private:
    std::size_t rows_;
    std::size_t columns_;
    std::vector<T> cells_;
};

inline double mean(const std::vector<double> &values) {
    double sum = 0.0;
    for (const auto &value : values) {
        sum += value;
    }
    auto divide = [sum](std::size_t count) { return count ? sum / static_cast<double>(count) : 0.0; };
    return divide(values.size());
}

}  // namespace linear
