// The cross-attention of a decoder layer, in C++, compared with a test vector of refseq2seq.
//
//     refseq2seq vectors make VECTORS --family x_transformers --cases 1
//     c++ -std=c++20 -O2 -o attention docs/examples/attention.cpp
//     ./attention VECTORS/x_transformers-00-ordinary THEIRS/x_transformers-00-ordinary
//     refseq2seq vectors check VECTORS THEIRS

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fs = std::filesystem;
const std::string LAYER = "decoder.layers.0.cross_attention.";

struct Array {
    std::vector<size_t> shape;
    std::vector<double> x;
};

// A file: a length of 8 bytes, a JSON header of that length, the bytes of the arrays.
class Safetensors {
    std::string header, data;

  public:
    explicit Safetensors(const fs::path &path) {
        std::ifstream file(path, std::ios::binary);
        std::string bytes(std::istreambuf_iterator<char>(file), {});
        if (bytes.size() < 8) throw std::runtime_error("cannot read " + path.string());
        uint64_t n;
        std::memcpy(&n, bytes.data(), 8);  // assumes a little-endian machine
        header = bytes.substr(8, n);
        data = bytes.substr(8 + n);
    }

    Array array(const std::string &name) const {
        size_t at = header.find("\"" + name + "\":{");
        if (at == std::string::npos) throw std::runtime_error("no array " + name);
        bool boolean = header.compare(header.find("\"dtype\":", at) + 9, 4, "BOOL") == 0;
        Array a{numbers("\"shape\":[", at), {}};
        std::vector<size_t> place = numbers("\"data_offsets\":[", at);
        const char *begin = data.data() + place[0];
        a.x.resize(boolean ? place[1] - place[0] : (place[1] - place[0]) / 8);
        if (boolean) std::copy_n(begin, a.x.size(), a.x.begin());
        else std::memcpy(a.x.data(), begin, place[1] - place[0]);
        return a;
    }

  private:
    std::vector<size_t> numbers(const std::string &key, size_t at) const {
        std::vector<size_t> found;
        for (at = header.find(key, at) + key.size() - 1; header[at] != ']';) {
            size_t length;
            found.push_back(std::stoull(header.substr(++at), &length));
            at += length;
        }
        return found;
    }
};

void write(const fs::path &path, const std::vector<std::pair<std::string, Array>> &arrays) {
    std::string header, data;
    for (const auto &[name, a] : arrays) {
        std::string shape;
        for (size_t n : a.shape) shape += (shape.empty() ? "" : ",") + std::to_string(n);
        size_t begin = data.size();
        data.append(reinterpret_cast<const char *>(a.x.data()), 8 * a.x.size());
        header += (header.empty() ? "{" : ",") + ("\"" + name) + "\":{\"dtype\":\"F64\",\"shape\":["
            + shape + "],\"data_offsets\":[" + std::to_string(begin) + ","
            + std::to_string(data.size()) + "]}";
    }
    header += "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    uint64_t n = header.size();
    fs::create_directories(path.parent_path());
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char *>(&n), 8) << header << data;
}

// softmax(q k^T / sqrt(d_k)) v for each row and head; masked keys have the weight 0.
void attention(const Array &q, const Array &k, const Array &v, const Array &mask, Array &scores,
               Array &weights, Array &heads) {
    size_t batch = q.shape[0], n_heads = q.shape[1], n_q = q.shape[2], d_k = q.shape[3];
    size_t n_k = k.shape[2], d_v = v.shape[3];
    scores = weights = {{batch, n_heads, n_q, n_k}, std::vector<double>(batch * n_heads * n_q * n_k)};
    heads = {{batch, n_heads, n_q, d_v}, std::vector<double>(batch * n_heads * n_q * d_v)};
    for (size_t bh = 0; bh < batch * n_heads; bh++)
        for (size_t i = 0; i < n_q; i++) {
            double *s = &scores.x[(bh * n_q + i) * n_k], *w = &weights.x[(bh * n_q + i) * n_k];
            const double *may = &mask.x[bh / n_heads * n_k];
            double greatest = -std::numeric_limits<double>::infinity(), sum = 0;
            for (size_t j = 0; j < n_k; j++) {
                for (size_t d = 0; d < d_k; d++)
                    s[j] += q.x[(bh * n_q + i) * d_k + d] * k.x[(bh * n_k + j) * d_k + d];
                s[j] /= std::sqrt(double(d_k));
                if (may[j]) greatest = std::max(greatest, s[j]);
            }
            for (size_t j = 0; j < n_k; j++) sum += w[j] = may[j] ? std::exp(s[j] - greatest) : 0;
            for (size_t j = 0; j < n_k; j++) w[j] /= sum;
            for (size_t d = 0; d < d_v; d++)
                for (size_t j = 0; j < n_k; j++)
                    heads.x[(bh * n_q + i) * d_v + d] += w[j] * v.x[(bh * n_k + j) * d_v + d];
        }
}

int main(int, char **arguments) {
    fs::path ours = arguments[1], theirs = arguments[2];
    Safetensors forward(ours / "forward.safetensors"), inputs(ours / "inputs.safetensors");
    Array scores, weights, heads;
    attention(forward.array(LAYER + "q"), forward.array(LAYER + "k"), forward.array(LAYER + "v"),
              inputs.array("source_mask"), scores, weights, heads);
    write(theirs / "forward.safetensors",
          {{LAYER + "scores", scores}, {LAYER + "weights", weights}, {LAYER + "heads", heads}});
    std::cout << "wrote " << scores.x.size() + weights.x.size() + heads.x.size() << " numbers\n";
}
