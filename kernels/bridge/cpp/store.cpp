// c10d's TCPStore: a small table of bytes that one process holds and all ranks of a run read and write.

#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <chrono>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include "abi.h"
#include "distributed.h"

using xlstm::StoreHandle;

namespace {

// c10d warns of every broken connection, with a stack trace; here each comes back as an error that says which rank is
// lost. TORCH_CPP_LOG_LEVEL brings the warnings back.
void quieten() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (std::getenv("TORCH_CPP_LOG_LEVEL") != nullptr) {
      c10::initLogging();
    } else {
      FLAGS_caffe2_log_level = c10::GLOG_FATAL;
    }
  });
}

}  // namespace

extern "C" {

// Opens the table at `host`:`port`, or, as `server`, makes it there (port 0: a free one). `prefix` goes before every
// key. Waits for a server as long as `timeout_ms`.
char* xlstm_store_open(const char* host, uint16_t port, int server, const char* prefix, int64_t timeout_ms,
                       StoreHandle** out_store, uint16_t* out_port) {
  return xlstm::guarded([&] {
    quieten();
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = server != 0;
    options.waitWorkers = false;
    options.timeout = std::chrono::milliseconds(timeout_ms);
    auto table = c10::make_intrusive<c10d::TCPStore>(host, options);
    *out_port = table->getPort();
    c10::intrusive_ptr<c10d::Store> store = table;
    if (prefix[0] != '\0') {
      store = c10::make_intrusive<c10d::PrefixStore>(prefix, store);
    }
    *out_store = new StoreHandle{std::move(store)};
  });
}

void xlstm_store_free(StoreHandle* store) { delete store; }

char* xlstm_store_set(const StoreHandle* store, const char* key, const uint8_t* bytes, size_t count) {
  return xlstm::guarded([&] { store->store->set(key, std::vector<uint8_t>(bytes, bytes + count)); });
}

// Waits for the key. The caller frees `out_bytes` with xlstm_bridge_free.
char* xlstm_store_get(const StoreHandle* store, const char* key, int64_t timeout_ms, char** out_bytes,
                      size_t* out_count) {
  return xlstm::guarded([&] {
    store->store->wait({key}, std::chrono::milliseconds(timeout_ms));
    const std::vector<uint8_t> found = store->store->get(key);
    *out_bytes = xlstm::copy_message(std::string(found.begin(), found.end()));
    *out_count = found.size();
  });
}

char* xlstm_store_has(const StoreHandle* store, const char* key, int* out_has) {
  return xlstm::guarded([&] { *out_has = store->store->check({key}) ? 1 : 0; });
}

char* xlstm_store_add(const StoreHandle* store, const char* key, int64_t amount, int64_t* out_sum) {
  return xlstm::guarded([&] { *out_sum = store->store->add(key, amount); });
}

}  // extern "C"
