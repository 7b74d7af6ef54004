// Included by libtorch's headers for code of NVIDIA's compiler; a plain C++ compiler needs nothing of it.
#pragma once
