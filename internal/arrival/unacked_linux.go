package arrival

import (
	"crypto/tls"
	"net"
	"sync"
	"syscall"
	"unsafe"
)

// A look asks the kernel whether the other end has acknowledged what was
// written to a connection.
type look struct {
	tcp   *net.TCPConn
	http2 bool // others write to tcp, too

	raw syscall.RawConn // of tcp; nil: not asked yet

	// All is acknowledged that was written before mark was called, once so many
	// bytes are. Zero: it is not known.
	bytes uint64
}

// newLook returns a look at what was written to conn. It reports whether conn is
// a TCP connection, or TLS directly over one. Any other may have buffers of its
// own.
func newLook(conn net.Conn) (l look, ok bool) {
	switch conn := conn.(type) {
	case *net.TCPConn:
		l.tcp = conn
	case *tls.Conn:
		l.tcp, _ = conn.NetConn().(*net.TCPConn)
		l.http2 = l.tcp != nil && conn.ConnectionState().NegotiatedProtocol == "h2"
	}
	return l, l.tcp != nil
}

// shared reports whether others may write to the connection.
func (l *look) shared() bool { return l.http2 }

// mark restricts l to what was written up to now. It must not be used for
// HTTP/1.1, where a request counts as written before the last flush of up to
// 4 KiB; in HTTP/2 it does so after it.
func (l *look) mark() answer {
	k := kernels.Get().(*kernel)
	defer kernels.Put(k)
	a := l.read(k)
	if a == notYet && k.informed {
		// The queue was read first: bytes acknowledged in between count twice,
		// which errs on the safe side.
		l.bytes = uint64(k.queued) + k.info.bytesAcked
	}
	return a
}

// ask asks the kernel.
func (l *look) ask() answer {
	k := kernels.Get().(*kernel)
	defer kernels.Put(k)
	switch a := l.read(k); {
	case a != notYet:
		return a
	case k.queued == 0 && k.info.State != synSent,
		l.bytes > 0 && k.informed && k.info.bytesAcked >= l.bytes:
		return acked
	}
	return notYet
}

// read has k read what the kernel says. It returns notYet, or why that is
// nothing.
func (l *look) read(k *kernel) answer {
	read := k.again
	if l.raw == nil {
		raw, err := l.tcp.SyscallConn()
		if err != nil {
			return gone
		}
		l.raw, read = raw, k.first
	}
	if l.raw.Control(read) != nil {
		return gone
	}
	if k.err != nil {
		return unknown
	}
	return notYet
}

// A kernel is what the kernel says of one connection. It is used again for the
// next, so that to look costs no allocation.
type kernel struct {
	first, again func(fd uintptr) // fill in the rest

	err      error
	queued   int32 // bytes that are not acknowledged
	informed bool  // info is complete
	info     tcpInfo
}

// tcpInfo is the kernel's tcp_info up to what is used here, there since
// Linux 4.1.
type tcpInfo struct {
	syscall.TCPInfo
	pacingRate, maxPacingRate uint64
	bytesAcked                uint64
}

// synSent is a tcpInfo.State. The kernel says that nothing is queued then, even if a
// fast open has taken bytes.
const synSent = 2

var kernels = sync.Pool{New: func() any {
	k := new(kernel)
	k.first, k.again = k.check, k.look
	return k
}}

// check is look for a connection not seen before. It must be plain TCP: the bytes
// of an MPTCP socket are on several connections.
func (k *kernel) check(fd uintptr) {
	protocol, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_PROTOCOL)
	switch {
	case err != nil:
		k.err = err
	case protocol != syscall.IPPROTO_TCP:
		k.err = syscall.EPROTONOSUPPORT
	default:
		k.look(fd)
	}
}

func (k *kernel) look(fd uintptr) {
	k.err, k.informed = nil, false
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&k.queued)))
	if errno != 0 {
		k.err = errno
		return
	}
	size := uint32(unsafe.Sizeof(k.info))
	_, _, errno = syscall.Syscall6(sysGetsockopt, fd, syscall.IPPROTO_TCP, syscall.TCP_INFO,
		uintptr(unsafe.Pointer(&k.info)), uintptr(unsafe.Pointer(&size)), 0)
	k.informed = errno == 0 && uintptr(size) == unsafe.Sizeof(k.info)
	if errno != 0 {
		k.info.State = 0
	}
}
