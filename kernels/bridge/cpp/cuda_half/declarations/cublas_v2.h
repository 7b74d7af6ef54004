// See nccl.h: libtorch's headers name these types, and the bridge uses none of them.
#pragma once

typedef struct cublasContext* cublasHandle_t;
typedef int cublasStatus_t;
