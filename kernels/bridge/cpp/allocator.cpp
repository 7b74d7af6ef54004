// Memory for CPU tensors that is used again.
//
// The C library gives large blocks back to the system as soon as they are freed, and the system hands out fresh ones
// a page at a time, each cleared at its first touch: a training step that makes the same few hundred megabytes again
// and again spends a good part of its time there. Here a freed block of 256 KiB or more waits in a list for the next
// tensor of its size class (eight classes to every doubling, so at most an eighth is wasted). What waits is bounded
// by what was in use at once, and is given back when the system refuses more.
//
//   block:  | header, 64 bytes: size of the block, 0 for small ones | the tensor's bytes ... |

#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "abi.h"

namespace {

constexpr size_t kHeader = 64;
constexpr size_t kSmallest = 256 << 10;
constexpr size_t kHugePage = 2 << 20;
constexpr size_t kSpare = 256 << 20;

size_t size_class(size_t bytes) {
  size_t step = kSmallest / 8;
  while (step * 16 <= bytes) {
    step *= 2;
  }
  return (bytes + step - 1) / step * step;
}

class Pool {
 public:
  void* take(size_t bytes) {
    if (bytes < kSmallest) {
      return from_system(bytes);
    }
    const size_t size = size_class(bytes);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      in_use_ += size;
      peak_ = std::max(peak_, in_use_);
      auto found = waiting_.find(size);
      if (found != waiting_.end() && !found->second.empty()) {
        void* block = found->second.back();
        found->second.pop_back();
        waiting_bytes_ -= size;
        return block;
      }
      if (in_use_ + waiting_bytes_ > peak_ + peak_ / 4 + kSpare) {
        release_locked();
      }
    }
    void* block = from_system(size);
    if (block == nullptr) {
      release();
      block = from_system(size);
    }
    if (block == nullptr) {
      std::lock_guard<std::mutex> lock(mutex_);
      in_use_ -= size;
      return nullptr;
    }
    if (size >= 2 * kHugePage) {
      madvise(block, size / kHugePage * kHugePage, MADV_HUGEPAGE);
    }
    return block;
  }

  void give(void* block, size_t size) {
    if (size == 0) {
      std::free(block);
      return;
    }
    std::lock_guard<std::mutex> lock(mutex_);
    in_use_ -= size;
    waiting_bytes_ += size;
    waiting_[size].push_back(block);
  }

  void release() {
    std::lock_guard<std::mutex> lock(mutex_);
    release_locked();
  }

  size_t waiting() {
    std::lock_guard<std::mutex> lock(mutex_);
    return waiting_bytes_;
  }

 private:
  static void* from_system(size_t bytes) {
    void* block = nullptr;
    const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kHeader;
    return posix_memalign(&block, alignment, bytes) == 0 ? block : nullptr;
  }

  void release_locked() {
    for (auto& list : waiting_) {
      for (void* block : list.second) {
        std::free(block);
      }
      list.second.clear();
    }
    waiting_bytes_ = 0;
  }

  std::mutex mutex_;
  std::map<size_t, std::vector<void*>> waiting_;
  size_t waiting_bytes_ = 0;
  size_t in_use_ = 0;
  size_t peak_ = 0;
};

// Never destroyed: tensors may outlive every static object.
Pool& pool() {
  static Pool* instance = new Pool();
  return *instance;
}

void give_back(void* data) {
  if (data != nullptr) {
    char* block = static_cast<char*>(data) - kHeader;
    pool().give(block, *reinterpret_cast<size_t*>(block));
  }
}

class PoolAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device device(c10::DeviceType::CPU);
    if (bytes == 0) {
      return {nullptr, nullptr, &give_back, device};
    }
    const size_t total = bytes + kHeader;
    char* block = static_cast<char*>(pool().take(total));
    TORCH_CHECK(block != nullptr, "not enough memory: could not get ", bytes, " bytes for a tensor");
    *reinterpret_cast<size_t*>(block) = total < kSmallest ? 0 : size_class(total);
    void* data = block + kHeader;
    return {data, data, &give_back, device};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

  void copy_data(void* destination, const void* source, std::size_t count) const override {
    default_copy_data(destination, source, count);
  }
};

}  // namespace

extern "C" {

// From now on CPU tensors come from the pool; those that exist keep their memory. Calling again changes nothing.
char* xlstm_runtime_pool_memory() {
  return xlstm::guarded([] {
    static PoolAllocator allocator;
    c10::SetCPUAllocator(&allocator, 100);
  });
}

void xlstm_runtime_release_memory() { pool().release(); }

size_t xlstm_runtime_waiting_memory() { return pool().waiting(); }

}  // extern "C"
