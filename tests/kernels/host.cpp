// The kernels for the processor, in the form in which the stand-in driver calls them: for a kernel k,
// host_k_sizes has the bytes of each parameter, with 0 at the end, and host_k runs the whole grid.
#include <array>
#include <chrono>
#include <cstddef>
#include <utility>

struct Dimensions { unsigned x, y, z; };
static thread_local Dimensions blockIdx, blockDim, threadIdx;
#define __global__

static long long timer_ns() {
    auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}
static long long clock_cycles() { return timer_ns(); }

#include "small_network.cu"

template <class... Types> constexpr std::array<size_t, sizeof...(Types) + 1> sizes_of(void (*)(Types...)) {
    return {sizeof(Types)..., 0};
}

// The kernel is a constant of the template, so that its calls are inlined.
template <auto kernel, class... Types, size_t... index>
void run_all(void (*)(Types...), void **values, const unsigned *grid, const unsigned *block,
             std::index_sequence<index...>) {
    blockDim = {block[0], block[1], block[2]};
    for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < block[0]; threadIdx.x++)
            kernel(*static_cast<Types *>(values[index])...);
}

template <auto kernel, class... Types>
void run(void (*signature)(Types...), void **values, const unsigned *grid, const unsigned *block) {
    run_all<kernel>(signature, values, grid, block, std::index_sequence_for<Types...>());
}

#define FOR_HOST(kernel)                                                                        \
    extern "C" { auto host_##kernel##_sizes = sizes_of(kernel); }                               \
    extern "C" void host_##kernel(void **values, const unsigned *grid, const unsigned *block) { \
        run<kernel>(kernel, values, grid, block);                                               \
    }

FOR_HOST(convolve)
FOR_HOST(pool)
FOR_HOST(linear)
FOR_HOST(spin)
