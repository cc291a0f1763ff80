// What autograd and autocast ask about CUDA where torch is built without it: there is one device, cuda:0, with one stream.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

using namespace c10;

struct EmulatedGuard : public impl::DeviceGuardImplInterface {
  const Device gpu{DeviceType::CUDA, 0};
  const Stream stream{Stream::DEFAULT, gpu};

  DeviceType type() const override { return DeviceType::CUDA; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  Device getDevice() const override { return gpu; }
  Device exchangeDevice(Device) const override { return gpu; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const override { return stream; }
  Stream exchangeStream(Stream) const override { return stream; }
};

C10_REGISTER_GUARD_IMPL(CUDA, EmulatedGuard)

struct EmulatedHooks : public at::CUDAHooksInterface {
  explicit EmulatedHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex getCurrentDevice() const override { return 0; }
};

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, EmulatedHooks)
}
