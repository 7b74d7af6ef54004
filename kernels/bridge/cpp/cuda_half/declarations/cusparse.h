// See nccl.h: libtorch's headers name these types, and the bridge uses none of them.
#pragma once

typedef struct cusparseContext* cusparseHandle_t;
typedef int cusparseStatus_t;
