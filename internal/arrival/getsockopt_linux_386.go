package arrival

// sysGetsockopt is missing in package syscall, which goes by socketcall. Linux has
// it since 4.3.
const sysGetsockopt = 365
