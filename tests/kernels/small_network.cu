// The network of small_models.convolution as CUDA kernels: convolution 3x3 (8 -> 16) with ReLU, mean over
// the image, linear layer (16 -> 10); all FP32. NVRTC compiles it for a GPU, host.cpp for the processor.
// Each thread makes one value of the output and stops where there is none for it.

static const int INPUTS = 8, FEATURES = 16, OUTPUTS = 10;

// x (images, 8, height, width), weights (16, 8, 3, 3) -> features (images, 16, height, width)
extern "C" __global__ void convolve(const float *x, const float *weights, float *features, int images,
                                    int height, int width) {
    int at = blockIdx.x * blockDim.x + threadIdx.x, size = height * width;
    if (at >= images * FEATURES * size) return;
    int column = at % width, row = at / width % height, feature = at / size % FEATURES;
    const float *image = x + at / (FEATURES * size) * INPUTS * size;
    float sum = 0;
    for (int input = 0; input < INPUTS; input++)
        for (int down = -1; down <= 1; down++)
            for (int right = -1; right <= 1; right++) {
                int i = row + down, j = column + right;
                if (i < 0 || i >= height || j < 0 || j >= width) continue;
                float weight = weights[((feature * INPUTS + input) * 3 + down + 1) * 3 + right + 1];
                sum += image[input * size + i * width + j] * weight;
            }
    features[at] = sum > 0 ? sum : 0;
}

// features (images, 16, size) -> means (images, 16)
extern "C" __global__ void pool(const float *features, float *means, int images, int size) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= images * FEATURES) return;
    float sum = 0;
    for (int i = 0; i < size; i++) sum += features[at * size + i];
    means[at] = sum / size;
}

// means (images, 16), weights (10, 16) -> y (images, 10)
extern "C" __global__ void linear(const float *means, const float *weights, float *y, int images) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= images * OUTPUTS) return;
    float sum = 0;
    for (int i = 0; i < FEATURES; i++)
        sum += means[at / OUTPUTS * FEATURES + i] * weights[at % OUTPUTS * FEATURES + i];
    y[at] = sum;
}

// Waits for a number of clock cycles; writes how long that took by the GPU's own timer, in ns.
// The processor has no such cycles: there they are nanoseconds.
extern "C" __global__ void spin(long long cycles, long long *elapsed_ns) {
    long long begun_ns = timer_ns(), begun = clock_cycles();
    while (clock_cycles() - begun < cycles) continue;
    if (elapsed_ns) *elapsed_ns = timer_ns() - begun_ns;
}

// An illegal access: the fault that no later call of the process gets past.
extern "C" __global__ void fault(int *nowhere) { *nowhere = 1; }
