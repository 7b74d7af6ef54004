// See nccl.h: libtorch's headers name these types, and the bridge uses none of them.
#pragma once

typedef struct cusolverDnContext* cusolverDnHandle_t;
