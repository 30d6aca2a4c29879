//go:build !386

package arrival

import "syscall"

const sysGetsockopt = syscall.SYS_GETSOCKOPT
