// Answers to what torch's C++ asks of CUDA: which cards there are, which of them is the current one, what they can do.
// shim.py builds and loads it. `stand_in` puts the answers in the place of torch's own, and takes them away again.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <new>

namespace {

constexpr c10::DeviceIndex CARDS = 2;
thread_local c10::DeviceIndex current = 0;

struct Guard : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device exchangeDevice(c10::Device next) const override {
    const auto before = getDevice();
    current = next.index();
    return before;
  }
  c10::Device getDevice() const override { return {c10::DeviceType::CUDA, current}; }
  void setDevice(c10::Device next) const override { current = next.index(); }
  void uncheckedSetDevice(c10::Device next) const noexcept override { current = next.index(); }
  c10::Stream getStream(c10::Device card) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, card); }
  c10::Stream getDefaultStream(c10::Device card) const override { return getStream(card); }
  c10::Stream exchangeStream(c10::Stream next) const noexcept override { return getStream(next.device()); }
  c10::DeviceIndex deviceCount() const noexcept override { return CARDS; }
};

struct Hooks : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex current_device() const override { return current; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  c10::DeviceIndex deviceCount() const override { return CARDS; }
  int getNumGPUs() const override { return CARDS; }
  bool compiledWithCuDNN() const override { return true; }
  bool hasCuDNN() const override { return true; }
  long versionCuDNN() const override { return 91200; }
  long versionRuntimeCuDNN() const override { return 91200; }
  bool supportsBFloat16ConvolutionWithCuDNNv8() const override { return true; }
  bool supportsDilatedConvolutionWithCuDNN() const override { return true; }
  bool supportsDepthwiseConvolutionWithCuDNN() const override { return true; }
};

static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface), "one takes the place of the other");

// As long as nobody stands in, this changes one thing: the first backward pass starts a thread for each card.
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

}  // namespace

extern "C" {

void stand_in(bool here) {
  // torch looks for its hooks once and keeps what it found, so the others are put where it keeps them.
  auto* kept = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
  if (here) {
    new (kept) Hooks();
  } else {
    new (kept) at::CUDAHooksInterface();
  }
}

int current_card() { return current; }

void make_current(int card) { current = static_cast<c10::DeviceIndex>(card); }
}
