// The parts of a CUDA device that PyTorch asks of C++ before any kernel runs: device and stream
// guard, hooks, random generator. None does anything. Versions of PyTorch differ: no `override`.
#include <ATen/EmptyTensor.h>
#include <ATen/core/Generator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/GeneratorImpl.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstdint>
#include <cstring>

namespace {

const c10::Device cuda0(c10::DeviceType::CUDA, 0);
const c10::Stream stream0(c10::Stream::DEFAULT, cuda0);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device exchangeDevice(c10::Device) const { return cuda0; }
  c10::Device getDevice() const { return cuda0; }
  c10::Stream getStream(c10::Device) const noexcept { return stream0; }
  c10::Stream getNewStream(c10::Device, int) const { return stream0; }
  c10::Stream exchangeStream(c10::Stream) const noexcept { return stream0; }
  c10::DeviceIndex deviceCount() const noexcept { return 1; }
};

// Keeps its seed and its offset, so that states can be saved, restored and compared. Draws nothing.
struct Generator final : c10::GeneratorImpl {
  uint64_t state[2] = {0, 0};
  Generator() : c10::GeneratorImpl(cuda0, c10::DispatchKeySet(c10::DispatchKey::CUDA)) {}
  void set_current_seed(uint64_t seed) { state[0] = seed, state[1] = 0; }
  void set_offset(uint64_t offset) { state[1] = offset; }
  uint64_t get_offset() const { return state[1]; }
  uint64_t current_seed() const { return state[0]; }
  uint64_t seed() { return set_current_seed(1), 1; }
  void set_state(const c10::TensorImpl& saved) {
    const bool bytes = saved.dtype() == caffe2::TypeMeta::Make<uint8_t>();
    TORCH_CHECK(saved.device().is_cpu() && bytes, "RNG state must be a torch.ByteTensor");
    TORCH_CHECK(saved.numel() == sizeof(state), "RNG state is wrong size");
    std::memcpy(state, saved.data(), sizeof(state));
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const {
    auto saved = at::detail::empty_cpu({sizeof(state)}, at::kByte);
    std::memcpy(saved.mutable_data_ptr(), state, sizeof(state));
    return saved.getIntrusivePtr();
  }
  Generator* clone_impl() const {
    auto copy = new Generator();
    std::memcpy(copy->state, state, sizeof(state));
    return copy;
  }
};

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const {}
  bool isBuilt() const { return true; }
  bool isAvailable() const { return true; }
  bool hasCUDA() const { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const { return true; }
  c10::DeviceIndex deviceCount() const { return 1; }
  c10::DeviceIndex getCurrentDevice() const { return 0; }
  at::Generator getNewGenerator(c10::DeviceIndex) const {
    return at::Generator(c10::make_intrusive<Generator>());
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const {
    static at::Generator generator(c10::make_intrusive<Generator>());
    return generator;
  }
};

c10::impl::DeviceGuardImplRegistrar guard(c10::DeviceType::CUDA, new Guard());

}  // namespace

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks)
}

extern "C" int fake_cuda_is_there() { return at::detail::getCUDAHooks().isBuilt(); }
