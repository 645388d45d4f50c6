/* Check a layer norm and a linear map against a test vector of refseq2seq, bit for bit.

       refseq2seq vectors make VECTORS --family x_transformers --cases 1
       cc -std=c11 -O2 -ffp-contract=off -o layer_norm docs/vectors/layer_norm.c -lm
       ./layer_norm VECTORS/x_transformers-00-ordinary

   The program needs the C library only. It adds the terms of a sum in the order of the index,
   and the compiler fuses no product with a sum (-ffp-contract=off), so every bit is the same
   as in the vector. */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EPS 1e-5 /* encoder.norm.eps in config.json */

typedef struct {
    size_t rows, width; /* all axes but the last, and the last */
    double *x;
} Array;

static void fail(const char *what, const char *name) {
    fprintf(stderr, "%s: %s\n", what, name);
    exit(2);
}

/* The whole file CASE/NAME.safetensors. */
static unsigned char *contents(const char *folder, const char *name, size_t *size) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.safetensors", folder, name);
    FILE *file = fopen(path, "rb");
    if (!file) fail("cannot open", path);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    unsigned char *bytes = malloc(*size + 1);
    if (!bytes || fread(bytes, 1, *size, file) != *size) fail("cannot read", path);
    fclose(file);
    return bytes;
}

static uint64_t little_endian(const unsigned char *bytes) {
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--) value = value << 8 | bytes[i];
    return value;
}

/* One array of the file. The header is written without spaces, and its keys in this order. */
static Array array(const char *folder, const char *file, const char *name) {
    size_t size, begin, end, total = 1, width = 1;
    unsigned char *bytes = contents(folder, file, &size);
    uint64_t n = size < 8 ? UINT64_MAX : little_endian(bytes);
    if (size < 8 || n > size - 8) fail("cut off", file);
    char *header = calloc(1, n + 1), key[512];
    memcpy(header, bytes + 8, n);
    snprintf(key, sizeof key, "\"%s\":{\"dtype\":\"F64\",\"shape\":[", name);
    char *at = strstr(header, key);
    if (!at) fail("no float64 array", name);
    for (at += strlen(key); *at != ']'; at += *at == ',') {
        width = strtoul(at, &at, 10);
        total *= width;
    }
    if (sscanf(at, "],\"data_offsets\":[%zu,%zu]", &begin, &end) != 2 || end - begin != 8 * total
        || end > size - 8 - n)
        fail("cut off", name);
    double *x = malloc(8 * total);
    for (size_t i = 0; i < total; i++) {
        uint64_t bits = little_endian(bytes + 8 + n + begin + 8 * i);
        memcpy(x + i, &bits, 8);
    }
    free(header);
    free(bytes);
    return (Array){.rows = total / width, .width = width, .x = x};
}

/* (x - mean) / sqrt(variance + eps) * gain; the variance is the mean square of x - mean. */
static void layer_norm(const double *x, const double *gain, size_t d, double *y) {
    double sum = x[0];
    for (size_t i = 1; i < d; i++) sum += x[i];
    double mean = sum / (double)d, squares = (x[0] - mean) * (x[0] - mean);
    for (size_t i = 1; i < d; i++) squares += (x[i] - mean) * (x[i] - mean);
    double deviation = sqrt(squares / (double)d + EPS);
    for (size_t i = 0; i < d; i++) y[i] = (x[i] - mean) / deviation * gain[i];
}

/* x W + b; matrices are (d_in, d_out). */
static void linear(const double *x, const Array *w, const Array *b, double *y) {
    for (size_t j = 0; j < w->width; j++) {
        double sum = 0;
        for (size_t k = 0; k < w->rows; k++) sum += x[k] * w->x[k * w->width + j];
        y[j] = sum + b->x[j];
    }
}

static int same_bits(const char *what, const double *ours, const Array *expected) {
    size_t n = expected->rows * expected->width;
    for (size_t i = 0; i < n; i++)
        if (memcmp(ours + i, expected->x + i, 8)) {
            printf("%s: row %zu, column %zu: %.17g, expected %.17g\n", what, i / expected->width,
                   i % expected->width, ours[i], expected->x[i]);
            return 0;
        }
    printf("%s: OK, %zu numbers, the same bits\n", what, n);
    return 1;
}

int main(int count, char **arguments) {
    if (count != 2) fail("usage", "layer_norm CASE");
    const char *folder = arguments[1];
    Array x = array(folder, "forward", "encoder.embed");
    Array gain = array(folder, "weights", "encoder.layers.0.self_norms.before.gain");
    Array normed = array(folder, "forward", "encoder.layers.0.self_attention.input");
    Array h = array(folder, "forward", "encoder.layers.0.feed_forward.input");
    Array w = array(folder, "weights", "encoder.layers.0.feed_forward.w_in");
    Array b = array(folder, "weights", "encoder.layers.0.feed_forward.b_in");
    Array projected = array(folder, "forward", "encoder.layers.0.feed_forward.projected");
    if (x.width != gain.width || x.rows != normed.rows || h.width != w.rows || h.rows != x.rows)
        fail("shapes do not fit", folder);

    double *y = malloc(8 * x.rows * x.width), *z = malloc(8 * h.rows * w.width);
    for (size_t i = 0; i < x.rows; i++) {
        layer_norm(x.x + i * x.width, gain.x, x.width, y + i * x.width);
        linear(h.x + i * h.width, &w, &b, z + i * w.width);
    }
    int good = same_bits("layer norm", y, &normed) & same_bits("linear", z, &projected);
    return good ? 0 : 1;
}
