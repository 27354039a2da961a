// native.c, compiled as C++.

#define DISPATCH_NAME "dispatch.native_cpp"
#define DISPATCH_INIT PyInit_native_cpp
#include "native.c"
