// c10d's TCPStore: a small table of bytes that one process holds and all ranks of a run read and write.

#include <arpa/inet.h>
#include <c10/util/Exception.h>
#include <c10/util/Logging.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
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

// A socket bound to `port` of the loopback interface; 0: a free one. c10d itself listens on all interfaces, and asks
// nobody who they are.
int bind_to_loopback(uint16_t port) {
  const int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  TORCH_CHECK(descriptor >= 0, "no socket: ", std::strerror(errno));
  const int yes = 1;
  setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(descriptor, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    const int error = errno;
    close(descriptor);
    TORCH_CHECK(false, "port ", port, " cannot be had: ", error == EADDRINUSE ? "EADDRINUSE, " : "",
                std::strerror(error));
  }
  return descriptor;
}

}  // namespace

extern "C" {

// Opens the table at `host`:`port`, or, as `server`, makes it on the loopback interface (port 0: a free one). `prefix`
// goes before every key. Waits for a server as long as `timeout_ms`.
char* xlstm_store_open(const char* host, uint16_t port, int server, const char* prefix, int64_t timeout_ms,
                       StoreHandle** out_store, uint16_t* out_port) {
  return xlstm::guarded([&] {
    quieten();
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = server != 0;
    options.waitWorkers = false;
    options.timeout = std::chrono::milliseconds(timeout_ms);
    if (options.isServer) {
      options.masterListenFd = bind_to_loopback(port);
    }
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
